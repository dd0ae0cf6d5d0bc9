r"""The language of merge fields, all of it::

    {{name}}        the value, escaped for where it stands: HTML-escaped in the HTML part, as text elsewhere
    {{name|url}}    percent-encoded (RFC 3986 §2.1), for a piece of a URL: a path segment, a query value
    {{name|raw}}    HTML part only: the value is HTML made by the application, taken as it is
    \{{             two braces that are no merge field

There are no calls, attributes, conditions or loops, so a template cannot run for long or reach
anything but the recipient's values; and a value is never read as a template.

Nothing is guessed from the context of HTML: in ``href="{{link}}"`` the value is a whole address and is
HTML-escaped; in ``href="https://shop.example/?u={{id|url}}"`` it is a piece of one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.model.errors import BadInput

# Fields that every recipient has; a column of a part with such a name is not looked at.
BUILT_IN: Final = ("address", "reference", "delivery", "message_id")
# A field is used some dozen times in real templates; this bounds what a few values can grow to.
MERGE_FIELD_USES_MAX: Final = 5000
FIELD_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

_TOKEN: Final = re.compile(r"(\\?)\{\{((?:(?!\{\{|\}\})[^\r\n]){0,200})(\}\})?")
# A table: twice as fast as urllib.parse.quote, and a URL is most templates' longest value.
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_percent_octet: Final = tuple(
    chr(octet) if octet in _UNRESERVED or octet == 0x0A else f"%{octet:02X}" for octet in range(256)
).__getitem__
_percent_octet_lower: Final = tuple(
    chr(octet) if octet in _UNRESERVED else f"%{octet:02x}" for octet in range(256)
).__getitem__
_REFUSED_IN_VALUE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# What a template may hold besides: tab and line ends in bodies.
_REFUSED_IN_BODY: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class RenderError(ValueError):
    """This recipient's message cannot be made; others of the same part can.

    ``field`` names the merge field or the header at fault (``name``, ``address``, ``headers.List-Id``).
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


class Filter(enum.StrEnum):
    """What is done to a value before it is put where it stands."""

    ESCAPED = ""
    URL = "url"
    RAW = "raw"


class Field(NamedTuple):
    """A merge field where it is used: its name and its filter."""

    name: str
    filter: Filter


Piece = str | Field


def parse_template(text: str, where: str) -> list[Piece]:
    """``text`` cut into static text (never empty, never two in a row) and fields. Raises BadInput at ``where``."""
    pieces: list[Piece] = []
    static = ""
    end = 0
    for token in _TOKEN.finditer(text):
        static += text[end : token.start()]
        end = token.end()
        if token[1]:
            static += "{{" + text[token.start() + 3 : end]
            continue
        field = _parse_field(token, text, where)
        if static:
            pieces.append(static)
            static = ""
        pieces.append(field)
    static += text[end:]
    if static:
        pieces.append(static)
    return pieces


def _parse_field(token: re.Match[str], text: str, where: str) -> Field:
    position = position_of(text, token.start())
    if token[3] is None:
        raise BadInput(
            where, f"{position}: {{{{ is not closed by }}}} (for two braces that are no field, write \\{{{{)"
        )
    name, _, filter_name = (word.strip() for word in token[2].partition("|"))
    if FIELD_NAME.fullmatch(name) is None:
        raise BadInput(
            where, f"{position}: {name!a} is no field name (letters, digits, _ and -, starting with a letter or _)"
        )
    if "|" not in token[2]:
        return Field(name, Filter.ESCAPED)
    if filter_name not in (Filter.URL, Filter.RAW):
        raise BadInput(where, f"{position}: field {name} has the unknown filter {filter_name!a}, allowed: url, raw")
    return Field(name, Filter(filter_name))


def fields_of(pieces: Sequence[Piece]) -> list[Field]:
    return [piece for piece in pieces if isinstance(piece, Field)]


def position_of(text: str, offset: int) -> str:
    """Where in ``text``, for people: lines and columns count from 1."""
    line = text.count("\n", 0, offset) + 1
    return f"line {line}, column {offset - (text.rfind(chr(10), 0, offset) + 1) + 1}"


def refuse_characters(text: str, where: str, *, may_have_lines: bool) -> None:
    """Raises BadInput when a template holds a control character or half of a surrogate pair."""
    refused = (_REFUSED_IN_BODY if may_have_lines else _REFUSED_IN_VALUE).search(text)
    if refused is not None:
        raise BadInput(where, f"{position_of(text, refused.start())}: {_named(refused[0])} is not allowed here")


def fault_in_value(value: str) -> str | None:
    """Why ``value`` cannot be a merge value, or None: control characters (line ends too) and lone surrogates."""
    if value.isprintable():
        return None
    refused = _REFUSED_IN_VALUE.search(value)
    return None if refused is None else f"{_named(refused[0])} is not allowed in a value (at {refused.start()})"


def percent_encoded(value: str) -> str:
    """All but unreserved characters percent-encoded as UTF-8 (RFC 3986 §2.3).

    Line feeds stay: no value has one, so many values can be encoded in one go, with line feeds between them.
    """
    return "".join(map(_percent_octet, value.encode()))


def percent_encoded_in_header(value: str) -> str:
    """As `percent_encoded`, of one value, with ``%ab`` for ``%AB``, which means the same (RFC 3986 §2.1).

    SpamAssassin takes ``%AB`` in a header for a field that nobody filled in, and counts up to three points for it.
    """
    return "".join(map(_percent_octet_lower, value.encode()))


def _named(char: str) -> str:
    names = {"\r": "a carriage return", "\n": "a line feed", "\t": "a tab", "\0": "NUL"}
    kind = "half of a surrogate pair" if char >= "\ud800" else "the control character"
    return names.get(char) or f"{kind} U+{ord(char):04X}"
