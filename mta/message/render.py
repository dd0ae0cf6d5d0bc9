"""The message of one recipient, from a template bound to the fields of a part."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from email.utils import format_datetime
from typing import Final

import msgspec

from mta.message.fields import RenderError
from mta.message.formats import FormatChooser, Structure
from mta.message.headers import mailbox_text
from mta.message.layout import Layout
from mta.message.signing import BodyHash, Signatures
from mta.message.values import BodyValues, BoundHeader
from mta.message.verp import ReturnPathSigner, base36
from mta.model.address import is_sendable, shown

# What stands in the cells that a renderer fills: these, then the headers that have values, then the body's
# values, then the signatures.
CELL_DATE: Final = 0
CELL_NUMBER: Final = 1  # in base 36
CELL_TO: Final = 2  # the text of To
CELL_HEADERS: Final = 3

_TO_COLUMN: Final = len("To: ")


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """One complete message, ready for DATA without dot stuffing or for BDAT (see ``mta.message``).

    ``segments`` are to be sent in order; large ones are shared between messages. ``return_path`` is the
    address for MAIL FROM, without angle brackets.
    """

    segments: list[bytes]
    size_bytes: int
    return_path: bytes
    needs_smtputf8: bool


class Form:
    """A message in one structure: its layout, its values, and its signatures where it has some."""

    def __init__(self, layout: Layout, values: BodyValues, signing: tuple[BodyHash, Signatures] | None) -> None:
        self._fill = layout.fill
        self._merged = values.merged
        self._signing = signing

    def segments(self, row: Sequence[str], cells: Sequence[str], date_unix_s: int) -> list[bytes]:
        """``cells`` up to the headers'. Raises RenderError."""
        merged = self._merged(row)
        if self._signing is None:
            return self._fill([*cells, *merged])
        body_hash, signatures = self._signing
        return self._fill([*cells, *merged, signatures.lines(cells, body_hash.text(merged), date_unix_s)])


class Renderer:
    """A template bound to the fields of a part.

    Keeps nothing between messages but the last Date's text, and which domains have which structure.
    """

    def __init__(
        self,
        forms: Mapping[Structure, Form],
        chooser: FormatChooser | None,
        *,
        to_name: BoundHeader | None,
        headers: Sequence[BoundHeader],
        fields_count: int,
        delivery_id: int,
        domain: str,
        signer: ReturnPathSigner,
    ) -> None:
        self._forms = forms
        self._usual_form = forms[Structure.MULTIPART]
        self._chooser = chooser
        self._to_name = to_name
        self._headers = headers
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

        Equal arguments give equal octets, signatures too. Raises RenderError, which concerns this recipient alone.
        """
        if len(values) != self._fields_count:
            raise RenderError("values", f"there are {len(values)}, for {self._fields_count} fields")
        if not is_sendable(address):
            raise RenderError("address", f"{shown(address)} is no mailbox in canonical form")
        if date_unix_s != self._date_unix_s:
            self._set_date(date_unix_s)
        number36 = base36(number)
        row = [address, reference or "", number36 + self._message_id_end, *values]
        to = address if self._to_name is None else mailbox_text(self._to_name.text(row), address, _TO_COLUMN)
        cells = [self._date, number36, to, *[header.line(row) for header in self._headers]]
        form = self._usual_form if self._chooser is None else self._forms[self._chooser.structure_for(address)]
        segments = form.segments(row, cells, date_unix_s)
        return Rendered(
            segments,
            sum(map(len, segments)),
            (self._local_part(number36) + self._return_path_end).encode(),
            not address.isascii(),
        )

    def _set_date(self, date_unix_s: int) -> None:
        self._date = format_datetime(datetime.datetime.fromtimestamp(date_unix_s, datetime.UTC))
        self._date_unix_s = date_unix_s
