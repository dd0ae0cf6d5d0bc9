"""What a server offers, from its answer to EHLO (RFC 5321 §4.1.1.1).

ehlo-line    = ehlo-keyword *( SP ehlo-param )
ehlo-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

_KEYWORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_SIZE: Final = re.compile(r"[0-9]{1,20}")  # RFC 1870 §4
_LIMIT: Final = re.compile(r"([A-Z][A-Z0-9-]*)=([^\s;]+)")  # RFC 9422 §3; names are upper case
_COUNT: Final = re.compile(r"[1-9][0-9]{0,5}")  # RFC 9422 §4: 1*6DIGIT, and zero allows nothing


class Extensions(msgspec.Struct, frozen=True):
    """Offered by the last EHLO, and only by that one. The default is a server that knows HELO only."""

    pipelining: bool = False  # RFC 2920
    chunking: bool = False  # RFC 3030
    size_max: int | None = None  # RFC 1870, octets; None: SIZE not offered; 0: offered, without a limit
    eight_bit_mime: bool = False  # RFC 6152
    smtputf8: bool = False  # RFC 6531
    starttls: bool = False  # RFC 3207
    enhanced_status_codes: bool = False  # RFC 2034
    dsn: bool = False  # RFC 3461
    mail_max: int | None = None  # RFC 9422 MAILMAX: transactions a session; None: not limited
    rcpt_max: int | None = None  # RFC 9422 RCPTMAX: recipients a transaction
    rcpt_domain_max: int | None = None  # RFC 9422 RCPTDOMAINMAX: recipients' domains a session


_FLAGS: Final = {
    "PIPELINING": "pipelining",
    "CHUNKING": "chunking",
    "8BITMIME": "eight_bit_mime",
    "SMTPUTF8": "smtputf8",
    "STARTTLS": "starttls",
    "ENHANCEDSTATUSCODES": "enhanced_status_codes",
    "DSN": "dsn",
}


def parse_ehlo(lines: Sequence[str]) -> Extensions:
    """Read the texts of the answer's lines, without codes; the first is the greeting and says nothing.

    A keyword with bad syntax is as if it were absent; the others count. Parameters after a keyword that takes none
    are ignored, as RFC 5321 §4.1.1.1 leaves room for them. The last line wins over an earlier one of its keyword.
    """
    found: dict[str, bool | int | None] = {}
    for line in lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        if _KEYWORD.fullmatch(keyword) is None:
            continue
        name = keyword.upper()
        if name in _FLAGS:
            found[_FLAGS[name]] = True
        elif name == "SIZE":
            found["size_max"] = _size(parameters.strip())
        elif name == "LIMITS":
            found.update(_limits(parameters))
    return msgspec.convert(found, Extensions)


def _size(parameter: str) -> int | None:
    if not parameter:
        return 0
    return int(parameter) if _SIZE.fullmatch(parameter) else None


def _limits(parameters: str) -> dict[str, int | None]:
    """RFC 9422 §3: one limit of bad syntax makes the whole line void; unknown limits are skipped."""
    names = {"MAILMAX": "mail_max", "RCPTMAX": "rcpt_max", "RCPTDOMAINMAX": "rcpt_domain_max"}
    values: dict[str, int | None] = dict.fromkeys(names.values())
    found = dict(values)
    for parameter in parameters.split():
        match = _LIMIT.fullmatch(parameter)
        if match is None:
            return values
        if match[1] in names:
            if _COUNT.fullmatch(match[2]) is None:
                return values
            found[names[match[1]]] = int(match[2])
    return found
