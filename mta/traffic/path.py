"""The path of a session: one egress to one address, with what failures, refusals and operators make of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mta.model.waiting import Wait, WaitReason
from mta.traffic.backoff import PathBackoff
from mta.traffic.effects import Effect, EffectKind, longest_suspension
from mta.traffic.gates import Gate
from mta.traffic.refusals import PathRefusals


class Path(Gate):
    """One egress to one address: backoff after failures, rest after refusals, and the one session that tries it again.

    While failures or refusals are remembered, one session at a time tries the path; the crowd follows when it has
    succeeded.
    ``key``: as effects name it.
    """

    __slots__ = (
        "_effects",
        "_unix_offset_s",
        "backoff",
        "ended_s",
        "is_of_machine",
        "is_without_tls",
        "key",
        "last_failure",
        "refusals",
        "suspended_until_s",
        "trials",
    )

    def __init__(self, egress_id: int, peer: str, unix_offset_s: float) -> None:
        super().__init__()
        self.key = f"{egress_id}|{peer}"
        self._unix_offset_s = unix_offset_s
        self._effects: tuple[Effect, ...] = ()
        self.backoff = PathBackoff()
        self.refusals = PathRefusals()  # of what came from this egress
        self.last_failure = ""
        self.ended_s = -math.inf  # when its last session ended that was open, and none too many
        self.is_of_machine = False  # the last failure was this machine's: the peer was not asked
        self.trials = 0  # sessions that try the path after a failure
        self.is_without_tls = False
        self.suspended_until_s = -math.inf  # on the schedule's clock

    @property
    def unit(self) -> str:
        """As the book of this machine's faults names it."""
        return f"path {self.key}"

    def is_failing(self, now_s: float) -> bool:
        """True when its next session is a trial."""
        return self.backoff.failures(now_s) > 0 or self.refusals.is_remembered(now_s)

    def is_open(self, now_s: float) -> bool:
        return not self.trials and self.rests_until_s <= now_s and self.suspended_until_s <= now_s

    @property
    def rests_until_s(self) -> float:
        """Until when it is left alone after failures or refusals."""
        return max(self.backoff.until_s, self.refusals.until_s)

    def why_resting(self, now_s: float) -> Wait:
        """What it waits for while it is shut by failures or refusals, or is being tried after them."""
        refusal = self.refusals.last
        reason = WaitReason.BACKOFF
        if refusal is not None and self.refusals.until_s >= self.backoff.until_s:
            until_s, cause = self.refusals.until_s, f"{refusal.egress} was refused at {refusal.text}"
        else:
            until_s, cause = self.backoff.until_s, self.last_failure
            if self.is_of_machine:
                reason = WaitReason.MACHINE
        if until_s <= now_s:
            return Wait(reason, math.inf, f"is being tried again after: {cause}")
        return Wait(reason, until_s, cause)

    def opens_at_s(self) -> float:
        """When it may be used again, if nothing fails until then."""
        return max(self.rests_until_s, self.suspended_until_s)

    def is_forgotten(self, now_s: float) -> bool:
        """True when it knows nothing that a new one would not know."""
        return self.backoff.is_forgotten(now_s) and self.refusals.is_forgotten(now_s)

    @property
    def suspension(self) -> Effect | None:
        """What suspends it for the longest time."""
        return longest_suspension(self._effects)

    def set_effects(self, effects: Iterable[Effect]) -> None:
        self._effects = tuple(effects)
        self.is_without_tls = any(effect.kind is EffectKind.NO_TLS for effect in self._effects)
        suspension = self.suspension
        self.suspended_until_s = -math.inf if suspension is None else suspension.until_unix_s - self._unix_offset_s
