"""The real Schedule in a modelled world: children, servers and a queue under a virtual clock.

The world performs what the schedule decides as the daemon and its children do: reports come in batches, what a
lost connection had in hand comes back, surplus returns after its due time. It keeps books of its own, from the
far side, and checks after every step that no limit is exceeded, that no recipient is lost or handed out twice, and
that no lane sleeps while it could go. Deterministic: everything random comes from one seed.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from mta.model.egress import EgressPool
from mta.model.machine_fault import SystemCall
from mta.model.site import Site
from mta.model.waiting import WaitReason
from mta.traffic.actions import Bounds, CloseSession, GiveBack, HandOut, OpenSession
from mta.traffic.egress import EgressChooser
from mta.traffic.lanes import Lane
from mta.traffic.limits import Limits
from mta.traffic.ready import Run, Stream
from mta.traffic.rules import NextMx, Rule, RuleSet, Scope, WarmUp, limit_key, path_key
from mta.traffic.schedule import SIZE_UNKNOWN_BYTES, Schedule
from mta.traffic.sessions import Group, Hop, Session
from tests.support.schedule_model import A, B, Child, Connection, Part, Sent, Server, egress

START_S = 5_000.0
UNIX_OFFSET_S = 1_800_000_000.123456
REPORT_DELAY_S = 0.005
ALARM_GRAIN_S = 0.01
MESSAGE_BYTES = 2_000


class World:
    """One node and all that it sends to. ``sites`` by recipient domain, ``pools`` by name."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        sites: dict[str, Site],
        pools: Iterable[EgressPool] = (EgressPool("main", (egress(1),)),),
        children: int = 2,
        bounds: Bounds | None = None,
        seed: int = 1,
        comes_back: bool = True,
        warm_ups: Iterable[WarmUp] = (),
        unix_offset_s: float = UNIX_OFFSET_S,
    ) -> None:
        self.rng = random.Random(seed)
        self.now_s = START_S
        self.rules = RuleSet(rules, warm_ups=warm_ups)
        self.sites = sites
        self.choosers = {pool.name: EgressChooser(pool) for pool in pools}
        self.bounds = bounds or Bounds()
        self.schedule: Schedule[Part] = Schedule(
            self.rules, self.bounds, unix_offset_s=unix_offset_s, shuffle=self.rng.shuffle
        )
        self.servers: dict[str, Server] = {}
        for hosts in sites.values():
            for host in hosts.hosts:
                for peer in host.addresses:
                    self.servers.setdefault(peer, Server())
        self.comes_back = comes_back  # what is given back is put in again when it is due
        self.children: dict[int, Child] = {}
        # What this machine answers where it cannot open a session: the call, and its errno.
        self.machine: Callable[[Session], tuple[SystemCall, int] | None] = lambda session: None
        self.deaf: set[int] = set()  # children that do not move: nothing of theirs happens
        self._child_numbers = count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_numbers = count()
        self._recipients = count()
        self.where: dict[int, str] = {}  # recipient -> ready, out, away, deferred, done
        self._count: Counter[str] = Counter()
        self._paused: dict[int, list[tuple[Part, list[int]]]] = {}  # delivery -> what is kept back
        self.sent: list[Sent] = []
        self.given_back: list[tuple[float, GiveBack[Part]]] = []
        self.opened: list[tuple[float, Session]] = []
        self.open_now: Counter[str] = Counter()
        self.open_max: Counter[str] = Counter()
        self.hand_outs: list[tuple[float, HandOut[Part]]] = []
        for _ in range(children):
            self.add_child()

    # --- what a test does -----------------------------------------------------------------------

    def add_child(self) -> int:
        number = next(self._child_numbers)
        self.children[number] = Child()
        self.schedule.add_child(number)
        return number

    def put(
        self, domain: str, recipients: int, *, delivery: int = 1, weight: int = 1, pool: str = "main", part: int = 256
    ) -> list[int]:
        """New recipients of a delivery, in parts."""
        numbers = [next(self._recipients) for _ in range(recipients)]
        for at in range(0, recipients, part):
            self._put(Part(delivery, weight, domain, pool), numbers[at : at + part])
        return numbers

    def lane(self, domain: str, pool: str = "main") -> Lane[Part]:
        return self.schedule.lane(self.sites[domain], self.choosers[pool], domain)

    def at(self, at_s: float, does: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._event_numbers), does))

    def run(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> None:
        """Goes on until ``until`` holds, the time is over, or nothing can happen any more."""
        end_s = self.now_s + seconds
        self._pump()
        while not until():
            next_s = min(self._events[0][0] if self._events else math.inf, self.schedule.next_due_s())
            if next_s > end_s or next_s == math.inf:
                self.now_s = end_s if end_s < math.inf else self.now_s
                break
            self._look_before(next_s)
            self.now_s = max(self.now_s, next_s)
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[2]()
            self._pump()

    def _look_before(self, next_s: float) -> None:
        """Until the next thing happens nobody could have gone sooner: no alarm was forgotten."""
        before_s = next_s - ALARM_GRAIN_S
        if before_s > self.now_s:
            self.now_s = before_s
            self.check_nobody_sleeps()

    def kill_child(self, number: int) -> None:
        """It dies; its journal tells what was begun. Another takes its place."""
        child = self.children.pop(number)
        self.schedule.retire_child(number)
        for connection in child.connections.values():
            self._drop_queue(child, connection, connection.is_busy)
            connection.is_over = True
        self._report(child)
        for session in self.schedule.sessions_of(number):
            self._forget(session)
            self.schedule.session_closed(session.id, self.now_s, "")
        assert not self.schedule.sessions_of(number)
        self.add_child()

    def drain_child(self, number: int) -> None:
        """It is replaced: what it has not begun comes back, and its connections are closed."""
        self.schedule.retire_child(number)
        child = self.children[number]
        for connection in child.connections.values():
            self._give_back_queue(child, connection)
            self._close(child, connection)
        self._report(child)
        self.add_child()

    def pause(self, delivery: int) -> None:
        """Nothing of it is begun from here on; what children have not begun comes back."""
        kept = self._paused.setdefault(delivery, [])
        for part, positions in self.schedule.remove_delivery(delivery):
            self._keep(kept, part, positions)
        for child in self.children.values():
            for connection in child.connections.values():
                self._give_back_queue(child, connection, delivery)

    def resume(self, delivery: int) -> None:
        for part, numbers in self._paused.pop(delivery, []):
            self._put(part, numbers)

    def _keep(self, kept: list[tuple[Part, list[int]]], part: Part, numbers: list[int]) -> None:
        self._move(numbers, "ready", "away")
        kept.append((part, numbers))

    def states(self) -> dict[str, int]:
        """How many recipients are where."""
        return {name: number for name, number in self._count.items() if number}

    def _move(self, numbers: Iterable[int], of: str, to: str) -> None:
        for number in numbers:
            assert self.where[number] == of, f"recipient {number} is {self.where[number]}, not {of}"
            self.where[number] = to
            self._count[of] -= 1
            self._count[to] += 1

    def sent_by(self, name: Callable[[Sent], object]) -> Counter[object]:
        return Counter(map(name, self.sent))

    def most_in(self, seconds: float, times: list[float]) -> int:
        """The fullest half-open period of so many seconds."""
        times = sorted(times)
        return max((bisect_left(times, at + seconds) - i for i, at in enumerate(times)), default=0)

    # --- the daemon -----------------------------------------------------------------------------

    def _put(self, part: Part, numbers: list[int], *, at_front: bool = False, lane: Lane[Part] | None = None) -> None:
        for number in numbers:
            was = self.where.get(number)
            assert was in (None, "away", "deferred", "out"), f"recipient {number} is {was} and is put in"
            self.where[number] = "ready"
            self._count["ready"] += 1
            if was:
                self._count[was] -= 1
        if part.delivery in self._paused:
            self._keep(self._paused[part.delivery], part, numbers)
            return
        lane = lane or self.lane(part.domain, part.pool)
        stream = Stream(part.delivery, ())
        self.schedule.put(lane, stream, part.weight, Run(part, numbers), self.now_s, at_front=at_front)

    def _pump(self) -> None:
        for turn in count():
            assert turn < 10_000, "something is due for ever"
            for action in self.schedule.hand_out(self.now_s):
                if isinstance(action, OpenSession):
                    self._open(action.session)
                elif isinstance(action, HandOut):
                    self._hand_out(action)
                elif isinstance(action, CloseSession):
                    child = self.children.get(action.session.child)
                    if child and (connection := child.connections.get(action.session.id)):
                        self._close(child, connection)
                else:
                    self._give_back(action)
            self.check()
            if not self.schedule.has_runnable:
                break
        self.check_nobody_sleeps()

    def _open(self, session: Session) -> None:
        self.opened.append((self.now_s, session))
        for key, most in self._limits_of(session):
            self.open_now[key] += 1
            self.open_max[key] = max(self.open_max[key], self.open_now[key])
            assert most is None or self.open_now[key] <= most, f"{self.open_now[key]} connections on {key}"
        server = self.servers[session.hop.peer]
        child = self.children[session.child]
        connection = child.connections[session.id] = Connection(session, server)
        living = sum(not other.is_closing for other in child.connections.values())
        assert living <= self.bounds.sessions_per_child_max, f"{living} sessions in child {session.child}"
        self.at(self.now_s + self._about(server.open_s), lambda: self._opened(child, connection))

    def _limits_of(self, session: Session) -> list[tuple[str, int | None]]:
        hop, egress_id = session.hop, session.group.egress.id
        rule = self.rules.match(hop.mx_host, egress_id, session.group.site.key, session.group.domain_class)
        bounds = [
            ("limit " + key, limits.connections_max) for key, limits in self._counted_on(rule, egress_id, hop.peer)
        ]
        return [*bounds, ("path " + path_key(rule, egress_id, hop.peer), rule.connections_per_path_max)]

    @staticmethod
    def _counted_on(rule: Rule, egress_id: int, peer: str) -> list[tuple[str, Limits]]:
        """By key, what bounds an attempt: the rule, and its provider."""
        found: list[tuple[str, Limits]] = [(limit_key(rule, egress_id, peer), rule)]
        if rule.provider is not None:
            by = "" if rule.provider.scope is Scope.SHARED else f"|{egress_id}"
            found.append((f"provider {rule.provider.name}{by}", rule.provider))
        return found

    def _hand_out(self, action: HandOut[Part]) -> None:
        self.hand_outs.append((self.now_s, action))
        numbers = [number for _, positions in action.taken for number in positions]
        assert len(numbers) == action.amount
        assert 0 < action.amount <= self.bounds.batch_recipients
        self._move(numbers, "ready", "out")
        child = self.children.get(action.session.child)
        connection = child.connections.get(action.session.id) if child else None
        for part, positions in action.taken:
            if child is None:
                self.schedule.decided(action.session.id, 0, len(positions), self.now_s)
                self._put(part, positions, at_front=True, lane=action.lane)
            elif connection is None or connection.is_closing or connection.is_over:
                self._tell(child, action, part, [], positions)
            else:
                connection.queue.extend((action, part, number) for number in positions)
                allowed = action.session.hop.limit.in_force.messages_per_connection_max
                assert allowed is None or connection.session.used <= allowed, f"{connection.session.used} > {allowed}"
                self._next(child, connection)

    def _give_back(self, action: GiveBack[Part]) -> None:
        self.given_back.append((self.now_s, action))
        self._move(action.positions, "ready", "deferred" if action.is_attempt else "away")
        if self.comes_back:
            wait_s = 1800.0 if action.is_attempt else action.due_in_s
            self.at(self.now_s + wait_s, lambda: self._put(action.part, action.positions))

    # --- children and servers -------------------------------------------------------------------

    def _about(self, seconds: float) -> float:
        return seconds * self.rng.uniform(0.5, 1.5)

    def _opened(self, child: Child, connection: Connection) -> None:
        if connection.is_over:
            return
        server, peer = connection.server, connection.session.hop.peer
        if (fault := self.machine(connection.session)) is not None:
            self._lost(child, connection, "", is_begun=False, fault=fault)
            return
        at_server = sum(
            other.is_open for c in self.children.values() for other in c.connections.values() if other.server is server
        )
        if server.is_down or self.rng.random() < server.refuse_odds or at_server >= server.connections_max:
            self._lost(child, connection, f"CONNECT: {peer} refused", is_begun=False)
            return
        connection.is_open = True
        self.schedule.session_opened(connection.session.id, self.now_s)
        self._next(child, connection)

    def _next(self, child: Child, connection: Connection) -> None:
        if not connection.is_open or connection.is_busy or connection.is_over:
            return
        if connection.queue:
            connection.is_busy = True
            started_s = self.now_s
            took_s = self._about(connection.server.message_s)
            self.at(self.now_s + took_s, lambda: self._decide(child, connection, started_s))
        elif connection.is_closing:
            self.at(self.now_s + self._about(0.02), lambda: self._lost(child, connection, "", is_begun=False))

    def _decide(self, child: Child, connection: Connection, started_s: float) -> None:
        if connection.is_over:
            return
        if connection.server.is_down or self.rng.random() < connection.server.drop_odds:
            self._lost(child, connection, "closed by the server", is_begun=True)
            return
        connection.is_busy = False
        self._attempted(child, connection, self.rng.choice([started_s, self.now_s]))
        self._next(child, connection)

    def _attempted(self, child: Child, connection: Connection, at_s: float) -> None:
        action, part, number = connection.queue.popleft()
        hop = connection.session.hop
        self.sent.append(
            Sent(
                at_s, number, connection.session.id, hop.mx_host, hop.peer, connection.session.group.egress, part.domain
            )
        )
        self._tell(child, action, part, [number], [])

    def _lost(
        self,
        child: Child,
        connection: Connection,
        failure: str,
        *,
        is_begun: bool,
        fault: tuple[SystemCall, int] | None = None,
    ) -> None:
        if connection.is_over:
            return
        connection.is_over = True
        self._drop_queue(child, connection, is_begun)
        self._report(child)
        del child.connections[connection.session.id]
        self._forget(connection.session)
        if fault is not None:
            self.schedule.session_not_opened_here(connection.session.id, self.now_s, *fault)
        else:
            self.schedule.session_closed(connection.session.id, self.now_s, failure)

    def _drop_queue(self, child: Child, connection: Connection, is_begun: bool) -> None:
        if is_begun:
            self._attempted(child, connection, self.now_s)
        connection.is_busy = False
        self._give_back_queue(child, connection)

    def _give_back_queue(self, child: Child, connection: Connection, delivery: int | None = None) -> None:
        """All that is not begun, of one delivery or of all."""
        queue, connection.queue = connection.queue, deque()
        if connection.is_busy and not connection.is_over:
            connection.queue.append(queue.popleft())
        for action, part, number in queue:
            if delivery in (None, part.delivery):
                self._tell(child, action, part, [], [number])
            else:
                connection.queue.append((action, part, number))

    def _close(self, child: Child, connection: Connection) -> None:
        connection.is_closing = True
        self._next(child, connection)

    def _forget(self, session: Session) -> None:
        if session.is_over:
            return
        for key, _ in self._limits_of(session):
            self.open_now[key] -= 1

    def _tell(self, child: Child, action: HandOut[Part], part: Part, attempted: list[int], returned: list[int]) -> None:
        child.reports.append((action, part, attempted, returned))
        if not child.is_reporting:
            child.is_reporting = True
            self.at(self.now_s + REPORT_DELAY_S, lambda: self._report(child))

    def _report(self, child: Child) -> None:
        """As the collector does: an outcome for each part of each batch."""
        child.is_reporting = False
        reports, child.reports = child.reports, []
        merged: dict[tuple[int, int], tuple[HandOut[Part], Part, list[int], list[int]]] = {}
        for action, part, attempted, returned in reports:
            entry = merged.setdefault((id(action), id(part)), (action, part, [], []))
            entry[2].extend(attempted)
            entry[3].extend(returned)
        for action, part, attempted, returned in merged.values():
            self._move(attempted, "out", "done")
            if attempted:
                self.schedule.sent(action.lane, len(attempted), self.now_s)
            size_bytes = len(attempted) * MESSAGE_BYTES
            self.schedule.decided(action.session.id, len(attempted), len(returned), self.now_s, size_bytes)
            self.schedule.sizes_bytes[part.delivery] = MESSAGE_BYTES
            if returned:
                self._put(part, returned, at_front=True, lane=action.lane)

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        """After every step."""
        ready = sum(lane.ready.count for lane in self.schedule.lanes)
        assert self.schedule.ready_count == ready == self._count["ready"]

    def check_nobody_sleeps(self) -> None:
        """Nobody waits who could go."""
        for lane in self.schedule.lanes:
            if lane.ready.count:
                assert lane.wait is not None, f"{lane.site.key} has recipients, does not run and waits for nothing"
                free = self._what_is_free(lane)
                assert not free, f"{lane.site.key} waits for {lane.wait} and could use {free}"

    def _what_is_free(self, lane: Lane[Part]) -> str:
        known = self.schedule._groups
        keys = [(lane.site.key, egress.name, lane.domain_class) for egress in lane.egresses]
        groups = [known[key] for key in keys if key in known]
        if len(groups) > 1 and any(group.is_moving(self.now_s) for group in groups):
            return ""  # it may keep the turn of a busy egress
        for group in groups:
            if self.schedule._counters.suspended(group.site.key, group.egress.name, self.now_s):
                continue
            sessions = [session for session in self.schedule._connections.all() if session.group is group]
            for session in sessions:
                is_suspended = session.hop.path.suspended_until_s > self.now_s
                if session.room() and self._has_credits(session.hop) and not is_suspended:
                    return f"session {session.id}"
            if not (self.schedule._connections._capacity.is_open(self.now_s) and group.reach.slots.is_open(self.now_s)):
                continue
            if any(session.in_flight and not session.is_closing for session in sessions):
                continue  # one more might not pay; the next report decides
            if (hop := self._free_hop(lane, group)) is not None:
                return f"{hop.mx_host} {hop.peer} through {group.egress.name}"
        return ""

    def _free_hop(self, lane: Lane[Part], group: Group) -> Hop | None:
        for hop in group.hops:
            if hop.preference > group.hops[0].preference and group.hops[0].rule.next_mx is NextMx.NEVER:
                break
            if set(hop.rooms) & set(lane.gates) and not self._has_credits(hop):
                break  # full when it was looked at; that the path has failed since opens nothing at once
            budget = group.reach.budget
            if budget.is_spent and hop.peer not in budget.tried:
                continue
            if not (hop.path.is_open(self.now_s) and hop.source.is_open(self.now_s)):
                continue
            may_begin = all(limit.opens_at_s(self.now_s) <= self.now_s for limit in hop.limits)
            if self._has_credits(hop) and may_begin and all(room.has_room for room in hop.rooms):
                return hop
            break  # only full: the less preferred stay unused
        return None

    def _has_credits(self, hop: Hop) -> bool:
        # Which delivery was next when a session was passed over is not known here: it may have been a new one.
        return self.schedule._connections.credits(hop, self.now_s, SIZE_UNKNOWN_BYTES) > 0

    def check_quotas(self) -> None:
        """Counted where the messages arrived: no window of any length holds more than its limits allow."""
        sent: dict[tuple[str, Limits], list[float]] = {}
        begun: dict[tuple[str, Limits], list[float]] = {}
        for one in self.sent:
            domain_class = self.rules.domain_class(one.domain)
            rule = self.rules.match(one.mx_host, one.egress.id, self.sites[one.domain].key, domain_class)
            for counted in self._counted_on(rule, one.egress.id, one.peer):
                sent.setdefault(counted, []).append(one.at_s)
        for at_s, session in self.opened:
            group = session.group
            rule = self.rules.match(session.hop.mx_host, group.egress.id, group.site.key, group.domain_class)
            for counted in self._counted_on(rule, session.group.egress.id, session.hop.peer):
                begun.setdefault(counted, []).append(at_s)
        for (key, limits), times in sent.items():
            for span_s, most in limits.message_ceilings():
                assert self.most_in(span_s, times) <= most, f"{key}: {self.most_in(span_s, times)} in {span_s} s"
            for span_s, most in limits.byte_ceilings():
                volume = self.most_in(span_s, times) * MESSAGE_BYTES
                # One that is larger than all of the limit goes alone.
                assert volume <= max(most, MESSAGE_BYTES), f"{key}: {volume} bytes in {span_s} s"
        for (key, limits), times in begun.items():
            for span_s, most in limits.opening_ceilings():
                assert self.most_in(span_s, times) <= most, f"{key}: {self.most_in(span_s, times)} begun in {span_s} s"

    def check_all_done(self) -> None:
        """Every recipient was attempted, none twice."""
        assert set(self.where.values()) <= {"done"}, self.states()
        often = [number for number, times in Counter(sent.recipient for sent in self.sent).items() if times > 1]
        assert not often, f"sent more than once: {often[:10]}"
        assert len(self.sent) == len(self.where)

    def waits(self) -> Counter[WaitReason]:
        return Counter(lane.wait.reason for lane in self.schedule.lanes if lane.wait is not None)


def both(rule: Rule, **keys: object) -> World:
    """A world of two sites of one address each, and one rule."""
    return World([rule], sites={"a.test": A, "b.test": B}, **keys)  # type: ignore[arg-type]


def finish(world: World, within_s: float = 3_600) -> None:
    """Everything is sent, within a time."""
    world.run(within_s, until=lambda: set(world.states()) <= {"done"})
    world.check_all_done()
