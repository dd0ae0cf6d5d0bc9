"""The sessions of a node, each counted in its rooms (the rule's limit, the path, the capacity of the children) for as
long as it lives: also when rules are read anew, limits are lowered, or a child goes.

`mta.traffic.connections` says which are opened, and what becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

from mta.traffic.actions import Action, Bounds, CloseSession
from mta.traffic.capacity import Capacity
from mta.traffic.counters import Counters, Limit, Path, Room
from mta.traffic.gates import Gate, Turns
from mta.traffic.host_sessions import count_again
from mta.traffic.machine_rests import MachineRests
from mta.traffic.refusals import RestChange
from mta.traffic.rules import RuleSet
from mta.traffic.sessions import Group, Hop, Session, bookings_of


class SessionTable:
    """All sessions of one node, and where each is counted. What is to be done is appended to ``actions``."""

    def __init__(self, bounds: Bounds, turns: Turns, actions: list[Action[Any]], counters: Counters) -> None:
        self._counters = counters
        self.hosts = counters.hosts
        self._turns = turns
        self._actions = actions
        self._sessions: dict[int, Session] = {}
        self._capacity = Capacity(bounds.sessions_per_child_max)
        self.rests = MachineRests(turns, counters, self._capacity)
        self.rest_changes: list[RestChange] = []  # since the owner took them
        self._rested: list[Session] = []  # became idle since the last look at who waits for their rooms

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: int) -> Session | None:
        return self._sessions.get(session_id)

    def all(self) -> Iterable[Session]:
        return self._sessions.values()

    def of_child(self, child: int) -> list[Session]:
        return [session for session in self._sessions.values() if session.child == child]

    def close(self, session: Session, *, gives_back: bool = False) -> None:
        """It ends when it has sent what it has; ``gives_back``: or only what it has begun."""
        if not session.is_closing:
            self._stop_using(session)
            self._actions.append(CloseSession(session, gives_back))

    def _stop_using(self, session: Session) -> None:
        session.refill()
        session.is_closing = True
        session.group.usable -= 1
        session.group.proven -= session.progress > 0
        session.unrest()
        for room in session.rooms:
            room.closing += 1

    def leave(self, path: Path) -> None:
        """A path begins to rest: its sessions end, and what they have not begun goes another way."""
        assert path.refusals.last is not None
        self.rest_changes.append(RestChange(path.refusals.last, path.refusals.until_s, path.refusals.refused))
        for session in list(self._sessions.values()):
            if session.path is path and not session.is_over:
                self.close(session, gives_back=True)
        if path.waiting:
            self._turns.alarms.set(path, path.opens_at_s())

    # --- what was learnt of hosts -------------------------------------------------------------

    def follow_hosts(self, hosts: Collection[str], now_s: float) -> None:
        """What is known of these hosts has changed: their sessions keep to it, whoever waits there looks again."""
        for session in self._sessions.values():
            if session.hop.host in hosts and not session.is_over:
                hop = count_again(session, self._counters)
                if not hop.counts_as(session.hop):
                    self._move(session, hop)
                if hop.rule.learn_hosts and not session.is_host_trial:
                    session.messages_max = self.hosts.obeyed(hop.host).messages_max
                    if session.left <= 0:
                        self.close(session)
        for room in self._counters.follow_hosts(hosts):
            self._close_excess(room)
            self.look_again(room, now_s)

    @staticmethod
    def _release(session: Session, now_s: float) -> None:
        """All that it has in flight counts as used where it is booked."""
        for booking in session.booked:
            booking.limit.report(booking.quota, session.in_flight, now_s)
            booking.limit.report(booking.volume, booking.volume_booked, now_s)
            booking.volume_booked = 0

    def _book_anew(self, session: Session, now_s: float) -> None:
        """Its limits count elsewhere now: what is in flight is carried there, even if it exceeds them."""
        carried = max((booking.volume_booked for booking in session.booked), default=0)
        self._release(session, now_s)
        session.booked = bookings_of(session.hop)
        for booking in session.booked:
            if booking.quota is not None:
                booking.quota.carry(session.in_flight)
            if booking.volume is not None:
                booking.volume.carry(carried)
                booking.volume_booked = carried

    def _credits_changed(self, limit: Limit, now_s: float, *, has_more: bool) -> None:
        if has_more:
            self._turns.wake(limit)
            self._free_dry(limit)
        elif (limit.waiting or limit.dry) and limit.alarm_s == math.inf:
            # Nobody could say when there would be a credit while all of them were in flight.
            self._turns.alarms.set(limit, limit.next_look_s(now_s))

    def ring(self, gate: Gate, now_s: float) -> None:
        """The alarm of a limit or a path: what it was set for may have been put off since."""
        if isinstance(gate, Limit):
            if gate.credits(now_s) <= 0:
                self._turns.alarms.set(gate, gate.credits_at_s(now_s))
                return
            # First who has waited longest, then the sites of sessions that ran dry: else these would always win.
            self._turns.wake(gate)
            self._free_dry(gate)
            return
        if isinstance(gate, Path) and gate.opens_at_s() > now_s:
            self._turns.alarms.set(gate, gate.opens_at_s())
            return
        self._turns.wake(gate)

    def _free_dry(self, limit: Limit) -> None:
        """Sessions that were passed over for want of credits are free again."""
        for session_id in sorted(limit.dry):
            session = self._sessions[session_id]
            session.refill()
            session.group.list_free(session)
            self._turns.wake(session.group)

    def release_idle(self, now_s: float) -> None:
        """Closes what became idle and stayed so, where somebody waits for its place."""
        if not self._rested:
            return
        rested, self._rested = self._rested, []
        for session in rested:
            if not (session.in_flight or session.is_closing) and any(r.lacks_room(now_s) for r in session.rooms):
                self.close(session)

    # --- children -----------------------------------------------------------------------------

    def add_child(self, child: int) -> None:
        self._capacity.add(child)
        self._turns.wake(self._capacity)

    def retire_child(self, child: int) -> None:
        """No new session for it; those it has go on until they are closed."""
        slots = self._capacity.remove(child)
        if slots is None:
            return
        self.rests.book.worked(slots.unit)
        for session in self.of_child(child):
            if session.is_over:
                continue
            if not session.is_closing:
                self._stop_using(session)
            self._capacity.sessions -= 1
            self._capacity.closing -= 1
            session.rooms = tuple(room for room in session.rooms if room is not self._capacity)

    # --- reload -------------------------------------------------------------------------------

    def adopt(self, rules: RuleSet, now_s: float) -> None:
        """A reload: every session is counted as the new rules say, and those that they do not allow are closed."""
        rooms = self._counters.adopt(rules)
        for session in self._sessions.values():
            old, group = session.hop, session.group
            session.refill()
            hop = count_again(session, self._counters)
            if not hop.counts_as(old):
                self._move(session, hop)
            self._book_anew(session, now_s)
            if not session.is_over and (session.tls_by(hop) is not session.tls or session.left <= 0):
                self.close(session)
            group.list_free(session)
        for room in dict.fromkeys([*rooms, *(room for session in self._sessions.values() for room in session.rooms)]):
            self._close_excess(room)

    def apply_effects(self, limits: Iterable[Limit], paths: Iterable[Path], now_s: float) -> None:
        """What is in force on these has changed: what is in flight is booked anew, whoever waits there looks again."""
        changed = set(limits)
        groups: dict[Group, None] = {}
        if changed:
            for session in self._sessions.values():
                if not changed.isdisjoint(session.hop.limits):
                    session.refill()
                    self._book_anew(session, now_s)
                    if not session.is_over and session.left <= 0:
                        self.close(session)
                    session.group.list_free(session)
                    groups[session.group] = None
        for group in groups:
            self._turns.wake(group)
        for limit in changed:
            self._close_excess(limit)
            self.look_again(limit, now_s)
        for path in paths:
            self.look_again(path, now_s)

    def look_again(self, gate: Gate, now_s: float) -> None:
        """It may let more through than before, or sooner, or later."""
        self._turns.alarms.cancel(gate)
        self.ring(gate, now_s)

    def close_excess(self, rooms: Iterable[Room]) -> None:
        """Closes what stands above what its rooms allow now."""
        for room in rooms:
            self._close_excess(room)

    def _move(self, session: Session, hop: Hop) -> None:
        """Counts a session in other rooms, even where there is no room for it."""
        old = session.hop
        session.hop = hop
        session.limit, session.path = hop.limit, hop.path
        rooms = hop.rooms + session.rooms[len(old.rooms) :]
        if session.is_over:
            session.rooms = rooms
            return
        is_idle = bool(session.idles)
        session.unrest()
        for room, change in [*((room, -1) for room in old.rooms), *((room, 1) for room in hop.rooms)]:
            room.sessions += change
            room.closing += change if session.is_closing else 0
        session.rooms = rooms
        if is_idle:
            session.rest()

    def _close_excess(self, room: Room) -> None:
        while room.excess and (idle := room.idle_session) is not None:
            self.close(self._sessions[idle])
        if room.excess:
            for session in [s for s in self._sessions.values() if room in s.rooms and not s.is_closing]:
                if room.excess:
                    self.close(session)
