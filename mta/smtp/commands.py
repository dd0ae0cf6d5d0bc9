"""The commands of a transaction as octets, and what need not be asked because the server did not offer it."""

from __future__ import annotations

import re
from typing import Final

from mta.model.errors import LocalFault
from mta.model.reply import Reply
from mta.smtp.envelope import Envelope
from mta.smtp.extensions import Extensions

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

# Said in the server's place, so that the same triage applies as if it had been asked (RFC 3463 §3.7).
_TOO_BIG: Final = Reply(552, "message size exceeds what the server announced", "5.3.4")
_NO_8BIT: Final = Reply(554, "8-bit content and the server does not offer 8BITMIME", "5.6.3")
_NO_UTF8: Final = Reply(553, "internationalised address and the server does not offer SMTPUTF8", "5.6.7")


def local_refusal(envelope: Envelope, extensions: Extensions) -> Reply | None:
    """The reply that the server would give to what it does not offer; None: ask it.

    Raises LocalFault for an envelope that must never reach a wire. Marks an envelope whose addresses are not ASCII as
    in need of SMTPUTF8: the addresses say so themselves.
    """
    if not envelope.recipients:
        raise LocalFault(f"{envelope!r} has no recipient")
    if b"" in envelope.recipients:
        raise LocalFault(f"{envelope!r} has an empty recipient")
    addresses = b"".join((envelope.mail, *envelope.recipients))
    if _CONTROL.search(addresses) is not None:
        raise LocalFault(f"{envelope!r}: a control character in an address")
    if not addresses.isascii():
        envelope.needs_smtputf8 = True
    if extensions.size_max and envelope.size_bytes > extensions.size_max:  # 0 and None: no limit
        return _TOO_BIG
    if envelope.needs_smtputf8 and not extensions.smtputf8:
        return _NO_UTF8
    if envelope.needs_8bit and not extensions.eight_bit_mime:
        return _NO_8BIT
    return None


def mail_command(envelope: Envelope, extensions: Extensions) -> bytes:
    """MAIL with the parameters that are needed and offered."""
    parameters = b">"
    if extensions.size_max is not None and envelope.size_bytes:
        parameters = b"> SIZE=%d" % envelope.size_bytes  # RFC 1870 §6
    if envelope.needs_8bit:
        parameters += b" BODY=8BITMIME"  # RFC 6152 §2
    if envelope.needs_smtputf8:
        parameters += b" SMTPUTF8"  # RFC 6531 §3.4
    return b"MAIL FROM:<" + envelope.mail + parameters + b"\r\n"


def rcpt_command(recipient: bytes) -> bytes:
    return b"RCPT TO:<" + recipient + b">\r\n"


def group(envelope: Envelope, extensions: Extensions, count: int) -> bytes:
    """MAIL and the RCPT of the first ``count`` recipients in one piece (RFC 2920 §3.1)."""
    recipients = envelope.recipients
    if count < len(recipients):
        recipients = recipients[:count]
    return mail_command(envelope, extensions) + b"RCPT TO:<" + b">\r\nRCPT TO:<".join(recipients) + b">\r\n"
