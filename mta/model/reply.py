"""An SMTP reply (RFC 5321 §4.2) with its enhanced status code (RFC 3463, RFC 2034)."""

from __future__ import annotations

import msgspec

REPLY_TEXT_BYTES_MAX = 2048  # what is kept of a reply's text; longer is cut (threats C6)


class Reply(msgspec.Struct, frozen=True, gc=False):
    """One complete reply. ``text`` has its lines joined by a space, control characters escaped."""

    code: int
    text: str = ""
    enhanced: str = ""  # "5.1.1"; empty when absent or when its class is not the code's

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def is_temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)
