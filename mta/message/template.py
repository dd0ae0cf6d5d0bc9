"""A content compiled once for its delivery: header lines and bodies as text with gaps, for each MIME structure."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from mta.message.content import CheckedContent, Content, take_apart, used_fields
from mta.message.dkim import Signer
from mta.message.fields import BUILT_IN, Field, Filter, Piece, RenderError, fields_of
from mta.message.formats import FormatChooser, Structure
from mta.message.headers import NamedMailbox, header_line, is_structured, mailbox_text
from mta.message.layout import Cell, Layout, LayoutPart, joined
from mta.message.mime import (
    BodyField,
    Entity,
    Leaves,
    MimePart,
    attachment_entity,
    calendar_entity,
    image_entity,
    text_entity,
)
from mta.message.render import CELL_DATE, CELL_HEADERS, CELL_NUMBER, CELL_TO, Form, Renderer
from mta.message.signing import BodyHash, HeaderToSign, Signatures
from mta.message.unsubscribe import LIST_UNSUBSCRIBE, fault_in_list_unsubscribe
from mta.message.values import (
    ESCAPES,
    ROW_ADDRESS,
    ROW_MESSAGE_ID,
    ROW_REFERENCE,
    ROW_VALUES,
    BodyValue,
    BodyValues,
    BoundHeader,
    HeaderValue,
)
from mta.message.verp import ReturnPathSigner, base36
from mta.model.errors import BadInput

_HEADER_END: Final = re.compile(r"\r\n(?! )")


class _Header(NamedTuple):
    """A header whose line is made for each recipient."""

    name: str
    pieces: list[Piece]
    fault: Callable[[str], str | None] | None


class Template:
    """A compiled content. Immutable; safe to bind any number of times."""

    def __init__(
        self, checked: CheckedContent, *, digest: str, delivery_id: int, verp_key: bytes, signers: Sequence[Signer]
    ) -> None:
        self.fields = used_fields(checked)
        self.return_path_domain = checked.return_path_domain
        self._delivery_id = delivery_id
        self._return_paths = ReturnPathSigner(verp_key)
        self._signers = signers
        self._formats = checked.formats
        self._to_name = _with_delivery(checked.to_name, delivery_id)
        self._headers: list[_Header] = []
        self._head = self._header_parts(checked)
        leaves = _leaves(checked, delivery_id)
        structures = {Structure.MULTIPART, *[wanted.structure for wanted in checked.formats]}
        self._messages = {structure: leaves.composed(structure, digest) for structure in structures}

    def bind(self, fields: Sequence[str]) -> Renderer:
        """A renderer for recipients whose values are ``fields``, in this order. Worth keeping: it costs some ms.

        Raises RenderError when the content uses a field that is not among them.
        """
        missing = sorted(self.fields.difference(fields))
        if missing:
            raise RenderError(missing[0], f"the content uses it, and the part has only: {', '.join(fields) or 'none'}")
        rows = {name: ROW_VALUES + index for index, name in reversed(list(enumerate(fields)))}
        rows |= {"address": ROW_ADDRESS, "reference": ROW_REFERENCE, "message_id": ROW_MESSAGE_ID}
        return Renderer(
            {structure: self._form(message, rows) for structure, message in self._messages.items()},
            FormatChooser(self._formats) if self._formats else None,
            to_name=_bound(_Header("To", self._to_name, None), rows) if self._to_name else None,
            headers=[_bound(header, rows) for header in self._headers],
            fields_count=len(fields),
            delivery_id=self._delivery_id,
            domain=self.return_path_domain,
            signer=self._return_paths,
        )

    def signed_by(self, signers: Sequence[Signer]) -> Template:
        """The same template with other signers, for a key that was changed; nothing is compiled again."""
        template = copy.copy(self)
        template._signers = tuple(signers)
        return template

    def _header_parts(self, checked: CheckedContent) -> list[HeaderToSign]:
        """Our own headers, in the order of RFC 5322 §3.6, then the extra ones.

        Those with fields are a cell that holds the whole line; ``_line_parts`` knows.
        """
        parts = [
            HeaderToSign("Date", [Cell(CELL_DATE)]),
            HeaderToSign("From", [_mailbox_text("From", checked.sender)]),
            HeaderToSign("To", [Cell(CELL_TO)]),
        ]
        if checked.reply_to is not None:
            parts.append(HeaderToSign("Reply-To", [_mailbox_text("Reply-To", checked.reply_to)]))
        parts.append(self._header("Subject", checked.subject))
        end = f".{base36(self._delivery_id)}@{self.return_path_domain}>"
        parts.append(HeaderToSign("Message-ID", ["<", Cell(CELL_NUMBER), end]))
        parts += [self._header(name, pieces) for name, pieces in checked.headers]
        for name, pieces in checked.unsubscribe:
            parts.append(self._header(name, pieces, fault_in_list_unsubscribe if name == LIST_UNSUBSCRIBE else None))
        return parts

    def _header(self, name: str, pieces: list[Piece], fault: Callable[[str], str | None] | None = None) -> HeaderToSign:
        pieces = _with_delivery(pieces, self._delivery_id)
        if fields_of(pieces):
            self._headers.append(_Header(name, pieces, fault))
            return HeaderToSign(name, [Cell(CELL_HEADERS + len(self._headers) - 1)])
        try:
            line = header_line(name, "".join(map(str, pieces)))
        except RenderError as refused:
            raise BadInput(f"content.{refused.field}", refused.what) from None
        return HeaderToSign(name, [line[len(name) + 1 :].removeprefix(" ")])

    def _form(self, message: Entity, rows: dict[str, int]) -> Form:
        uses: dict[BodyField, int] = {}
        for part in message.body:
            if isinstance(part, BodyField):
                uses[part] = uses.get(part, 0) + 1
        fields = sorted(uses, key=lambda field: ESCAPES.index(field.escape))
        first_value = CELL_HEADERS + len(self._headers)
        values = BodyValues([BodyValue(field.name, rows[field.name], field.escape, uses[field]) for field in fields])
        mime_head = f"MIME-Version: 1.0\r\n{message.head}"
        head: list[LayoutPart] = []
        for header in self._head:
            head += _line_parts(header)
        signing = None
        if self._signers:
            head.insert(0, Cell(first_value + len(uses)))
            headers = [*self._head, *_headers_in(mime_head)]
            starts = [0] * CELL_HEADERS + [len(header.name) + 1 for header in self._headers]
            body_hash = BodyHash(_with_cells(message.body, {field: index for index, field in enumerate(fields)}))
            signing = body_hash, Signatures(headers, starts, self._signers)
        body = _with_cells(message.body, {field: first_value + index for index, field in enumerate(fields)})
        return Form(Layout([*head, f"{mime_head}\r\n", *body]), values, signing)


def compile_content(content: Content, *, delivery_id: int, verp_key: bytes, signers: Sequence[Signer] = ()) -> Template:
    """The template of a delivery. Checks the content again, for it may have been stored by others. Raises BadInput.

    Each message has one DKIM-Signature for each of ``signers``, in their order; without signers it has none.
    """
    checked = take_apart(content)
    # Boundaries of our own making, so that the same delivery gives the same octets in every process.
    digest = hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
    return Template(checked, digest=digest, delivery_id=delivery_id, verp_key=verp_key, signers=tuple(signers))


def _leaves(checked: CheckedContent, delivery_id: int) -> Leaves:
    text, html, amp = (
        None if pieces is None else text_entity(subtype, _with_delivery(pieces, delivery_id))
        for subtype, pieces in (("plain", checked.text), ("html", checked.html), ("x-amp-html", checked.amp))
    )
    calendar = None if checked.calendar is None else calendar_entity(checked.calendar, checked.calendar_method)
    return Leaves(
        text, html, amp, calendar, [*map(image_entity, checked.images)], [*map(attachment_entity, checked.attachments)]
    )


def _mailbox_text(header: str, named: NamedMailbox) -> str:
    return mailbox_text(named.name, named.mailbox.text, len(header) + 2)


def _with_delivery(pieces: list[Piece], delivery_id: int) -> list[Piece]:
    """``pieces`` with the field ``delivery`` filled in, which is the same for all recipients."""
    filled: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Field) and piece.name == "delivery":
            piece = str(delivery_id)
        if isinstance(piece, str) and filled and isinstance(filled[-1], str):
            filled[-1] += piece
        else:
            filled.append(piece)
    return filled


def _line_parts(header: HeaderToSign) -> list[LayoutPart]:
    """A header's line with its CRLF: name and text, or the cell that has the name in it already."""
    first = header.parts[0]
    if isinstance(first, Cell) and first.cell >= CELL_HEADERS:
        return [first, "\r\n"]
    return [f"{header.name}:" if first == "" else f"{header.name}: ", *header.parts, "\r\n"]


def _headers_in(lines: str) -> list[HeaderToSign]:
    """The headers that ``lines`` hold, each with its folds and without its last CRLF."""
    unended = lines.removesuffix("\r\n")
    return [
        HeaderToSign(name, [text]) for name, _, text in (line.partition(": ") for line in _HEADER_END.split(unended))
    ]


def _with_cells(parts: Sequence[MimePart], cells: dict[BodyField, int]) -> list[LayoutPart]:
    return joined(Cell(cells[part]) if isinstance(part, BodyField) else part for part in parts)


def _bound(header: _Header, rows: dict[str, int]) -> BoundHeader:
    statics = [""]
    values = []
    for piece in header.pieces:
        if isinstance(piece, str):
            statics[-1] = piece
        else:
            values.append(HeaderValue(piece.name, rows[piece.name], piece.filter is Filter.URL))
            statics.append("")
    return BoundHeader(header.name, statics, values, is_structured=is_structured(header.name), fault=header.fault)


assert {"address", "reference", "delivery", "message_id"} == set(BUILT_IN)
