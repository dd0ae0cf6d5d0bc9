"""What codes alone say of a failure: enhanced codes (RFC 3463, 5248, 7505 and others in IANA's registry), then SMTP's.

Codes that say exactly one thing decide where no rule knows the text. Those that servers use for anything (5.0.0, 5.2.0,
5.7.1, 550) are looked at last, and then the stage of the session helps.
"""

from __future__ import annotations

import re
from typing import Final

from mta.model.failure import Category, FailureType, Verdict
from mta.model.outcome import Reason

# Of refusals that are our own fault (`OUR_FAULT`), and of what is too big: not counted, and 5yz ends the attempt.
OUR_FAULT_TYPE: Final = FailureType.SOFT  # and not counted: see mta.queue.quarantine
BY_CODES: Final = "codes: "  # how `Verdict.rule` begins where no rule decided

_C = Category
TYPES: Final = {
    _C.NONE: FailureType.NOT_DEFINED,
    _C.NOT_A_FAILURE: FailureType.NOT_DEFINED,
    _C.USER_UNKNOWN: FailureType.HARD,
    _C.INVALID_DOMAIN: FailureType.SOFT,
    _C.ACCOUNT_DISABLED: FailureType.SOFT,
    _C.MAILBOX_FULL: FailureType.SOFT,
    _C.SYSTEM_ERROR: FailureType.SOFT,
    _C.UNREACHABLE: FailureType.SOFT,
    _C.OTHER: FailureType.SOFT,
}  # the type of a category where nothing else is said; of the others it is OUR_FAULT_TYPE
REASONS: Final = {
    _C.NONE: Reason.NOT_DEFINED,
    _C.NOT_A_FAILURE: Reason.NOT_DEFINED,
    _C.USER_UNKNOWN: Reason.USER_UNKNOWN,
    _C.INVALID_DOMAIN: Reason.INVALID_DOMAIN,
    _C.ACCOUNT_DISABLED: Reason.ACCOUNT_DISABLED,
    _C.MAILBOX_FULL: Reason.MAILBOX_FULL,
    _C.SPAM_CONTENT: Reason.REFUSED,
    _C.VIRUS: Reason.REFUSED,
    _C.POLICY: Reason.REFUSED,
    _C.IP_BLOCKED: Reason.REFUSED,
    _C.AUTH_FAILURE: Reason.REFUSED,
    _C.SENDER_REFUSED: Reason.REFUSED,
    _C.RELAY_DENIED: Reason.REFUSED,
}  # of the others it is UNREACHABLE
_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")

# Subject and detail -> category: these say one thing, in whatever words.
_EXACT: Final = {
    "1.1": _C.USER_UNKNOWN,
    "1.2": _C.INVALID_DOMAIN,
    "1.3": _C.USER_UNKNOWN,  # bad syntax of the recipient
    "1.6": _C.USER_UNKNOWN,  # has moved
    "1.7": _C.SENDER_REFUSED,
    "1.8": _C.SENDER_REFUSED,
    "1.10": _C.INVALID_DOMAIN,  # null MX
    "2.2": _C.MAILBOX_FULL,
    "2.3": _C.TOO_BIG,
    "2.4": _C.SYSTEM_ERROR,  # expansion of a mailing list
    "2.121": _C.RATE_LIMITED,  # Exchange: the recipient takes no more from us in this hour,
    "2.122": _C.RATE_LIMITED,  # or from anybody
    "3.4": _C.TOO_BIG,
    "3.5": _C.SYSTEM_ERROR,
    "4.1": _C.UNREACHABLE,
    "4.2": _C.UNREACHABLE,
    "4.3": _C.UNREACHABLE,  # a directory did not answer
    "4.4": _C.INVALID_DOMAIN,  # no route: the domain has no host
    "4.5": _C.RATE_LIMITED,  # congestion
    "4.6": _C.UNREACHABLE,  # a loop
    "4.7": _C.UNREACHABLE,  # expired
    "5.1": _C.PROTOCOL_ERROR,
    "5.2": _C.PROTOCOL_ERROR,
    "5.3": _C.RATE_LIMITED,  # too many recipients
    "5.4": _C.PROTOCOL_ERROR,
    "5.5": _C.PROTOCOL_ERROR,
    "6.7": _C.PROTOCOL_ERROR,  # non-ASCII addresses (RFC 6531)
    "6.8": _C.PROTOCOL_ERROR,
    "6.9": _C.PROTOCOL_ERROR,
    "7.4": _C.PROTOCOL_ERROR,
    "7.10": _C.PROTOCOL_ERROR,  # encryption needed (RFC 5248)
    "7.13": _C.ACCOUNT_DISABLED,
    "7.17": _C.USER_UNKNOWN,  # the mailbox has another owner now (RFC 7293)
    "7.18": _C.INVALID_DOMAIN,
    "7.20": _C.AUTH_FAILURE,  # DKIM (RFC 7372)
    "7.21": _C.AUTH_FAILURE,
    "7.22": _C.AUTH_FAILURE,
    "7.23": _C.AUTH_FAILURE,  # SPF
    "7.24": _C.AUTH_FAILURE,
    "7.25": _C.AUTH_FAILURE,  # reverse DNS
    "7.26": _C.AUTH_FAILURE,
    "7.27": _C.SENDER_REFUSED,  # the sender's domain has a null MX (RFC 7505)
    "7.28": _C.RATE_LIMITED,
    "7.29": _C.AUTH_FAILURE,  # ARC (RFC 8617)
    "7.30": _C.PROTOCOL_ERROR,  # REQUIRETLS (RFC 8689)
    "7.129": _C.SENDER_REFUSED,  # Exchange: the recipient takes mail of some senders only
}
_VAGUE: Final = {
    "1.0": _C.USER_UNKNOWN,
    "1.4": _C.USER_UNKNOWN,  # ambiguous
    "1.9": _C.UNREACHABLE,
    "2.0": _C.USER_UNKNOWN,
    "2.1": _C.ACCOUNT_DISABLED,
    "3.1": _C.SYSTEM_ERROR,
    "4.0": _C.UNREACHABLE,
    "7.0": _C.POLICY,
    "7.1": _C.POLICY,
    "7.2": _C.POLICY,
    "7.7": _C.POLICY,
}
_SUBJECTS: Final = {
    "1": _C.USER_UNKNOWN,
    "2": _C.ACCOUNT_DISABLED,
    "3": _C.SYSTEM_ERROR,
    "4": _C.UNREACHABLE,
    "5": _C.PROTOCOL_ERROR,
    "6": _C.PROTOCOL_ERROR,
    "7": _C.POLICY,
}
# Final with 5 before them; what only hints at the address is soft.
_HARD_EXACT: Final = frozenset({"1.1", "1.2", "1.3", "1.6", "1.10", "4.4", "7.17", "7.18"})

_AT_OPENING: Final = frozenset({"connect", "greeting", "ehlo", "starttls", "idle"})
_AT_CONTENT: Final = frozenset({"data", "body", "dot"})
_BASIC: Final = {
    421: _C.UNREACHABLE,
    431: _C.SYSTEM_ERROR,
    432: _C.SYSTEM_ERROR,
    441: _C.UNREACHABLE,
    442: _C.UNREACHABLE,
    446: _C.UNREACHABLE,
    447: _C.UNREACHABLE,
    450: _C.RATE_LIMITED,
    451: _C.SYSTEM_ERROR,
    452: _C.SYSTEM_ERROR,
    454: _C.SYSTEM_ERROR,
    455: _C.PROTOCOL_ERROR,
    500: _C.PROTOCOL_ERROR,
    501: _C.PROTOCOL_ERROR,
    502: _C.PROTOCOL_ERROR,
    503: _C.PROTOCOL_ERROR,
    504: _C.PROTOCOL_ERROR,
    511: _C.USER_UNKNOWN,
    512: _C.INVALID_DOMAIN,
    521: _C.UNREACHABLE,  # accepts no mail (RFC 7504); in practice as often a block
    523: _C.TOO_BIG,
    525: _C.ACCOUNT_DISABLED,
    530: _C.POLICY,  # wants authentication
    534: _C.POLICY,
    535: _C.POLICY,
    538: _C.POLICY,
    541: _C.SPAM_CONTENT,
    542: _C.USER_UNKNOWN,
    551: _C.USER_UNKNOWN,
    552: _C.MAILBOX_FULL,
    553: _C.USER_UNKNOWN,
    554: _C.POLICY,
    555: _C.PROTOCOL_ERROR,
    556: _C.INVALID_DOMAIN,  # the domain accepts no mail (RFC 7504)
    570: _C.POLICY,
    571: _C.POLICY,
}
_EXACT_BASIC: Final = frozenset({511, 512, 525, 542, 556})
_HARD_BASIC: Final = frozenset({511, 512, 542, 551, 556})


def verdict_of(category: Category, rule: str, kind: FailureType | None = None, reason: Reason | None = None) -> Verdict:
    """With the category's own type and reason, where none is given."""
    if kind is None:
        kind = TYPES.get(category, OUR_FAULT_TYPE)
    return Verdict(kind, REASONS.get(category, Reason.UNREACHABLE) if reason is None else reason, category, rule)


def exact(code: int, enhanced: str) -> Verdict | None:
    """What codes say that have one meaning; None for all others."""
    subject = _subject(enhanced)
    category = _EXACT.get(subject)
    if category is not None:
        return _made(category, enhanced, is_hard=subject in _HARD_EXACT)
    if code in _EXACT_BASIC:
        return _made(_BASIC[code], str(code), is_hard=code in _HARD_BASIC)
    return None


def vague(code: int, enhanced: str, stage: str) -> Verdict | None:
    """The best guess from codes that are used for many things; None where there is none."""
    subject = _subject(enhanced)
    category = _VAGUE.get(subject)
    if category is None and subject and not subject.endswith(".0"):
        category = _SUBJECTS.get(subject.partition(".")[0])
    if category is not None and not (subject == "1.0" and stage == "mail"):
        return _made(category, enhanced)
    category = _basic(code, stage)
    if category is not None:
        return _made(category, str(code), is_hard=code in _HARD_BASIC)
    category = _SUBJECTS.get(subject.partition(".")[0])
    return None if category is None else _made(category, enhanced)


def _subject(enhanced: str) -> str:
    """``1.1`` of ``5.1.1``; empty where there is no such code."""
    return enhanced[2:] if _ENHANCED.fullmatch(enhanced) else ""


def _made(category: Category, code: str, *, is_hard: bool = False) -> Verdict:
    kind = FailureType.HARD if is_hard else None
    if category is Category.USER_UNKNOWN and not is_hard:
        kind = FailureType.SOFT
    return verdict_of(category, BY_CODES + code, kind)


def _basic(code: int, stage: str) -> Category | None:
    if code == 552 and (stage in _AT_CONTENT or stage == "mail"):
        return Category.TOO_BIG
    if code in (550, 553, 554):
        if stage == "mail":
            return Category.SENDER_REFUSED
        if stage in _AT_OPENING:
            return Category.IP_BLOCKED
        if stage in _AT_CONTENT:
            return Category.POLICY
    return _BASIC.get(code)
