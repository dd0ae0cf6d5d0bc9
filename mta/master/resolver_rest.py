"""What happens while no name server can be asked: nobody is charged, and nothing new is claimed."""

from __future__ import annotations

from typing import Final

from mta.model.machine_fault import RESOLVER
from mta.model.waiting import Wait, WaitReason
from mta.traffic.backoff import PathBackoff
from mta.traffic.machine_faults import FaultBook
from mta.traffic.sources import REST_S_MAX

_UNIT: Final = "resolver"
RETURN_S_MIN: Final = 5.0


class ResolverRest:
    """The rest of a node's name servers as a whole, and its entry in the book of faults."""

    def __init__(self, book: FaultBook) -> None:
        self._book = book
        self._backoff = PathBackoff()
        self._said = ""

    def failed(self, text: str, now_s: float) -> float:
        """A question could not be put to any of them; in how many seconds its recipients may come again."""
        what = f"{RESOLVER.what}: {text}"
        self._said = f"{what}; {RESOLVER.remedy}"
        self._book.failed(RESOLVER, "", _UNIT, what, RESOLVER.remedy, now_s)
        return max(RETURN_S_MIN, self._backoff.failed(now_s, REST_S_MAX) - now_s)

    def worked(self) -> None:
        """One of them has answered, or was silent: it was asked."""
        if self._said:
            self._said = ""
            self._backoff.succeeded()
            self._book.worked(_UNIT)

    def wait(self, now_s: float, *, is_asking: bool) -> Wait | None:
        """Why nothing is taken in now. ``is_asking``: questions are under way, which will tell."""
        if not self._backoff.failures(now_s) or (self._backoff.is_available(now_s) and not is_asking):
            return None
        return Wait(WaitReason.MACHINE, max(now_s, self._backoff.until_s), self._said)
