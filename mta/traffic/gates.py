"""Waiting: a lane waits *on* what holds it back, and nobody else looks again when that opens.

A gate is anything that can hold a lane back: a limit, a path, the sessions of a site, the capacity of the
children. A lane that cannot go joins every gate that it met on its way; the first of them to open lets it try again,
and it leaves the others. So a gate never holds a waiter twice or a stale one, and its memory is that of those who wait.

The danger is the lost chance: a gate opens once, wakes a lane, and that lane cannot use it (another gate is shut, or
its recipients are gone), while the next in the queue could have. Therefore a woken lane carries the chance with it,
and `Turns` passes it on to the next after the lane has had its turn, as long as the gate is open. Each who waited when
the gate opened gets it at most once, so a chance that nobody can use comes to an end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from mta.model.waiting import Wait
from mta.traffic.alarms import Alarms, Timed
from mta.traffic.line import Line, Place


class Waiter(Timed):
    """One who runs, or waits at gates, or has nothing to do. `Turns` keeps these fields.

    At most one of three: ``is_runnable``; ``wait`` is not None; neither (it has nothing to do).
    """

    __slots__ = ("chance", "entries", "is_runnable", "wait")

    def __init__(self) -> None:
        super().__init__()
        self.wait: Wait | None = None
        self.entries: list[Entry] = []  # its places at gates
        self.is_runnable = False
        self.chance: Chance | None = None

    @property
    def gates(self) -> list[Gate]:
        """Those that it waits at."""
        return [entry.gate for entry in self.entries]


class Entry(Place):
    """A waiter's place at a gate. ``number`` grows with every joining of any gate."""

    __slots__ = ("gate", "line", "number", "waiter")

    def __init__(self, waiter: Waiter, number: int, gate: Gate, line: Line[Entry]) -> None:
        super().__init__()
        self.waiter = waiter
        self.number = number
        self.gate = gate
        self.line = line

    def leave(self) -> None:
        self.line.leave(self)


class Gate(Timed):
    """Something with a queue of waiters, first come first; but those who have nothing at all go before others."""

    __slots__ = ("_first", "_others")

    def __init__(self) -> None:
        super().__init__()
        # None until somebody waits: there are as many gates as paths, and most never hold anybody back.
        self._first: Line[Entry] | None = None
        self._others: Line[Entry] | None = None

    def is_open(self, now_s: float) -> bool:
        """True when a waiter, whoever it is, might get through now."""
        raise NotImplementedError

    def next_look_s(self, now_s: float) -> float:
        """When it will open by itself; inf: something must happen first, and will wake who waits."""
        return math.inf

    @property
    def waiting(self) -> int:
        return self.waiting_first + (0 if self._others is None else self._others.count)

    @property
    def waiting_first(self) -> int:
        """How many of those who wait have nothing at all."""
        return 0 if self._first is None else self._first.count

    def join(self, waiter: Waiter, number: int, *, is_first: bool) -> Entry:
        """Who waits here already does not join again."""
        if is_first:
            if self._first is None:
                self._first = Line()
            line = self._first
        else:
            if self._others is None:
                self._others = Line()
            line = self._others
        entry = Entry(waiter, number, self, line)
        line.join(entry)
        return entry

    def next_waiter(self, before: int) -> Waiter | None:
        """Who is next among those who joined before this number."""
        for line in (self._first, self._others):
            if line is not None and line.first is not None and line.first.number < before:
                return line.first.waiter
        return None


class Chance:
    """A gate has opened for whoever joined it before ``number``."""

    __slots__ = ("gate", "number")

    def __init__(self, gate: Gate, number: int) -> None:
        self.gate = gate
        self.number = number


class Turns:
    """Who runs next, and who waits for what."""

    def __init__(self) -> None:
        self.runnable: deque[Waiter] = deque()
        self._joined = 0
        self._chance: Chance | None = None  # of the one whose turn it is
        self.alarms = Alarms()

    def run(self, waiter: Waiter) -> None:
        """It may try (again), in its turn, whatever it waits for."""
        self._leave_gates(waiter)
        if not waiter.is_runnable:
            waiter.is_runnable = True
            self.runnable.append(waiter)

    @property
    def woken_by(self) -> Gate | None:
        """The gate whose opening gave this turn, if one did."""
        return None if self._chance is None else self._chance.gate

    def next(self) -> Waiter:
        """Whose turn it is. The caller serves it, with `run` or `park` or neither, and then calls `pass_on`."""
        waiter = self.runnable.popleft()
        waiter.is_runnable = False
        self._chance, waiter.chance = waiter.chance, None
        return waiter

    def park(self, waiter: Waiter, wait: Wait, gates: Iterable[Gate], *, is_first: bool) -> None:
        """It waits until one of the gates opens or its alarm rings."""
        self._leave_gates(waiter)
        waiter.wait = wait
        self._joined += 1
        for gate in dict.fromkeys(gates):
            waiter.entries.append(gate.join(waiter, self._joined, is_first=is_first))

    def drop(self, waiter: Waiter) -> None:
        """It has nothing to do any more. If it is in line, its turn will find it so."""
        self._leave_gates(waiter)
        self.alarms.cancel(waiter)

    def wake(self, gate: Gate) -> None:
        """The gate has opened a little: its next waiter may try; the others after it, while the gate stays open."""
        if gate.waiting:
            number = self._joined + 1
            waiter = gate.next_waiter(number)
            if waiter is not None:
                self._give(waiter, Chance(gate, number))

    def pass_on(self, now_s: float) -> None:
        """Ends a turn: the chance that came with it goes to the next waiter, if the gate is open still.

        If it is not, whoever waits there is woken when it will be: its alarm may have rung for the one whose turn it
        was, who need not look at it again.
        """
        chance, self._chance = self._chance, None
        if chance is None:
            return
        gate = chance.gate
        waiter = gate.next_waiter(chance.number)
        if waiter is None:
            return
        if gate.is_open(now_s):
            self._give(waiter, chance)
        elif gate.alarm_s == math.inf:
            self.alarms.set(gate, gate.next_look_s(now_s))

    def _give(self, waiter: Waiter, chance: Chance) -> None:
        self.run(waiter)
        waiter.chance = chance

    @staticmethod
    def _leave_gates(waiter: Waiter) -> None:
        if waiter.wait is not None:
            for entry in waiter.entries:
                entry.leave()
            waiter.entries.clear()
            waiter.wait = None
