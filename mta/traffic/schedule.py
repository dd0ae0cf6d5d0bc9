"""The brain: what may go where, now, and what everything else waits for.

Pure: no I/O; the clock is handed in with every call, as one reading of ``now_s`` (any monotonic origin whose
offset to Unix time the quotas are given at the start). The daemon performs the actions that `hand_out`
returns; a simulator may do the same under a virtual clock.

Each lane (recipients of one site with the same egresses) is either runnable, or empty, or waits with a named
reason and a time, at the gates that hold it back. Limits are exact because every session and every message is counted
here, from the moment it is handed out until its end is reported; no process below decides anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar, cast

from mta.model.egress import Egress
from mta.model.machine_fault import SystemCall
from mta.model.site import Site
from mta.model.waiting import SOONEST_FIRST, Wait, WaitReason
from mta.traffic import surplus
from mta.traffic.actions import Action, Bounds, CloseSession, GiveBack, HandOut, OpenSession
from mta.traffic.connections import Connections
from mta.traffic.counters import Counters, Held, Limit, counts_bytes
from mta.traffic.effects import Effect, Target
from mta.traffic.egress import EgressChooser
from mta.traffic.gates import Gate, Turns
from mta.traffic.host_facts import HostFacts, Learnt
from mta.traffic.host_sessions import connections_beside
from mta.traffic.lanes import Lane, LaneKey, Look
from mta.traffic.machine_faults import FaultBook
from mta.traffic.path import Path
from mta.traffic.reach import SiteReach
from mta.traffic.ready import Run, Stream
from mta.traffic.refusals import NOTHING_AVOIDED, Avoided, PathRefusal, RestChange
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.sessions import STALL_S, Group, Session, find_hops
from mta.traffic.waits import NO_HOP, OPENING

__all__ = ["Action", "Bounds", "CloseSession", "GiveBack", "HandOut", "OpenSession", "Schedule"]

PartT = TypeVar("PartT")

TURNS_PER_CALL: Final = 256  # then the loop lets reports in
BATCHES_PER_TURN: Final = 16  # of one lane, to sessions that are open and not counted by the hour
AGE_STEP_S: Final = 1.0  # a lane's recipients are looked at for their age no more often than that
_BUSY: Final = SOONEST_FIRST[:4]
_NO_EGRESS: Final = WaitReason.NO_EGRESS
_SUSPENDED: Final = WaitReason.SUSPENDED
# Local names: an enum member looked up on its class costs more than the comparison it is for.
_WINDOW: Final = WaitReason.WINDOW
_WARM_UP: Final = WaitReason.WARM_UP
_BACKOFF: Final = WaitReason.BACKOFF
# While nothing is known of a delivery's messages; where bytes are bounded they are booked as so large.
SIZE_UNKNOWN_BYTES: Final = 100_000
_RANK: Final = {reason: rank for rank, reason in enumerate(SOONEST_FIRST)}


class Schedule(Generic[PartT]):
    """All lanes, groups, limits and sessions of one node. Owned by the master's event loop."""

    def __init__(
        self,
        rules: RuleSet,
        bounds: Bounds,
        *,
        unix_offset_s: float,
        shuffle: Callable[[list[str]], None],
    ) -> None:
        self._rules = rules
        self._rules_version = 0
        self._version = 0  # of all that is in force: rules and effects
        self._bounds = bounds
        self._batch_recipients = bounds.batch_recipients
        self._shuffle = shuffle
        self._lanes: dict[LaneKey, Lane[PartT]] = {}
        self._groups: dict[tuple[str, str, str, frozenset[str]], Group] = {}
        self._reaches: dict[str, SiteReach] = {}  # by the key of the site
        self._actions: list[Action[PartT]] = []
        self._turns = Turns()
        self._gates: list[Gate] = []  # that a turn meets, while it lasts
        self._counters = Counters(rules, unix_offset_s)
        self._connections = Connections(bounds, self._turns, self._actions, self._counters)
        self._effects: tuple[Effect, ...] = ()
        self._counts_bytes = counts_bytes(rules, ())
        self.ready_count = 0
        self.sizes_bytes: dict[int, int] = {}  # delivery -> the largest of its messages, as far as is known

    # --- recipients ---------------------------------------------------------------------------

    def lane(self, site: Site, chooser: EgressChooser, domain: str, avoided: Avoided = NOTHING_AVOIDED) -> Lane[PartT]:
        """The lane of a domain's recipients; the same object while anything waits or flows there.

        ``avoided``: the paths that refused these recipients in this attempt.
        """
        key = (site.key, chooser.pool.name, chooser.eligible_names(domain), self._rules.domain_class(domain), avoided)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, site, chooser, domain)
        elif lane.site is not site:
            lane.site = site  # addresses of its hosts have changed
        return lane

    def domain_class(self, domain: str) -> str:
        """What the rules tell apart about a recipient domain; lanes hold recipients of one class."""
        return self._rules.domain_class(domain)

    def put(
        self, lane: Lane[PartT], stream: Stream, weight: float, run: Run[PartT], now_s: float, *, at_front: bool = False
    ) -> None:
        """Adds recipients. What a waiting lane cannot send soon comes back as surplus from `hand_out`."""
        if lane.is_forgotten:
            # It was empty, while a session still had some of its recipients.
            lane = self._lanes.setdefault(lane.key, lane)
            lane.is_forgotten = False
        if not (lane.ready.count or at_front):
            lane.began(now_s)
        self.ready_count += len(run)
        lane.ready.put(stream, weight, run, now_s, at_front=at_front)
        # More recipients may be worth one more session; they open no other gate.
        if lane.wait is None or lane.wait.reason is _WINDOW:
            self._turns.run(lane)
        self._shed_surplus(lane, now_s)

    def remove_delivery(self, delivery_id: int) -> Iterator[tuple[PartT, list[int]]]:
        """Takes everything of a delivery out of memory; what children have is for the caller to recall."""
        for lane in list(self._lanes.values()):
            for part, positions in lane.ready.remove(delivery_id):
                self.ready_count -= len(positions)
                yield part, positions
            self._drop_if_empty(lane)

    def _drop_if_empty(self, lane: Lane[PartT]) -> None:
        if not lane.ready.count:
            self._drop(lane)
            lane.failing_since_s = math.inf
            self._end_attempt(lane)

    def _end_attempt(self, lane: Lane[PartT]) -> None:
        """The next one may try the addresses that this one left out."""
        reach = self._reaches.get(lane.site.key)
        if reach is not None and reach.begin_anew():
            self._turns.wake(reach.budget)

    def _drop(self, lane: Lane[PartT]) -> None:
        lane.look = None
        self._turns.drop(lane)

    # --- decisions ----------------------------------------------------------------------------

    def hand_out(self, now_s: float) -> list[Action[PartT]]:
        """Gives runnable lanes their turns, and returns what to do, in order. Call again while ``has_runnable``."""
        turns = self._turns
        for timed in turns.alarms.due(now_s):
            if isinstance(timed, Gate):
                self._connections.ring(timed, now_s)
            else:
                self._look_at_age(cast("Lane[PartT]", timed), now_s)
        left = TURNS_PER_CALL
        while turns.runnable and left:
            left -= 1
            lane = cast("Lane[PartT]", turns.next())
            if lane.ready.count:
                self._serve(lane, now_s)
            turns.pass_on(now_s)
        self._connections.release_idle(now_s)
        actions = self._actions[:]
        self._actions.clear()
        return actions

    @property
    def has_runnable(self) -> bool:
        return bool(self._turns.runnable or self._actions)

    def next_due_s(self) -> float:
        """When the earliest timed wait ends; inf when all wait for events only."""
        return self._turns.alarms.next_s()

    def _serve(self, lane: Lane[PartT], now_s: float) -> None:
        """Batches for its sessions; or it is parked."""
        shown, gates, again_s = self._hand_to(lane, now_s)
        if shown is not None and shown.reason is _WARM_UP:
            # Every egress is new, and has sent what its plan allows today: a plan holds no message up.
            self._connections.is_over_plan = True
            lane.look = None
            shown, gates, again_s = self._hand_to(lane, now_s)
            self._connections.is_over_plan = False
        if shown is not None:
            self._park(lane, shown, gates, now_s, again_s)

    def _hand_to(self, lane: Lane[PartT], now_s: float) -> tuple[Wait | None, list[Gate], float]:
        """Hands out what the lane's egresses can carry. When they carry no more: why, the gates that hold them, and
        when to look again though none of these has opened."""
        if len(lane.egresses) == 1:
            self._gates.clear()
            return self._hand_to_one(lane, lane.egresses[0], self._gates, now_s), self._gates, math.inf
        look = lane.look_on(self._turns.woken_by, self._version)
        shown = self._hand_to_several(lane, look, now_s)
        return shown, look.gates, look.stalls_s

    def _hand_to_one(self, lane: Lane[PartT], egress: Egress, gates: list[Gate], now_s: float) -> Wait | None:
        group = self._group(lane, egress)
        size_bytes = self._next_size(lane)
        found = self._connections.session_for(group, lane.ready.count, now_s, gates, size_bytes)
        if not isinstance(found, Session):
            return found
        self._hand(lane, found, now_s, size_bytes)
        # The other open sessions of a site are filled in the same turn. With thousands of small sites in the queue, a
        # large one would else wait for all of them before each batch. Credits are dealt out one batch a turn.
        for _ in range(BATCHES_PER_TURN - 1):
            session = self._connections.open_session_for(group, now_s) if lane.ready.count else None
            if session is None or session.booked:
                break
            self._hand(lane, session, now_s)
        self._run_or_drop(lane)
        return None

    def _hand_to_several(self, lane: Lane[PartT], look: Look, now_s: float) -> Wait | None:
        """Each egress has its turn, until none of them carries more."""
        batches_left = BATCHES_PER_TURN
        while (turn := lane.next_turn(look, self._batch_recipients)) is not None:
            group = self._group(lane, turn.egress)
            size_bytes = self._next_size(lane)
            found = self._connections.session_for(group, lane.ready.count, now_s, look.gates, size_bytes)
            if isinstance(found, Session):
                turn.left -= self._hand(lane, found, now_s, size_bytes)
                batches_left -= 1
                if not batches_left or not lane.ready.count or found.booked:
                    self._run_or_drop(lane)
                    return None
                continue
            look.is_only_planned = look.is_only_planned and found.reason is _WARM_UP
            shown = look.shown
            if shown is None or (_RANK[found.reason], found.until) < (_RANK[shown.reason], shown.until):
                look.shown = found
            if not group.usable:
                look.bare.append(turn.egress)
            if found is OPENING:
                look.busy.append(turn.egress)
                look.stalls_s = min(look.stalls_s, now_s + STALL_S)
                if not group.reach.slots.opened:
                    break  # of no egress is a session open: all wait for the first answer
            elif found.reason in _BUSY and group.is_moving(now_s):
                # Its turn is kept, for weights must hold just when there is much to send.
                look.busy.append(turn.egress)
                look.stalls_s = min(look.stalls_s, group.stalls_s)
            else:
                look.blocked.append(turn.egress)
                look.opens_s = min(look.opens_s, found.until)
                lane.turns.remove(turn)
        if look.is_resumed and look.has_opened(now_s):
            lane.look = None
            self._turns.run(lane)
            return None
        return look.end(lane.chooser.pool.name, lane.domain)

    def _next_size(self, lane: Lane[PartT]) -> int:
        """Of the messages that the lane gives next, at most; 0 where nothing counts bytes."""
        if not self._counts_bytes:
            return 0
        return self.sizes_bytes.get(lane.ready.next_delivery(), SIZE_UNKNOWN_BYTES)

    def _run_or_drop(self, lane: Lane[PartT]) -> None:
        if lane.ready.count:
            self._turns.run(lane)
        else:
            self._drop(lane)

    def _hand(self, lane: Lane[PartT], session: Session, now_s: float, size_bytes: int = 0) -> int:
        """Gives the session a batch; how many recipients are in it."""
        free = self._connections.credits(session.hop, now_s, size_bytes)
        room = min(session.room(), self._batch_recipients)
        room = min(room, free)
        stream, taken = lane.ready.take(room)
        amount = 0
        for _, positions in taken:
            amount += len(positions)
        self.ready_count -= amount
        self._connections.hand(session, amount, now_s, size_bytes)
        self._actions.append(HandOut(session, lane, stream, taken, amount))
        if session.left <= 0:
            self._connections.close(session)
        return amount

    def _park(self, lane: Lane[PartT], wait: Wait, gates: list[Gate], now_s: float, look_again_s: float) -> None:
        has_nothing = not any(isinstance(gate, Group) and gate.usable for gate in gates)
        self._turns.park(lane, wait, gates, is_first=has_nothing)
        # That a gate opens at a known time is for the gate's alarm: it wakes as many as get through.
        alarm_s = min(look_again_s, now_s + self._bounds.message_age_s)
        if wait.reason is _BACKOFF:
            lane.failing_since_s = min(lane.failing_since_s, now_s)
            patience_ends_s = lane.failing_since_s + self._bounds.patience_s
            if now_s >= patience_ends_s or patience_ends_s < wait.until < math.inf:
                self._defer_all(lane, wait, now_s)
                return
            alarm_s = min(alarm_s, patience_ends_s)
        elif wait is NO_HOP:
            self._defer_all(lane, wait, now_s)
            return
        elif (wait.reason is _SUSPENDED or wait.reason is _NO_EGRESS) and self._widen(lane, now_s):
            return
        elif wait is not OPENING:  # which says nothing of the site
            lane.failing_since_s = math.inf
        self._shed_surplus(lane, now_s)
        if lane.ready.count:
            self._turns.alarms.set(lane, alarm_s)

    def _widen(self, lane: Lane[PartT], now_s: float) -> bool:
        """When recipients cannot go where they should, they go where else they may: from an egress that has refused
        them to another of its peers, from the egress of their last attempt to any."""
        narrow = frozenset([one for one in lane.avoided if one[1]])
        chooser = lane.chooser if len(narrow) < len(lane.avoided) else lane.chooser.whole
        if chooser is None or (wide := self.lane(lane.site, chooser, lane.domain, narrow)) is lane:
            return False
        weights = lane.ready.weights()
        for stream, part, positions in list(lane.ready.shed(lane.ready.count)):
            self.ready_count -= len(positions)
            self.put(wide, stream, weights[stream], Run(part, positions), now_s)
        self._drop_if_empty(lane)
        return True

    # --- groups -------------------------------------------------------------------------------

    def _group(self, lane: Lane[PartT], egress: Egress) -> Group:
        site = lane.site
        group = lane.groups.get(egress.name)
        if group is None:
            avoided = lane.avoided_of(egress)
            key = (site.key, egress.name, lane.domain_class, avoided)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(site, egress, self._reach(site.key), lane.domain_class, avoided)
            lane.groups[egress.name] = group
        if group.site is not site or group.rules_version != self._rules_version:
            if group.site != site or group.rules_version != self._rules_version:
                group.hops = find_hops(
                    site, egress, self._rules, self._counters, self._shuffle, lane.domain_class, group.avoided
                )
            group.site = site
            group.rules_version = self._rules_version
        return group

    def _reach(self, site: str) -> SiteReach:
        reach = self._reaches.get(site)
        if reach is None:
            bounds = self._bounds
            reach = SiteReach(bounds.addresses_per_attempt_max, bounds.sessions_per_attempt_max)
            self._reaches[site] = reach
        return reach

    # --- what leaves the memory ---------------------------------------------------------------

    def _look_at_age(self, lane: Lane[PartT], now_s: float) -> None:
        """A lane's alarm: it tries again, and what has waited too long goes back."""
        age_s = self._bounds.message_age_s
        self._give_back(lane, lane.ready.shed_older(now_s - age_s), now_s, is_old=True)
        if lane.ready.count:
            self._turns.alarms.set(lane, max(lane.ready.oldest_s() + age_s, now_s + AGE_STEP_S))
            self._turns.run(lane)

    def _defer_all(self, lane: Lane[PartT], wait: Wait, now_s: float) -> None:
        if self._widen(lane, now_s):
            return
        self._give_back(lane, lane.ready.shed(lane.ready.count), now_s, is_attempt=True, cause=wait.detail)

    def _shed_surplus(self, lane: Lane[PartT], now_s: float) -> None:
        if lane.ready.count > surplus.READY_MIN:
            amount = surplus.excess(lane, self._bounds, now_s)
            if amount:
                self._give_back(lane, lane.ready.shed(amount), now_s)

    def _give_back(
        self,
        lane: Lane[PartT],
        given: Iterable[tuple[Stream, PartT, list[int]]],
        now_s: float,
        *,
        is_attempt: bool = False,
        is_old: bool = False,
        is_due: bool = False,
        cause: str = "",
    ) -> None:
        pace_per_s = surplus.pace(lane)
        for stream, part, positions in list(given):
            self.ready_count -= len(positions)
            due_in_s = 0.0
            if not (is_attempt or is_due):
                due_in_s = surplus.due_in_s(lane, len(positions), pace_per_s, now_s, is_old=is_old)
            self._actions.append(GiveBack(lane, stream, part, positions, due_in_s, is_attempt, cause))
        self._drop_if_empty(lane)

    # --- events -------------------------------------------------------------------------------

    def add_child(self, child: int) -> None:
        """A child is there and takes sessions."""
        self._connections.add_child(child)

    def retire_child(self, child: int) -> None:
        """No new session for it; those it has go on until they are closed."""
        self._connections.retire_child(child)

    def sessions_of(self, child: int) -> list[Session]:
        return self._connections.of_child(child)

    def session_opened(self, session_id: int, now_s: float) -> None:
        """The server greeted it and said what it offers."""
        self._connections.opened(session_id, now_s)

    def decided(
        self, session_id: int, attempted: int, returned: int, now_s: float, size_bytes: int = 0, accepted: int = 0
    ) -> None:
        """Of what the session was given, ``attempted`` have an outcome, ``returned`` were never begun.

        ``size_bytes``: of those attempted, together. ``accepted``: of them, what the server took. What is returned must
        be put back by the caller.
        """
        self._connections.decided(session_id, attempted, returned, now_s, size_bytes, accepted)

    def refused(self, session_id: int, refusal: PathRefusal, recipients: int, now_s: float) -> None:
        """Recipients met a refusal of the session's path. What is returned of them is told of by `decided`."""
        session = self._connections.get(session_id)
        if session is not None and session.path.refusals.met(refusal, recipients, now_s):
            self._leave(session.path)

    def outdone(self, refusal: PathRefusal, messages: int, now_s: float) -> None:
        """Messages that a path had refused were accepted by another."""
        path = self._counters.known_path(refusal.egress, refusal.peer)
        if path is not None and path.refusals.outdone(messages, now_s):
            self._leave(path)

    def _leave(self, path: Path) -> None:
        self._connections.leave(path)
        if path.waiting:
            self._turns.alarms.set(path, path.opens_at_s())

    def take_rest_changes(self) -> list[RestChange]:
        """Paths that began to rest after refusals, or are good again, since the last call."""
        changes, self._connections.rest_changes = self._connections.rest_changes, []
        return changes

    def sent(self, lane: Lane[PartT], attempted: int, now_s: float) -> None:
        """For the lane's pace: messages decided."""
        lane.sent(attempted, now_s)

    def session_closed(self, session_id: int, now_s: float, failure: str) -> None:
        """Its connection is gone. ``failure`` (not empty): it ended badly, or could not be opened.

        What it was given and nobody told of stays booked: `decided` may come later. Where nobody will tell (its child
        is dead), a second call ends that.
        """
        self._connections.closed(session_id, now_s, failure)

    def session_not_opened_here(self, session_id: int, now_s: float, call: SystemCall, number: int) -> None:
        """This machine could not open it, by this errno of that call: nobody is charged, what it is about rests."""
        self._connections.not_opened_here(session_id, now_s, call, number)

    @property
    def faults(self) -> FaultBook:
        """What this machine cannot do now."""
        return self._connections.rests.book

    def machine_wait(self, egresses: Iterable[Egress], now_s: float) -> Wait | None:
        """Why this machine can send nothing from these egresses, and when it is tried again; None: it can, or may."""
        return self._connections.rests.wait_of(egresses, now_s) if self.faults.open else None

    def set_rules(self, rules: RuleSet, now_s: float) -> None:
        """New rules, at once and as a whole. Counters of rules that keep their name are kept; sessions that the new
        rules do not allow are closed when they have sent what they have."""
        is_regrouped = rules.domain_masks != self._rules.domain_masks
        self._rules = rules
        self._rules_version += 1
        self._version += 1
        self._counts_bytes = counts_bytes(rules, self._effects)
        self._connections.adopt(rules, now_s)
        if is_regrouped:
            # Recipients in one lane may belong in two now: they come in anew.
            for lane in list(self._lanes.values()):
                self._give_back(lane, lane.ready.shed(lane.ready.count), now_s, is_due=True)
        for lane in self._lanes.values():
            if lane.wait is not None:
                self._turns.run(lane)

    def set_effects(self, effects: Sequence[Effect], now_s: float) -> None:
        """All that is in force besides the rules, from now on: on paths, limits, egresses and sites."""
        before, self._effects = self._effects, tuple(effects)
        self._version += 1
        self._counts_bytes = counts_bytes(self._rules, self._effects)
        limits, paths = self._counters.set_effects(self._effects)
        self._connections.apply_effects(limits, paths, now_s)
        wide = (Target.SITE, Target.EGRESS)
        changed = set(before) ^ set(self._effects)
        sites = {effect.on for effect in changed if effect.target is Target.SITE}
        egresses = {effect.on for effect in changed if effect.target is Target.EGRESS}
        if any(effect.target in wide for effect in changed):
            for group in self._groups.values():
                if group.site.key in sites or group.egress.name in egresses:
                    self._connections.look_again(group, now_s)

    @property
    def hosts(self) -> HostFacts:
        """What was learnt of hosts. Who changes it says so to `follow_hosts`."""
        return self._counters.hosts

    def follow_hosts(self, hosts: Collection[str], now_s: float) -> None:
        """What is known of these hosts has changed."""
        for group in self._groups.values():
            if any(hop.host in hosts for hop in group.hops):
                group.rules_version = -1  # its hops are found anew
                self._turns.wake(group)
        self._version += 1
        self._connections.follow_hosts(hosts, now_s)

    def connections_beside(self, session: Session, now_s: float) -> int:
        """How many connections the host of a session holds besides it, which was refused as one too many."""
        return connections_beside(session, self._connections.all(), now_s)

    def take_forgotten(self) -> list[Learnt]:
        """Facts that sessions did without since this was asked last: they hold no more."""
        forgotten, self._connections.forgotten = self._connections.forgotten, []
        return forgotten

    def suspension(self, group: Group, now_s: float) -> Effect | None:
        """What keeps a site through an egress from being used as a whole."""
        return self._counters.suspended(group.site.key, group.egress.name, now_s)

    @property
    def effects(self) -> tuple[Effect, ...]:
        return self._effects

    def shares_wanted(self, now_s: float) -> list[Held]:
        """What this node holds and could use of each limit that other nodes use too (see `set_shares`)."""
        return self._counters.shares_wanted(now_s)

    def set_shares(
        self, shares: Mapping[tuple[str, str], int] | None, now_s: float, common_egresses: Collection[int] = ()
    ) -> None:
        """What of each limit is this node's, by (key, kind); None: all of everything, as no other node is there.

        ``common_egresses``: ids of egresses that other nodes use too. A limit that is counted on an egress of another
        id is this node's alone.
        """
        for room in self._counters.set_shares(shares, common_egresses):
            self._connections.look_again(room, now_s)
        self._connections.close_excess(self._counters.all_limits())

    def rule_of(self, lane: Lane[PartT]) -> Rule:
        """The rule of a lane's most preferred host, through the first of its egresses."""
        if not lane.egresses or not lane.site.hosts:
            return self._rules.default
        host = lane.site.hosts[0].name
        return self._rules.match(host, lane.egresses[0].id, lane.site.key, lane.domain_class)

    def limits(self) -> Iterable[Limit]:
        """Every counter there is now."""
        return self._counters.all_limits()

    def load_credits(self, credits_used: Iterable[tuple[str, int, int]], now_s: float) -> None:
        """Credits of earlier runs: (limit key, bucket of 10 s of Unix time, used)."""
        self._counters.load_credits(credits_used, now_s)

    def stored_keys(self, keys: str) -> list[str]:
        """Under which keys an attempt that was counted on these limits (with blanks between) is to be stored."""
        return self._counters.stored_keys(keys)

    # --- views --------------------------------------------------------------------------------

    def session(self, session_id: int) -> Session | None:
        return self._connections.get(session_id)

    @property
    def lanes(self) -> Iterable[Lane[PartT]]:
        return self._lanes.values()

    @property
    def sessions_count(self) -> int:
        return len(self._connections)

    def forget_empty(self, now_s: float) -> None:
        """Drops what nothing waits for or flows through; called now and then by the owner."""
        self._connections.rests.look(now_s)
        for lane in [lane for lane in self._lanes.values() if not lane.ready.count and not lane.is_runnable]:
            lane.is_forgotten = True
            lane.groups.clear()
            self._drop(lane)
            del self._lanes[lane.key]
        needed = {
            (lane.site.key, egress.name, lane.domain_class, lane.avoided_of(egress))
            for lane in self._lanes.values()
            for egress in lane.egresses
        }
        for key in [key for key, group in self._groups.items() if not group.sessions and key not in needed]:
            del self._groups[key]
        for site in self._reaches.keys() - {key[0] for key in self._groups}:
            del self._reaches[site]
        # A hop holds its counters; a second object for the same key would count apart.
        hops = [hop for group in self._groups.values() for hop in group.hops]
        hops += [session.hop for session in self._connections.all()]
        gates: set[Gate] = {gate for hop in hops for gate in (*hop.rooms, hop.path)}
        self._counters.forget(gates, now_s)
