"""Several nodes of `tests.support.schedule_world` that share limits by the real ledger, under one virtual clock.

Nodes touch one another only in exchanges; between two of these each plays by itself. What reached servers is counted
over all nodes, the dead ones too, and held against the rules that were in force.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from mta.model.egress import EgressPool
from mta.model.site import Site
from mta.simulation.sharing import Book, Partner
from mta.traffic.actions import Bounds
from mta.traffic.ledger import DEAD_MARGIN_S, LimitKind
from mta.traffic.limits import Limits
from mta.traffic.quota import BUCKET_S
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.sessions import Session
from tests.support.schedule_model import egress
from tests.support.schedule_world import MESSAGE_BYTES, START_S, UNIX_OFFSET_S, World

LEASE_S = 15.0
EXCHANGE_S = 1.0
SETTLED_S = 4.0  # after a reload, until every node has heard what the others make of it
CLOSED_S = 60.0  # and until sessions that are too many have sent what they have
Happening = tuple[float, str, int]  # when, key, how much


class NodeWorld(World):
    """One node; its clock may be wrong by ``clock_s``. It notes when sessions began and ended, by what counts them."""

    def __init__(self, rules: Sequence[Rule], clock_s: float, **keys: object) -> None:
        self.sessions: list[Happening] = []
        self._counted: dict[int, list[str]] = {}
        super().__init__(rules, unix_offset_s=UNIX_OFFSET_S + clock_s, **keys)  # type: ignore[arg-type]

    def _open(self, session: Session) -> None:
        super()._open(session)
        self._counted[session.id] = [key for key, _ in self._limits_of(session)]
        self.sessions += [(self.now_s, key, 1) for key in self._counted[session.id]]

    def _forget(self, session: Session) -> None:
        super()._forget(session)
        self.sessions += [(self.now_s, key, -1) for key in self._counted.pop(session.id, ())]

    def reload(self, rules: Sequence[Rule]) -> None:
        self.rules = RuleSet(rules)
        self.schedule.set_rules(self.rules, self.now_s)
        self.run(0)

    def messages(self) -> Iterator[tuple[float, str]]:
        """When, counted on which key."""
        for one in self.sent:
            rule = self.rules.match(one.mx_host, one.egress.id, self.sites[one.domain].key)
            for key, _ in self._counted_on(rule, one.egress.id, one.peer):
                yield one.at_s, key

    def openings(self) -> Iterator[tuple[float, str]]:
        for at_s, session in self.opened:
            rule = self.rules.match(session.hop.mx_host, session.group.egress.id, session.group.site.key)
            for key, _ in self._counted_on(rule, session.group.egress.id, session.hop.peer):
                yield at_s, key


class Node:
    """A name, and its runs. ``clock_s``: how wrong its clock is."""

    def __init__(self, name: str, egress_ids: Sequence[int], clock_s: float) -> None:
        self.name = name
        self.egress_ids = egress_ids
        self.clock_s = clock_s
        self.runs: list[NodeWorld] = []
        self.is_running = False
        self.partner: Partner | None = None
        self.exchanges_at_s = 0.0
        self.lease_until_s = 0.0  # of a run that is dead; 0: it is living, or known to be dead
        self.rules: Sequence[Rule] = ()

    @property
    def world(self) -> NodeWorld:
        return self.runs[-1]


class Nodes:
    """``egresses`` of each node. ``rules`` keep names, masks and scopes when they are loaded anew."""

    def __init__(
        self, rules: Sequence[Rule], *, sites: dict[str, Site], egresses: Sequence[Sequence[int]], seed: int = 1
    ) -> None:
        self.rng = random.Random(seed)
        self.now_s = START_S
        self.sites = sites
        self.book = Book()
        self.rules = rules
        self.epochs: list[list[float]] = [[START_S, START_S]]  # when the first and the last node took them
        self._figures: list[dict[str, Limits]] = [_figures(rules)]
        # Clocks are apart by minutes: no limit may lean on them.
        self.nodes = [Node(f"n{at}", ids, self.rng.uniform(-300.0, 300.0)) for at, ids in enumerate(egresses)]

    # --- what happens to nodes ------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """A first run, or one after a death: it knows what earlier ones have used."""
        world = NodeWorld(
            self.rules,
            node.clock_s,
            sites=self.sites,
            pools=[EgressPool("main", tuple(egress(number) for number in node.egress_ids))],
            seed=self.rng.randrange(2**32),
            bounds=Bounds(batch_recipients=self.rng.choice([1, 7, 50])),
        )
        world.now_s = self.now_s
        world.schedule.load_credits(_stored(node), self.now_s)
        node.runs.append(world)
        node.rules = self.rules
        node.is_running = True
        node.lease_until_s = 0.0
        node.partner = Partner(self.book, node.name, node.egress_ids, world.schedule, self.now_s)
        self.exchange(node)

    def exchange(self, node: Node, *, is_answered: bool = True) -> None:
        assert node.partner is not None
        node.partner.exchange(self.now_s, self.now_s, is_answered=is_answered)
        node.exchanges_at_s = self.now_s + EXCHANGE_S
        node.world.run(0)

    def kill(self, node: Node) -> None:
        """Its children end with it; what was on the wire has arrived. Its lease holds for some time."""
        for number in list(node.world.children):
            node.world.kill_child(number)
        node.is_running = False
        node.lease_until_s = self.now_s + LEASE_S

    def reload(self, rules: Sequence[Rule], within_s: float = 2.0) -> None:
        """Each node hears of it at another moment."""
        self.rules = rules
        self._figures.append(_figures(rules))
        self.epochs.append([self.now_s, self.now_s])
        running = [node for node in self.nodes if node.is_running]
        self.rng.shuffle(running)
        for node in running:
            if node.is_running and node.rules is not rules:
                node.rules = rules
                node.world.reload(rules)
                self.epochs[-1][1] = self.now_s
            self.run(within_s / len(running))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s and not until():
            due = [node.exchanges_at_s for node in self.nodes if node.is_running]
            due += [node.lease_until_s for node in self.nodes if node.lease_until_s]
            next_s = max(self.now_s, min([end_s, *due]))
            for node in self.nodes:
                if node.is_running:
                    node.world.run(next_s - node.world.now_s)
                    node.world.now_s = next_s
            self.now_s = next_s
            for node in self.nodes:
                if node.is_running and node.exchanges_at_s <= next_s:
                    self.exchange(node)
                elif node.lease_until_s and node.lease_until_s <= next_s:
                    node.lease_until_s = 0.0
                    self.book.die(node.name, _used(node, next_s, self._figures), next_s)

    # --- what must hold -------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        return sum(len(run.sent) for node in self.nodes for run in node.runs)

    def times(self, of: Callable[[NodeWorld], Iterator[tuple[float, str]]]) -> dict[str, list[float]]:
        """By key, over all nodes."""
        found: dict[str, list[float]] = defaultdict(list)
        for node in self.nodes:
            for run in node.runs:
                for at_s, key in of(run):
                    found[key].append(at_s)
        return {key: sorted(times) for key, times in found.items()}

    def check(self) -> None:
        """No window of any length, and no moment, has more than the rules allowed in it or shortly before."""
        messages, openings = self.times(NodeWorld.messages), self.times(NodeWorld.openings)
        for key, times in messages.items():
            self._check(key, times, Limits.message_ceilings, 1)
            self._check(key, times, Limits.byte_ceilings, MESSAGE_BYTES)
        for key, times in openings.items():
            self._check(key, times, Limits.opening_ceilings, 1)
        self._check_open()

    def _check(
        self, key: str, times: list[float], ceilings: Callable[[Limits], Sequence[tuple[int, int]]], each: int
    ) -> None:
        given = [dict(ceilings(figures[_name(key)])) for figures in self._figures]
        for span_s in {span_s for one in given for span_s in one}:
            first = 0
            for last, at_s in enumerate(times):
                while times[first] <= at_s - span_s:
                    first += 1
                most = self._allowed([one.get(span_s) for one in given], at_s - span_s - SETTLED_S, at_s)
                count = (last - first + 1) * each
                assert most is None or count <= max(most, each), f"{key}: {count} in {span_s} s to {at_s}, not {most}"

    def _check_open(self) -> None:
        happened = [one for node in self.nodes for run in node.runs for one in run.sessions]
        # Of what happens in one moment, ends come first.
        now: Counter[str] = Counter()
        for at_s, key, change in sorted(happened, key=lambda one: (one[0], one[2])):
            now[key] += change
            kind, _, counted = key.partition(" ")
            figures = [one[_name(counted)] for one in self._figures]
            mosts = [one.connections_per_path_max if kind == "path" else one.connections_max for one in figures]
            most = self._allowed(mosts, at_s - CLOSED_S, at_s)
            assert change < 0 or most is None or now[key] <= most, f"{key}: {now[key]} open at {at_s}, not {most}"

    def _allowed(self, mosts: Sequence[int | None], since_s: float, until_s: float) -> int | None:
        """The largest of those that some node went by in that time."""
        found = []
        for at, most in enumerate(mosts):
            ends_s = self.epochs[at + 1][1] if at + 1 < len(mosts) else float("inf")
            if self.epochs[at][0] <= until_s and ends_s >= since_s:
                found.append(most)
        return None if None in found else max(one for one in found if one is not None)


def _name(key: str) -> str:
    return key.split("|", 1)[0]


def _figures(rules: Sequence[Rule]) -> dict[str, Limits]:
    """By what a key begins with."""
    every = RuleSet(rules)
    found: dict[str, Limits] = {rule.name: rule for rule in (*every.rules, every.default)}
    found |= {f"provider {rule.provider.name}": rule.provider for rule in rules if rule.provider}
    return found


def _key_of(counted: str) -> str:
    """As the schedule calls it."""
    return counted.replace("provider ", "provider:", 1) if counted.startswith("provider ") else counted


def _stored(node: Node) -> list[tuple[str, int, int]]:
    """What settlements have recorded of its earlier runs."""
    used: Counter[tuple[str, int]] = Counter()
    for run in node.runs:
        for letter, happened, each in (
            ("", run.messages(), 1),
            ("#b", run.messages(), MESSAGE_BYTES),
            ("#o", run.openings(), 1),
        ):
            for at_s, key in happened:
                bucket = int((at_s + UNIX_OFFSET_S + node.clock_s) // BUCKET_S)
                used[_key_of(key) + letter, bucket] += each
    return [(key, bucket, amount) for (key, bucket), amount in used.items()]


def _used(node: Node, now_s: float, figures: Sequence[Mapping[str, Limits]]) -> dict[LimitKind, int]:
    """The same, as shares of a node that was alone: what may still be in a window of each length."""
    used: Counter[LimitKind] = Counter()
    for run in node.runs:
        for letter, happened, each in (
            ("m", run.messages(), 1),
            ("b", run.messages(), MESSAGE_BYTES),
            ("o", run.openings(), 1),
        ):
            for at_s, key in happened:
                for span_s in _spans(figures):
                    if at_s > now_s - DEAD_MARGIN_S - span_s:
                        used[_key_of(key), f"{letter}{span_s}"] += each
    return dict(used)


def _spans(figures: Sequence[Mapping[str, Limits]]) -> set[int]:
    found = set()
    for limits in (one for of_epoch in figures for one in of_epoch.values()):
        for ceilings in (limits.message_ceilings(), limits.byte_ceilings(), limits.opening_ceilings()):
            found |= {span_s for span_s, _ in ceilings}
    return found
