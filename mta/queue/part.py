"""A delivery part on its way in: checked at the door, then packed as the one value that is stored.

Everything that a row could break later is refused here: addresses that are not mailboxes, values that the renderer
refuses (control characters: a line end could become a header of its own; lone surrogates: they cannot be sent), sizes
beyond ``mta.model.limits``. Addresses are stored in canonical form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from mta.message.fields import FIELD_NAME, fault_in_value
from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.model.limits import (
    KEY_CHARS_MAX,
    MERGE_FIELDS_MAX,
    MERGE_VALUE_BYTES_MAX,
    PART_BYTES_MAX,
    PART_RECIPIENTS_MAX,
    REFERENCE_CHARS_MAX,
)

Row: TypeAlias = tuple[str, str | None, list[str]]  # address, reference, values in the order of the part's fields

_REFUSED_IN_NAMES: Final = re.compile("[\x00-\x1f\ud800-\udfff]")
_REFUSED_WHAT: Final = "holds a control character or half of a surrogate pair"
# Texts of so few characters cannot have more octets than a value may have.
_SURELY_SHORT_CHARS: Final = MERGE_VALUE_BYTES_MAX // 4

_encoder: Final = msgspec.json.Encoder()


class Part(msgspec.Struct, frozen=True):
    """Recipients to append under one idempotency key. ``fields`` names the merge values, in their order."""

    key: str
    fields: tuple[str, ...]
    rows: list[Row]


class RowFault(msgspec.Struct, frozen=True):
    """One row that cannot be used: its index in the part, the column, what is wrong there."""

    row: int
    column: str
    what: str


class PackedPart(msgspec.Struct, frozen=True):
    """A part as stored: ``recipients`` is the JSON of the column, ``digest`` the SHA-256 of fields and recipients."""

    key: str
    fields: tuple[str, ...]
    count: int
    recipients: bytes
    digest: bytes


def pack_part(part: Part) -> PackedPart:
    """Check and pack; raises BadInput at the first fault, at ``part KEY, row N, column`` (rows counted from 1)."""
    rows, faults = check_rows(part.fields, part.rows)
    if faults:
        first = faults[0]
        what = first.what if len(faults) == 1 else f"{first.what} (and {len(faults) - 1} more bad rows)"
        raise BadInput(f"part {part.key}, row {first.row + 1}, {first.column}", what)
    return pack_checked(part.key, part.fields, rows)


def pack_checked(key: str, fields: tuple[str, ...], rows: Sequence[Row]) -> PackedPart:
    """Pack rows that ``check_rows`` has passed; still checks key, fields, count and size of the whole."""
    check_key(key)
    where = f"part {key}"
    check_fields(fields, where)
    if not 1 <= len(rows) <= PART_RECIPIENTS_MAX:
        raise BadInput(where, f"has {len(rows)} recipients, allowed are 1 to {PART_RECIPIENTS_MAX}")
    recipients = _encoder.encode(rows)
    if len(recipients) > PART_BYTES_MAX:
        raise BadInput(where, f"has {len(recipients)} bytes packed, {PART_BYTES_MAX} are allowed: make smaller parts")
    digest = hashlib.sha256(_encoder.encode(fields) + b"\n" + recipients).digest()
    return PackedPart(key, tuple(fields), len(rows), recipients, digest)


def check_rows(fields: Sequence[str], rows: Sequence[Row]) -> tuple[list[Row], list[RowFault]]:
    """The good rows, with canonical addresses, and a fault for each bad one. Linear; some 2 µs a row."""
    good: list[Row] = []
    faults: list[RowFault] = []
    width = len(fields)
    for index, row in enumerate(rows):
        try:
            address, reference, values = row
            address = parse_mailbox(address, "address").text
            if isinstance(values, str):
                raise TypeError  # else joined letter by letter
            # One look at all values together: nearly every row is good.
            joined = "".join(values)
            if (
                len(values) != width
                or reference is not None
                or len(joined) > _SURELY_SHORT_CHARS
                or fault_in_value(joined) is not None
            ):
                _check_closely(fields, reference, values)
            good.append((address, reference, values))
        except BadInput as fault:
            faults.append(RowFault(index, fault.where, fault.what))
        except (TypeError, ValueError):
            faults.append(
                RowFault(index, "row", "must be (address, reference or None, [value, ...]), all of them text")
            )
    return good, faults


def check_key(key: str) -> None:
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise BadInput("key", f"has {len(key)} characters, allowed are 1 to {KEY_CHARS_MAX}")
    if _REFUSED_IN_NAMES.search(key) is not None:
        raise BadInput(f"key {key!a}", _REFUSED_WHAT)


def check_fields(fields: Sequence[str], where: str) -> None:
    if len(fields) > MERGE_FIELDS_MAX:
        raise BadInput(where, f"has {len(fields)} merge fields, {MERGE_FIELDS_MAX} are allowed")
    for name in fields:
        if FIELD_NAME.fullmatch(name) is None:
            what = "is no name for a merge field: a letter or _, then letters, digits, _ or -, 64 at most"
            raise BadInput(where, f"{name[:80]!a} {what}")
    if len(set(fields)) != len(fields):
        doubled = next(name for name in fields if list(fields).count(name) > 1)
        raise BadInput(where, f"names the merge field {doubled} twice")


def _check_closely(fields: Sequence[str], reference: str | None, values: Sequence[str]) -> None:
    if reference is not None:
        if len(reference) > REFERENCE_CHARS_MAX:
            raise BadInput("reference", f"has {len(reference)} characters, {REFERENCE_CHARS_MAX} are allowed")
        if _REFUSED_IN_NAMES.search(reference) is not None:
            raise BadInput("reference", _REFUSED_WHAT)
    if len(values) != len(fields):
        raise BadInput("values", f"has {len(values)} values for {len(fields)} fields")
    for name, value in zip(fields, values, strict=True):
        if (fault := fault_in_value(value)) is not None:
            raise BadInput(name, fault)
        octets = len(value.encode())
        if octets > MERGE_VALUE_BYTES_MAX:
            raise BadInput(name, f"has {octets} bytes, {MERGE_VALUE_BYTES_MAX} are allowed")
