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
        self.since_s = 0.0  # in this queue

    def __len__(self) -> int:
        return len(self.positions) - self.taken

    def take(self, count: int) -> list[int]:
        """Up to ``count`` positions from the front."""
        start = self.taken
        self.taken = min(len(self.positions), start + count)
        return self.positions[start : self.taken]

    def rest(self) -> list[int]:
        """All positions that are left; the run is empty afterwards."""
        return self.take(len(self.positions))


Taken = list[tuple[PartT, list[int]]]


class ReadyQueue(Generic[PartT]):
    """The recipients of one lane, by stream. Every operation is O(streams touched), never O(recipients waiting)."""

    def __init__(self) -> None:
        self._runs: dict[Stream, deque[Run[PartT]]] = {}
        self._counts: dict[Stream, int] = {}
        self._fair: FairQueue[Stream] = FairQueue()
        self.count = 0

    def put(
        self, stream: Stream, weight: float, run: Run[PartT], now_s: float = 0.0, *, at_front: bool = False
    ) -> None:
        """Adds a run; ``at_front`` for what was handed out and came back unattempted."""
        if not len(run):
            return
        run.since_s = now_s
        runs = self._runs.get(stream)
        if runs is None:
            runs = self._runs[stream] = deque()
            self._counts[stream] = 0
            self._fair.add(stream, weight)
        if at_front:
            runs.appendleft(run)
        else:
            runs.append(run)
        self._counts[stream] += len(run)
        self.count += len(run)

    def take(self, count: int) -> tuple[Stream, Taken[PartT]]:
        """Up to ``count`` recipients of the stream whose turn it is. The queue must not be empty."""
        stream = self._fair.pick()
        assert stream is not None, "take from an empty ready queue"
        runs = self._runs[stream]
        taken: Taken[PartT] = []
        left = count
        while left and runs:
            run = runs[0]
            positions = run.take(left)
            left -= len(positions)
            taken.append((run.part, positions))
            if not len(run):
                runs.popleft()
        self._fair.charge(stream, count - left)
        self._lower(stream, count - left)
        return stream, taken

    def shed(self, count: int) -> Iterator[tuple[Stream, PartT, list[int]]]:
        """Gives up ``count`` recipients, latest comers of the largest streams first."""
        while count > 0 and self.count:
            stream = max(self._counts, key=self._counts.__getitem__)
            run = self._runs[stream].pop()
            positions = run.rest()
            keep = max(0, len(positions) - count)
            if keep:
                kept = Run(run.part, positions[:keep])
                kept.since_s = run.since_s
                self._runs[stream].append(kept)
                positions = positions[keep:]
            count -= len(positions)
            self._lower(stream, len(positions))
            yield stream, run.part, positions

    def shed_older(self, since_s: float) -> Iterator[tuple[Stream, PartT, list[int]]]:
        """Gives up what has been here since that time or longer. O(runs)."""
        for stream in list(self._runs):
            runs = self._runs[stream]
            old = [run for run in runs if run.since_s <= since_s]
            if not old:
                continue
            self._runs[stream] = deque(run for run in runs if run.since_s > since_s)
            for run in old:
                positions = run.rest()
                self._lower(stream, len(positions))
                yield stream, run.part, positions

    def oldest_s(self) -> float:
        """Since when the oldest has been here; inf when nothing is. O(runs)."""
        return min((run.since_s for runs in self._runs.values() for run in runs), default=math.inf)

    def remove(self, delivery_id: int) -> Iterator[tuple[PartT, list[int]]]:
        """Gives up all of a delivery."""
        for stream in [stream for stream in self._runs if stream.delivery_id == delivery_id]:
            runs = self._runs[stream]
            while runs:
                run = runs.popleft()
                positions = run.rest()
                self._lower(stream, len(positions))
                yield run.part, positions

    def count_of(self, stream: Stream) -> int:
        return self._counts.get(stream, 0)

    def _lower(self, stream: Stream, count: int) -> None:
        self.count -= count
        self._counts[stream] -= count
        assert self.count >= 0
        assert self._counts[stream] >= 0
        if not self._counts[stream]:
            del self._counts[stream]
            del self._runs[stream]
            self._fair.remove(stream)
