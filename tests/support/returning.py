"""Mails as other servers send them back, of our own making; and an SMTP client that hands them in."""

from __future__ import annotations

import asyncio

import aiosmtplib


def bounce(recipient: str, diagnostic: str, status: str, action: str = "failed") -> bytes:
    """A report in the form of RFC 3464."""
    return f"""From: MAILER-DAEMON@mx.example.net
To: <return@path.example>
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=b"

--=b
Content-Type: text/plain

It did not work.

--=b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; {recipient}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; {diagnostic}

--=b
Content-Type: text/rfc822-headers

From: shop@example.org
To: {recipient}
Subject: Hello

--=b--
""".replace("\n", "\r\n").encode()


def complaint(return_path: str, recipient: str, kind: str = "abuse") -> bytes:
    """A report in the form of RFC 5965, with the message that it is about."""
    return f"""From: feedback@mx.example.net
To: <fbl@path.example>
Subject: FW: Hello
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="=b"

--=b
Content-Type: text/plain

This is spam.

--=b
Content-Type: message/feedback-report

Feedback-Type: {kind}
User-Agent: Example/1
Version: 1
Original-Rcpt-To: <{recipient}>

--=b
Content-Type: message/rfc822

Return-Path: <{return_path}>
From: shop@example.org
To: {recipient}
Subject: Hello

Buy!
--=b--
""".replace("\n", "\r\n").encode()


def absence(recipient: str) -> bytes:
    return (
        f"From: {recipient}\r\nTo: <return@path.example>\r\nSubject: Out of office: Hello\r\n"
        "Auto-Submitted: auto-replied\r\n\r\nI am away. 550 5.1.1 user unknown, as they say.\r\n"
    ).encode()


async def hand_in(port: int, mails: list[tuple[str, bytes]], sessions: int = 4) -> list[int]:
    """Each mail to its recipient, over some sessions; the code of the last reply to each, 0 where none came."""
    codes = [0] * len(mails)

    async def some(start: int) -> None:
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False, timeout=20)
        await client.connect()
        for at in range(start, len(mails), sessions):
            to, mail = mails[at]
            try:
                await client.sendmail("", [to], mail)
                codes[at] = 250
            except aiosmtplib.SMTPRecipientsRefused as refused:
                codes[at] = refused.recipients[0].code
                await client.rset()
            except aiosmtplib.SMTPResponseException as refused:
                codes[at] = refused.code
        client.close()

    done = await asyncio.gather(*(some(start) for start in range(sessions)), return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException) and not isinstance(one, aiosmtplib.SMTPException | OSError):
            raise one
    return codes
