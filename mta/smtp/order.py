"""Replies about the order of commands: they speak of the session, not of the recipient whose command they answer."""

from __future__ import annotations

import re
from typing import Final

from mta.model.reply import Reply

BAD_SEQUENCE: Final = 503  # RFC 5321 §4.2.2
# Servers that say it by another code. Not looked for where an enhanced code names another subject.
_CODES: Final = frozenset({500, 501, 502, 550, 554})
_ENHANCED: Final = frozenset({"", "5.0.0", "5.5.0", "5.5.1"})  # RFC 3463 §3.6: 5.5.1 is an invalid command
_SAID: Final = re.compile(
    r"(?i)\bbad (command )?sequence|\bout of (sequence|order)|\bnested mail|\bsender already"
    r"|\b(need|send|issue|expect\w*|give) (a )?(mail|rcpt)\b|\b(mail|rcpt)( from| to)?:? (command )?(first|before)\b"
)


def is_about_order(reply: Reply) -> bool:
    """The command came at a moment at which the server did not expect it; nothing of it was looked at."""
    if reply.code == BAD_SEQUENCE:
        return True
    return reply.code in _CODES and reply.enhanced in _ENHANCED and _SAID.search(reply.text) is not None
