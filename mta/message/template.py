"""A content compiled once for its delivery: MIME structure, header lines and bodies as text with gaps for values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from typing import Final, NamedTuple

import msgspec

from mta.message.content import CheckedContent, Content, take_apart, used_fields
from mta.message.fields import BUILT_IN, Field, Filter, Piece, RenderError, fields_of
from mta.message.headers import NamedMailbox, header_line, is_structured, mailbox_text
from mta.message.quoted import encode_body, is_plain_body
from mta.message.render import (
    ROW_ADDRESS,
    ROW_MESSAGE_ID,
    ROW_REFERENCE,
    ROW_VALUES,
    BodyValue,
    BoundHeader,
    Escape,
    HeaderValue,
    Layout,
    Renderer,
    Segment,
)
from mta.message.verp import ReturnPathSigner, base36
from mta.model.errors import BadInput

# Static text from this size on is a segment of its own, shared between messages. Below, copying it costs less
# than one more buffer to write.
SHARED_OCTETS_MIN: Final = 4096

_CELL_DATE: Final = 0
_CELL_NUMBER: Final = 1
_CELL_TO: Final = 2
_CELL_HEADERS: Final = 3


class _Cell(NamedTuple):
    """A gap that the renderer fills from its cells (``Layout.cells``)."""

    cell: int


class _BodyField(NamedTuple):
    """A gap that a body value fills."""

    name: str
    escape: Escape


_Part = str | _Cell | _BodyField


class _Header(NamedTuple):
    name: str
    pieces: list[Piece]


class Template:
    """A compiled content. Immutable; safe to bind any number of times."""

    def __init__(self, checked: CheckedContent, *, digest: str, delivery_id: int, verp_key: bytes) -> None:
        self.fields = used_fields(checked)
        self.return_path_domain = checked.return_path_domain
        self._delivery_id = delivery_id
        self._signer = ReturnPathSigner(verp_key)
        self._to_name = _with_delivery(checked.to_name, delivery_id)
        self._headers: list[_Header] = []
        self._parts = _joined(
            [*self._header_parts(checked), *_mime_parts(checked, digest=digest, delivery_id=delivery_id)]
        )

    def bind(self, fields: Sequence[str]) -> Renderer:
        """A renderer for recipients whose values are ``fields``, in this order. Worth keeping: it costs some ms.

        Raises RenderError when the content uses a field that is not among them.
        """
        missing = sorted(self.fields.difference(fields))
        if missing:
            raise RenderError(missing[0], f"the content uses it, and the part has only: {', '.join(fields) or 'none'}")
        rows = {name: ROW_VALUES + index for index, name in reversed(list(enumerate(fields)))}
        rows |= {"address": ROW_ADDRESS, "reference": ROW_REFERENCE, "message_id": ROW_MESSAGE_ID}
        layout = self._layout(rows)
        return Renderer(
            layout,
            fields_count=len(fields),
            delivery_id=self._delivery_id,
            domain=self.return_path_domain,
            signer=self._signer,
        )

    def _header_parts(self, checked: CheckedContent) -> list[_Part]:
        """Our own headers, in the order of RFC 5322 §3.6, then the extra ones; those with fields become cells."""
        parts: list[_Part] = [
            "Date: ",
            _Cell(_CELL_DATE),
            f"\r\n{_mailbox_line('From', checked.sender)}\r\nTo: ",
            _Cell(_CELL_TO),
            "\r\n",
        ]
        if checked.reply_to is not None:
            parts.append(f"{_mailbox_line('Reply-To', checked.reply_to)}\r\n")
        parts += self._header("Subject", checked.subject)
        end = f".{base36(self._delivery_id)}@{self.return_path_domain}>\r\n"
        parts += ["Message-ID: <", _Cell(_CELL_NUMBER), end]
        for name, pieces in checked.headers:
            parts += self._header(name, pieces)
        return parts

    def _header(self, name: str, pieces: list[Piece]) -> list[_Part]:
        pieces = _with_delivery(pieces, self._delivery_id)
        if fields_of(pieces):
            self._headers.append(_Header(name, pieces))
            return [_Cell(_CELL_HEADERS + len(self._headers) - 1), "\r\n"]
        try:
            return [f"{header_line(name, ''.join(map(str, pieces)))}\r\n"]
        except RenderError as refused:
            raise BadInput(f"content.{refused.field}", refused.what) from None

    def _layout(self, rows: dict[str, int]) -> Layout:
        uses: dict[_BodyField, int] = {}
        for part in self._parts:
            if isinstance(part, _BodyField):
                uses[part] = uses.get(part, 0) + 1
        first_value = _CELL_HEADERS + len(self._headers)
        places = {field: first_value + index for index, field in enumerate(uses)}
        statics = [""]
        cells: list[int] = []
        for part in self._parts:
            if isinstance(part, str):
                statics[-1] = part
                continue
            cells.append(part.cell if isinstance(part, _Cell) else places[part])
            statics.append("")
        segments = _segments(statics)
        parts = [""] * (2 * len(cells) + 1)
        parts[::2] = statics
        return Layout(
            parts=parts,
            cells=cells,
            segments=segments,
            to_name=_bound("To", self._to_name, rows) if self._to_name else None,
            headers=[_bound(header.name, header.pieces, rows) for header in self._headers],
            values=[BodyValue(field.name, rows[field.name], field.escape, count) for field, count in uses.items()],
        )


def compile_content(content: Content, *, delivery_id: int, verp_key: bytes) -> Template:
    """The template of a delivery. Checks the content again, for it may have been stored by others. Raises BadInput."""
    checked = take_apart(content)
    # A boundary of our own making, so that the same delivery gives the same octets in every process; "=_" can
    # stand in no quoted-printable body, and no 7bit body holds its own digest.
    digest = hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
    return Template(checked, digest=digest, delivery_id=delivery_id, verp_key=verp_key)


def _mailbox_line(header: str, named: NamedMailbox) -> str:
    return f"{header}: {mailbox_text(named.name, named.mailbox.text, len(header) + 2)}"


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


def _mime_parts(checked: CheckedContent, *, digest: str, delivery_id: int) -> list[_Part]:
    """The MIME headers and bodies: laid out by the standard library around marks, which then give way to our bodies."""
    message = EmailMessage(policy=SMTP)
    message["MIME-Version"] = "1.0"
    bodies: list[tuple[str, list[_Part]]] = []
    for subtype, pieces in (("plain", checked.text), ("html", checked.html)):
        if pieces is None:
            continue
        pieces = _with_delivery(pieces, delivery_id)
        is_plain = not fields_of(pieces) and is_plain_body("".join(map(str, pieces)))
        mark = f"mark-{subtype}-{digest}"
        add = message.add_alternative if bodies else message.set_content
        add(mark, subtype=subtype, charset="utf-8", cte="7bit" if is_plain else "quoted-printable")
        body = pieces if is_plain else encode_body(pieces)
        bodies.append((mark, [_body_part(piece, is_html=subtype == "html") for piece in body]))
    if message.is_multipart():
        message.set_boundary(f"=_{digest}")
        for part in message.iter_parts():
            del part["MIME-Version"]  # RFC 2045 §4: at the top only
    rest = message.as_bytes().decode("ascii")
    parts: list[_Part] = []
    for mark, body_parts in bodies:
        before, _, rest = rest.partition(f"{mark}\r\n")
        parts += [before, *body_parts]
    return [*parts, rest]


def _body_part(piece: Piece, *, is_html: bool) -> _Part:
    if isinstance(piece, str):
        return piece
    if piece.filter is Filter.URL:
        return _BodyField(piece.name, Escape.URL)
    is_escaped = is_html and piece.filter is Filter.ESCAPED
    return _BodyField(piece.name, Escape.HTML if is_escaped else Escape.NONE)


def _joined(parts: Sequence[_Part]) -> list[_Part]:
    """``parts`` with static texts next to each other made one, empty ones left out."""
    joined: list[_Part] = []
    pending: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, str):
            pending.append(part)
            continue
        if static := "".join(pending):
            joined.append(static)
        pending = []
        if part is not None:
            joined.append(part)
    return joined


def _segments(statics: list[str]) -> list[Segment]:
    """Cuts the parts at large static texts; those leave ``statics`` and become segments of their own."""
    segments = []
    start = 0
    for index, static in enumerate(statics):
        if len(static) < SHARED_OCTETS_MIN:
            continue
        place = 2 * index
        if place > start:
            segments.append(Segment(start, place))
        segments.append(Segment(place, place + 1, static.encode("ascii")))
        start = place + 1
        statics[index] = ""
    if start < 2 * len(statics) - 1:
        segments.append(Segment(start, 2 * len(statics) - 1))
    return segments


def _bound(name: str, pieces: Sequence[Piece], rows: dict[str, int]) -> BoundHeader:
    statics = [""]
    values = []
    for piece in pieces:
        if isinstance(piece, str):
            statics[-1] = piece
        else:
            values.append(HeaderValue(piece.name, rows[piece.name], piece.filter is Filter.URL))
            statics.append("")
    return BoundHeader(name, statics, values, is_structured=is_structured(name))


assert {"address", "reference", "delivery", "message_id"} == set(BUILT_IN)
