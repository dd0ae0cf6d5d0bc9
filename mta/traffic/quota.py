"""Messages an hour, held exactly: in every slice of five minutes and in every hour, wherever one starts.

The difficulty is that nobody knows when a message leaves. Between the moment it is handed out and
the moment it is reported it may go at any time. So a message in flight counts as if it went just
now, and one that was reported counts as if it went at the very end of the time bucket it was
reported in; it uses its credit until that whole bucket has left the window.

Why this is exact. Take any window of length W and the messages that truly left inside it; look at the
one handed out last, at time h. Each of the others was then either in flight (counted), or reported
at some r <= h; and as it left inside the window, r >= its start > h - W, so its bucket had not left
(counted). So all of them were counted when the last one was handed out, and the limit held.

The price is that a credit returns up to one bucket late: with 10 s in 300 s, at least 96 % of the
limit can be reached, less the share that flight times take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from mta.model.errors import LocalFault

SLICE_S = 300
SLICES_PER_HOUR = 12
HOUR_S = 3600
BUCKET_S = 10
HOUR_BUCKET_S = 60  # coarser: a full hour then costs 61 pairs of memory, not 361


class _Window:
    """Messages of the last ``span_s`` seconds in buckets of ``width_s``, oldest first."""

    __slots__ = ("_buckets", "span_s", "used", "width_s")

    def __init__(self, span_s: int, width_s: int) -> None:
        self.span_s = span_s
        self.width_s = width_s
        self.used = 0  # sum of the buckets, always
        self._buckets: deque[list[int]] = deque()  # [bucket, messages]

    def _leaves_at_s(self, bucket: int) -> int:
        return (bucket + 1) * self.width_s + self.span_s

    def expire(self, now_s: float) -> None:
        buckets = self._buckets
        while buckets and self._leaves_at_s(buckets[0][0]) <= now_s:
            self.used -= buckets.popleft()[1]

    def add(self, at_s: float, n: int) -> None:
        bucket = int(at_s // self.width_s)
        self.used += n
        if self._buckets and self._buckets[-1][0] >= bucket:  # > after a step back of the clock: later is safer
            self._buckets[-1][1] += n
        else:
            self._buckets.append([bucket, n])

    def merge(self, counts: Iterable[tuple[int, int]]) -> None:
        """Adds (start in seconds, messages) pairs of any order."""
        merged: dict[int, int] = {entry[0]: entry[1] for entry in self._buckets}
        for at_s, n in counts:
            bucket = at_s // self.width_s
            merged[bucket] = merged.get(bucket, 0) + n
            self.used += n
        self._buckets = deque([bucket, merged[bucket]] for bucket in sorted(merged))

    def freed_at_s(self, n: int) -> float:
        """When ``n`` of the messages have left; inf when there are not so many."""
        for bucket, count in self._buckets:
            n -= count
            if n <= 0:
                return float(self._leaves_at_s(bucket))
        return math.inf

    def since(self, bucket: int) -> list[tuple[int, int]]:
        return [(at, n) for at, n in self._buckets if at >= bucket]


class HourlyQuota:
    """One counter of a limit of messages an hour. Owned by the brain; not shared between threads.

    Times are Unix seconds, because the counters outlive the process. They should be made of one
    reading of the wall clock and a monotonic clock, so that a stepped clock cannot move them;
    an earlier time than one seen before only keeps credits longer.

    Life of a credit: ``take`` → ``report`` (attempted, with whatever outcome: it is used) or ``give_back``
    (never attempted: as if never taken). O(1) amortised; at most some 90 pairs of integers of memory.
    """

    __slots__ = ("_hour", "_slice", "in_flight", "limit_per_hour", "slice_max")

    limit_per_hour: int
    slice_max: int

    def __init__(self, limit_per_hour: int) -> None:
        self.in_flight = 0
        self._slice = _Window(SLICE_S, BUCKET_S)
        self._hour = _Window(HOUR_S, HOUR_BUCKET_S)
        self.set_limit(limit_per_hour)

    def set_limit(self, limit_per_hour: int) -> None:
        """A reload: what was used stays used; the new limit holds for everything handed out from now on."""
        if limit_per_hour < 1:
            raise ValueError(f"a quota is at least 1 message an hour, not {limit_per_hour}")
        self.limit_per_hour = limit_per_hour
        # Below 12 an hour the hour is the tighter bound: one a slice, until the hour is used up.
        self.slice_max = max(1, limit_per_hour // SLICES_PER_HOUR)

    def _left(self) -> int:
        return min(self.slice_max - self._slice.used, self.limit_per_hour - self._hour.used) - self.in_flight

    def available(self, now_s: float) -> int:
        """How many messages may be handed out now."""
        self._slice.expire(now_s)
        self._hour.expire(now_s)
        return max(0, self._left())

    def take(self, n: int) -> None:
        """Hands out ``n`` credits, at most what ``available`` has just said."""
        if n < 0 or n > max(0, self._left()):
            raise LocalFault(f"took {n} credits of {self._left()} left, limit {self.limit_per_hour} an hour")
        self.in_flight += n

    def give_back(self, n: int) -> None:
        """``n`` messages in flight will not be attempted: their credits are free at once."""
        self._land(n)

    def report(self, n: int, now_s: float) -> None:
        """``n`` messages in flight were attempted, at the latest now."""
        self._land(n)
        self.charge(n, now_s)

    def charge(self, n: int, now_s: float) -> None:
        """Counts ``n`` attempts that were not handed out here (left open by an earlier run), as of now."""
        if n > 0:
            self._slice.expire(now_s)
            self._hour.expire(now_s)
            self._slice.add(now_s, n)
            self._hour.add(now_s, n)

    def carry(self, n: int) -> None:
        """``n`` messages were in flight already when this limit came to hold for them, even if they exceed it."""
        self.in_flight += n

    def inherit(self, other: HourlyQuota) -> None:
        """Counts what ``other`` has counted here as well."""
        self._slice.merge([(bucket * BUCKET_S, n) for bucket, n in other._slice.since(0)])
        self._hour.merge([(bucket * HOUR_BUCKET_S, n) for bucket, n in other._hour.since(0)])

    def _land(self, n: int) -> None:
        if n < 0 or n > self.in_flight:
            raise LocalFault(f"{n} credits came back, {self.in_flight} were in flight")
        self.in_flight -= n

    def next_at(self, now_s: float) -> float:
        """When the next message may go if nothing is reported until then; inf when that waits for a report."""
        if self.available(now_s) > 0:
            return now_s
        slice_excess = self._slice.used + self.in_flight - self.slice_max + 1
        hour_excess = self._hour.used + self.in_flight - self.limit_per_hour + 1
        return max(
            self._slice.freed_at_s(slice_excess) if slice_excess > 0 else now_s,
            self._hour.freed_at_s(hour_excess) if hour_excess > 0 else now_s,
        )

    def used_in_hour(self, now_s: float) -> int:
        """Credits of the hour that are gone now, those in flight included."""
        self._hour.expire(now_s)
        return self._hour.used + self.in_flight

    def is_idle(self, now_s: float) -> bool:
        """True when it knows nothing that a new one would not know, so that it may be dropped."""
        return self.used_in_hour(now_s) == 0

    def buckets_since(self, bucket: int) -> list[tuple[int, int]]:
        """(bucket, messages reported) for buckets (Unix time // 10) from ``bucket`` on, not older than a slice.

        The counts are totals, so storing them again is harmless. Store more often than once in 300 s.
        """
        return self._slice.since(bucket)

    def load(self, buckets: Iterable[tuple[int, int]], now_s: float) -> None:
        """Adds what an earlier run stored. A bucket in the future (the clock was set back) counts as of now."""
        current = int(now_s // BUCKET_S)
        counts = [(min(bucket, current) * BUCKET_S, n) for bucket, n in buckets if n > 0]
        self._slice.merge(counts)
        self._hour.merge(counts)
        self._slice.expire(now_s)
        self._hour.expire(now_s)
