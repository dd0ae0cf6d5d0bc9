"""The sessions of a node: which hop a new one takes, when one is opened or closed, what each has in hand.

Every session is counted in its rooms (the rule's limit, the path, the capacity of the children) from the order to
open it until its end is reported, so a limit of connections holds whatever the children and the servers do meanwhile.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any, Final

from mta.model.machine_fault import SystemCall
from mta.model.waiting import Wait, WaitReason
from mta.traffic.actions import Action, Bounds, OpenSession
from mta.traffic.capacity import ChildSlots
from mta.traffic.counters import Counters, Limit, Path, Room
from mta.traffic.gates import Gate, Turns
from mta.traffic.host_facts import Learnt
from mta.traffic.host_sessions import end_trial, obey_facts
from mta.traffic.refusals import RestChange
from mta.traffic.rules import NextMx
from mta.traffic.session_table import SessionTable
from mta.traffic.sessions import Group, Hop, Session, next_mx_of
from mta.traffic.waits import ATTEMPT_SPENT, BUSY, NO_HOP, OPENING, full_wait

# A session that others of its limit wait for, and have none, goes on for so long; then they have their turn.
TURN_S: Final = 5.0
# A session with a less preferred host lasts so long once a better one may be tried again (RFC 5321 §5.1).
SECOND_CHOICE_S: Final = 60.0
WINDOW_BATCHES: Final = 4  # a fast session has so many batches in hand, so that none is waited for

# Local names: an enum member looked up on its class costs more than the comparison it is for.
_BACKOFF: Final = WaitReason.BACKOFF
_MACHINE: Final = WaitReason.MACHINE
_NEVER: Final = NextMx.NEVER
_WHEN_FULL: Final = NextMx.WHEN_FULL


class Connections(SessionTable):
    """All sessions of one node: which is opened, and what becomes of it."""

    def __init__(self, bounds: Bounds, turns: Turns, actions: list[Action[Any]], counters: Counters) -> None:
        super().__init__(bounds, turns, actions, counters)
        self._bounds = bounds
        self.forgotten: list[Learnt] = []  # facts that sessions did without
        # True for one look: the plan of a new source address is not kept to, as there is no other for the message.
        self.is_over_plan = False
        self._ids = count(1)

    # --- one for the next batch ---------------------------------------------------------------

    def session_for(
        self, group: Group, waiting: int, now_s: float, gates: list[Gate], size_bytes: int = 0
    ) -> Session | Wait:
        """A session of the group that may be given something now, or why there is none; then ``gates`` grows by
        all that would have to open. ``size_bytes``: of the next message, at most."""
        gates.append(group)
        effect = self._counters.suspended(group.site.key, group.egress.name, now_s)
        if effect is not None:
            until_s = self._counters.clock_s(effect.until_unix_s)
            self._turns.alarms.set(group, until_s)
            return Wait(WaitReason.SUSPENDED, until_s, f"{effect.target} {effect.on}: {effect.said}")
        session = self.open_session_for(group, now_s, size_bytes)
        if session is not None:
            return session
        if not group.wants_session(waiting):
            return BUSY
        openings = group.reach.slots
        if not openings.is_open(now_s):
            gates.append(openings)
            return OPENING
        hop = self._best_hop(group, now_s, gates, size_bytes)
        if not isinstance(hop, Hop):
            # A server that refuses more connections than it has is busy, not failing.
            return BUSY if (hop.reason is _BACKOFF or hop.reason is _MACHINE) and group.proven else hop
        free = self.credits(hop, now_s, size_bytes)
        if free < waiting and not group.wants_session(free):
            return BUSY  # the open ones can use up the credits
        slots = self._capacity.idlest(now_s)
        if slots is None or not self._capacity.has_room:
            gates.append(self._capacity)
            self._make_room(self._capacity)
            return self.rests.why_no_child(now_s)
        return self._open(group, hop, slots, now_s)

    def credits(self, hop: Hop, now_s: float, size_bytes: int) -> int:
        """How many messages all that counts there lets through now."""
        return hop.credits(now_s, size_bytes, is_over_plan=self.is_over_plan)

    def open_session_for(self, group: Group, now_s: float, size_bytes: int = 0) -> Session | None:
        """A session that there is already and that may be given something now."""
        while (session := group.next_free()) is not None:
            dry: Limit | None = None
            until_s = now_s
            if session.limit.counts_messages or len(session.hop.limits) > 1:
                dry, until_s = session.hop.dry_limit(now_s, size_bytes, is_over_plan=self.is_over_plan)
            if dry is not None:
                # Out of the way until there are credits: another session may count on another limit.
                group.unlist_first()
                session.dry_up(dry)
                self._turns.alarms.set(dry, until_s)
            elif session.path.suspended_until_s > now_s or self._must_yield(session, now_s):
                self.close(session)
            else:
                session.refill()
                return session
        return None

    def _must_yield(self, session: Session, now_s: float) -> bool:
        """True when it has had its turn and somebody who has none waits for its place, or a better host is there."""
        age_s = now_s - session.opened_s
        if age_s < TURN_S:
            return False
        if any(room.waiting_first > room.closing and not room.has_room for room in session.rooms):
            return True
        best = session.group.hops[0] if session.group.hops else session.hop
        return age_s >= SECOND_CHOICE_S and best.is_better(session.hop, now_s)

    def _best_hop(self, group: Group, now_s: float, gates: list[Gate], size_bytes: int) -> Hop | Wait:
        """The first hop that is free. One that is only full, not failing, keeps the less preferred ones unused, unless
        its rule says otherwise."""
        failing: Wait | None = None
        barred: Wait | None = None  # by this machine
        full: Wait | None = None
        full_preference = 0
        spare: Hop | None = None
        next_mx = next_mx_of(group.hops)
        budget = group.reach.budget
        is_tight = len(budget.tried) > 0
        is_spent = budget.is_spent
        if is_spent:
            gates.append(budget)
        for hop in group.hops:
            if next_mx is _NEVER and hop.preference > group.hops[0].preference:
                break
            if full is not None and hop.preference > full_preference and next_mx is not _WHEN_FULL:
                break
            if is_spent and hop.peer not in budget.tried:
                failing = failing or ATTEMPT_SPENT
                continue
            wait = self._why_not(hop, now_s, gates, size_bytes)
            if wait is None:
                if not (is_tight and budget.is_used_up_by(hop.mx_host, hop.peer)):
                    return hop
                spare = spare or hop
                continue
            if wait.reason is _MACHINE:
                barred = _sooner(barred, wait)
            elif wait.reason is _BACKOFF or hop.path.suspended_until_s > now_s:
                failing = _sooner(failing, wait)
            elif full is None or wait.until < full.until:
                full, full_preference = wait, hop.preference
        return spare or full or failing or barred or NO_HOP

    def _why_not(self, hop: Hop, now_s: float, gates: list[Gate], size_bytes: int) -> Wait | None:
        """What keeps a session from being opened by this hop now."""
        path = hop.path
        if not path.is_open(now_s):
            gates.append(path)
            return self._why_not_by(path, now_s)
        source = hop.source
        if not source.is_open(now_s):
            gates.append(source)
            return self.rests.why_not_from(source, now_s)
        dry, until_s = hop.dry_limit(now_s, size_bytes, is_over_plan=self.is_over_plan)
        if dry is not None:
            gates.append(dry)
            self._turns.alarms.set(dry, until_s)
            return dry.wait_for_credits(now_s, size_bytes)
        for limit in hop.limits:
            opens_s = limit.opens_at_s(now_s)
            if opens_s > now_s:
                gates.append(limit)
                self._turns.alarms.set(limit, opens_s)
                return limit.wait_to_open(now_s)
        for room in hop.rooms:
            if not room.has_room:
                gates.append(room)
                self._make_room(room)
                return full_wait(hop, room)
        return None

    def _why_not_by(self, path: Path, now_s: float) -> Wait:
        if (suspension := path.suspension) is not None and path.suspended_until_s > now_s:
            self._turns.alarms.set(path, path.suspended_until_s)
            detail = f"path {path.key}: {suspension.said}"
            return Wait(WaitReason.SUSPENDED, path.suspended_until_s, detail)
        wait = path.why_resting(now_s)
        if wait.until < math.inf:
            self._turns.alarms.set(path, wait.until)
        return wait

    def _make_room(self, room: Room) -> None:
        """Another site keeps a connection that it does not need now: it is closed for the one that asks."""
        if room.closing <= room.waiting and (session_id := room.idle_session) is not None:
            self.close(self._sessions[session_id])

    # --- life of a session --------------------------------------------------------------------

    def _open(self, group: Group, hop: Hop, slots: ChildSlots, now_s: float) -> Session:
        session = Session(next(self._ids), group, hop, slots.number, (*hop.rooms, self._capacity), now_s)
        if self.hosts:
            obey_facts(session, self._counters, now_s)
        self._sessions[session.id] = session
        for limit in hop.limits:
            limit.begin(now_s)
            if limit.openings is not None:
                session.openings.append((limit, limit.openings))
        for room in session.rooms:
            room.sessions += 1
        if hop.path.is_failing(now_s):
            session.is_trial = True
            hop.path.trials += 1
        self.rests.begin(session, now_s)
        group.sessions += 1
        group.usable += 1
        group.reach.slots.opening += 1
        if not group.is_moving(now_s):
            group.moved_s = now_s
        if len(group.hops) > 1:
            group.rotate(hop)
        group.list_free(session)
        self._actions.append(OpenSession(session))
        return session

    def hand(self, session: Session, amount: int, now_s: float, size_bytes: int = 0) -> None:
        """The session is given so many of at most that size; all counters know it from now on."""
        for booking in session.booked:
            if not booking.is_current:
                self._book_anew(session, now_s)
                break
        for booking in session.booked:
            limit, quota, volume = booking.limit, booking.quota, booking.volume
            if quota is not None:
                if limit.is_plan and self.is_over_plan:
                    quota.carry(amount)
                else:
                    quota.take(amount)
            if volume is not None and size_bytes:
                booked = amount * limit.booked_bytes(size_bytes)
                volume.take(booked)
                booking.volume_booked += booked
        if session.in_flight == 0:
            session.begin_measuring(now_s)
            session.unrest()
        session.in_flight += amount
        session.used += amount
        if session.group.waiting and session.room():
            self._turns.wake(session.group)  # another lane of the site may fill it

    def opened(self, session_id: int, now_s: float) -> None:
        """The server greeted it and said what it offers."""
        session = self._sessions.get(session_id)
        if session is not None and not session.is_over:
            self._begun(session, now_s)
            session.opened_s = now_s
            self.rests.reached(session, now_s)
            session.begin_measuring(now_s)
            group = session.group
            slots = group.reach.slots
            slots.answered()
            self._turns.wake(slots)
            took_s = now_s - session.ordered_s
            group.open_s = took_s if not group.open_s else 0.8 * group.open_s + 0.2 * took_s

    def _begun(self, session: Session, now_s: float) -> None:
        """What became of its opening is known."""
        if not session.openings:
            return
        openings, session.openings = session.openings, []
        for limit, quota in openings:
            limit.begun(quota, now_s)
            self._credits_changed(limit, now_s, has_more=False)

    def decided(
        self, session_id: int, attempted: int, returned: int, now_s: float, size_bytes: int = 0, accepted: int = 0
    ) -> None:
        """Of what the session was given, ``attempted`` have an outcome, ``returned`` were never begun.

        ``accepted``: of those attempted, what the server took.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        before = session.in_flight
        session.in_flight -= attempted + returned
        session.used -= returned
        for booking in session.booked:
            limit = booking.limit
            if booking.quota is not None:
                limit.report(booking.quota, attempted, now_s)
                booking.quota.give_back(returned)
            if booking.volume is not None:
                # Which of the messages were the large ones is not known: what is booked goes by their number.
                landed = booking.volume_booked * (attempted + returned) // before if before else 0
                booking.volume_booked -= landed
                booking.volume.give_back(landed)
                limit.charge_volume(booking.volume, size_bytes, now_s)
            self._credits_changed(limit, now_s, has_more=returned > 0 or booking.volume is not None)
        if accepted and not session.path.refusals.is_clean:
            self._was_accepted(session)
        if session.is_over:
            if not session.in_flight:
                del self._sessions[session_id]
            return
        if attempted:
            self._made_progress(session, attempted, now_s)
        if not session.is_closing:
            if session.in_flight == 0:
                session.rest()
                self._rested.append(session)
                if session.is_trial and not session.progress:
                    self.close(session)  # others wait to hear of a trial that has nothing to try with
            session.group.list_free(session)
        self._turns.wake(session.group)

    def _made_progress(self, session: Session, attempted: int, now_s: float) -> None:
        session.measure(attempted, now_s, WINDOW_BATCHES * self._bounds.batch_recipients)
        session.group.moved_s = now_s
        session.progress += attempted
        reach = session.group.reach
        if reach.begin_anew():
            self._turns.wake(reach.budget)
        if session.progress == attempted:
            session.group.proven += not session.is_closing
            path = session.path
            if path.is_failing(now_s) or session.is_trial:
                path.backoff.succeeded()
                if not path.refusals.is_remembered(now_s):  # else it is tried until something is accepted
                    self._end_trial(session)
                    self._turns.wake(path)

    # --- refusals of paths --------------------------------------------------------------------

    def _was_accepted(self, session: Session) -> None:
        path = session.path
        last, refused = path.refusals.last, path.refusals.refused
        if path.refusals.accepted():
            assert last is not None
            self.rest_changes.append(RestChange(last, 0.0, refused))
            self._end_trial(session)
            self._turns.wake(path)

    @staticmethod
    def _end_trial(session: Session) -> None:
        if session.is_trial:
            session.is_trial = False
            session.hop.path.trials -= 1

    def closed(self, session_id: int, now_s: float, failure: str) -> None:
        """Its connection is gone. ``failure`` (not empty): it ended badly, or could not be opened.

        A session that ended badly before anything was attempted counts against its path. What it has in hand
        stays booked until `decided` tells of it, or until it is closed once more: then nobody will tell.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        if not session.is_over:
            if failure and session.opened_s == math.inf:
                self.rests.reached(session, now_s)
            path = session.path
            if session.is_opened and not session.is_surplus:
                path.ended_s = now_s
            if failure and session.progress == 0 and not (session.is_surplus and session.group.sessions > 1):
                session.group.reach.failed(session.hop.mx_host, session.hop.peer, was_opened=session.is_opened)
                path.last_failure = failure
                path.is_of_machine = False
                until_s = path.backoff.failed(now_s)
                if path.waiting:
                    self._turns.alarms.set(path, until_s)
            self._leave(session, now_s)
            return
        if session.in_flight:
            self._release(session, now_s)
            for limit in session.hop.limits:
                self._credits_changed(limit, now_s, has_more=False)
        del self._sessions[session_id]

    def not_opened_here(self, session_id: int, now_s: float, call: SystemCall, number: int) -> None:
        """This machine could not open it (errno ``number``): nobody was asked, and nothing counts against a peer."""
        session = self._sessions.get(session_id)
        if session is None or session.is_over:
            return
        for limit, quota in session.openings:
            quota.give_back(1)
            self._credits_changed(limit, now_s, has_more=True)
        session.openings = []
        self._leave(session, now_s)
        self.rests.not_opened(session, call, number, now_s)

    def _leave(self, session: Session, now_s: float) -> None:
        """It holds nothing open any more."""
        self._begun(session, now_s)
        self._leave_rooms(session)
        self._end_trial(session)
        self.rests.end_trials(session)
        if session.is_host_trial:
            self.forgotten += end_trial(session, self._counters, now_s)
        slots = session.group.reach.slots
        slots.ended(was_opened=session.is_opened)
        for gate in (*session.rooms, session.hop.path, session.hop.source, session.group, slots):
            self._turns.wake(gate)
        session.is_over = True
        if not session.in_flight:
            self._sessions.pop(session.id, None)

    def _leave_rooms(self, session: Session) -> None:
        if not session.is_closing:
            self._stop_using(session)
        for room in session.rooms:
            room.sessions -= 1
            room.closing -= 1
            assert room.sessions >= room.closing >= 0
        session.group.sessions -= 1
        slots = self._capacity.get(session.child)
        if slots is not None:
            slots.sessions -= 1

    # --- credits and idle sessions ------------------------------------------------------------


def _sooner(first: Wait | None, second: Wait) -> Wait:
    return second if first is None or second.until < first.until else first
