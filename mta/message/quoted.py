"""Quoted-printable bodies (RFC 2045 §6.7) with merge values inside, cut so that most values need no work.

Static text is encoded and wrapped once. Where a merge field stands, the line is left room for
``VALUE_OCTETS_RESERVED`` octets, so a short value of safe characters is put there as it is. Any other
value is encoded when it is known; a longer one is wrapped between soft line breaks of its own.

Why it holds whatever the values are:

- a line before a field has at most ``75 - VALUE_OCTETS_RESERVED`` octets, or the field starts a line;
- what follows a field counts from that room's end, or from a soft line break: never past column 75,
  which leaves the 76th for the "=" of a soft line break;
- text after a field, and each value, starts with no dot (it is written ``=2E``), so a line can start with
  one neither when values are empty nor after a soft line break;
- likewise both start with no ``From `` (``=46rom``), nor with what the next piece may make one of, so no line can:
  who stores messages one after the other (mbox) puts a ``>`` before it, and breaks signatures;
- neither a value nor static text ends with a space (it is written ``=20``), so no line can, nor lose it.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Final

from mta.message.fields import Field, Piece

VALUE_OCTETS_RESERVED: Final = 40  # a UUID or a hexadecimal SHA-1 fits
_LINE_OCTETS_MAX: Final = 75  # 76, less the "=" of a soft line break
_FROM: Final = "From "
_SOFT_BREAK: Final = "=\r\n"
_ESCAPED: Final = {".": "=2E", "F": "=46"}
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def with_line_ends(text: str) -> str:
    """``text`` with CRLF for each CRLF, lone CR and lone LF, and one at its end."""
    text = _LINE_END.sub("\r\n", text)
    return text if text.endswith("\r\n") else text + "\r\n"


def is_plain_body(text: str) -> bool:
    """Whether ``text`` (lines ending in CRLF) can go as 7bit: ASCII, lines of 78, none that others alter."""
    return text.isascii() and all(
        len(line) <= 78 and line[:1] != "." and line[:5] != _FROM and line[-1:] not in (" ", "\t")
        for line in text.split("\r\n")
    )


def encode_body(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of a body part (CRLF at line ends, and at the end), static text encoded and wrapped.

    Fields stay where they are, each to be replaced by what ``encode_value`` makes of its escaped value.
    """
    encoded: list[Piece] = []
    column = 0
    for index, piece in enumerate(pieces):
        if isinstance(piece, Field):
            if column + VALUE_OCTETS_RESERVED > _LINE_OCTETS_MAX:
                encoded.append(_SOFT_BREAK)
                column = 0
            encoded.append(piece)
            column += VALUE_OCTETS_RESERVED
            continue
        text, column = _wrapped_lines(_quoted(piece), column, follows_field=index > 0)
        encoded.append(text)
    return encoded


def encode_value(text: str) -> str:
    """What is put for a field whose escaped value is ``text``: no line over 76, none starting with . or ``From ``."""
    quoted = text if text.isascii() and "=" not in text else _quoted_line(text)
    if quoted[-1:] == " ":
        quoted = f"{quoted[:-1]}=20"
    return fit_value(quoted)


def fit_value(quoted: str) -> str:
    """``encode_value`` for a value that needs no quoting any more, and does not end in a space."""
    if _must_not_start(quoted, 0):
        quoted = f"{_ESCAPED[quoted[0]]}{quoted[1:]}"
    if len(quoted) <= VALUE_OCTETS_RESERVED:
        return quoted
    if len(quoted) <= _LINE_OCTETS_MAX:
        return f"{_SOFT_BREAK}{quoted}{_SOFT_BREAK}"
    wrapped, _ = _wrapped(quoted, 0)
    return f"{_SOFT_BREAK}{wrapped}{_SOFT_BREAK}"


def _must_not_start(quoted: str, at: int) -> bool:
    """Whether what stands ``at`` there may be at the start of a line only if its first character is escaped."""
    head = quoted[at : at + len(_FROM)]
    # Shorter than that, a value or the text after it may complete it.
    return head[:1] == "." or (head != "" and _FROM.startswith(head))


def _quoted(text: str) -> str:
    """``text`` with each octet of its UTF-8 that is not itself as ``=XX``; the CRLF that end lines are kept."""
    return "\r\n".join([_quoted_line(line) for line in text.split("\r\n")])


def _quoted_line(line: str) -> str:
    # The C function breaks lines to its own rules, which know nothing of fields and dots: its breaks are taken out
    # (no other "=" is followed by a line feed). It encodes white space at the end; we do all tabs, as others might
    # make spaces of them.
    quoted = binascii.b2a_qp(line.encode(), istext=False).replace(b"=\n", b"").decode("ascii")
    return quoted.replace("\t", "=09")


def _wrapped_lines(text: str, column: int, *, follows_field: bool) -> tuple[str, int]:
    lines = text.split("\r\n")
    wrapped = []
    for number, line in enumerate(lines):
        if (number > 0 or column == 0 or follows_field) and _must_not_start(line, 0):
            line = f"{_ESCAPED[line[0]]}{line[1:]}"
        line, column = _wrapped(line, column if number == 0 else 0)
        wrapped.append(line)
    return "\r\n".join(wrapped), column


def _wrapped(line: str, column: int) -> tuple[str, int]:
    """``line`` (quoted, no CRLF) with soft line breaks, and the column it ends at."""
    chunks = []
    start = 0
    while column + len(line) - start > _LINE_OCTETS_MAX:
        cut = start + _LINE_OCTETS_MAX - column
        escape = line.find("=", max(start, cut - 2), cut)
        if escape >= 0:
            cut = escape  # not inside "=XX"
        chunks.append(line[start:cut] + _SOFT_BREAK)
        start = cut
        column = 0
        if _must_not_start(line, start):
            chunks.append(_ESCAPED[line[start]])
            start += 1
            column = 3
    chunks.append(line[start:])
    return "".join(chunks), column + len(line) - start
