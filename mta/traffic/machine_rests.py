"""What rests because this machine could not open a session: a path, an egress in one address family, a child.

A rest is short and grows (`mta.traffic.backoff`); then one session tries, and whatever a peer says to it ends the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from errno import EMFILE
from typing import Final

from mta.model.egress import Egress
from mta.model.machine_fault import RestUnit, SystemCall, find_fault
from mta.model.waiting import Wait, WaitReason
from mta.traffic.capacity import Capacity
from mta.traffic.counters import Counters
from mta.traffic.gates import Gate, Turns
from mta.traffic.machine_faults import FaultBook, said_of
from mta.traffic.sessions import Session
from mta.traffic.sources import REST_S_MAX, Source

_MACHINE: Final = WaitReason.MACHINE


class MachineRests:
    """Of all sessions of one node. ``book``: what its operator is told of."""

    def __init__(self, turns: Turns, counters: Counters, capacity: Capacity) -> None:
        self._turns = turns
        self._counters = counters
        self._capacity = capacity
        self.book = FaultBook()

    # --- the trial that ends a rest -------------------------------------------------------------

    def begin(self, session: Session, now_s: float) -> None:
        """It is ordered; where its egress or its child fails, it is the one that tries."""
        source, slots = session.hop.source, self._capacity.get(session.child)
        if source.is_failing(now_s):
            session.is_source_trial = True
            source.trials += 1
        if slots is not None:
            slots.sessions += 1
            if slots.is_failing(now_s):
                session.is_child_trial = True
                slots.trials += 1

    def end_trials(self, session: Session) -> None:
        """What came of it is known, or it was given up."""
        if session.is_source_trial:
            session.is_source_trial = False
            session.hop.source.trials -= 1
        if session.is_child_trial:
            session.is_child_trial = False
            slots = self._capacity.get(session.child)
            if slots is not None:
                slots.trials -= 1

    def reached(self, session: Session, now_s: float) -> None:
        """Its peer was heard, whatever it said: this machine can connect there."""
        self.end_trials(session)
        path, source, slots = session.path, session.hop.source, self._capacity.get(session.child)
        if source.worked(session.ordered_s, now_s):
            self._turns.wake(source)
        if slots is not None and self.book.open and (over := self._capacity.worked(slots, session.ordered_s)):
            self._turns.wake(self._capacity)
            for one in over:
                self.book.worked(one.unit)
        if path.is_of_machine and session.is_trial:
            session.is_trial = False
            path.trials -= 1
            path.is_of_machine = False
            path.backoff.succeeded()
            self._turns.wake(path)
        if self.book.open:
            if not path.is_of_machine:
                self.book.worked(path.unit)
            if not source.fault:
                self.book.worked(source.unit)

    # --- a rest ---------------------------------------------------------------------------------

    def not_opened(self, session: Session, call: SystemCall, number: int, now_s: float) -> None:
        """This machine could not open it; it has left all that it held."""
        path, source, slots = session.path, session.hop.source, self._capacity.get(session.child)
        fault = find_fault(call, number, has_source=source.address is not None)
        what, remedy = said_of(fault, source.egress.name, source.address, session.hop.peer)
        said = f"{what}; {remedy}"
        rests: Gate = path
        if fault.unit is RestUnit.CHILD:
            if slots is None:
                return  # it is being replaced
            rests, unit = self._capacity, slots.unit
            until_s = self._capacity.failed(slots, said, now_s, is_full=number == EMFILE)
        elif fault.unit is RestUnit.FAMILY and not (fault.is_by_peer and source.is_proven(now_s)):
            rests, unit = source, source.unit
            until_s = source.failed(said, now_s)
        else:
            unit = path.unit
            path.last_failure = said
            path.is_of_machine = True
            until_s = path.backoff.failed(now_s, REST_S_MAX)
        self.book.failed(fault, source.egress.name, unit, what, remedy, now_s)
        if rests.waiting:
            self._turns.alarms.set(rests, until_s)

    def look(self, now_s: float) -> None:
        """Now and then: ends the rests of what was heard through since, where nobody came after the failure to try."""
        for source in self._counters.all_sources() if self.book.open else ():
            if source.recovered(now_s):
                self.book.worked(source.unit)
                self._turns.wake(source)

    def why_not_from(self, source: Source, now_s: float) -> Wait:
        """Why no session is opened from there now."""
        if source.backoff.is_available(now_s):
            return Wait(_MACHINE, math.inf, f"is being tried again after: {source.fault}")
        self._turns.alarms.set(source, source.backoff.until_s)
        return Wait(_MACHINE, source.backoff.until_s, source.fault)

    def why_no_child(self, now_s: float) -> Wait:
        """Why no child takes a session now."""
        until_s = self._capacity.next_look_s(now_s)
        if until_s < math.inf:
            self._turns.alarms.set(self._capacity, until_s)
        return self._capacity.why_not(now_s)

    def wait_of(self, egresses: Iterable[Egress], now_s: float) -> Wait | None:
        """Why nothing can leave by any of these, and when it is tried again; None where something can, or may."""
        if self._capacity.waits_for_machine(now_s):
            return self._capacity.why_not(now_s)
        found: Wait | None = None
        for egress in egresses:
            sources = self._counters.sources(egress.name)
            if not sources:
                return None
            for source in sources:
                if not source.is_failing(now_s):
                    return None
                if found is None or source.backoff.until_s < found.until:
                    found = Wait(_MACHINE, source.backoff.until_s, source.fault)
        return found
