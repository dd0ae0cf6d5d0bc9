"""What became of recipients: final outcomes, what is tried again, what goes back to the queue."""

from __future__ import annotations

import heapq
import math
from typing import Any

from mta.simulation.backlog import Backlog, Errand, Part, Place
from mta.simulation.tally import Tally
from mta.traffic.retry import RetrySchedule


class Due:
    """Something that happens at a moment, and what was put down for the same moment after it."""

    __slots__ = ("kind", "last", "then", "what")

    def __init__(self, kind: int, what: Any) -> None:
        self.kind = kind
        self.what = what
        self.then: Due | None = None
        self.last: Due | None = None  # kept by the first one; none while it is alone


class Agenda:
    """What happens next, under a clock that jumps. Times are seconds since the start of the simulation.

    Moments are plain numbers in a heap, and what happens then is beside it: nothing else need be compared.
    """

    __slots__ = ("_due", "_moments", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._moments: list[float] = []
        self._due: dict[float, Due] = {}

    def at(self, at_s: float, kind: int, what: Any) -> None:
        due = Due(kind, what)
        first = self._due.get(at_s)
        if first is None:
            self._due[at_s] = due
            heapq.heappush(self._moments, at_s)
        else:
            (first.last or first).then = due
            first.last = due

    def next_s(self) -> float:
        return self._moments[0] if self._moments else math.inf

    def pop_due(self) -> Due | None:
        """The first of the earliest moment that is due by now; the others follow as its ``then``."""
        if not self._moments or self._moments[0] > self.now_s:
            return None
        moment_s: float = heapq.heappop(self._moments)
        due = self._due[moment_s]
        del self._due[moment_s]
        return due


class Books:
    """The only place where an outcome is counted. A recipient is in one place: queue, memory, a connection, or done."""

    __slots__ = ("back_at_s", "backlog", "done_s", "tally", "undone")

    def __init__(self, backlog: Backlog, tally: Tally) -> None:
        self.backlog = backlog
        self.tally = tally
        self.undone = 0  # recipients without a final outcome, of all errands
        self.done_s = 0.0  # when the last outcome was
        self.back_at_s = float("inf")  # the earliest time at which something came to be due since it was last set

    def add(self, errand: Errand, counts: list[tuple[Place, int]]) -> None:
        self.undone += errand.waiting
        for place, amount in counts:
            place.row.recipients += amount
            place.row.left += amount
            place.row.first_left += amount
        self.backlog.add(errand, counts)

    def attempted(self, part: Part, messages: int, now_s: float) -> None:
        """They were sent, whatever became of them."""
        row = part.place.row
        row.sent += messages
        if part.attempt == 1:
            row.first_left -= messages
            row.first_done_s = now_s
            part.errand.first_done_s = now_s

    def unreachable(self, part: Part, messages: int, now_s: float) -> None:
        """Their site failed: that counts as an attempt, and nothing was sent."""
        if part.attempt == 1:
            part.place.row.first_left -= messages
        self.deferred(part, messages, part.errand.model.retry, now_s)

    def delivered(self, part: Part, messages: int, now_s: float) -> None:
        part.place.row.delivered += messages
        self._final(part.errand, part.place, messages, now_s)

    def failed(self, part: Part, messages: int, now_s: float) -> None:
        part.place.row.failed += messages
        self._final(part.errand, part.place, messages, now_s)

    def deferred(
        self, part: Part, messages: int, retry: RetrySchedule, now_s: float, *, is_put_off: bool = False
    ) -> None:
        """Tried again by the retry schedule, or never, when that is after the validity. ``is_put_off``: by a 4yz."""
        part.place.row.deferred += messages
        errand = part.errand
        due_s = retry.next_due(part.attempt, now_s, errand.valid_until_s, is_put_off=is_put_off)
        first_s = part.first_s if part.first_s >= 0.0 else now_s
        again_s = errand.valid_until_s if due_s is None else due_s
        self._again(errand, part.place, part.attempt + 1, first_s, messages, again_s, now_s)

    def surplus(self, part: Part, messages: int, due_in_s: float, now_s: float) -> None:
        """No attempt was made."""
        self._again(part.errand, part.place, part.attempt, part.first_s, messages, now_s + due_in_s, now_s)

    def held(self, part: Part, messages: int, until_s: float, now_s: float) -> None:
        """A traffic event holds them back until then: as they go on together, they are due at just that time."""
        errand = part.errand
        if errand.is_over:
            self.expired(errand, part.place, messages, now_s)
            return
        self.backlog.put_back(errand, part.place, part.attempt, part.first_s, messages, until_s, 0.0)
        self.back_at_s = min(self.back_at_s, until_s)

    def expired(self, errand: Errand, place: Place, messages: int, now_s: float) -> None:
        place.row.expired += messages
        errand.expired += messages
        self._final(errand, place, messages, now_s)

    def _again(
        self, errand: Errand, place: Place, attempt: int, first_s: float, messages: int, due_s: float, now_s: float
    ) -> None:
        if errand.is_over:
            self.expired(errand, place, messages, now_s)
            return
        self.backlog.put_back(errand, place, attempt, first_s, messages, due_s, due_s - now_s)
        self.back_at_s = min(self.back_at_s, due_s)

    def _final(self, errand: Errand, place: Place, messages: int, now_s: float) -> None:
        place.row.left -= messages
        place.row.done_s = now_s
        self.undone -= messages
        self.done_s = now_s
        errand.waiting -= messages
        errand.done_s = now_s
        errand.done_by[place.number] = now_s
        assert errand.waiting >= 0, f"{errand.model.name}: an outcome came twice"
        if not errand.waiting:
            self.backlog.drop(errand)

    def end(self, errand: Errand, now_s: float) -> None:
        """Its validity is over: what waits in the queue expires."""
        errand.is_over = True
        for place, messages in self.backlog.drop(errand):
            if messages:
                self.expired(errand, place, messages, now_s)
