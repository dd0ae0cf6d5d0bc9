"""Times at which something looks again, in one heap."""

from __future__ import annotations

import heapq
import math

_ENTRIES_MIN = 64


class Timed:
    """Something with at most one alarm. ``alarm_s`` is inf while there is none; only `Alarms` sets it."""

    __slots__ = ("alarm_s",)

    def __init__(self) -> None:
        self.alarm_s = math.inf


class Alarms:
    """The earliest alarm of each timed thing.

    An alarm that was moved or cancelled leaves its entry in the heap; such entries are swept away before they are
    four times as many as the living, so memory follows the alarms that are set, not those that ever were.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._number = 0  # breaks ties, first set first rung
        self._living = 0

    def set(self, timed: Timed, at_s: float) -> None:
        """Rings at ``at_s``, or at the time set before if that is earlier. Inf sets nothing."""
        if at_s >= timed.alarm_s:
            return
        if timed.alarm_s == math.inf:
            self._living += 1
        timed.alarm_s = at_s
        self._number += 1
        heapq.heappush(self._heap, (at_s, self._number, timed))
        if len(self._heap) > _ENTRIES_MIN + 4 * self._living:
            self._heap = [entry for entry in self._heap if entry[2].alarm_s == entry[0]]
            heapq.heapify(self._heap)

    def cancel(self, timed: Timed) -> None:
        if timed.alarm_s != math.inf:
            timed.alarm_s = math.inf
            self._living -= 1

    def due(self, now_s: float) -> list[Timed]:
        """Takes out what rings now. What is set while they ring is for the next time, even if it is due already."""
        ringing = []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, _, timed = heapq.heappop(self._heap)
            if timed.alarm_s == at_s:
                self.cancel(timed)
                ringing.append(timed)
        return ringing

    def next_s(self) -> float:
        """When the earliest alarm rings; inf when none is set."""
        while self._heap:
            at_s, _, timed = self._heap[0]
            if timed.alarm_s == at_s:
                return at_s
            heapq.heappop(self._heap)
        return math.inf

    def __len__(self) -> int:
        return self._living
