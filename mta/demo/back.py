"""What the far end sends back some time after it took a message: bounces, complaints, answers of who is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import aiosmtplib
import msgspec

from mta.demo.scene import ANGRY, AWAY, GONE, LEFT, SENDER_DOMAIN
from mta.sink.record import Record

SESSIONS: Final = 4
_BOUNCE: Final = """\
From: MAILER-DAEMON@{host}
To: <{path}>
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=demo"

--=demo
Content-Type: text/plain

Your message could not be delivered.

--=demo
Content-Type: message/delivery-status

Reporting-MTA: dns; {host}

Final-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--=demo--
"""
_COMPLAINT: Final = """\
From: complaints@{host}
To: <fbl@{domain}>
Subject: complaint
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="=demo"

--=demo
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: demo/1
Version: 1
Original-Rcpt-To: <{recipient}>

--=demo
Content-Type: message/rfc822

Return-Path: <{path}>
To: {recipient}
Subject: your voucher

--=demo--
"""
_ABSENCE: Final = """\
From: {recipient}
To: <{path}>
Subject: Out of office
Auto-Submitted: auto-replied

I am away until Monday.
"""


class Back(msgspec.Struct, frozen=True):
    """By recipient the return path of a message that was taken; and who was refused for good."""

    bounced: dict[str, str]
    complained: dict[str, str]
    absent: dict[str, str]
    gone: frozenset[str]

    @classmethod
    def of(cls, record: Record) -> Back:
        by_word: dict[str, dict[str, str]] = {LEFT: {}, ANGRY: {}, AWAY: {}}
        for event in record.accepted:
            for recipient in event.recipients:
                if (found := by_word.get(recipient.partition(".")[0])) is not None:
                    found[recipient] = event.mail_from
        gone = {address for event in record.refused if event.code == 550 for address in event.recipients}
        assert all(address.startswith(GONE) for address in gone), "only they are refused for good"
        return cls(by_word[LEFT], by_word[ANGRY], by_word[AWAY], frozenset(gone))

    @property
    def count(self) -> int:
        return len(self.bounced) + len(self.complained) + len(self.absent)

    def mails(self) -> Iterator[tuple[str, str]]:
        """(envelope recipient, mail)."""
        for recipients, form, to in (
            (self.bounced, _BOUNCE, ""),
            (self.complained, _COMPLAINT, f"fbl@{SENDER_DOMAIN}"),
            (self.absent, _ABSENCE, ""),
        ):
            for recipient, path in recipients.items():
                host = recipient.rpartition("@")[2]
                yield to or path, form.format(path=path, recipient=recipient, host=host, domain=SENDER_DOMAIN)


async def hand_in(port: int, back: Back) -> None:
    """All of it, over a few sessions."""
    mails = list(back.mails())
    await asyncio.gather(*(_hand_in(port, mails[start::SESSIONS]) for start in range(SESSIONS)))


async def _hand_in(port: int, mails: list[tuple[str, str]]) -> None:
    if mails:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False) as client:
            for to, mail in mails:
                await client.sendmail("", [to], mail)
