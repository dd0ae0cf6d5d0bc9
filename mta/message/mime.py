"""MIME structure (RFC 2045, RFC 2046): leaves encoded once, put together once for each structure that is asked for::

    mixed ── alternative ── text
          │              ├─ amp
          │              ├─ related ── html
          │              │          └─ images
          │              └─ calendar
          └─ attachments

A level that would have one part only is left out. The best alternative comes last (RFC 2046 §5.1.4), but for AMP, which
has to stand before the HTML, and which no other reader takes.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.message.attached import Attachment, InlineImage
from mta.message.fields import Field, Filter, Piece, fields_of
from mta.message.formats import Structure
from mta.message.headers import legacy_parameter, parameter
from mta.message.quoted import encode_body, is_plain_body
from mta.message.values import Escape

_BASE64_LINE_OCTETS: Final = 57  # make 76 (RFC 2045 §6.8)


class BodyField(NamedTuple):
    """A gap in a body that a value fills."""

    name: str
    escape: Escape


MimePart = str | bytes | BodyField


class Entity(NamedTuple):
    """Header lines, each with its CRLF, and the body behind them."""

    head: str
    body: list[MimePart]


class Leaves(NamedTuple):
    """The parts of a message that hold something. At least one of ``text`` and ``html`` is there."""

    text: Entity | None
    html: Entity | None
    amp: Entity | None
    calendar: Entity | None
    images: list[Entity]
    attachments: list[Entity]

    def composed(self, structure: Structure, digest: str) -> Entity:
        """One entity of all that ``structure`` asks for. ``digest`` makes boundaries that no other content has."""
        text = None if structure is Structure.HTML else self.text
        html = None if structure is Structure.TEXT else self.html
        if html is not None and self.images:
            html = _multipart("related", f"=_related_{digest}", [html, *self.images], kind="text/html")
        is_whole = structure is Structure.MULTIPART
        amp, calendar = (self.amp, self.calendar) if is_whole else (None, None)
        readable = [entity for entity in (text, amp, html, calendar) if entity is not None]
        assert readable, "a structure that the content cannot have was let in"
        message = readable[0] if len(readable) == 1 else _multipart("alternative", f"=_{digest}", readable)
        if self.attachments:
            message = _multipart("mixed", f"=_mixed_{digest}", [message, *self.attachments])
        return message


def text_entity(subtype: str, pieces: Sequence[Piece]) -> Entity:
    """A text part; as 7bit where that is possible, else quoted-printable."""
    is_plain = not fields_of(pieces) and is_plain_body("".join(map(str, pieces)))
    encoding = "7bit" if is_plain else "quoted-printable"
    head = f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n'
    body = pieces if is_plain else encode_body(pieces)
    return Entity(head, [_body_part(piece, is_html=subtype != "plain") for piece in body])


def calendar_entity(calendar: str, method: str) -> Entity:
    """An invitation (RFC 6047 §2.4): ``method`` as the object itself has it. Lines end in CRLF already."""
    head = (
        f'Content-Type: text/calendar; charset="utf-8"; method={method}\r\n'
        "Content-Transfer-Encoding: base64\r\n"  # its lines must come back as they are (RFC 5545 §3.1)
    )
    return Entity(head, [_base64_lines(calendar.encode())])


def attachment_entity(attachment: Attachment) -> Entity:
    head = (
        f"Content-Type: {_folded(attachment.media_type)}{legacy_parameter('name', attachment.name)}\r\n"
        "Content-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment{parameter('filename', attachment.name)}\r\n"
    )
    return Entity(head, [_base64_lines(attachment.content)])


def image_entity(image: InlineImage) -> Entity:
    name = file_name = ""
    if image.name is not None:
        name, file_name = legacy_parameter("name", image.name), parameter("filename", image.name)
    head = (
        f"Content-Type: {_folded(image.media_type)}{name}\r\n"
        "Content-Transfer-Encoding: base64\r\n"
        f"Content-ID: <{image.cid}>\r\n"
        f"Content-Disposition: inline{file_name}\r\n"
    )
    return Entity(head, [_base64_lines(image.content)])


def _body_part(piece: Piece, *, is_html: bool) -> MimePart:
    if not isinstance(piece, Field):
        return piece
    if piece.filter is Filter.URL:
        return BodyField(piece.name, Escape.URL)
    is_escaped = is_html and piece.filter is Filter.ESCAPED
    return BodyField(piece.name, Escape.HTML if is_escaped else Escape.NONE)


def _multipart(subtype: str, boundary: str, entities: Sequence[Entity], *, kind: str = "") -> Entity:
    # RFC 2387 §3.1: "related" says what its root is. The boundary cannot be in any part: "=_" stands in no
    # quoted-printable or base64 body, and no 7bit body holds its own digest.
    kind = f' type="{kind}";\r\n' if kind else ""
    head = f'Content-Type: multipart/{subtype};{kind} boundary="{boundary}"\r\n'
    body: list[MimePart] = []
    for entity in entities:
        body += [f"\r\n--{boundary}\r\n" if body else f"--{boundary}\r\n", f"{entity.head}\r\n", *entity.body]
    return Entity(head, [*body, f"\r\n--{boundary}--\r\n"])


def _folded(media_type: str) -> str:
    """One parameter a line, so that no line gets long."""
    first, *parameters = media_type.split("; ")
    return ";\r\n ".join([first, *parameters])


def _base64_lines(octets: bytes) -> bytes:
    """Base64 with CRLF at line ends, the last one too. An empty file is one empty line."""
    lines = [
        binascii.b2a_base64(octets[start : start + _BASE64_LINE_OCTETS], newline=False)
        for start in range(0, len(octets), _BASE64_LINE_OCTETS)
    ]
    return b"\r\n".join([*lines, b""]) or b"\r\n"
