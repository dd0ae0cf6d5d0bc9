"""What a refusal is about: its recipient, or something that another path, session or day would answer differently.

A *path* is an egress, an MX host and one of the host's addresses. A refusal of the path is no outcome of a recipient:
the recipient goes by another path, uncharged, and is deferred when every path was refused. The table in
docs/failures.md ("What a refusal means") says it for operators; a test plays each of its rows at a real server.

Pure: stage, reply and verdict in, scope out. RFC 5321 §3.3 gives the ground: a reply to MAIL concerns the reverse-path,
a reply to RCPT the forward-path, a reply to the end of the content the message. Servers say what they think of the
client at any of these.
"""

from __future__ import annotations

import enum
from typing import Final

import re2

from mta.failure.codes import BY_CODES
from mta.model.failure import Category, FailureType, Verdict
from mta.model.reply import Reply
from mta.smtp.envelope import Stage


class Scope(enum.StrEnum):
    """The smallest thing that a refusal speaks of. Only `RECIPIENT` and `MESSAGE` are about the attempt itself."""

    RECIPIENT = "recipient"  # the mailbox
    MESSAGE = "message"  # the content, or the sender's address: refused by every host of the site
    SESSION = "session"  # the state or the number of messages of this connection; a new one may go on
    EGRESS = "egress"  # the address, name or reputation that we come from: another egress or address family may pass
    TRANSPORT = "transport"  # TLS or the lack of it: another host may have it
    ROUTE = "route"  # this host does not take mail for the domain: another MX host may

    @property
    def is_of_path(self) -> bool:
        """True where another path may answer differently: the recipient is tried there, and not charged."""
        return self in _OF_PATH


_OF_PATH: Final = frozenset({Scope.EGRESS, Scope.TRANSPORT, Scope.ROUTE})


class Rest(enum.IntEnum):
    """When a refused path is left alone for a time, for all deliveries."""

    NEVER = 0  # the refusal may be about one sender domain
    BY_CONTRAST = 1  # after some messages that it refused and another path took, with none accepted between
    IN_A_ROW = 2  # after some refusals in a row, with none accepted between
    AT_ONCE = 3  # the refusal is unmistakable


OPENING_STAGES: Final = frozenset({Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.STARTTLS})
CONTENT_STAGES: Final = frozenset({Stage.DATA, Stage.BODY, Stage.DOT})
_TRANSACTION_STAGES: Final = CONTENT_STAGES | {Stage.MAIL, Stage.RCPT}

# The shipped rules of failures. What any other file says, the operator says.
_SHIPPED: Final = "bounce-rules.toml: "
UNNAMED_POLICY: Final = _SHIPPED + "policy"  # the rule that takes what is refused and says no more
BY_OPERATOR: Final = "operator"  # as `Verdict.rule` says who decided

_GREYLISTING: Final = re2.compile(
    r"(?i)gr[ae]y[ -]?list|postgrey"
    r"|(try|retry|come back|resend)( (it|this|again|later|back|the message))* in (about )?\d+ ?(s\b|sec|m\b|min)"
)
_WANTS_TLS: Final = re2.compile(
    r"(?i)must (first )?(issue|use|send)( an?| the)? (start)?tls"
    r"|\b(tls|ssl|starttls|encryption|encrypted (connection|session))( \w+){0,2} (is )?(required|needed|mandatory)"
    r"|\b(requires?|required|needs?|only accepts?)( \w+){0,3} (tls|ssl|starttls|encryption|encrypted)\b"
)
_WANTS_LOG_IN: Final = re2.compile(r"(?i)\bauth(entication|enticate|orization)?\b|\blog ?in\b|\bsasl\b|credential")
_NAMES_SIGNATURE: Final = re2.compile(r"(?i)\bdkim\b|domain ?keys|\bdmarc\b|\barc\b|\badsp\b|signature")
_NAMES_HOST: Final = re2.compile(
    r"(?i)\bptr\b|r[ -]?dns\b|reverse|in-addr|\b(helo|ehlo)\b|host ?name|forward.?confirmed"
)
_NAMES_SPF: Final = re2.compile(
    r"(?i)\bspf\b|sender policy|sender[ -]?id\b|not (allowed|permitted|authori[sz]ed) to send"
)
_NAMES_GROUP: Final = re2.compile(r"(?i)\b(group|list|members?|post(ing)?)\b")


def scope_of(stage: Stage, reply: Reply, verdict: Verdict, *, is_plain: bool = False) -> Scope:
    """What a refusal (4yz or 5yz) at ``stage`` is about; ``verdict`` is what its words mean.

    ``is_plain``: the session goes without TLS, though the host offers it: STARTTLS failed before.
    """
    if stage not in _TRANSACTION_STAGES:
        return _scope_of_opening(stage)
    if says_final(verdict):
        return Scope.RECIPIENT
    if _is_about_tls(reply, is_plain=is_plain):
        return Scope.TRANSPORT
    if reply.is_temporary:
        return _scope_of_temporary(stage, reply, verdict)
    if stage is Stage.MAIL:
        return _scope_of_mail(reply, verdict)
    return _scope_of_permanent(stage, reply, verdict)


def rest_of(scope: Scope, stage: Stage, reply: Reply, verdict: Verdict) -> Rest:
    """When a path is left alone that refused so; ``scope`` as `scope_of` has it."""
    if not scope.is_of_path or scope is Scope.ROUTE:
        return Rest.NEVER
    category = verdict.category
    if scope is Scope.TRANSPORT or stage in OPENING_STAGES:
        return Rest.AT_ONCE
    if category is Category.SENDER_REFUSED and (not is_by_codes(verdict) or reply.enhanced[1:4] == ".1."):
        return Rest.NEVER  # x.1.z at MAIL: the sender's address (RFC 3463 §3.2)
    if category is Category.AUTH_FAILURE and not _is_about_host_name(reply):
        return Rest.NEVER
    if category in (Category.IP_BLOCKED, Category.AUTH_FAILURE):
        return Rest.AT_ONCE if reply.is_permanent else Rest.IN_A_ROW
    return Rest.BY_CONTRAST if stage in CONTENT_STAGES else Rest.IN_A_ROW


def ends_with_last_path(scope: Scope, stage: Stage, verdict: Verdict) -> bool:
    """True where the reply is the recipient's outcome, as its code says, once no other path is left.

    So it is where the refusal may be about the message after all, and where no host takes mail for the domain. Other
    refusals of paths defer the recipient.
    """
    if scope is Scope.ROUTE:
        return True
    return scope is Scope.EGRESS and stage in CONTENT_STAGES and _is_unclear(verdict)


def says_final(verdict: Verdict) -> bool:
    """True where a rule of the operator's own, or the operator's word on a text, ends a recipient at a 5yz."""
    if verdict.type not in (FailureType.HARD, FailureType.IGNORED):
        return False
    rule = verdict.rule
    return rule == BY_OPERATOR or (": " in rule and not rule.startswith((_SHIPPED, BY_CODES)))


def says_greylisting(text: str) -> bool:
    """True where a server says that it takes the same message from the same address a little later."""
    return _GREYLISTING.search(text) is not None


def is_by_codes(verdict: Verdict) -> bool:
    """True where codes alone decided, or nothing did."""
    return not verdict.rule or verdict.rule.startswith(BY_CODES)


def _scope_of_opening(stage: Stage) -> Scope:
    """Before the first MAIL, and between transactions, nobody has named a recipient."""
    if stage is Stage.STARTTLS:
        return Scope.TRANSPORT
    return Scope.EGRESS if stage in OPENING_STAGES else Scope.SESSION


def _scope_of_temporary(stage: Stage, reply: Reply, verdict: Verdict) -> Scope:
    if says_greylisting(reply.text):
        return Scope.RECIPIENT  # greylisting knows the address that it puts off: another would begin anew
    if verdict.category is Category.IP_BLOCKED:
        return Scope.EGRESS
    if verdict.category is Category.AUTH_FAILURE and not _is_about_signature(stage, reply):
        return Scope.EGRESS
    return Scope.RECIPIENT


def _scope_of_mail(reply: Reply, verdict: Verdict) -> Scope:
    """RFC 5321 §3.3: about the reverse-path, and in practice as often about the client."""
    if verdict.category in (Category.TOO_BIG, Category.PROTOCOL_ERROR):
        return Scope.MESSAGE
    return Scope.EGRESS


def _scope_of_permanent(stage: Stage, reply: Reply, verdict: Verdict) -> Scope:
    """At RCPT, DATA and the end of the content."""
    category = verdict.category
    if category in (Category.IP_BLOCKED, Category.RATE_LIMITED):
        return Scope.EGRESS
    if category is Category.AUTH_FAILURE:
        return Scope.MESSAGE if _is_about_signature(stage, reply) else Scope.EGRESS
    if category is Category.RELAY_DENIED and stage is Stage.RCPT:
        return Scope.ROUTE
    if category is Category.SENDER_REFUSED and stage is Stage.RCPT and not _NAMES_GROUP.search(reply.text):
        return Scope.EGRESS
    if category is Category.POLICY and _is_unclear(verdict):
        return Scope.EGRESS  # unclear: another path shows what it is about
    if category in (Category.USER_UNKNOWN, Category.ACCOUNT_DISABLED, Category.MAILBOX_FULL, Category.INVALID_DOMAIN):
        return Scope.RECIPIENT
    return Scope.MESSAGE if stage in CONTENT_STAGES else Scope.RECIPIENT


def _is_unclear(verdict: Verdict) -> bool:
    """True where a server only says that it does not want to, or codes alone say so."""
    if verdict.category in (Category.IP_BLOCKED, Category.AUTH_FAILURE):
        return False
    return is_by_codes(verdict) or verdict.rule == UNNAMED_POLICY


def _is_about_tls(reply: Reply, *, is_plain: bool) -> bool:
    """530 (RFC 3207 §4), x.7.10 (RFC 5248), or words; 530 is said of a missing log-in too."""
    if reply.enhanced[1:] == ".7.10" or _WANTS_TLS.search(reply.text):
        return True
    return reply.code == 530 and (is_plain or not _WANTS_LOG_IN.search(reply.text))


def _is_about_host_name(reply: Reply) -> bool:
    """Reverse DNS, or the name in EHLO: of the address that we come from, whatever the message."""
    return reply.enhanced[1:] == ".7.25" or (bool(_NAMES_HOST.search(reply.text)) and not _NAMES_SPF.search(reply.text))


def _is_about_signature(stage: Stage, reply: Reply) -> bool:
    """DKIM, DMARC, ARC: of the message, wherever it comes from. SPF is of the egress and the sender."""
    if _is_about_host_name(reply) or stage not in CONTENT_STAGES:
        return False
    if _NAMES_SIGNATURE.search(reply.text):
        return True
    return reply.enhanced[1:] not in (".7.23", ".7.24") and not _NAMES_SPF.search(reply.text)
