"""A traffic event: what an automation has brought about, with all that its course depends on.

Stored and shared as it is (`mta.queue.events`), so any node goes on with it where another has left off.
"""

from __future__ import annotations

import msgspec

from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.limits import Limits


class TrafficEvent(msgspec.Struct, frozen=True, kw_only=True):
    """In force until ``until_unix_s``.

    ``limits`` are those that hold now, ``step`` how often they were raised since they were lowest; ``base`` is what
    they grow back to.
    """

    key: str
    name: str
    kind: EffectKind
    target: Target
    on: str
    began_unix_s: float
    until_unix_s: float
    limits: Limits = Limits()
    base: Limits = Limits()
    step: int = 0
    pool: str = ""
    replies: int = 0  # that led to it, in all
    detail: str = ""  # the last of them
    automation: str = ""
    rule: str = ""

    @property
    def effect(self) -> Effect:
        """What it does while it is in force."""
        return Effect(
            self.key,
            self.name,
            self.kind,
            self.target,
            self.on,
            self.until_unix_s,
            self.limits,
            self.pool,
            self.detail,
        )
