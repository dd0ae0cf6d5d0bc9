"""Which kind of mail it is, and whom it speaks of. The order of the questions is the order of trust:

a report in the form of the standards (RFC 3464, RFC 5965), a notification of a relay service, an automatic answer, a
complaint in another form, a bounce in its own words.
"""

from __future__ import annotations

import re
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
    RETURNED,
)
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import Evidence

_STATUS: Final = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_DONE: Final = frozenset({"delivered", "relayed", "expanded"})
_AUTOMATIC: Final = (
    "x-autoreply",
    "x-autorespond",
    "x-autoresponder",
    "x-auto-response-from",
    "x-vacation",
    "x-mail-autoreply",
)
_NOTHING_SAID: Final = 12  # characters; a diagnostic of less says nothing but a code


def read_letter(raw: bytes) -> Letter:
    """Reads a mail that came back. Never raises; time is linear in what is looked at (`mta.bounces.mime`)."""
    mail = opened(raw)
    text = "\n\n".join(mail.texts)
    returned = mail.returned or _returned_in(text)
    for kind, recipients, feedback_type in (
        _feedback(mail, text, returned),
        _status_report(mail, text),
        _notification(text),
        _automatic(mail, text),
        _complaint(mail, text, returned),
        _plain(mail, text, returned),
    ):
        if kind is not None:
            return Letter(kind, tuple(recipients[:RECIPIENTS_MAX]), feedback_type, returned, mail.subject)
    return Letter(Kind.NOT_BOUNCE, (), "", returned, mail.subject)


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


def _status_report(mail: Opened, text: str) -> _Found:
    blocks = mail.status
    words = own_words(text)
    if not blocks and "final-recipient:" in words.lower():
        blocks = blocks_in(
            words[words.lower().rfind("reporting-mta:") :] if "reporting-mta:" in words.lower() else words
        )
    of_recipients = [block for block in blocks if "final-recipient" in block or "original-recipient" in block]
    if not of_recipients and not (blocks and any("action" in block for block in blocks)):
        return _NONE
    found: dict[str, Recipient] = {}
    done: list[Recipient] = []
    # Once for all of them: a report may have a thousand recipients. Of several each has its own words.
    whole = evidence_in(words)
    named = recipients_in(words, frozenset()) if len(of_recipients) > 1 else []
    beside = {one.address.lower(): one.evidence for one in named}
    for block in of_recipients or [block for block in blocks if "action" in block]:
        action = block.get("action", "").split(" ")[0].strip(";").lower()
        address = _address_of(block)
        if action in _DONE:
            done.append(Recipient(address, Evidence(250, "2.0.0", action, "bounce")))
            continue
        evidence = _evidence_of(block, whole, beside.get(address.lower(), whole))
        if address.lower() not in found:
            found[address.lower()] = Recipient(address, evidence, action == "delayed")
    if not found:
        return (Kind.BOUNCE, done, "") if done else _NONE
    if set(found) == {""}:
        named = recipients_in(words, _not_meant(mail))
        evidence, is_delayed = found[""].evidence, found[""].is_delayed
        return Kind.BOUNCE, [Recipient(one.address, evidence, is_delayed) for one in named] or list(found.values()), ""
    return Kind.BOUNCE, list(found.values()), ""


def _address_of(block: dict[str, str]) -> str:
    for name in ("original-recipient", "final-recipient", "x-actual-recipient"):
        found = ADDRESS.search(block.get(name, "").replace("rfc822;", " ").replace("RFC822;", " "))
        if found is not None:
            return found[0]
    return ""


def _evidence_of(block: dict[str, str], whole: Evidence, told: Evidence) -> Evidence:
    """``whole``: what the words for people say; ``told``: those of them that are about this recipient."""
    diagnostic = block.get("diagnostic-code", "")
    evidence = parse_reply_text(diagnostic)
    status = _STATUS.search(block.get("status", ""))
    said = ADDRESS.sub("", evidence.text)
    if len(said.strip()) < _NOTHING_SAID or diagnostic.lower().startswith("x-unix"):
        # The reason is in the words for people.
        evidence = told._replace(code=evidence.code or told.code, enhanced=evidence.enhanced or told.enhanced)
    if status is not None and (not evidence.enhanced or evidence.enhanced.endswith(".0.0")):
        evidence = evidence._replace(enhanced=status[1])
    host = block.get("remote-mta", "").rpartition(";")[2].strip().split(" ")[0]
    if not evidence.stage:
        evidence = evidence._replace(stage=whole.stage)
    return evidence._replace(provider=host)


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
    if "x-failed-recipients" in headers:
        return _NONE
    automatic = headers.get("auto-submitted", "").lower()
    is_marked = (
        automatic.startswith("auto-replied")
        or any(name in headers for name in _AUTOMATIC)
        or headers.get("precedence", "").lower() in ("auto_reply", "auto-reply")
        or headers.get("x-precedence", "").lower() == "auto_reply"
    )
    is_absent = ABSENT_SUBJECT.search(mail.subject) is not None
    is_bouncer = _is_bouncer(mail)
    if is_absent and not (is_bouncer and BOUNCE_SUBJECT.search(mail.subject) is not None):
        return Kind.AUTOREPLY, [], ""
    if is_marked and not is_bouncer and BOUNCE_SUBJECT.search(mail.subject) is None:
        return Kind.AUTOREPLY, [], ""
    if ABSENT_TEXT.search(text[:1_500]) is not None and not is_bouncer:
        return Kind.AUTOREPLY, [], ""
    if CHALLENGE.search(f"{mail.subject}\n{own_words(text)[:4_000]}") is not None and not is_bouncer:
        return Kind.AUTOREPLY, [], ""
    return _NONE


def _is_bouncer(mail: Opened) -> bool:
    headers = mail.headers
    sender = f"{headers.get('from', '')} {headers.get('return-path', '')} {headers.get('sender', '')}"
    return BOUNCER.search(sender) is not None


def _not_meant(mail: Opened) -> frozenset[str]:
    """Whoever sent the report, and whom it was sent to: ourselves."""
    named = " ".join(
        mail.headers.get(name, "") for name in ("from", "to", "sender", "reply-to", "return-path", "delivered-to", "cc")
    )
    return frozenset(address.lower() for address in ADDRESS.findall(named))


def _plain(mail: Opened, text: str, returned: dict[str, str]) -> _Found:
    words = own_words(text)
    failed = ADDRESS.findall(mail.headers.get("x-failed-recipients", ""))
    if failed:
        named = {one.address.lower(): one.evidence for one in recipients_in(words, frozenset())}
        whole = evidence_in(words)
        return Kind.BOUNCE, [Recipient(one, named.get(one.lower(), whole)) for one in dict.fromkeys(failed)], ""
    is_bouncer, is_subject = _is_bouncer(mail), BOUNCE_SUBJECT.search(mail.subject) is not None
    says_so = BOUNCE_TEXT.search(words[:8_000]) is not None
    if not (
        (is_bouncer and (is_subject or says_so)) or (is_subject and says_so) or mail.report_type == "delivery-status"
    ):
        return _NONE
    ours = _not_meant(mail)
    found = recipients_in(words, ours)
    if not found:
        evidence = evidence_in(words)
        # Those whom the returned message was for, by its own account: where nobody else is named.
        to = ADDRESS.findall(returned.get("to", "") or returned.get("x-original-to", ""))
        meant = [address for address in dict.fromkeys(to) if address.lower() not in ours]
        found = [Recipient(address, evidence) for address in (meant if len(meant) == 1 else [])] or [
            Recipient("", evidence)
        ]
    return Kind.BOUNCE, found, ""
