"""Ready queues: recipients in memory that may go as soon as their lane lets them.

A run is a slice of a leased part: the part (opaque here) and positions in it. A stream is what may share a
batch: one delivery with one list of merge fields. Within a lane, streams take turns by weighted fair order,
so a small delivery is never stuck behind a large one at the same site.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from mta.traffic.fair import FairQueue

PartT = TypeVar("PartT")


class Stream(NamedTuple):
    """What may share a batch."""

    delivery_id: int
    fields: tuple[str, ...]


class Run(Generic[PartT]):
    """Positions of one part, taken from the front; owned by exactly one queue at a time."""

    __slots__ = ("part", "positions", "since_s", "taken")

    def __init__(self, part: PartT, positions: list[int]) -> None:
        self.part = part
        self.positions = positions
        self.taken = 0
        self.since_s = 0.0  # when it came into its queue

    def __len__(self) -> int:
        return len(self.positions) - self.taken

    def take(self, count: int) -> list[int]:
        """Up to ``count`` positions from the front."""
        start = self.taken
        self.taken = min(len(self.positions), start + count)
        return self.positions[start : self.taken]

    def take_last(self, count: int) -> list[int]:
        """Up to ``count`` positions from the back."""
        keep = max(self.taken, len(self.positions) - count)
        given, self.positions = self.positions[keep:], self.positions[:keep]
        return given

    def rest(self) -> list[int]:
        """All positions that are left; the run is empty afterwards."""
        return self.take(len(self.positions))


Taken = list[tuple[PartT, list[int]]]


class _Flow(Generic[PartT]):
    """What waits of one stream. ``count`` is the sum over ``runs``, never 0 between two calls."""

    __slots__ = ("count", "runs", "weight")

    def __init__(self, weight: float) -> None:
        self.runs: deque[Run[PartT]] = deque()
        self.count = 0
        self.weight = weight


class ReadyQueue(Generic[PartT]):
    """The recipients of one lane, by stream.

    `put` and `take` cost O(runs touched), never O(recipients waiting).
    """

    __slots__ = ("_fair", "_flows", "count")

    def __init__(self) -> None:
        self._flows: dict[Stream, _Flow[PartT]] = {}
        # Made for the second stream: nearly all sites of a long tail never see one.
        self._fair: FairQueue[Stream] | None = None
        self.count = 0

    def put(
        self, stream: Stream, weight: float, run: Run[PartT], now_s: float = 0.0, *, at_front: bool = False
    ) -> None:
        """Adds a run; ``at_front`` for what was handed out and came back unattempted.

        The weight is that of the stream as a whole; a new one holds at once.
        """
        added = len(run)
        if not added:
            return
        run.since_s = now_s
        flow = self._flows.get(stream)
        if flow is None:
            flow = self._flows[stream] = _Flow(weight)
            if self._fair is not None:
                self._fair.add(stream, weight)
            elif len(self._flows) > 1:
                self._fair = FairQueue()
                for key, other in self._flows.items():
                    self._fair.add(key, other.weight)
        elif flow.weight != weight:
            flow.weight = weight
            if self._fair is not None:
                self._fair.add(stream, weight)
        if at_front:
            flow.runs.appendleft(run)
        else:
            flow.runs.append(run)
        flow.count += added
        self.count += added

    def take(self, count: int) -> tuple[Stream, Taken[PartT]]:
        """Up to ``count`` recipients of the stream whose turn it is. The queue must not be empty."""
        fair = self._fair
        stream = self._next_stream()
        flow = self._flows[stream]
        runs = flow.runs
        taken: Taken[PartT] = []
        left = min(count, flow.count)
        given = left
        while left:
            run = runs[0]
            positions = run.take(left)
            left -= len(positions)
            taken.append((run.part, positions))
            if not len(run):
                runs.popleft()
        if fair is not None:
            fair.charge(stream, given)
        self._lower(stream, flow, given)
        return stream, taken

    def next_delivery(self) -> int:
        """The delivery whose turn it is. The queue must not be empty."""
        return self._next_stream().delivery_id

    def _next_stream(self) -> Stream:
        if self._fair is None:
            for stream in self._flows:
                return stream
        elif (picked := self._fair.pick()) is not None:
            return picked
        raise AssertionError("a ready queue that is empty was asked for more")

    def shed(self, count: int) -> Iterator[tuple[Stream, PartT, list[int]]]:
        """Gives up ``count`` recipients, latest comers of the largest streams first."""
        while count > 0 and self.count:
            stream, flow = max(self._flows.items(), key=lambda item: item[1].count)
            run = flow.runs[-1]
            positions = run.take_last(count)
            if not len(run):
                flow.runs.pop()
            count -= len(positions)
            self._lower(stream, flow, len(positions))
            yield stream, run.part, positions

    def shed_older(self, since_s: float) -> Iterator[tuple[Stream, PartT, list[int]]]:
        """Gives up what has been here since that time or longer. O(runs)."""
        for stream, flow in list(self._flows.items()):
            old = [run for run in flow.runs if run.since_s <= since_s]
            if old:
                flow.runs = deque(run for run in flow.runs if run.since_s > since_s)
                for run in old:
                    positions = run.rest()
                    self._lower(stream, flow, len(positions))
                    yield stream, run.part, positions

    def oldest_s(self) -> float:
        """Since when the oldest has been here; inf when nothing is. O(runs)."""
        return min((run.since_s for flow in self._flows.values() for run in flow.runs), default=math.inf)

    def remove(self, delivery_id: int) -> Iterator[tuple[PartT, list[int]]]:
        """Gives up all of a delivery."""
        for stream, flow in list(self._flows.items()):
            if stream.delivery_id == delivery_id:
                while flow.runs:
                    run = flow.runs.popleft()
                    positions = run.rest()
                    self._lower(stream, flow, len(positions))
                    yield run.part, positions

    def counts(self) -> list[tuple[int, int]]:
        """(delivery, recipients) for each stream that waits."""
        return [(stream.delivery_id, flow.count) for stream, flow in self._flows.items()]

    def weights(self) -> dict[Stream, float]:
        """The weight of each stream that waits."""
        return {stream: flow.weight for stream, flow in self._flows.items()}

    def count_of(self, stream: Stream) -> int:
        flow = self._flows.get(stream)
        return flow.count if flow else 0

    def _lower(self, stream: Stream, flow: _Flow[PartT], count: int) -> None:
        self.count -= count
        flow.count -= count
        assert flow.count >= 0
        if not flow.count:
            del self._flows[stream]
            if self._fair is not None:
                self._fair.remove(stream)
