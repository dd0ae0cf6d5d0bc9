"""At most so many in a time, held exactly: in every period of each length, wherever one starts.

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

What is counted may be messages, bytes of messages, or connections that are begun: then "in flight" is one that is
being opened. Several nodes share a limit by holding a part of it each (`mta.traffic.ledger`): a window never lets more
through than its node's share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from mta.model.errors import LocalFault
from mta.traffic.limits import DAY_S, HOUR_S, MINUTE_S, SECOND_S, SLICE_S, Ceiling, Limits

BUCKET_S: Final = 10  # of what is stored
UNLIMITED: Final = 2**60  # as an integer that compiled code compares in one step
# Coarser for longer spans: a full window costs some fifty pairs of memory, and at least 96 % of it can be used.
# All are sums of powers of two, so that no bucket's end is rounded to before what is in it.
_WIDTHS_S: Final = {SECOND_S: 1 / 64, MINUTE_S: 1.0, SLICE_S: 10.0, HOUR_S: 60.0, DAY_S: 1_800.0}

_JUST_BEFORE_S: Final = 1 / 1024  # in the same bucket as the end that it is before


class Window:
    """What was used in the last ``span_s`` seconds in buckets of ``width_s``, oldest first."""

    __slots__ = ("_buckets", "_next_leaves_s", "most", "share", "span_s", "used", "width_s")

    def __init__(self, span_s: int, most: int) -> None:
        self.span_s = span_s
        self.width_s: float = _WIDTHS_S.get(span_s, span_s / 50)
        self.most = most
        self.share = UNLIMITED  # of this node, in ``most``
        self.used = 0  # sum of the buckets, always
        self._buckets: deque[list[int]] = deque()  # [bucket, amount]
        self._next_leaves_s = math.inf  # when the first of them does

    @property
    def bound(self) -> int:
        return min(self.most, self.share)

    def _leaves_at_s(self, bucket: int) -> float:
        return (bucket + 1) * self.width_s + self.span_s

    def expire(self, now_s: float) -> None:
        while self._next_leaves_s <= now_s:
            self.used -= self._buckets.popleft()[1]
            self._look_at_first()

    def _look_at_first(self) -> None:
        self._next_leaves_s = self._leaves_at_s(self._buckets[0][0]) if self._buckets else math.inf

    def add(self, at_s: float, n: int) -> None:
        bucket = int(at_s // self.width_s)
        self.used += n
        if self._buckets and self._buckets[-1][0] >= bucket:  # > after a step back of the clock: later is safer
            self._buckets[-1][1] += n
        else:
            self._buckets.append([bucket, n])
            if len(self._buckets) == 1:
                self._look_at_first()

    def merge(self, counts: Iterable[tuple[float, int]]) -> None:
        """Adds (time in seconds, amount) pairs of any order."""
        merged: dict[int, int] = {entry[0]: entry[1] for entry in self._buckets}
        for at_s, n in counts:
            bucket = int(at_s // self.width_s)
            merged[bucket] = merged.get(bucket, 0) + n
            self.used += n
        self._buckets = deque([bucket, merged[bucket]] for bucket in sorted(merged))
        self._look_at_first()

    def freed_at_s(self, n: int) -> float:
        """When ``n`` of what was used have left; inf when there are not so many."""
        for bucket, count in self._buckets:
            n -= count
            if n <= 0:
                return self._leaves_at_s(bucket)
        return math.inf

    def counts(self) -> list[tuple[float, int]]:
        """(end of the bucket, amount): the latest that it can have been."""
        return [((bucket + 1) * self.width_s - _JUST_BEFORE_S, n) for bucket, n in self._buckets]


class Quota:
    """One counter, with a window for each span of time that is bounded. Owned by the brain; not shared between threads.

    Times are Unix seconds, because the counters outlive the process. They should be made of one
    reading of the wall clock and a monotonic clock, so that a stepped clock cannot move them;
    an earlier time than one seen before only keeps credits longer.

    Life of a credit: ``take`` → ``report`` (attempted, with whatever outcome: it is used) or ``give_back``
    (never attempted: as if never taken). O(1) amortised; at most some 60 pairs of integers of memory a window.
    """

    __slots__ = ("_shares", "in_flight", "windows")

    windows: list[Window]

    def __init__(self, ceilings: Iterable[Ceiling], shares: Mapping[int, int] | None = None) -> None:
        self.in_flight = 0
        self.windows = []
        self._shares: Mapping[int, int] | None = shares
        self.set_ceilings(ceilings)

    def set_ceilings(self, ceilings: Iterable[Ceiling]) -> None:
        """A reload: what was used stays used; the new limits hold for everything handed out from now on.

        A span that was not bounded before knows what the others know of it.
        """
        before = {window.span_s: window for window in self.windows}
        after = []
        for span_s, most in ceilings:
            if most < 1:
                raise ValueError(f"a quota is at least 1 in {span_s} s, not {most}")
            window = before.get(span_s)
            if window is None:
                window = Window(span_s, most)
                if source := _best_source(before.values(), span_s):
                    window.merge(source.counts())
            window.most = most
            after.append(window)
        self.windows = after
        self.set_shares(self._shares)

    def set_shares(self, shares: Mapping[int, int] | None) -> None:
        """What of each span's limit is this node's; None: all of it. A span that is not named has nothing."""
        self._shares = shares
        for window in self.windows:
            window.share = UNLIMITED if shares is None else shares.get(window.span_s, 0)

    def _left(self) -> int:
        left = UNLIMITED
        for window in self.windows:
            free = min(window.most, window.share) - window.used
            if free < left:
                left = free
        return left - self.in_flight

    def available(self, now_s: float) -> int:
        """How much may be handed out now."""
        for window in self.windows:
            window.expire(now_s)
        return max(0, self._left())

    def take(self, n: int) -> None:
        """Hands out ``n`` credits, at most what ``available`` has just said."""
        if n < 0 or n > max(0, self._left()):
            raise LocalFault(f"took {n} credits of {self._left()} left of {self._bounds()}")
        self.in_flight += n

    def give_back(self, n: int) -> None:
        """``n`` in flight will not be attempted: their credits are free at once."""
        self._land(n)

    def report(self, n: int, now_s: float) -> None:
        """``n`` in flight were attempted, at the latest now."""
        self._land(n)
        self.charge(n, now_s)

    def charge(self, n: int, now_s: float) -> None:
        """Counts ``n`` attempts that were not handed out here (left open by an earlier run), as of now."""
        if n > 0:
            for window in self.windows:
                window.expire(now_s)
                window.add(now_s, n)

    def carry(self, n: int) -> None:
        """``n`` were in flight already when this limit came to hold for them, even if they exceed it."""
        self.in_flight += n

    def inherit(self, other: Quota) -> None:
        """Counts what ``other`` has counted here as well."""
        for window in self.windows:
            if source := _best_source(other.windows, window.span_s):
                window.merge(source.counts())

    def _land(self, n: int) -> None:
        if n < 0 or n > self.in_flight:
            raise LocalFault(f"{n} credits came back, {self.in_flight} were in flight")
        self.in_flight -= n

    def next_at(self, now_s: float, n: int = 1) -> float:
        """When ``n`` more may go if nothing is reported until then; inf when that waits for a report or a share."""
        if self.available(now_s) >= n:
            return now_s
        at_s = now_s
        for window in self.windows:
            excess = window.used + self.in_flight + n - window.bound
            if excess > 0:
                at_s = max(at_s, window.freed_at_s(excess))
        return at_s

    def tightest(self, now_s: float) -> Window:
        """The window that keeps the next one longest."""
        self.available(now_s)
        worst, at_s = self.windows[0], -1.0
        for window in self.windows:
            excess = window.used + self.in_flight + 1 - window.bound
            freed_s = window.freed_at_s(excess) if excess > 0 else 0.0
            if freed_s > at_s:
                worst, at_s = window, freed_s
        return worst

    def used_in(self, span_s: int, now_s: float) -> int:
        """Credits of a span's window that are gone now, those in flight included. ``span_s`` is one of its own."""
        self.available(now_s)
        return next(window.used for window in self.windows if window.span_s == span_s) + self.in_flight

    @property
    def rate_per_s(self) -> float:
        """What it lets through for as long as one likes."""
        return min(window.bound / window.span_s for window in self.windows)

    @property
    def longest_s(self) -> int:
        return max(window.span_s for window in self.windows)

    def is_idle(self, now_s: float) -> bool:
        """True when a new quota of the same limits would say the same."""
        for window in self.windows:
            window.expire(now_s)
        return not self.in_flight and not any(window.used for window in self.windows)

    def load(self, buckets: Iterable[tuple[int, int]], now_s: float) -> None:
        """Adds what an earlier run stored: (bucket of 10 s, used). One in the future (the clock was set back) counts as
        of now."""
        counts = [(min((bucket + 1) * BUCKET_S - _JUST_BEFORE_S, now_s), n) for bucket, n in buckets if n > 0]
        for window in self.windows:
            window.merge(counts)
            window.expire(now_s)

    def _bounds(self) -> str:
        return ", ".join(f"{window.bound} in {window.span_s} s" for window in self.windows)


def _best_source(windows: Iterable[Window], span_s: int) -> Window | None:
    """The window that tells most of a span: the shortest that covers it, else the longest."""
    given = list(windows)
    covering = [window for window in given if window.span_s >= span_s]
    if covering:
        return min(covering, key=_span_of)
    return max(given, key=_span_of, default=None)


def _span_of(window: Window) -> int:
    return window.span_s


def hourly(messages_per_hour_max: int) -> Quota:
    """A quota of messages an hour, with the slices of five minutes that come with it."""
    return Quota(Limits(messages_per_hour_max=messages_per_hour_max).message_ceilings())
