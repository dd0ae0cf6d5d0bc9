"""Which kind of mail it is, and whom it speaks of. The order of the questions is the order of trust:

a report in the form of the standards (RFC 3464, RFC 5965), a notification of a relay service, an automatic answer, a
complaint in another form, a bounce in its own words.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

import msgspec

from mta.bounces.letter import Kind, Letter, Recipient
from mta.bounces.mime import Opened, blocks_in, fields_in, opened
from mta.bounces.plain import ADDRESS, RECIPIENTS_MAX, evidence_in, own_words, recipients_in
from mta.bounces.words import (
    ABSENT_SUBJECT,
    ABSENT_TEXT,
    BOUNCE_SUBJECT,
    BOUNCE_TEXT,
    BOUNCER,
    CHALLENGE,
    COMPLAINT_SUBJECT,
    GIVEN_UP,
    LIST_REFUSAL,
    MACHINE,
    REPORT_TITLE,
    RETURNED,
    SPOKEN_OF,
    WARNING,
)
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import Evidence

_STATUS: Final = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_COMMENT: Final = re.compile(r"\(([^()]{4,500})\)")  # of a field: the reason, where there is no other
# Addresses of a report beyond ASCII (RFC 6533 §3): as they are, or with such characters as \x{1F600}.
_TYPED_ADDRESS: Final = re.compile(r"(?:utf-8|rfc822)\s*;\s*<?([^\s<>@;]{1,256}@[^\s<>@;]{1,256})>?\s*$", re.IGNORECASE)
_ESCAPED_ADDRESS: Final = re.compile(r"utf-8\s*;\s*<?((?:[!-:=?-~]|\\x\{[0-9A-F]{2,6}\}){1,512})>?\s*$", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"\\x\{((?:10|[0-9A-F])?[0-9A-F]{1,4})\}", re.IGNORECASE)
_DONE: Final = frozenset({"delivered", "relayed", "expanded"})
_AUTOMATIC: Final = (
    "x-autoreply",
    "x-autorespond",
    "x-autoresponder",
    "x-auto-response-from",
    "x-vacation",
    "x-mail-autoreply",
)
_HOST_NAME: Final = re.compile(r"\.[A-Za-z]")  # an IP address has none
_TITLE_CHARS: Final = 300
_FAILURE_MIN: Final = 400
_REFUSAL: Final = re.compile(r"(?<![\d.])[45]\d\d(?=[ -])")
_NOTHING_SAID: Final = 12  # characters; a diagnostic of less says nothing but a code


def read_letter(raw: bytes, *, is_of_feedback_loop: bool = False) -> Letter:
    """Reads a mail that came back. Never raises; time is linear in what is looked at (`mta.bounces.mime`).

    ``is_of_feedback_loop``: it was sent to an address that only feedback loops know, so its words can make it a
    complaint. Anywhere else a complaint is a report in the form of RFC 5965: people write of spam, and answers quote
    the subjects that they answer.
    """
    mail = opened(raw)
    text = "\n\n".join(mail.texts)
    returned = mail.returned or _returned_in(text)
    said = _Said(text, _not_meant(mail, returned))
    sender = ADDRESS.search(mail.headers.get("from", ""))
    letter = Letter(Kind.NOT_BOUNCE, (), "", returned, mail.feedback, mail.subject, "" if sender is None else sender[0])
    for kind, recipients, feedback_type in (
        _feedback(mail, text, returned),
        _status_report(mail.status, said),
        _notification(text),
        _automatic(mail, said.text),
        _complaint(mail, text, returned) if is_of_feedback_loop else _NONE,
        _plain(mail, said, returned),
    ):
        if kind is not None:
            return msgspec.structs.replace(
                letter,
                kind=kind,
                recipients=tuple(_with_host(one) for one in recipients[:RECIPIENTS_MAX]),
                feedback_type=feedback_type,
                is_challenge=kind is Kind.AUTOREPLY and _is_challenge(mail, said.text),
            )
    return letter


def _with_host(recipient: Recipient) -> Recipient:
    """Where no host is named that refused, the recipient's domain stands for it: rules may ask who speaks."""
    evidence = recipient.evidence
    if _HOST_NAME.search(evidence.provider) is not None or "@" not in recipient.address:
        return recipient
    domain = recipient.address.rpartition("@")[2].lower()
    return msgspec.structs.replace(recipient, evidence=evidence._replace(provider=domain))


class _Said:
    """The words of a report for people, read when they are asked for, and once."""

    def __init__(self, text: str, ignored: frozenset[str]) -> None:
        self.text = own_words(text)
        self.is_cut = len(self.text) < len(text)  # what follows is the message that it returns
        self._ignored = ignored

    @cached_property
    def evidence(self) -> Evidence:
        return evidence_in(self.text)

    @cached_property
    def recipients(self) -> list[Recipient]:
        return recipients_in(self.text, self._ignored)

    @cached_property
    def by_address(self) -> dict[str, Evidence]:
        return {one.address.lower(): one.evidence for one in recipients_in(self.text, frozenset())}

    @cached_property
    def first_named(self) -> list[Recipient]:
        return recipients_in(self.text, self._ignored, is_loose=True)


_Found = tuple[Kind | None, list[Recipient], str]
_NONE: Final[_Found] = (None, [], "")


def _returned_in(text: str) -> dict[str, str]:
    found = RETURNED.search(text)
    if found is None:
        return {}
    for piece in re.split(r"\n\s*\n", text[found.start() :])[:4]:
        fields = fields_in(piece.partition("\n")[2] if RETURNED.match(piece) and ":" not in piece[:12] else piece)
        if len(fields) > 1:
            return fields
    return {}


# --- RFC 3464 ----------------------------------------------------------------------------------------


def _status_report(blocks: list[dict[str, str]], said: _Said) -> _Found:
    of_recipients = [block for block in blocks if "final-recipient" in block or "original-recipient" in block]
    blocks = of_recipients or [block for block in blocks if "action" in block]
    if not blocks:
        return _NONE
    found: dict[str, Recipient] = {}
    done: list[Recipient] = []
    for block in blocks[:RECIPIENTS_MAX]:
        action = block.get("action", "").split(" ")[0].strip(";").lower()
        address = _address_of(block)
        if action in _DONE:
            done.append(Recipient(address, Evidence(250, "2.0.0", action, "bounce")))
        elif address.lower() not in found:
            found[address.lower()] = Recipient(
                address, _evidence_of(block, said, address, len(of_recipients)), action == "delayed"
            )
    if not found:
        return Kind.BOUNCE, done, ""
    if set(found) == {""}:
        nobody = found[""]
        named = [Recipient(one.address, nobody.evidence, nobody.is_delayed) for one in said.recipients]
        return Kind.BOUNCE, named or [nobody], ""
    return Kind.BOUNCE, [one for one in found.values() if one.address], ""


def _address_of(block: dict[str, str]) -> str:
    for name in ("original-recipient", "final-recipient", "x-actual-recipient"):
        typed = _TYPED_ADDRESS.match(block.get(name, ""))
        if typed is not None and not typed[1].isascii():
            return typed[1]  # RFC 6533 §3
        escaped = _ESCAPED_ADDRESS.match(block.get(name, ""))
        if escaped is not None:
            return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), escaped[1])
        found = ADDRESS.search(block.get(name, "").replace("rfc822;", " ").replace("RFC822;", " "))
        if found is not None:
            return found[0]
    return ""


def _evidence_of(block: dict[str, str], said: _Said, address: str, recipients: int) -> Evidence:
    diagnostic = block.get("diagnostic-code", "")
    evidence = _of_failure(parse_reply_text(diagnostic))
    status = _STATUS.search(block.get("status", ""))
    if len(ADDRESS.sub("", evidence.text).strip()) < _NOTHING_SAID or diagnostic.lower().startswith("x-unix"):
        # The reason is in the words for people; of several recipients in those beside the address.
        told = (said.by_address.get(address.lower()) if recipients > 1 else None) or said.evidence
        evidence = told._replace(code=evidence.code or told.code, enhanced=evidence.enhanced or told.enhanced)
    if not diagnostic and (comment := _COMMENT.search(block.get("status", ""))) is not None:
        evidence = evidence._replace(text=f"{evidence.text} {comment[1]}".strip())
    if status is not None and status[1][0] != "2" and (not evidence.enhanced or evidence.enhanced.endswith(".0.0")):
        evidence = evidence._replace(enhanced=status[1])
    host = block.get("remote-mta", "").rpartition(";")[2].strip().split(" ")[0]
    return evidence._replace(provider=host, stage=evidence.stage or said.evidence.stage)


def _of_failure(evidence: Evidence) -> Evidence:
    """Without codes that speak of no failure, where one is reported: an exit status (``x-unix; 255``), or the banner
    that a server said before it refused."""
    if not 0 < evidence.code < _FAILURE_MIN:
        return evidence
    refusal = _REFUSAL.search(evidence.text)
    return (
        evidence._replace(code=0, enhanced="")
        if refusal is None
        else parse_reply_text(evidence.text[refusal.start() :])
    )


# --- RFC 5965 and other complaints ---------------------------------------------------------------------


def _feedback(mail: Opened, text: str, returned: dict[str, str]) -> _Found:
    if not mail.feedback and mail.report_type != "feedback-report":
        return _NONE
    fields = mail.feedback or next((block for block in blocks_in(text) if "feedback-type" in block), {})
    kind = fields.get("feedback-type", "abuse").lower()
    for name in ("original-rcpt-to", "removal-recipient", "x-hmxmroriginalrecipient"):
        if found := ADDRESS.findall(fields.get(name, "")):
            return Kind.FEEDBACK, [Recipient(one, Evidence(text=kind)) for one in found], kind
    return Kind.FEEDBACK, _complained(returned, kind), kind


def _complaint(mail: Opened, text: str, returned: dict[str, str]) -> _Found:
    is_named = COMPLAINT_SUBJECT.search(mail.subject) is not None
    origin = mail.headers.get("x-hmxmroriginalrecipient", "") or returned.get("x-hmxmroriginalrecipient", "")
    if not (is_named or origin):
        return _NONE
    found = [Recipient(one, Evidence(text="abuse")) for one in ADDRESS.findall(origin)]
    return Kind.FEEDBACK, found or _complained(returned or fields_in(text), "abuse"), "abuse"


def _complained(returned: dict[str, str], kind: str) -> list[Recipient]:
    """Whoever the message went to; many reporters mask it."""
    for name in ("x-hmxmroriginalrecipient", "to", "delivered-to", "x-original-to"):
        found = [one for one in ADDRESS.findall(returned.get(name, "")) if "redacted" not in one.lower()]
        if found:
            return [Recipient(one, Evidence(text=kind)) for one in found[:1]]
    return []


# --- notifications of a relay service, as JSON -----------------------------------------------------------


class _SesRecipient(msgspec.Struct):
    emailAddress: str = ""  # noqa: N815 - names of the service
    action: str = ""
    status: str = ""
    diagnosticCode: str = ""  # noqa: N815


class _SesEvent(msgspec.Struct):
    bounceType: str = ""  # noqa: N815
    bounceSubType: str = ""  # noqa: N815
    bouncedRecipients: list[_SesRecipient] = []  # noqa: N815
    complainedRecipients: list[_SesRecipient] = []  # noqa: N815
    complaintFeedbackType: str | None = None  # noqa: N815


class _SesDelivery(msgspec.Struct):
    recipients: list[str] = []


class _SesNotification(msgspec.Struct):
    notificationType: str = ""  # noqa: N815
    eventType: str = ""  # noqa: N815
    bounce: _SesEvent | None = None
    complaint: _SesEvent | None = None
    delivery: _SesDelivery | None = None
    Message: str = ""  # of the notification service around it


_notification_decoder: Final = msgspec.json.Decoder(_SesNotification)
_SES_CODES: Final = {"Permanent": "5", "Transient": "4"}


def _notification(text: str) -> _Found:
    start = text.find("{")
    if start < 0 or ("otificationType" not in text and '"Type"' not in text and "eventType" not in text):
        return _NONE
    end = text.rfind("}") + 1
    try:
        told = _notification_decoder.decode(text[start:end].replace("\r", "").replace("\n", "").encode())
        if told.Message:
            told = _notification_decoder.decode(told.Message.encode())
    except (msgspec.DecodeError, UnicodeEncodeError):
        return _NONE
    if told.bounce is not None:
        of_type = _SES_CODES.get(told.bounce.bounceType, "")
        recipients = []
        for one in told.bounce.bouncedRecipients:
            evidence = parse_reply_text(one.diagnosticCode or f"{told.bounce.bounceType} {told.bounce.bounceSubType}")
            if not evidence.enhanced and (one.status or of_type):
                evidence = evidence._replace(enhanced=one.status or f"{of_type}.0.0")
            recipients.append(Recipient(one.emailAddress, evidence, one.action == "delayed"))
        return Kind.BOUNCE, recipients, ""
    if told.complaint is not None:
        kind = told.complaint.complaintFeedbackType or "abuse"
        complained = [Recipient(one.emailAddress, Evidence(text=kind)) for one in told.complaint.complainedRecipients]
        return Kind.FEEDBACK, complained, kind
    if told.delivery is not None:
        return (
            Kind.BOUNCE,
            [Recipient(one, Evidence(250, "2.0.0", "delivered")) for one in told.delivery.recipients],
            "",
        )
    return (Kind.NOT_BOUNCE, [], "") if told.notificationType or told.eventType else _NONE


# --- automatic answers, and bounces in their own words ----------------------------------------------------


def _automatic(mail: Opened, text: str) -> _Found:
    headers = mail.headers
    if "x-failed-recipients" in headers or _is_bouncer(mail):
        # A mail system may answer, too: not where it says that something was not delivered.
        is_absent = ABSENT_SUBJECT.search(mail.subject) is not None and BOUNCE_SUBJECT.search(mail.subject) is None
        return (Kind.AUTOREPLY, [], "") if is_absent and "x-failed-recipients" not in headers else _NONE
    automatic = headers.get("auto-submitted", "").lower()
    is_marked = (
        automatic.startswith("auto-replied")
        or (automatic.startswith("auto-generated") and "in-reply-to" in headers)
        or any(name in headers for name in _AUTOMATIC)
        or headers.get("precedence", "").lower() in ("auto_reply", "auto-reply")
        or headers.get("x-precedence", "").lower() == "auto_reply"
    )
    if (
        ABSENT_SUBJECT.search(mail.subject) is not None
        or (is_marked and BOUNCE_SUBJECT.search(mail.subject) is None)
        or ABSENT_TEXT.search(text[:1_500]) is not None
        or _is_challenge(mail, text)
    ):
        return Kind.AUTOREPLY, [], ""
    return _NONE


def _is_challenge(mail: Opened, text: str) -> bool:
    return CHALLENGE.search(f"{mail.subject}\n{text[:4_000]}") is not None


def _is_bouncer(mail: Opened) -> bool:
    headers = mail.headers
    names = (headers.get(name, "") for name in ("from", "return-path", "sender"))
    return any(BOUNCER.search(name) is not None for name in names)


def _is_of_a_list(mail: Opened) -> bool:
    headers = mail.headers
    return any(name.startswith("list-") for name in headers) or headers.get("precedence", "").lower() == "list"


def _not_meant(mail: Opened, returned: dict[str, str]) -> frozenset[str]:
    """Whoever sent the report, and whom it was sent to: ourselves; and who sent the message that it returns."""
    names = ("from", "to", "sender", "reply-to", "return-path", "delivered-to", "cc")
    named = [mail.headers.get(name, "") for name in names]
    named += [returned.get(name, "") for name in ("from", "sender", "reply-to", "return-path")]
    return frozenset(address.lower() for address in ADDRESS.findall(" ".join(named)))


def _is_bounce(mail: Opened, said: _Said, returned: dict[str, str]) -> bool:
    """From a mail system its word is enough; from others it takes a form that only bounces have."""
    headers, subject = mail.headers, mail.subject
    is_subject = BOUNCE_SUBJECT.search(subject) is not None
    says_so = BOUNCE_TEXT.search(said.text[:8_000]) is not None
    is_returning = said.is_cut or bool(returned) or mail.has_returned
    if mail.report_type == "delivery-status" or "x-failed-recipients" in headers:
        return True
    if "x-mlserver" in headers and LIST_REFUSAL.search(f"{subject}\n{said.text[:1_000]}") is not None:
        return is_returning
    if _is_bouncer(mail):
        return (is_subject and (says_so or is_returning or bool(said.first_named))) or (
            says_so and (is_returning or bool(said.recipients))
        )
    if not says_so or SPOKEN_OF.search(subject) is not None:
        return False
    if is_subject and said.recipients and REPORT_TITLE.search(said.text[:_TITLE_CHARS]) is not None:
        return True
    if _is_of_a_list(mail):
        return False
    if headers.get("return-path", "").strip() == "<>":
        return is_subject or (is_returning and bool(said.recipients))
    is_of_machine = MACHINE.search(headers.get("from", "")) is not None or headers.get("auto-submitted", "no") != "no"
    has_codes = any(one.evidence.code or one.evidence.enhanced for one in said.recipients)
    return is_of_machine and ((is_subject and (is_returning or has_codes)) or (is_returning and bool(said.recipients)))


def _plain(mail: Opened, said: _Said, returned: dict[str, str]) -> _Found:
    if not _is_bounce(mail, said, returned):
        return _NONE
    failed = ADDRESS.findall(mail.headers.get("x-failed-recipients", ""))
    if failed:
        is_delayed = _is_warning(mail, said)
        evidence = ((one, said.by_address.get(one.lower(), said.evidence)) for one in dict.fromkeys(failed))
        return Kind.BOUNCE, [Recipient(one, told, is_delayed) for one, told in evidence], ""
    fields = said.text.lower()
    if "final-recipient:" in fields:
        kind, found, _ = _status_report(blocks_in(said.text[max(fields.rfind("reporting-mta:"), 0) :]), said)
        if kind is not None:
            return kind, found, ""
    # Whom the returned message was for, by its own account: where nobody else is said to have failed.
    to = ADDRESS.findall(returned.get("to", "") or returned.get("x-original-to", ""))
    ours = _not_meant(mail, returned)
    meant = [address for address in dict.fromkeys(to) if address.lower() not in ours]
    found = said.recipients or ([Recipient(meant[0], said.evidence)] if len(meant) == 1 else said.first_named)
    is_delayed = _is_warning(mail, said)
    named = [Recipient(one.address, one.evidence, is_delayed) for one in found]
    return Kind.BOUNCE, named or [Recipient("", said.evidence, is_delayed)], ""


def _is_warning(mail: Opened, said: _Said) -> bool:
    words = f"{mail.subject}\n{said.text[:8_000]}"
    return WARNING.search(words) is not None and GIVEN_UP.search(words) is None
