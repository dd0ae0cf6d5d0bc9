"""Error rates by recipient domain, over a time (campaign-mta §3, error-rate block; §12 row 17)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple

DOMAINS_MAX: Final = 50_000
BUCKETS: Final = 12  # that a time is cut into: what leaves it leaves by the bucket


class DomainFigures(NamedTuple):
    """What one node has attempted of a domain in the last ``within_s`` seconds, and of it the errors."""

    domain: str
    within_s: int
    messages: int
    errors: int


class OthersFigures(NamedTuple):
    """The same of all other nodes that know the domain, together."""

    messages: int = 0
    errors: int = 0
    nodes: int = 0


class _Rate:
    """What was sent to one domain in the last while."""

    __slots__ = ("counts", "errors", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.errors = 0
        self.counts: list[list[int]] = []  # [bucket, messages, errors], oldest first

    def add(self, bucket: int, messages: int, errors: int) -> None:
        counts = self.counts
        while counts and counts[0][0] <= bucket - BUCKETS:
            _, gone, gone_errors = counts.pop(0)
            self.messages -= gone
            self.errors -= gone_errors
        if not counts or counts[-1][0] < bucket:  # not less: the clock may be set back
            counts.append([bucket, 0, 0])
        counts[-1][1] += messages
        counts[-1][2] += errors
        self.messages += messages
        self.errors += errors


class ErrorRates:
    """Counts attempts and those that ended failed or deferred.

    Memory is bounded: beyond so many domains, those are forgotten that were not counted for longest.
    """

    def __init__(self) -> None:
        # Who was counted since the young were as many as there may be in half the memory, and who only before that.
        self._young: dict[str, _Rate] = {}
        self._old: dict[str, _Rate] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def count(self, domain: str, messages: int, errors: int, within_s: int, now_unix_s: float) -> tuple[int, int]:
        """Adds to a domain's count; answers (messages, errors) of the last ``within_s`` seconds."""
        rate = self._young.get(domain)
        if rate is None:
            rate = self._old.pop(domain, None) or _Rate()
            if len(self._young) >= DOMAINS_MAX // 2:
                self._young, self._old = {}, self._young
            self._young[domain] = rate
        rate.add(int(now_unix_s * BUCKETS // within_s), messages, errors)
        return rate.messages, rate.errors

    def figures(
        self, within_s: Callable[[str], int | None], asked: Collection[str], errors_min: int, now_unix_s: float
    ) -> Iterator[DomainFigures]:
        """Domains with so many errors, or that are ``asked`` for; ``within_s`` None: it is not counted."""
        known = [
            domain
            for rates in (self._young, self._old)
            for domain, rate in rates.items()
            if rate.errors >= errors_min or domain in asked
        ]
        for domain in known:
            if (span_s := within_s(domain)) is not None:
                messages, errors = self.count(domain, 0, 0, span_s, now_unix_s)
                if errors >= errors_min or (messages and domain in asked):
                    yield DomainFigures(domain, span_s, messages, errors)

    def forget(self, domain: str) -> None:
        """It is counted from nothing again."""
        self._young.pop(domain, None)
        self._old.pop(domain, None)
