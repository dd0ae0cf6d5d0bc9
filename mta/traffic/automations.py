"""Automations as rules give them: which replies, how many in what time, lead to what.

`mta.traffic.adaptation` counts them.
"""

from __future__ import annotations

import enum

import msgspec

from mta.traffic.effects import Target
from mta.traffic.limits import Limits


class Act(enum.StrEnum):
    """What an automation does."""

    SUSPEND = "suspend"  # its target takes nothing new for a time
    LOWER = "lower"  # limits hold besides the rule's for a time: ``limits``, or ``factor`` of what the rule says
    BACKOFF = "backoff"  # the rule's twin set of limits holds for a time
    NO_TLS = "no-tls"  # STARTTLS is not used on the path for a time, where the rule leaves it open
    POOL = "pool"  # the site's mail leaves from another pool for a time
    HOLD = "hold"  # the delivery is held until an operator lets it go on, or for a time


class ReplyMatch(msgspec.Struct, frozen=True):
    """Which replies are meant: all that is given must fit. Patterns are RE2, searched without regard to case."""

    codes: tuple[str, ...] = ()  # "421", or "4" for every code that begins so; empty: every code from 400 on, and 0
    enhanced: tuple[str, ...] = ()  # "4.7.28", or "4.7" for every code that begins so
    pattern: str = ""  # in the reply's text; empty: any text
    stages: tuple[str, ...] = ()  # of `mta.smtp.envelope.Stage`, lower case; empty: any


class Automation(msgspec.Struct, frozen=True, kw_only=True):
    """``replies`` matches within ``within_s``, counted on ``target``, and the action is in force for ``for_s``."""

    name: str  # unique in a rule set
    match: ReplyMatch
    replies: int = 1
    within_s: int = 3_600
    act: Act
    target: Target = Target.RULE
    for_s: int = 3_600
    factor: float | None = None  # of the limits that the rule sets (LOWER)
    limits: Limits = Limits()  # absolute (LOWER)
    pool: str = ""  # (POOL)
    samples: tuple[str, ...] = ()  # replies that it is meant for: checked when the file is linted
    origin: str = ""  # "file:line"


class ErrorBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A recipient domain is blocked when most of what is sent to it fails (campaign-mta §3, error-rate block)."""

    domains: str = "*"  # masks, with commas between
    messages_min: int = 300
    error_percent: float = 90.0
    within_s: int = 3_600
    for_s: int = 10_800
    origin: str = ""


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """How a lowered limit grows back once its time is over: by a step an interval, while all is quiet."""

    interval_s: int = 60
    step_percent: float = 10.0  # of what the rule itself allows; at least 1
