"""What a path (egress x peer address) was refused, when it is left alone for that, and when it is good again.

A refusal of the path is an event of the path, not of the recipients that met it (`mta.failure.scope`). A path that is
refused unmistakably rests at once; where the words leave a doubt, it rests after some refusals in a row. One session
tries it again after the rest, and the first message that is accepted there ends it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mta.failure.scope import Rest, Scope
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.traffic.backoff import PathBackoff

REFUSALS_IN_A_ROW: Final = 3  # of different recipients, where one may be about a message
REST_S_FIRST: Final = 60.0
REST_S_MAX: Final = 3_600.0
REST_FORGOTTEN_S: Final = 21_600.0  # each such time without a refusal halves what is remembered

# What a recipient is kept away from in the rest of an attempt: (egress, peer), ("", MX host), or (egress, "") for all
# of an egress, while there is another.
Avoided = frozenset[tuple[str, str]]
NOTHING_AVOIDED: Final[Avoided] = frozenset()


class PathRefusal(NamedTuple):
    """A refusal of a path, in one session. It is the reply in the log where no other path is left.

    ``status``: of a recipient of which this is the last word. ``judged``: as the log's columns hold type and category.
    """

    scope: Scope
    rest: Rest
    stage: str
    reply: Reply
    status: Status
    reason: Reason
    judged: str
    site: str
    egress: str
    mx_host: str
    peer: str

    @property
    def text(self) -> str:
        """For operators."""
        return f"{self.stage}: {self.reply}"

    @property
    def avoided(self) -> Avoided:
        """What a recipient that met it is kept away from."""
        if self.scope is not Scope.EGRESS:
            return frozenset([("", self.mx_host)])
        if self.rest is Rest.BY_CONTRAST:  # it is offered to one path more: that is to differ where it matters
            return frozenset([(self.egress, self.peer), (self.egress, "")])
        return frozenset([(self.egress, self.peer)])


class RestChange(NamedTuple):
    """A path begins to rest, or is good again (``until_s`` 0)."""

    refusal: PathRefusal
    until_s: float  # on the schedule's clock
    refused: int  # recipients that met a refusal there since it was good


class PathRefusals:
    """The memory of one path. Times are any one clock's seconds."""

    __slots__ = ("_contrasts", "_in_a_row", "_rest", "last", "refused")

    def __init__(self) -> None:
        self._rest = PathBackoff(REST_S_FIRST, REST_S_MAX, REST_FORGOTTEN_S)
        self._in_a_row = 0  # refusals since something was accepted
        self._contrasts = 0  # of them, messages that another path took
        self.last: PathRefusal | None = None
        self.refused = 0  # recipients that met a refusal since the path was good

    @property
    def until_s(self) -> float:
        """It rests until then."""
        return self._rest.until_s

    def is_resting(self, now_s: float) -> bool:
        return not self._rest.is_available(now_s)

    def is_remembered(self, now_s: float) -> bool:
        """True while one session tries it alone."""
        return self._rest.failures(now_s) > 0

    def met(self, refusal: PathRefusal, recipients: int, now_s: float) -> bool:
        """So many recipients met a refusal; True when a rest begins by it."""
        if not self.is_resting(now_s):
            self.last = refusal  # else it is that by which the rest began
        self.refused += recipients
        self._in_a_row += recipients
        rest = refusal.rest
        is_enough = rest is Rest.AT_ONCE or (rest is Rest.IN_A_ROW and self._in_a_row >= REFUSALS_IN_A_ROW)
        # After a rest one refusal more is enough, whatever it said: nothing was accepted since.
        is_enough = is_enough or (rest is not Rest.NEVER and self.is_remembered(now_s))
        return is_enough and self._begin(now_s)

    def outdone(self, messages: int, now_s: float) -> bool:
        """Another path took messages that this one had refused; True when a rest begins by it."""
        self._contrasts += messages
        if self._contrasts < REFUSALS_IN_A_ROW or self.last is None or self.last.rest is Rest.NEVER:
            return False
        return self._begin(now_s)

    def accepted(self) -> bool:
        """Something was accepted: the path is good. True when it rested, or was being tried after a rest."""
        was_resting = self._rest.is_known
        self._rest.succeeded()
        self._in_a_row = self._contrasts = self.refused = 0
        self.last = None
        return was_resting

    @property
    def is_clean(self) -> bool:
        """True when nothing was refused since something was accepted."""
        return self.last is None

    def is_forgotten(self, now_s: float) -> bool:
        """True when it knows nothing that a new one would not know."""
        return not self.is_resting(now_s) and not self.is_remembered(now_s)

    def _begin(self, now_s: float) -> bool:
        if self.is_resting(now_s):
            return False
        self._rest.failed(now_s)
        self._contrasts = 0
        return True
