"""The message of one recipient, from a template bound to the fields of a part."""

from __future__ import annotations

import datetime
import enum
import html
import re
from collections.abc import Callable, Sequence
from email.utils import format_datetime
from operator import itemgetter
from typing import Final

import msgspec

from mta.message.fields import RenderError, fault_in_value, percent_encoded
from mta.message.headers import fault_in_structured_value, header_line, mailbox_text
from mta.message.quoted import VALUE_OCTETS_RESERVED, encode_value
from mta.message.verp import ReturnPathSigner, base36
from mta.model.address import is_sendable, shown

# Characters that values put into one message, each counted as often as it is used. A template cannot loop,
# but a long value can be used often; encoding makes up to 12 octets of a character.
MERGED_CHARS_MAX: Final = 4 * 1024 * 1024

# Where a recipient's values start in a row; before them stand those that every recipient has.
ROW_ADDRESS: Final = 0
ROW_REFERENCE: Final = 1
ROW_MESSAGE_ID: Final = 2
ROW_VALUES: Final = 3

_TO_COLUMN: Final = len("To: ")


class Escape(enum.Enum):
    """What a value in a body goes through before quoted-printable."""

    NONE = "none"
    HTML = "html"
    URL = "url"


def _short_plain(characters: str) -> str:
    # No "=", so no escape; no dot at the start; no space at the end (see mta.message.quoted).
    return rf"(?!\.)[{characters}]{{0,{VALUE_OCTETS_RESERVED}}}+(?<! )"


# Values that stand in a body as they are: nothing to escape, nothing to quote, short enough for the room left.
_PLAIN: Final = {
    Escape.NONE: _short_plain(r" -<>-~"),
    Escape.HTML: _short_plain(r" !#-%(-;?-~"),
    Escape.URL: _short_plain(r"A-Za-z0-9._~-"),
}
_IS_PLAIN: Final = {escape: re.compile(pattern).fullmatch for escape, pattern in _PLAIN.items()}
_ESCAPED: Final[dict[Escape, Callable[[str], str]]] = {
    Escape.NONE: str,
    Escape.HTML: html.escape,
    Escape.URL: percent_encoded,
}


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """One complete message, ready for DATA without dot stuffing or for BDAT (see ``mta.message``).

    ``segments`` are to be sent in order; large ones are shared between messages. ``return_path`` is the
    address for MAIL FROM, without angle brackets.
    """

    segments: list[bytes]
    size_bytes: int
    return_path: bytes
    needs_smtputf8: bool


class BodyValue(msgspec.Struct, frozen=True):
    """A value as bodies use it: where it stands in a row, its escape, how often it is used."""

    name: str
    row_index: int
    escape: Escape
    uses: int


class HeaderValue(msgspec.Struct, frozen=True):
    """A value as a header uses it."""

    name: str
    row_index: int
    is_url: bool


class BoundHeader:
    """A header, or the name in To, with merge values: static text and values in turn."""

    def __init__(self, name: str, statics: list[str], values: list[HeaderValue], *, is_structured: bool) -> None:
        assert len(statics) == len(values) + 1
        self._name = name
        self._values = values
        self._indices = [value.row_index for value in values]
        self._has_urls = any(value.is_url for value in values)
        self._is_structured = is_structured
        self._parts = [""] * (2 * len(values) + 1)
        self._parts[::2] = statics

    def text(self, row: Sequence[str]) -> str:
        """The header's text with the values of ``row``, nothing encoded yet. Raises RenderError."""
        merged = [row[index] for index in self._indices]
        if self._has_urls or self._is_structured:
            merged = self._checked(merged)
        parts = self._parts.copy()
        parts[1::2] = merged
        text = "".join(parts)
        if not text.isprintable():
            self._refuse_characters(merged)
        return text

    def line(self, row: Sequence[str]) -> str:
        """The header's line, without the final CRLF. Raises RenderError."""
        return header_line(self._name, self.text(row))

    def _checked(self, merged: list[str]) -> list[str]:
        self._refuse_characters(merged)
        checked = []
        for value, text in zip(self._values, merged, strict=True):
            if value.is_url:
                text = percent_encoded(text)
            elif self._is_structured and (fault := fault_in_structured_value(text)) is not None:
                raise RenderError(value.name, f"{fault}, in the header {self._name}")
            checked.append(text)
        return checked

    def _refuse_characters(self, merged: list[str]) -> None:
        for value, text in zip(self._values, merged, strict=True):
            _refuse(value.name, text)


class Segment(msgspec.Struct, frozen=True):
    """A segment of the message: the parts from ``start`` to ``stop`` joined, or ``static`` when there is one."""

    start: int
    stop: int
    static: bytes | None = None


class Layout(msgspec.Struct, frozen=True):
    """How a message is put together: parts (static text at even places, cells at odd ones), cut into segments.

    ``cells[i]`` says which cell stands at part ``2 * i + 1``: 0 the date, 1 the number in base 36, 2 the text
    of To, then ``headers``, then ``values``.
    """

    parts: list[str]
    cells: list[int]
    segments: list[Segment]
    to_name: BoundHeader | None
    headers: list[BoundHeader]
    values: list[BodyValue]


class Renderer:
    """A template bound to the fields of a part. Keeps nothing between messages but the last Date's text."""

    def __init__(
        self, layout: Layout, *, fields_count: int, delivery_id: int, domain: str, signer: ReturnPathSigner
    ) -> None:
        self._parts = layout.parts
        self._order = _picker(layout.cells)
        self._segments = layout.segments
        self._to_name = layout.to_name
        self._headers = layout.headers
        self._values = layout.values
        self._pick = _picker([value.row_index for value in layout.values])
        self._all_plain = re.compile("\n".join([_PLAIN[value.escape] for value in layout.values])).fullmatch
        self._fields_count = fields_count
        self._message_id_end = f".{base36(delivery_id)}@{domain}"
        self._return_path_end = f"@{domain}"
        self._local_part = signer.local_part
        self._date_unix_s: int | None = None
        self._date = ""

    def render(
        self, address: str, reference: str | None, values: Sequence[str], number: int, date_unix_s: int
    ) -> Rendered:
        """The message for ``address``. ``values`` in the order of the fields bound; ``number`` is the recipient's.

        Equal arguments give equal octets. Raises RenderError, which concerns this recipient alone.
        """
        if len(values) != self._fields_count:
            raise RenderError("values", f"there are {len(values)}, for {self._fields_count} fields")
        if not is_sendable(address):
            raise RenderError("address", f"{shown(address)} is no mailbox in canonical form")
        if date_unix_s != self._date_unix_s:
            self._set_date(date_unix_s)
        number36 = base36(number)
        row = [address, reference or "", number36 + self._message_id_end, *values]
        merged = self._pick(row)
        if self._all_plain("\n".join(merged)) is None:
            merged = self._encoded(merged)
        to = address if self._to_name is None else mailbox_text(self._to_name.text(row), address, _TO_COLUMN)
        cells = [self._date, number36, to, *[header.line(row) for header in self._headers], *merged]
        parts = self._parts.copy()
        parts[1::2] = self._order(cells)
        segments = [
            segment.static or "".join(parts[segment.start : segment.stop]).encode() for segment in self._segments
        ]
        return Rendered(
            segments,
            sum(map(len, segments)),
            (self._local_part(number36) + self._return_path_end).encode(),
            not address.isascii(),
        )

    def _encoded(self, merged: Sequence[str]) -> list[str]:
        """Body values with what is not plain among them escaped and encoded."""
        if sum([len(text) * value.uses for value, text in zip(self._values, merged, strict=True)]) > MERGED_CHARS_MAX:
            raise RenderError("values", f"put more than {MERGED_CHARS_MAX} characters into the message")
        encoded = []
        for value, text in zip(self._values, merged, strict=True):
            escape = value.escape
            if _IS_PLAIN[escape](text) is None:
                _refuse(value.name, text)
                text = encode_value(_ESCAPED[escape](text))
            encoded.append(text)
        return encoded

    def _set_date(self, date_unix_s: int) -> None:
        self._date = format_datetime(datetime.datetime.fromtimestamp(date_unix_s, datetime.UTC))
        self._date_unix_s = date_unix_s


def _refuse(name: str, text: str) -> None:
    fault = fault_in_value(text)
    if fault is not None:
        raise RenderError(name, fault)


def _picker(indices: Sequence[int]) -> Callable[[Sequence[str]], Sequence[str]]:
    """What picks ``indices`` out of a sequence; itemgetter alone gives no sequence for fewer than two."""
    if len(indices) >= 2:
        return itemgetter(*indices)
    if not indices:
        return lambda row: ()
    index = indices[0]
    return lambda row: (row[index],)
