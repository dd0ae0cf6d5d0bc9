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
    what was said about a recipient or a message. Times are any one clock's seconds. The delays are given where
    something else than a connection fails (`mta.traffic.refusals`).
    """

    __slots__ = ("_delay_s_max", "_failures", "_initial_delay_s", "_quiet_period_s", "until_s")

    def __init__(
        self,
        initial_delay_s: float = INITIAL_DELAY_S,
        delay_s_max: float = DELAY_S_MAX,
        quiet_period_s: float = QUIET_PERIOD_S,
    ) -> None:
        self._initial_delay_s = initial_delay_s
        self._delay_s_max = delay_s_max
        self._quiet_period_s = quiet_period_s
        self._failures = 0
        self.until_s = 0.0  # the path is not to be used before

    def failures(self, now_s: float) -> int:
        """Failures in a row as they count now: halved for every full quiet period since the path was free again."""
        if not self._failures:
            return 0
        quiet_s = now_s - self.until_s
        if quiet_s < self._quiet_period_s:
            return self._failures
        return self._failures >> min(_DOUBLINGS_MAX, int(quiet_s // self._quiet_period_s))

    @property
    def is_known(self) -> bool:
        """True after a failure, until a success."""
        return self._failures > 0

    def is_available(self, now_s: float) -> bool:
        return now_s >= self.until_s

    def failed(self, now_s: float, delay_s_max: float | None = None) -> float:
        """A connection failed; returns until when the path is unavailable, at most for ``delay_s_max``.

        While it is unavailable, a further failure is that of an attempt begun before: ten connections
        opened together and refused together are one failure, not ten doublings.
        """
        if self._failures and not self.is_available(now_s):
            return self.until_s
        self._failures = min(self.failures(now_s) + 1, _DOUBLINGS_MAX)
        most_s = self._delay_s_max if delay_s_max is None else delay_s_max
        self.until_s = now_s + min(most_s, self._initial_delay_s * 2 ** (self._failures - 1))
        return self.until_s

    def succeeded(self) -> None:
        """A session was opened: the path is good."""
        self._failures = 0
        self.until_s = 0.0

    def is_forgotten(self, now_s: float) -> bool:
        """True when it knows nothing that a new one would not know, so that it may be dropped."""
        return self.is_available(now_s) and self.failures(now_s) == 0
