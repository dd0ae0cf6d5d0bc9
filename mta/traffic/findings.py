"""What a look at rules may find, and how bad it is. Each check has its row in docs/rules.md."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.StrEnum):
    ERROR = "error"  # does not do what is written
    WARNING = "warning"  # most likely not what is meant
    NOTE = "note"  # worth knowing


class Check(enum.StrEnum):
    """What is looked for."""

    REFUSED = "refused"
    DEAD_RULE = "dead-rule"
    DEAD_MASK = "dead-mask"
    IMPOSSIBLE_MASK = "impossible-mask"
    UNUSED_PROVIDER = "unused-provider"
    UNUSED_AUTOMATION = "unused-automation"
    SHARED_CATCH_ALL = "shared-catch-all"
    LIMIT_UNREACHABLE = "limit-unreachable"
    BACKOFF_LOOSER = "backoff-looser"
    BACKOFF_UNUSED = "backoff-unused"
    NEVER_SENDS = "never-sends"
    LADDER_UNKNOWN = "ladder-unknown"
    WARM_UP_SHADOWED = "warm-up-shadowed"
    ERROR_BLOCK_DEAD = "error-block-dead"
    BAD_PATTERN = "bad-pattern"
    DOUBLED_BACKSLASH = "doubled-backslash"
    CODE_IN_PATTERN = "code-in-pattern"
    CODE_NEVER = "code-never"
    SAMPLE_MISSED = "sample-missed"
    NO_SAMPLE = "no-sample"
    SHADOWED = "shadowed"
    COLLISION = "collision"
    NO_EFFECT = "no-effect"
    NEVER_MATCHED = "never-matched"
    REPLY_UNMATCHED = "reply-unmatched"
    POOL_UNKNOWN = "pool-unknown"
    EGRESS_UNKNOWN = "egress-unknown"
    ADDRESS_NOT_HERE = "address-not-here"


class Finding(msgspec.Struct, frozen=True):
    """``where``: "file:line", or as much as is known. ``subject``: "rule google". ``what``: what to do about it."""

    check: Check
    severity: Severity
    where: str
    subject: str
    what: str
