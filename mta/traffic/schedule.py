"""The brain: what may go where, now, and what everything else waits for.

Pure: no I/O; the clock is handed in with every call, as one reading of ``now_s`` (any monotonic origin whose
offset to Unix time the quotas are given at the start). The daemon performs the actions that `hand_out`
returns; a simulator may do the same under a virtual clock.

Each lane (recipients of one site with the same egresses) is either runnable, or empty, or waits with a named
reason and a time. Limits are exact because every session and every message is counted here, from the moment it
is handed out until its end is reported; no process below decides anything.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from mta.model.egress import NO_SOURCE, Egress, source_for
from mta.model.site import Site, order_hosts
from mta.model.waiting import Wait, WaitReason
from mta.traffic.egress import EgressChooser
from mta.traffic.gates import Gate, Limit, Path
from mta.traffic.lanes import Group, Hop, Lane, Session
from mta.traffic.ready import Run, Stream, Taken
from mta.traffic.rules import RuleSet, limit_key

PartT = TypeVar("PartT")

HAND_OUTS_PER_CALL = 256  # then the loop lets reports in
# A lane whose paths are all in backoff for longer than this gives its recipients back as deferred: a dead
# site must not fill the memory, and its retries belong to the delivery's schedule.
PATIENCE_S = 30.0
HORIZON_S = 60.0  # a lane that waits keeps what it could send in this time; the rest is surplus
LANE_READY_MIN = 50
UNKNOWN_PACE_S = 3.0  # a new lane: nothing is known yet of what its site takes
SURPLUS_DELAY_S_MIN, SURPLUS_DELAY_S_MAX = 5.0, 900.0


class OpenSession(NamedTuple):
    """Tell the child to open this session."""

    session: Session


class HandOut(NamedTuple, Generic[PartT]):
    """Give the session these recipients, all of one stream."""

    session: Session
    lane: Lane[PartT]
    stream: Stream
    taken: Taken[PartT]
    amount: int


class CloseSession(NamedTuple):
    """Tell the child to end this session when it has sent what it has."""

    session: Session


class GiveBack(NamedTuple, Generic[PartT]):
    """These recipients leave the memory. ``is_attempt``: their site failed, they are deferred by the retry
    schedule; else they are surplus, due again in ``due_in_s``."""

    lane: Lane[PartT]
    stream: Stream
    part: PartT
    positions: list[int]
    due_in_s: float
    is_attempt: bool
    cause: str


Action = OpenSession | HandOut[PartT] | CloseSession | GiveBack[PartT]


class Bounds(NamedTuple):
    """Bounds of the brain itself, from the settings."""

    batch_recipients: int = 50
    sessions_per_child_max: int = 1000
    ready_per_lane_max: int = 5_000
    ready_max: int = 100_000


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
        self._bounds = bounds
        self._unix_offset_s = unix_offset_s
        self._shuffle = shuffle
        self._lanes: dict[tuple[str, str, tuple[Egress, ...]], Lane[PartT]] = {}
        self._groups: dict[tuple[str, str], Group] = {}
        self._limits: dict[str, Limit] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._sessions: dict[int, Session] = {}
        self._children: dict[int, int] = {}  # child -> its sessions, those closing included
        self._idle: OrderedDict[int, Session] = OrderedDict()  # oldest first
        self._capacity = Gate()  # of the children as a whole
        self._runnable: deque[Lane[PartT]] = deque()
        self._timers: list[tuple[float, int, Lane[PartT], int]] = []
        self._timer_numbers = count()
        self._session_ids = count(1)
        self._pending: deque[Action[PartT]] = deque()
        self.ready_count = 0

    # --- recipients ---------------------------------------------------------------------------

    def lane(self, site: Site, chooser: EgressChooser, domain: str) -> Lane[PartT]:
        """The lane of a domain's recipients; the same object while anything waits or flows there."""
        key = (site.key, chooser.pool.name, chooser.eligible(domain))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(site, chooser, domain)
        elif lane.site is not site:
            lane.site = site  # addresses of its hosts have changed
        return lane

    def put(
        self, lane: Lane[PartT], stream: Stream, weight: int, run: Run[PartT], now_s: float, *, at_front: bool = False
    ) -> None:
        """Adds recipients. What a waiting lane cannot send soon comes back as surplus from `hand_out`."""
        self.ready_count += len(run)
        if not lane.since_s:
            lane.since_s = lane.rate_since_s = now_s
        lane.ready.put(stream, weight, run, at_front=at_front)
        if lane.wait is None:
            self._make_runnable(lane)
        self._shed_surplus(lane, now_s)

    def remove_delivery(self, delivery_id: int) -> Iterator[tuple[PartT, list[int]]]:
        """Takes everything of a delivery out of memory; what children have is for the caller to recall."""
        for lane in list(self._lanes.values()):
            for part, positions in lane.ready.remove(delivery_id):
                self.ready_count -= len(positions)
                yield part, positions

    def _shed_surplus(self, lane: Lane[PartT], now_s: float) -> None:
        waiting = lane.ready.count
        # A few over are cheaper kept than written; a quarter over are worth a part.
        if waiting > LANE_READY_MIN and waiting > (most := self._ready_max(lane, now_s)) + most // 4:
            self._give_back(lane, waiting - most, now_s, is_attempt=False, cause="")

    def _ready_max(self, lane: Lane[PartT], now_s: float) -> int:
        """What the lane can send in `HORIZON_S`, as far as that is known; more would only hold up other sites."""
        if lane.wait is not None and lane.wait.reason in (WaitReason.RULE_MESSAGES_PER_HOUR, WaitReason.BACKOFF):
            return max(LANE_READY_MIN, min(self._bounds.ready_per_lane_max, int(self._pace(lane) * HORIZON_S)))
        if now_s - lane.since_s < UNKNOWN_PACE_S:
            return self._bounds.ready_max
        return max(self._bounds.ready_per_lane_max, int(lane.rate_per_s * HORIZON_S))

    def _pace(self, lane: Lane[PartT]) -> float:
        """Messages a second that the lane may hope for: its rules' hourly limits, else what it did lately."""
        paces = []
        for egress in lane.egresses:
            group = self._groups.get((lane.site.key, egress.name))
            quotas = {hop.limit.key: hop.limit.rule.messages_per_hour_max for hop in group.hops} if group else {}
            if quotas and all(limit is not None for limit in quotas.values()):
                paces.append(sum(limit or 0 for limit in quotas.values()) / 3600)
            else:
                return max(lane.rate_per_s, 1.0)
        return sum(paces) or 1.0

    def _give_back(self, lane: Lane[PartT], amount: int, now_s: float, *, is_attempt: bool, cause: str) -> None:
        pace = self._pace(lane)
        for stream, part, positions in lane.ready.shed(amount):
            self.ready_count -= len(positions)
            # Each surplus recipient comes back about when those before it will have gone.
            lane.surplus_until_s = max(now_s, lane.surplus_until_s) + len(positions) / pace
            due_in_s = min(SURPLUS_DELAY_S_MAX, max(SURPLUS_DELAY_S_MIN, lane.surplus_until_s - now_s))
            self._pending.append(GiveBack(lane, stream, part, positions, due_in_s, is_attempt, cause))

    # --- decisions ----------------------------------------------------------------------------

    def hand_out(self, now_s: float) -> list[Action[PartT]]:
        """Decides for every runnable lane, in turn, and returns what to do, in order."""
        self._wake_due(now_s)
        actions: list[Action[PartT]] = []
        decisions = HAND_OUTS_PER_CALL
        while self._runnable and decisions:
            decisions -= 1
            lane = self._runnable.popleft()
            lane.is_runnable = False
            if not lane.ready.count:
                continue
            if self._serve(lane, now_s, actions) and lane.ready.count:
                self._make_runnable(lane)
        actions.extend(self._pending)
        self._pending.clear()
        return actions

    @property
    def has_runnable(self) -> bool:
        return bool(self._runnable or self._pending)

    def next_due_s(self) -> float:
        """When the earliest timed wait ends; inf when all wait for events only."""
        while self._timers:
            until_s, _, lane, ticket = self._timers[0]
            if lane.ticket == ticket and lane.wait is not None:
                return until_s
            heapq.heappop(self._timers)
        return math.inf

    def _wake_due(self, now_s: float) -> None:
        while self._timers and self._timers[0][0] <= now_s:
            _, _, lane, ticket = heapq.heappop(self._timers)
            if lane.ticket == ticket and lane.wait is not None:
                self._make_runnable(lane)

    def _make_runnable(self, lane: Lane[PartT]) -> None:
        lane.wait = None
        lane.ticket += 1
        if not lane.is_runnable and lane.ready.count:
            lane.is_runnable = True
            self._runnable.append(lane)

    def _wake(self, gate: Gate, how_many: int = 1) -> None:
        for lane in gate.wake(how_many):
            self._make_runnable(lane)

    def _serve(self, lane: Lane[PartT], now_s: float, actions: list[Action[PartT]]) -> bool:
        """One batch for one session of the lane, or the lane is parked. True when something was handed out."""
        blocked: set[Egress] = set()
        gates: list[Gate] = []
        earliest = Wait(WaitReason.NO_EGRESS, math.inf, f"no egress of pool {lane.chooser.pool.name} may carry it")
        while egress := lane.chooser.choose(lane.domain, lambda candidate: candidate not in blocked):
            group = self._group(lane.site, egress, now_s)
            session = group.free_session() or self._open(group, lane, now_s, actions, gates)
            if isinstance(session, Wait):
                if session.until < earliest.until or not blocked:
                    earliest = session
                blocked.add(egress)
                continue
            amount = self._grant(session, now_s)
            if amount <= 0:
                limit = session.hop.limit
                assert limit.quota is not None, "a session with room was granted nothing"
                gates.append(limit)
                wait = self._quota_wait(limit, now_s)
                earliest = wait if wait.until < earliest.until or not blocked else earliest
                blocked.add(egress)
                continue
            actions.append(self._hand(lane, session, amount, now_s))
            if session.is_spent:
                self._close(session, actions)
            return True
        self._park(lane, earliest, gates, now_s)
        return False

    def _grant(self, session: Session, now_s: float) -> int:
        amount = min(session.room(), self._bounds.batch_recipients)
        quota = session.hop.limit.quota
        if quota is not None:
            amount = min(amount, quota.available(now_s + self._unix_offset_s))
        return amount

    def _hand(self, lane: Lane[PartT], session: Session, amount: int, now_s: float) -> HandOut[PartT]:
        stream, taken = lane.ready.take(amount)
        given = sum(len(positions) for _, positions in taken)
        self.ready_count -= given
        if session.hop.limit.quota is not None:
            session.hop.limit.quota.take(given)
        if session.in_flight == 0:
            session.handed_at_s = now_s
            self._not_idle(session)
        session.in_flight += given
        session.used += given
        return HandOut(session, lane, stream, taken, given)

    def _park(self, lane: Lane[PartT], wait: Wait, gates: Iterable[Gate], now_s: float) -> None:
        lane.ticket += 1
        lane.wait = wait
        lane.parked_at_s = now_s
        for gate in gates:
            gate.wait(lane)
        if wait.reason is WaitReason.BACKOFF and wait.until - now_s > PATIENCE_S:
            self._give_back(lane, lane.ready.count, now_s, is_attempt=True, cause=wait.detail)
            lane.wait = None
            return
        if wait.until < math.inf:
            heapq.heappush(self._timers, (wait.until, next(self._timer_numbers), lane, lane.ticket))
        self._shed_surplus(lane, now_s)

    def _quota_wait(self, limit: Limit, now_s: float) -> Wait:
        assert limit.quota is not None
        until_s = limit.quota.next_at(now_s + self._unix_offset_s) - self._unix_offset_s
        detail = f"rule {limit.rule.name}: {limit.rule.messages_per_hour_max} messages an hour, counted on {limit.key}"
        return Wait(WaitReason.RULE_MESSAGES_PER_HOUR, until_s, detail)

    # --- sessions -----------------------------------------------------------------------------

    def _group(self, site: Site, egress: Egress, now_s: float) -> Group:
        key = (site.key, egress.name)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(site, egress)
        if group.site is not site or group.rules_version != self._rules_version:
            group.site = site
            group.rules_version = self._rules_version
            group.hops = self._hops(site, egress)
        return group

    def _hops(self, site: Site, egress: Egress) -> list[Hop]:
        """All ways to a site through an egress: by preference, at random among equals (RFC 5321 §5.1)."""
        hops = []
        for host, peer in order_hosts(site, self._shuffle):
            if source_for(egress, peer) is NO_SOURCE:
                continue
            rule = self._rules.match(host.name, egress.id)
            limit = self._limit(limit_key(rule, egress.id, peer), rule.name)
            path = self._paths.setdefault((egress.name, peer), Path())
            hops.append(Hop(host.name, host.preference, peer, rule, limit, path))
        return hops

    def _limit(self, key: str, rule_name: str) -> Limit:
        limit = self._limits.get(key)
        if limit is None:
            rule = next((rule for rule in self._rules.rules if rule.name == rule_name), self._rules.default)
            limit = self._limits[key] = Limit(key, rule)
        return limit

    def _open(
        self, group: Group, lane: Lane[PartT], now_s: float, actions: list[Action[PartT]], gates: list[Gate]
    ) -> Session | Wait:
        """Opens a session by the best hop that may be used now, or says what to wait for."""
        if not group.wants_session(lane.ready.count):
            gates.append(group)
            return Wait(WaitReason.WINDOW, math.inf, "its sessions are busy")
        hop, wait = self._best_hop(group, now_s, actions, gates)
        if hop is None:
            return wait
        child = self._child_with_room()
        if child is None:
            gates.append(self._capacity)
            if self._idle:
                self._close(next(iter(self._idle.values())), actions)
            return Wait(WaitReason.SESSIONS, math.inf, "all sessions of all children are in use")
        session = Session(next(self._session_ids), group, hop, child)
        self._sessions[session.id] = session
        self._children[child] += 1
        hop.limit.sessions += 1
        hop.path.sessions += 1
        group.sessions += 1
        group.list_free(session)
        actions.append(OpenSession(session))
        return session

    def _best_hop(
        self, group: Group, now_s: float, actions: list[Action[PartT]], gates: list[Gate]
    ) -> tuple[Hop | None, Wait]:
        """The first hop that is free. One that is only full, not failing, keeps the less preferred ones unused."""
        failing = Wait(WaitReason.BACKOFF, math.inf, "no address of the site can be used from this egress")
        full: Wait | None = None
        full_preference = 0
        for index, hop in enumerate(group.hops):
            if full is not None and hop.preference > full_preference:
                break
            if not hop.path.backoff.is_available(now_s):
                if hop.path.backoff.until_s < failing.until:
                    failing = Wait(WaitReason.BACKOFF, hop.path.backoff.until_s, hop.path.last_failure)
                continue
            blocked = self._why_full(hop, now_s, actions, gates)
            if blocked is None:
                # The next session of this group begins at the next equal, so that equals share the load.
                self._rotate(group, index)
                return hop, failing
            if full is None or blocked.until < full.until:
                full, full_preference = blocked, hop.preference
        if full is None:
            return None, failing
        gates.append(group)
        return None, full

    @staticmethod
    def _rotate(group: Group, index: int) -> None:
        preference = group.hops[index].preference
        first = next(i for i, hop in enumerate(group.hops) if hop.preference == preference)
        last = first
        while last < len(group.hops) and group.hops[last].preference == preference:
            last += 1
        equals = group.hops[first:last]
        turn = index - first + 1
        group.hops[first:last] = equals[turn:] + equals[:turn]

    def _why_full(self, hop: Hop, now_s: float, actions: list[Action[PartT]], gates: list[Gate]) -> Wait | None:
        rule = hop.rule
        if not hop.limit.has_connection:
            gates.append(hop.limit)
            if hop.limit.idle:
                # Another site of the same limit keeps a connection that it does not need now.
                self._close(next(iter(hop.limit.idle.values())), actions)
            detail = f"rule {rule.name}: {rule.connections_max} connections, counted on {hop.limit.key}"
            return Wait(WaitReason.RULE_CONNECTIONS, math.inf, detail)
        if rule.connections_per_path_max is not None and hop.path.sessions >= rule.connections_per_path_max:
            gates.append(hop.path)
            detail = f"rule {rule.name}: {rule.connections_per_path_max} connections to {hop.peer}"
            return Wait(WaitReason.RULE_CONNECTIONS, math.inf, detail)
        if hop.limit.quota is not None and hop.limit.quota.available(now_s + self._unix_offset_s) <= 0:
            gates.append(hop.limit)
            return self._quota_wait(hop.limit, now_s)
        return None

    def _child_with_room(self) -> int | None:
        if not self._children:
            return None
        child = min(self._children, key=self._children.__getitem__)
        return child if self._children[child] < self._bounds.sessions_per_child_max else None

    def _close(self, session: Session, actions: list[Action[PartT]]) -> None:
        if not session.is_closing:
            session.is_closing = True
            self._not_idle(session)
            actions.append(CloseSession(session))

    def _not_idle(self, session: Session) -> None:
        if self._idle.pop(session.id, None) is not None:
            del session.hop.limit.idle[session.id]

    # --- events -------------------------------------------------------------------------------

    def add_child(self, child: int) -> None:
        """A child is there and takes sessions."""
        self._children[child] = 0
        self._wake(self._capacity, self._bounds.sessions_per_child_max)

    def retire_child(self, child: int) -> None:
        """No new session for it; those it has go on until they are closed."""
        self._children.pop(child, None)
        for session in self._sessions.values():
            if session.child == child:
                session.is_closing = True
                self._not_idle(session)

    def sessions_of(self, child: int) -> list[Session]:
        return [session for session in self._sessions.values() if session.child == child]

    def session_opened(self, session_id: int, now_s: float) -> None:
        """The server greeted it and said what it offers."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.is_open = True
            session.handed_at_s = now_s  # its pace is that of messages, not of the handshake

    def decided(self, session_id: int, attempted: int, returned: int, now_s: float) -> None:
        """Of what the session was given, ``attempted`` have an outcome, ``returned`` were never begun.

        What is returned must be put back by the caller (`put` with ``at_front``).
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        session.in_flight -= attempted + returned
        session.used -= returned
        session.progress += attempted
        quota = session.hop.limit.quota
        if quota is not None:
            quota.report(attempted, now_s + self._unix_offset_s)
            quota.give_back(returned)
            if returned:
                self._wake(session.hop.limit, returned)
        if attempted:
            session.adapt_window(attempted, now_s, 2 * self._bounds.batch_recipients)
            session.handed_at_s = now_s
            if session.progress == attempted:
                session.hop.path.backoff.succeeded()
        if session.is_closing:
            return
        if session.in_flight == 0:
            self._idle[session.id] = session
            session.hop.limit.idle[session.id] = session
        session.group.list_free(session)
        self._wake(session.group)

    def sent(self, lane: Lane[PartT], attempted: int, now_s: float) -> None:
        """For the lane's pace: messages decided, averaged over some seconds."""
        lane.sent += attempted
        elapsed_s = now_s - lane.rate_since_s
        if elapsed_s >= 1.0:
            pace = lane.sent / elapsed_s
            lane.rate_per_s = pace if lane.rate_per_s == 0.0 else 0.5 * (pace + lane.rate_per_s)
            lane.sent = 0
            lane.rate_since_s = now_s

    def session_closed(self, session_id: int, now_s: float, failure: str) -> None:
        """Its connection is gone. ``failure`` (not empty): it ended badly, or could not be opened.

        A session that ended badly before the server decided anything counts against its path.
        """
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        hop = session.hop
        hop.limit.sessions -= 1
        hop.path.sessions -= 1
        session.group.sessions -= 1
        assert hop.limit.sessions >= 0
        assert hop.path.sessions >= 0
        session.is_closing = True
        self._not_idle(session)
        if session.child in self._children:
            self._children[session.child] -= 1
        if hop.limit.quota is not None and session.in_flight:
            # Nobody said what became of these; if any was sent, it used its credit.
            hop.limit.quota.report(session.in_flight, now_s + self._unix_offset_s)
        if failure and session.progress == 0:
            hop.path.last_failure = failure
            hop.path.backoff.failed(now_s)
        for gate in (hop.limit, hop.path, session.group, self._capacity):
            self._wake(gate)

    def set_rules(self, rules: RuleSet) -> None:
        """New rules, at once and as a whole. Counters of rules that keep their name are kept."""
        self._rules = rules
        self._rules_version += 1
        by_name = {rule.name: rule for rule in rules.rules}
        for limit in self._limits.values():
            limit.adopt(by_name.get(limit.rule.name, rules.default))
        for lane in self._lanes.values():
            if lane.wait is not None:
                self._make_runnable(lane)

    def load_credits(self, credits_used: Iterable[tuple[str, int, int]], now_s: float) -> None:
        """Credits of earlier runs: (limit key, bucket of 10 s of Unix time, used)."""
        by_key: dict[str, list[tuple[int, int]]] = {}
        for key, bucket, used in credits_used:
            by_key.setdefault(key, []).append((bucket, used))
        for key, buckets in by_key.items():
            limit = self._limit(key, key.split("|", 1)[0])
            if limit.quota is not None:
                limit.quota.load(buckets, now_s + self._unix_offset_s)

    def is_counted(self, key: str) -> bool:
        """True when the limit of this key counts messages by the hour."""
        limit = self._limits.get(key)
        return limit is not None and limit.quota is not None

    # --- views --------------------------------------------------------------------------------

    def session(self, session_id: int) -> Session | None:
        return self._sessions.get(session_id)

    @property
    def lanes(self) -> Iterable[Lane[PartT]]:
        return self._lanes.values()

    @property
    def sessions_count(self) -> int:
        return len(self._sessions)

    def forget_empty(self, now_s: float) -> None:
        """Drops what nothing waits for or flows through; called now and then by the owner."""
        for lane_key in [key for key, lane in self._lanes.items() if not lane.ready.count and not lane.is_runnable]:
            del self._lanes[lane_key]
        needed = {(lane.site.key, egress.name) for lane in self._lanes.values() for egress in lane.egresses}
        for group_key in [key for key, group in self._groups.items() if not group.sessions and key not in needed]:
            del self._groups[group_key]
        # A hop holds its limit and path; a second object for the same key would count apart.
        hops = [hop for group in self._groups.values() for hop in group.hops]
        hops += [session.hop for session in self._sessions.values()]
        limits, paths = {hop.limit for hop in hops}, {hop.path for hop in hops}
        for limit_name, limit in list(self._limits.items()):
            idle = limit.quota is None or limit.quota.is_idle(now_s + self._unix_offset_s)
            if limit not in limits and idle:
                del self._limits[limit_name]
        for path_key, path in list(self._paths.items()):
            if path not in paths and path.backoff.is_forgotten(now_s):
                del self._paths[path_key]
