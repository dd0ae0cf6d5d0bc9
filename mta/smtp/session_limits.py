"""What a server lets one session do: what it announced (RFC 9422), and what it was seen to take."""

from __future__ import annotations

from collections.abc import Sequence

from mta.smtp.envelope import Envelope
from mta.smtp.extensions import Extensions


class SessionLimits:
    """Counts of one session, and how much of each is left."""

    __slots__ = ("_domains", "_domains_max", "_mails_left", "_resets_max", "is_bounded", "recipients_max", "resets")

    def __init__(self, extensions: Extensions, resets_max: int) -> None:
        self.recipients_max = extensions.rcpt_max  # of a transaction; falls when the server says so to RCPT
        self.resets = 0  # RSETs sent since a message was taken
        self._resets_max = resets_max
        self._mails_left = extensions.mail_max
        self._domains_max = extensions.rcpt_domain_max
        self._domains: set[bytes] = set()  # that were named, where they are limited
        self.is_bounded = self._mails_left is not None or self._domains_max is not None  # few servers say so

    def forbids(self, *, needs_reset: bool) -> str:
        """Why no further transaction may begin; empty if it may."""
        if needs_reset and self.resets >= self._resets_max:
            return f"{self.resets} RSET were sent without a message between them"
        return "MAILMAX transactions were sent" if self._mails_left == 0 else ""

    def count_mail(self) -> None:
        """A transaction is begun."""
        if self._mails_left is not None:
            self._mails_left -= 1

    def allowed(self, envelope: Envelope) -> tuple[int, str]:
        """How many of its recipients, the first ones, its transaction may have, and why not more.

        0: the session may name no domain of it.
        """
        count = len(envelope.recipients)
        cause = "too many recipients"
        if self.recipients_max is not None:
            count = min(count, self.recipients_max)
        if self._domains_max is not None:
            named = self._name_domains(envelope.recipients[:count], self._domains_max)
            if named < count:
                count, cause = named, "too many domains"
        return count, cause

    def _name_domains(self, recipients: Sequence[bytes], domains_max: int) -> int:
        """How many of them, the first ones, name no domain too many for the session (RFC 9422 §4.3)."""
        for index, recipient in enumerate(recipients):
            domain = recipient[recipient.rfind(b"@") + 1 :].lower()
            if domain not in self._domains:
                if len(self._domains) == domains_max:
                    return index
                self._domains.add(domain)
        return len(recipients)
