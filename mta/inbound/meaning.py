"""What a mail that came back means for one recipient of ours: the one place where it is decided what is believed.

A recipient is named by something that only we can have made, a signed return path or token (`mta.message.verp`,
`mta.message.leaving`), or by a Message-ID together with somebody whom it can be believed of. All else in a mail is
a stranger's word.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import Final

import msgspec

from mta.bounces import Kind, Letter
from mta.failure.qualify import Qualifier
from mta.inbound.spool import Stored
from mta.message.leaving import parse_leaving_token
from mta.message.verp import NUMBER_MAX, parse_verp
from mta.model.failure import Category, FailureType
from mta.model.outcome import Status
from mta.queue.feedback import Feedback

# A report of these is no complaint of the recipient (RFC 5965 §7.3, RFC 6591).
_NO_COMPLAINT: Final = frozenset({"auth-failure", "not-spam", "dmarc", "virus"})
_REPLY_CHARS: Final = 2_000
_RETURN_PATHS: Final = ("return-path", "x-envelope-from", "x-original-return-path", "errors-to")
# Number and delivery in base 36 (`mta.message.render`).
_MESSAGE_ID: Final = re.compile(r"(?<![0-9a-z.])(0|[1-9a-z][0-9a-z]{0,12})\.(0|[1-9a-z][0-9a-z]{0,12})@[0-9a-z.-]+")


class Trust(msgspec.Struct, frozen=True):
    """By what recipients are known. ``networks``: from where a complaint is believed that has no signed address.

    The names are local parts: of addresses to leave by, and of those that feedback loops were told.
    """

    key: bytes
    unsubscribe_names: tuple[str, ...] = ()
    feedback_names: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    is_sender_believed: bool = False  # an unsubscription of whom its From names

    def is_of_feedback_loop(self, stored: Stored) -> bool:
        """Whether a mail was sent to an address that only feedback loops know."""
        return any(_name(one) in self.feedback_names for one in stored.recipients)

    def __repr__(self) -> str:
        return "Trust(...)"  # it has a key


class Meaning(msgspec.Struct, frozen=True):
    """``what`` it was, as it is counted. ``feedback`` is to be recorded, if there is any.

    ``sender``: the address that wants no more mail, where nothing else says who. ``aside``: why nobody knows whom
    it is about; empty: it is dealt with.
    """

    what: str
    feedback: Feedback | None = None
    sender: str = ""
    aside: str = ""


def meaning(stored: Stored, letter: Letter, qualifier: Qualifier, trust: Trust) -> Meaning:
    """Of a mail and its envelope."""
    at = datetime.datetime.fromtimestamp(stored.at_unix_s, datetime.UTC)
    if letter.kind is Kind.AUTOREPLY:  # somebody is away: no news of the address
        return Meaning("challenge" if letter.is_challenge else "autoreply")
    if letter.kind is Kind.FEEDBACK:
        return _complaint(stored, letter, trust, at)
    if letter.kind is Kind.NOT_BOUNCE:
        return _unsubscription(stored, letter, trust, at)
    number = _signed_number(stored, letter, trust.key)
    failed = [one for one in letter.recipients if not one.is_delayed]
    if not failed:
        return Meaning("delayed" if letter.recipients else "bounce-of-nobody")
    if number is None:
        return Meaning("bounce", aside="not-signed")
    evidence = failed[0].evidence  # a message has one recipient
    verdict = qualifier.qualify(evidence._replace(stage=evidence.stage or "bounce"))
    if verdict.category is Category.NOT_A_FAILURE:
        return Meaning("delivered")
    kind = FailureType.SOFT if verdict.type is FailureType.NOT_DEFINED else verdict.type
    bounce = Feedback(
        *(number, Status.BOUNCED, at, kind, verdict.reason, verdict.category),
        *(min(max(evidence.code, 0), 999), _clean(evidence.enhanced[:20]), _clean(evidence.text[:_REPLY_CHARS])),
    )
    return Meaning("bounce", bounce)


def _complaint(stored: Stored, letter: Letter, trust: Trust, at: datetime.datetime) -> Meaning:
    if letter.feedback_type in _NO_COMPLAINT:
        return Meaning("no-complaint")
    # RFC 5965 knew this type in its drafts, and some still report it.
    status = Status.UNSUBSCRIBED if letter.feedback_type == "opt-out" else Status.COMPLAINED
    said = _clean(f"complaint: {letter.feedback_type}"[:_REPLY_CHARS])
    number = _signed_number(stored, letter, trust.key)
    if number is not None:
        return Meaning("complaint", Feedback(number, status, at, reply=said))
    named = parse_message_id(letter.returned.get("message-id", "")) or parse_message_id(
        letter.reported.get("message-id", "")
    )
    if named is not None and _is_within(stored.client, trust.networks):
        return Meaning("complaint", Feedback(named[0], status, at, reply=said, delivery=named[1]))
    recipient = letter.reported.get("original-rcpt-to", "").strip("<> ")
    if named is not None and "@" in recipient:  # its recipient knows both, and all three must be of one line of the log
        complaint = Feedback(named[0], status, at, reply=said, delivery=named[1], address=_clean(recipient))
        return Meaning("complaint", complaint)
    return Meaning("complaint", aside="not-signed")


def _unsubscription(stored: Stored, letter: Letter, trust: Trust, at: datetime.datetime) -> Meaning:
    """By an address to leave by, or a token: never by words, which may be ours. Mail to a return path is an answer of
    some program (RFC 3834 §4), whatever it says."""
    said = _clean(f"unsubscribed by mail of {letter.sender}"[:_REPLY_CHARS])
    texts = (*stored.recipients, letter.subject)
    number = next((n for n in (parse_leaving_token(text, trust.key) for text in texts) if n is not None), None)
    if number is not None:
        return Meaning("unsubscription", Feedback(number, Status.UNSUBSCRIBED, at, reply=said))
    if not any(_name(one) in trust.unsubscribe_names for one in stored.recipients):
        return Meaning("other", aside="other")
    named = next((pair for pair in map(parse_message_id, texts) if pair is not None), None)
    if named is not None and letter.sender:
        leaving = Feedback(
            *(named[0], Status.UNSUBSCRIBED, at), reply=said, delivery=named[1], address=_clean(letter.sender)
        )
        return Meaning("unsubscription", leaving)
    if trust.is_sender_believed and letter.sender:
        return Meaning("unsubscription", Feedback(0, Status.UNSUBSCRIBED, at, reply=said), sender=_clean(letter.sender))
    return Meaning("unsubscription", aside="not-signed")


def _signed_number(stored: Stored, letter: Letter, key: bytes) -> int | None:
    """Of the return path that the mail was sent to, or that stands in what it returns or reports (RFC 5965 §3.2)."""
    inside = (*(letter.returned.get(name, "") for name in _RETURN_PATHS), letter.reported.get("original-mail-from", ""))
    for path in (*stored.recipients, *inside):
        number = parse_verp(path.strip("<> ").partition("@")[0], key)
        if number is not None:
            return number
    return parse_leaving_token(letter.returned.get("list-unsubscribe", ""), key)


def parse_message_id(text: str) -> tuple[int, int] | None:
    """Number and delivery of a Message-ID of ours."""
    found = _MESSAGE_ID.search(text.lower())
    if found is None:
        return None
    number, delivery = int(found[1], 36), int(found[2], 36)
    return (number, delivery) if max(number, delivery) <= NUMBER_MAX else None


def _name(address: str) -> str:
    return address.partition("@")[0].partition("+")[0].lower()


def _is_within(client: str, networks: tuple[str, ...]) -> bool:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network) for network in networks)


def _clean(text: str) -> str:
    """As PostgreSQL takes it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
