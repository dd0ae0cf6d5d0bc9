"""What a refusal, an event or a bounce says of a recipient: how final it is, and why.

Types and categories are stored as small integers in ``delivery_log``; the numbers never change.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from mta.model.outcome import Reason


class FailureType(enum.IntEnum):
    """How final a failure is (campaign-mta §4)."""

    NOT_DEFINED = 0  # no failure, or a text that nobody has qualified yet: handled like SOFT
    SOFT = 1  # tried again, and counted against the address
    HARD = 2  # final, and never tried again: the address is quarantined
    IGNORED = 3  # tried again if it is temporary; never counted against the address


class Category(enum.IntEnum):
    """Why, in the operator's words; finer than the reason, whose numbers come from the engine we replace."""

    NONE = 0  # no failure
    USER_UNKNOWN = 1
    INVALID_DOMAIN = 2
    ACCOUNT_DISABLED = 3
    MAILBOX_FULL = 4
    TOO_BIG = 5
    SYSTEM_ERROR = 6
    UNREACHABLE = 7
    RATE_LIMITED = 8
    SPAM_CONTENT = 9
    VIRUS = 10
    POLICY = 11
    IP_BLOCKED = 12
    AUTH_FAILURE = 13
    SENDER_REFUSED = 14
    RELAY_DENIED = 15
    PROTOCOL_ERROR = 16
    OTHER = 17
    NOT_A_FAILURE = 18

    @property
    def label(self) -> str:
        """As operators read and write it: ``user_unknown``."""
        return self.name.lower()


# Our fault, not the address's: it never counts against a recipient, and raises an alarm on the egress or the sender.
OUR_FAULT: Final = frozenset(
    {
        Category.TOO_BIG,
        Category.RATE_LIMITED,
        Category.SPAM_CONTENT,
        Category.VIRUS,
        Category.POLICY,
        Category.IP_BLOCKED,
        Category.AUTH_FAILURE,
        Category.SENDER_REFUSED,
        Category.RELAY_DENIED,
        Category.PROTOCOL_ERROR,
    }
)


# What only a recipient can have. A server that has heard of none yet speaks of the sender, or of us (RFC 5321 §3.3).
OF_RECIPIENT: Final = frozenset(
    {Category.USER_UNKNOWN, Category.INVALID_DOMAIN, Category.ACCOUNT_DISABLED, Category.MAILBOX_FULL}
)


class Evidence(NamedTuple):
    """What there is to judge by: an SMTP reply, an event without one, or what a bounce tells of a recipient."""

    code: int = 0  # of the reply; 0: there was none (or a bounce does not name it)
    enhanced: str = ""  # "5.1.1", as the server or the bounce gave it
    text: str = ""  # the reply without its codes, or whatever text describes the failure
    stage: str = ""  # connect, greeting, ehlo, starttls, mail, rcpt, data, dot, dns, bounce; empty: not known
    provider: str = ""  # MX host; of a bounce the host that refused, or the recipient's domain; empty: not known


class Verdict(NamedTuple):
    """What the evidence means. ``rule`` names who says so (``file: name``), for explanations."""

    type: FailureType
    reason: Reason
    category: Category
    rule: str = ""
