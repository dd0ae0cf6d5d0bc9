"""A bounded table whose entries have an end: least recently used out first, clock handed in by the caller."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Held(Generic[Value]):
    """One entry. ``expires_at`` on the caller's clock, in seconds; ``failures`` in a row that led to ``value``."""

    __slots__ = ("expires_at", "failures", "value")

    def __init__(self, value: Value, expires_at: float, failures: int) -> None:
        self.value = value
        self.expires_at = expires_at
        self.failures = failures


class Cache(Generic[Value]):
    """Name -> value, at most ``entries_max`` of them.

    An entry that has ended stays until it is overwritten or pushed out: its user may want it a little stale, and its
    count of failures. All operations are O(1).
    """

    def __init__(self, entries_max: int) -> None:
        self._entries: OrderedDict[str, Held[Value]] = OrderedDict()
        self._entries_max = entries_max
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Held[Value] | None:
        """The entry, ended or not; it becomes the most recently used."""
        held = self._entries.get(name)
        if held is not None:
            self._entries.move_to_end(name)
        return held

    def put(self, name: str, value: Value, expires_at: float, *, failures: int = 0) -> Held[Value]:
        """Stores ``value``; pushes out the least recently used entry if there is no room."""
        held = Held(value, expires_at, failures)
        self._entries[name] = held
        self._entries.move_to_end(name)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
            self.evicted += 1
        return held


class Lifetimes:
    """How long what was learnt may be believed (threats D6), in seconds."""

    __slots__ = ("_failure_max_s", "_failure_s", "_max_s", "_min_s", "_negative_max_s")

    def __init__(self, *, min_s: int, max_s: int, negative_max_s: int, failure_s: int, failure_max_s: int) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._negative_max_s = negative_max_s
        self._failure_s = failure_s
        self._failure_max_s = failure_max_s

    def positive_s(self, ttl_s: int) -> int:
        """Of records with this TTL."""
        return min(max(ttl_s, self._min_s), self._max_s)

    def negative_s(self, ttl_s: int) -> int:
        """Of "no such name" and "no such records" (RFC 2308 §5)."""
        return min(max(ttl_s, self._min_s), self._negative_max_s)

    def failure_s(self, failures: int) -> int:
        """Of the ``failures``-th failure in a row (RFC 2308 §7): doubles each time, up to its bound."""
        doubled = self._failure_s << min(failures - 1, 16)
        return min(doubled, self._failure_max_s)
