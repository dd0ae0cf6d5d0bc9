"""The modelled world: nodes with the real `Schedule`, modelled providers, a queue, and a clock that jumps.

Deterministic: everything random comes from the scenario's seed, so the same scenario gives the same account.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from mta.model.site import MxHost, Site, site_key
from mta.simulation.backlog import Backlog, Errand, Place, append_times
from mta.simulation.books import Agenda, Books, Due
from mta.simulation.bottleneck import IN_QUEUE, Cause, suspended, why
from mta.simulation.dice import Dice
from mta.simulation.judge import Judge
from mta.simulation.node import CLOCK_START_S, DONE, GONE, IDLE, OPENED, Connection, Node
from mta.simulation.provider import Provider
from mta.simulation.reactions import TICK_S, Reactions
from mta.simulation.scenario import DeliveryModel, ProviderModel, Scenario
from mta.simulation.sharing import Book, Partner
from mta.simulation.tally import Row, Tally
from mta.traffic.actions import Bounds
from mta.traffic.egress import EgressChooser

CLAIM: Final = 4
STEP: Final = 5
EXPIRE: Final = 6
TIDY: Final = 7
APPEND: Final = 8
LOOK: Final = 9
DEAL: Final = 10

DEAL_S: Final = 1.0
CLAIM_AGAIN_S: Final = 0.25  # the memory was full
TIDY_S: Final = 60.0


class Result(NamedTuple):
    """What came of a simulation. Times are seconds since its start."""

    scenario: Scenario
    ended_s: float  # when the last outcome was, or the simulation ended
    undone: int  # recipients without a final outcome
    tally: Tally
    errands: list[Errand]
    providers: list[Provider]
    judge: Judge
    reactions: Reactions
    batches: int


class World:
    """Made of a scenario; `run` plays it to its end."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._dice = Dice(scenario.seed)
        self.agenda = Agenda()
        self.tally = Tally()
        self.books = Books(Backlog(self._dice), self.tally)
        self.judge = Judge(scenario.rules, scenario.starts_unix_s, Dice(scenario.seed + 1))
        self.providers: list[Provider] = []
        self.places: dict[str, Place] = {}
        self._by_provider: dict[str, list[Place]] = {}
        self._addresses = 0
        for model in scenario.providers:
            self._add_provider(model)
        pools = {pool.name: EgressChooser(pool) for pool in scenario.pools}
        self.reactions = Reactions(scenario.rules, pools, scenario.starts_unix_s)
        self.errands = [Errand(number, model, pools[model.pool]) for number, model in enumerate(scenario.deliveries, 1)]
        for errand in self.errands:
            counts = self.spread(errand.model)
            self.books.add(errand, counts)
            self._append_later(errand, counts)
        self.nodes = [self._node(number) for number in range(1, scenario.nodes + 1)]
        self._partners = self._partners_of(self.nodes)
        self.reactions.nodes = list(self.nodes)
        self.reactions.errands = self.errands
        self.reactions.places = list(self.places.values())
        self.reactions.begin(scenario.in_force)
        self._look_at_s = math.inf
        self._claim_at_s = math.inf
        self._claimer = 0
        self._deal_at_s = 0.0
        self.batches = 0

    # --- the world ------------------------------------------------------------------------------

    def _add_provider(self, model: ProviderModel) -> None:
        provider = Provider(model, self._dice)
        self.providers.append(provider)
        row = self.tally.add_row(model.name, model.sites)
        places = []
        if model.site is not None:
            self._by_provider[model.name] = [self._place(model.site, domain_of(model, 1), provider, row)]
            return
        for number in range(1, model.sites + 1):
            hosts = [
                MxHost(host.format(n=number), 10 * at, tuple(self._address() for _ in range(model.addresses)))
                for at, host in enumerate(model.hosts, 1)
            ]
            key = site_key([(host.preference, host.name) for host in hosts])
            if key in self.places:
                continue  # two providers may name one site: it is that of the first
            places.append(self._place(Site(key, tuple(hosts)), domain_of(model, number), provider, row))
        self._by_provider[model.name] = places

    def _place(self, site: Site, domain: str, provider: Provider, row: Row) -> Place:
        place = self.places[site.key] = Place(len(self.places), site, domain, provider, row)
        return place

    def _address(self) -> str:
        """Of 198.18.0.0/15, which is set apart for tests of this kind; nothing is ever sent there."""
        self._addresses += 1
        high, low = divmod(self._addresses, 65_536)
        return f"198.{18 + high}.{low // 256}.{low % 256}"

    def spread(self, model: DeliveryModel) -> list[tuple[Place, int]]:
        """Its recipients by place."""
        if model.counts:
            found = []
            for name, recipients in model.counts:
                of_provider = self._by_provider[name]
                falloff = next(one.falloff for one in self.scenario.providers if one.name == name)
                shares = [1.0 / number**falloff for number in range(1, len(of_provider) + 1)]
                found += list(zip(of_provider, apportion(recipients, shares), strict=True))
            return [(place, count) for place, count in found if count]
        chosen = [one for one in self.scenario.providers if not model.only or one.name in model.only]
        places: list[Place] = []
        weights: list[float] = []
        for provider in chosen:
            of_provider = self._by_provider[provider.name]
            parts = [1.0 / number**provider.falloff for number in range(1, len(of_provider) + 1)]
            places += of_provider
            weights += [provider.share * part / sum(parts) for part in parts]
        counts = apportion(model.recipients, weights)
        return [(place, count) for place, count in zip(places, counts, strict=True) if count]

    def _append_later(self, errand: Errand, counts: list[tuple[Place, int]]) -> None:
        """What is not appended at the start counts as waiting only from then on."""
        times = append_times(errand.model)
        if times[-1] <= 0.0:
            return
        for place, count in counts:
            place.row.ahead += count
        for at, at_s in enumerate(times):
            self.agenda.at(at_s, APPEND, (counts, at, len(times)))

    @staticmethod
    def _append(counts: list[tuple[Place, int]], at: int, pieces: int) -> None:
        for place, count in counts:
            place.row.ahead -= count * (at + 1) // pieces - count * at // pieces

    def _node(self, number: int) -> Node:
        model = self.scenario.node
        bounds = Bounds(
            batch_recipients=model.batch_recipients,
            sessions_per_child_max=model.sessions_max,
            ready_per_lane_max=model.ready_per_site_max,
            ready_max=model.ready_recipients_max,
        )
        node = Node(
            f"node-{number}",
            self.scenario.rules,
            bounds,
            model.children,
            self.places,
            self.agenda,
            self.books,
            self.judge,
            self.reactions,
            self.scenario.starts_unix_s,
            self._dice,
        )
        node.schedule.load_credits(self.scenario.credits_used, CLOCK_START_S)
        return node

    # --- time -----------------------------------------------------------------------------------

    def run(self) -> Result:
        """Until all is done, or the scenario's time is over."""
        agenda = self.agenda
        self._claim_by(min(model.start_s for model in self.scenario.deliveries))
        agenda.at(self.tally.next_s, STEP, None)
        agenda.at(TIDY_S, TIDY, None)
        for errand in self.errands:
            agenda.at(errand.valid_until_s, EXPIRE, errand)
        if len(self.nodes) > 1:
            self._deal()  # the first finds itself alone
            self._deal()
        awaited = [errand for errand in self.errands if errand.model.name in self.scenario.until]
        while self.books.undone and (not awaited or any(errand.waiting for errand in awaited)):
            if not self._advance():
                agenda.now_s = self.scenario.duration_s
                break
            while (due := agenda.pop_due()) is not None:
                self._happen_all(due)
            for node in self.nodes:
                if node.is_touched or node.next_due_s <= agenda.now_s:
                    node.pump()
            self._look_ahead()
        self._end_step()
        return Result(
            self.scenario,
            self.books.done_s if not self.books.undone else agenda.now_s,
            self.books.undone,
            self.tally,
            self.errands,
            self.providers,
            self.judge,
            self.reactions,
            self.batches,
        )

    def _advance(self) -> bool:
        """To the next moment at which something happens; False when that is after the end."""
        next_s = self.agenda.next_s()
        for node in self.nodes:
            next_s = min(next_s, node.next_due_s)
        if next_s > self.scenario.duration_s:
            return False
        self.agenda.now_s = max(self.agenda.now_s, next_s)
        return True

    def _look_ahead(self) -> None:
        """What this moment has brought about for later."""
        reactions = self.reactions
        look_at_s = self.agenda.now_s + TICK_S if reactions.wants_look else reactions.next_due_s
        if look_at_s < self._look_at_s:
            self._look_at_s = look_at_s
            self.agenda.at(look_at_s, LOOK, None)
        if self.books.back_at_s < math.inf:
            self._claim_by(self.books.back_at_s)
            self.books.back_at_s = math.inf

    def _happen_all(self, due: Due | None) -> None:
        while due is not None:
            self._happen(due.kind, due.what)
            due = due.then

    def _happen(self, kind: int, what: object) -> None:
        if kind == DONE:
            assert isinstance(what, Connection)
            self.batches += 1
            what.node.done(what)
        elif kind == OPENED:
            assert isinstance(what, Connection)
            what.node.opened(what)
        elif kind == IDLE:
            assert isinstance(what, Connection)
            what.node.idle(what)
        elif kind == GONE:
            assert isinstance(what, Connection)
            what.node.gone(what)
        elif kind == CLAIM:
            self._claim()
        elif kind == DEAL:
            self._deal()
        elif kind == LOOK:
            self._look()
        elif kind == APPEND:
            assert isinstance(what, tuple)
            self._append(what[0], what[1], what[2])
        elif kind == STEP:
            self._end_step()
            self.agenda.at(self.tally.next_s, STEP, None)
        elif kind == EXPIRE:
            assert isinstance(what, Errand)
            self._expire(what)
        else:
            for node in self.nodes:
                node.schedule.forget_empty(self.agenda.now_s + CLOCK_START_S)
            self.agenda.at(self.agenda.now_s + TIDY_S, TIDY, None)

    def _look(self) -> None:
        now_s = self.agenda.now_s
        if now_s >= self._look_at_s:  # else an earlier one came between
            self._look_at_s = math.inf
            self.reactions.look(now_s)

    def _claim_by(self, at_s: float) -> None:
        """There will be something to claim then."""
        if at_s < self._claim_at_s:
            self._claim_at_s = max(at_s, self.agenda.now_s)
            self.agenda.at(self._claim_at_s, CLAIM, None)

    def _claim(self) -> None:
        """Each node in turn takes what it has memory for."""
        now_s = self.agenda.now_s
        if now_s < self._claim_at_s:
            return  # an earlier one came between
        self._claim_at_s = math.inf
        backlog = self.books.backlog
        # A claim is at most so many parts; a node that has memory claims again and again.
        at_a_time = self.scenario.node.claim_parts_max * 256
        for _ in range(len(self.nodes)):
            self._claimer = (self._claimer + 1) % len(self.nodes)
            node = self.nodes[self._claimer]
            room = node.room
            least = min(at_a_time, self.scenario.node.ready_recipients_max // 8)
            if room >= max(1, least) and backlog.next_due_s() <= now_s:
                share = room if len(self.nodes) == 1 else min(room, max(at_a_time, room // len(self.nodes)))
                backlog.claim(share, now_s, node.put)
        next_s = backlog.next_due_s()
        if next_s < math.inf:
            self._claim_by(max(next_s, now_s + CLAIM_AGAIN_S))

    def _partners_of(self, nodes: list[Node]) -> list[Partner]:
        """Every node knows every egress."""
        if len(nodes) == 1:
            return []
        book = Book()
        ids = {egress.id for pool in self.scenario.pools for egress in pool.egresses}
        return [Partner(book, node.name, ids, node.schedule, CLOCK_START_S) for node in nodes]

    def _deal(self) -> None:
        now_s = self.agenda.now_s
        for node, partner in zip(self.nodes, self._partners, strict=True):
            partner.exchange(now_s, now_s + CLOCK_START_S)
            node.is_touched = True
        if now_s >= self._deal_at_s:
            self._deal_at_s = now_s + DEAL_S
            self.agenda.at(self._deal_at_s, DEAL, None)

    def _expire(self, errand: Errand) -> None:
        if errand.waiting:
            self.books.end(errand, self.agenda.now_s)
            for node in self.nodes:
                node.end(errand)

    # --- the account ----------------------------------------------------------------------------

    def _end_step(self) -> None:
        found: dict[Row, tuple[int, Cause]] = {}
        clock_s = self.agenda.now_s + CLOCK_START_S
        for node in self.nodes:
            unix_s = clock_s + node.unix_offset_s
            for lane in node.schedule.lanes:
                waiting = lane.ready.count
                if waiting:
                    row = self.places[lane.site.key].row
                    before = found.get(row)
                    # Of several sites of a provider the fullest speaks for it.
                    if before is None or waiting > before[0]:
                        found[row] = (waiting, why(lane, clock_s, unix_s, node.schedule.suspension))
        held = self._held_rows()
        causes: list[Cause | None] = []
        for row in self.tally.rows:
            cause = found.get(row)
            if cause is not None:
                causes.append(cause[1])
            else:
                causes.append(held.get(row, IN_QUEUE) if row.waiting else None)
        self.tally.end_step(causes)

    def _held_rows(self) -> dict[Row, Cause]:
        """What of errands is held back in the queue, and by what; those that are awaited speak first."""
        found: dict[Row, Cause] = {}
        until = self.scenario.until
        for errand in sorted(self.errands, key=lambda errand: errand.model.name not in until):
            effect = self.reactions.held(errand)
            if effect is not None and errand.waiting:
                for place, _ in self.spread(errand.model):
                    found.setdefault(place.row, suspended(effect))
        return found


def simulate(scenario: Scenario) -> Result:
    """Plays a scenario to its end."""
    return World(scenario).run()


def domain_of(model: ProviderModel, number: int) -> str:
    """The recipient domain of a provider's n-th site, from 1."""
    if model.domains:
        return model.domains[(number - 1) % len(model.domains)]
    return f"{model.name}-{number}.example" if model.sites > 1 else f"{model.name}.example"


def apportion(total: int, weights: list[float]) -> list[int]:
    """``total`` in whole numbers, in proportion to the weights (the largest remainders get what is over)."""
    whole = sum(weights)
    if whole <= 0.0:
        return [0] * len(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(one) for one in exact]
    order = sorted(range(len(weights)), key=lambda at: (counts[at] - exact[at], at))
    for at in order[: total - sum(counts)]:
        counts[at] += 1
    return counts
