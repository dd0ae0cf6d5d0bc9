"""What happens while no name server can be asked: nobody is charged, and nothing new is claimed."""

from __future__ import annotations

from typing import Final

from mta.model.machine_fault import RESOLVER
from mta.model.waiting import Wait, WaitReason
from mta.traffic.backoff import PathBackoff
from mta.traffic.machine_faults import FaultBook

_UNIT: Final = "resolver"
REST_S_MAX: Final = 15.0  # one question to our own server costs nobody anything
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

    def wait(self, now_s: float) -> Wait | None:
        """Why nothing is taken in, and when it is tried again, which may be now; None: they can be asked."""
        if not self._said or not self._backoff.failures(now_s):
            return None
        return Wait(WaitReason.MACHINE, self._backoff.until_s, self._said)
