"""Merge values on their way into a message: picked out of a recipient's row, escaped and encoded for their place."""

from __future__ import annotations

import enum
import html
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from mta.message.fields import RenderError, fault_in_value, percent_encoded, percent_encoded_in_header
from mta.message.headers import fault_in_structured_value, header_line
from mta.message.layout import picker
from mta.message.quoted import VALUE_OCTETS_RESERVED, encode_value, fit_value

# Characters that values put into one message, each counted as often as it is used. A template cannot loop,
# but a long value can be used often; encoding makes up to 12 octets of a character.
MERGED_CHARS_MAX: Final = 4 * 1024 * 1024

# Where a recipient's values start in a row; before them stand those that every recipient has.
ROW_ADDRESS: Final = 0
ROW_REFERENCE: Final = 1
ROW_MESSAGE_ID: Final = 2
ROW_VALUES: Final = 3


class Escape(enum.Enum):
    """What a value in a body goes through before quoted-printable."""

    NONE = "none"
    HTML = "html"
    URL = "url"


ESCAPES: Final = tuple(Escape)


def _short_plain(characters: str) -> str:
    # No "=", so no escape; no dot, nor "From " or its beginning, at the start; no space at the end: mta.message.quoted.
    return rf"(?!\.|From |F(?:r(?:om?)?)?(?:\n|\Z))[{characters}]{{0,{VALUE_OCTETS_RESERVED}}}+(?<! )"


# Values that stand in a body as they are: nothing to escape, nothing to quote, short enough for the room left.
_PLAIN: Final = {
    Escape.NONE: _short_plain(r" -<>-~"),
    Escape.HTML: _short_plain(r" !#-%(-;?-~"),
    Escape.URL: _short_plain(r"A-Za-z0-9._~-"),
}


class BodyValue(msgspec.Struct, frozen=True):
    """A value as bodies use it: where it stands in a row, its escape, how often it is used."""

    name: str
    row_index: int
    escape: Escape
    uses: int


class BodyValues:
    """All the values that the bodies of one form of a message use, in the order of their escapes (``ESCAPES``)."""

    def __init__(self, values: Sequence[BodyValue]) -> None:
        escapes = [value.escape for value in values]
        assert escapes == sorted(escapes, key=ESCAPES.index)
        self._html_start = escapes.count(Escape.NONE)
        self._url_start = self._html_start + escapes.count(Escape.HTML)
        self._values = values
        self._pick = picker([value.row_index for value in values])
        self._all_plain = re.compile("\n".join([_PLAIN[value.escape] for value in values])).fullmatch
        self._uses_max = max((value.uses for value in values), default=0)

    def merged(self, row: Sequence[str]) -> Sequence[str]:
        """The values of ``row`` as they go into bodies. Raises RenderError."""
        picked = self._pick(row)
        joined = "\n".join(picked)
        if self._all_plain(joined) is not None:
            return picked
        if len(joined) * self._uses_max > MERGED_CHARS_MAX:
            self._refuse_too_much(picked)
        if not "".join(picked).isprintable():
            for value, text in zip(self._values, picked, strict=True):
                _refuse(value.name, text)
        # Escaped with one call for each escape: for values of usual length the calls would cost more than the work.
        url_start = self._url_start
        encoded = [encode_value(text) for text in picked[: self._html_start]]
        if self._html_start < url_start:
            escaped = html.escape("\n".join(picked[self._html_start : url_start]))
            encoded += [encode_value(text) for text in escaped.split("\n")]
        if url_start < len(picked):
            # Percent-encoding leaves nothing that quoted-printable would have to quote.
            encoded += [fit_value(text) for text in percent_encoded("\n".join(picked[url_start:])).split("\n")]
        return encoded

    def _refuse_too_much(self, picked: Sequence[str]) -> None:
        if sum([len(text) * value.uses for value, text in zip(self._values, picked, strict=True)]) > MERGED_CHARS_MAX:
            raise RenderError("values", f"put more than {MERGED_CHARS_MAX} characters into the message")


class HeaderValue(msgspec.Struct, frozen=True):
    """A value as a header uses it."""

    name: str
    row_index: int
    is_url: bool


class BoundHeader:
    """A header, or the name in To, with merge values: static text and values in turn.

    ``fault`` tells what is wrong with the text once its values are in, or None.
    """

    def __init__(
        self,
        name: str,
        statics: list[str],
        values: list[HeaderValue],
        *,
        is_structured: bool,
        fault: Callable[[str], str | None] | None = None,
    ) -> None:
        assert len(statics) == len(values) + 1
        self._name = name
        self._values = values
        self._indices = [value.row_index for value in values]
        self._has_urls = any(value.is_url for value in values)
        self._is_structured = is_structured
        self._fault = fault
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
        if self._fault is not None and (fault := self._fault(text)) is not None:
            raise RenderError(f"headers.{self._name}", fault)
        return text

    def line(self, row: Sequence[str]) -> str:
        """The header's line, without the final CRLF. Raises RenderError."""
        return header_line(self._name, self.text(row))

    def _checked(self, merged: list[str]) -> list[str]:
        self._refuse_characters(merged)
        checked = []
        for value, text in zip(self._values, merged, strict=True):
            if value.is_url:
                text = percent_encoded_in_header(text)
            elif self._is_structured and (fault := fault_in_structured_value(text)) is not None:
                raise RenderError(value.name, f"{fault}, in the header {self._name}")
            checked.append(text)
        return checked

    def _refuse_characters(self, merged: list[str]) -> None:
        for value, text in zip(self._values, merged, strict=True):
            _refuse(value.name, text)


def _refuse(name: str, text: str) -> None:
    fault = fault_in_value(text)
    if fault is not None:
        raise RenderError(name, fault)
