"""How long a path (egress x peer address), an egress or a child is left alone after failures to get a session."""

from __future__ import annotations

from typing import Final

# campaign-mta §1: first delay 4 s, doubled each time; its cap and the way errors age are not documented.
INITIAL_DELAY_S: Final = 4.0
DELAY_S_MAX: Final = 600.0
QUIET_PERIOD_S: Final = 600.0
_DOUBLINGS_MAX: Final = 32


class PathBackoff:
    """The memory of one path: 4 s, 8 s, 16 s ... up to 600 s; a success forgets all, quiet time halves it.

    Only failures to get a usable session count (refused, timed out, 421 or 554 as greeting), never
    what was said about a recipient or a message. Times are any one clock's seconds.
    """

    __slots__ = ("_failures", "until_s")

    def __init__(self) -> None:
        self._failures = 0
        self.until_s = 0.0  # the path is not to be used before

    def failures(self, now_s: float) -> int:
        """Failures in a row as they count now: halved for every full quiet period since the path was free again."""
        if not self._failures:
            return 0
        quiet_s = now_s - self.until_s
        if quiet_s < QUIET_PERIOD_S:
            return self._failures
        return self._failures >> min(_DOUBLINGS_MAX, int(quiet_s // QUIET_PERIOD_S))

    def is_available(self, now_s: float) -> bool:
        return now_s >= self.until_s

    def failed(self, now_s: float, delay_s_max: float = DELAY_S_MAX) -> float:
        """A connection failed; returns until when the path is unavailable, at most for ``delay_s_max``.

        While it is unavailable, a further failure is that of an attempt begun before: ten connections
        opened together and refused together are one failure, not ten doublings.
        """
        if self._failures and not self.is_available(now_s):
            return self.until_s
        self._failures = min(self.failures(now_s) + 1, _DOUBLINGS_MAX)
        self.until_s = now_s + min(delay_s_max, INITIAL_DELAY_S * 2 ** (self._failures - 1))
        return self.until_s

    def succeeded(self) -> None:
        """A session was opened: the path is good."""
        self._failures = 0
        self.until_s = 0.0

    def is_forgotten(self, now_s: float) -> bool:
        """True when it knows nothing that a new one would not know, so that it may be dropped."""
        return self.is_available(now_s) and self.failures(now_s) == 0
