"""The header of a file of recipients as people have it: which column is the address, which merge field is which.

People write ``E-Mail``, ``First name`` or ``Größe``, and programs leave a column without a name at the end. A column
gets the name of the merge field that the content uses, whatever its case, blanks and accents; one that nobody asks for
and that cannot be a merge field is left out. All that is not taken as it stands is said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from mta.message.fields import FIELD_NAME
from mta.model.errors import BadInput
from mta.queue.part import check_fields

ADDRESS_COLUMNS: Final = ("address", "email", "e-mail", "mail", "email_address", "e-mail_address", "emailaddress")
REFERENCE_COLUMN: Final = "reference"
_LETTERS: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "o", "æ": "ae", "ł": "l"}
)
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")


class Header(NamedTuple):
    """Positions of columns, and the merge fields that those of ``values`` are."""

    address: int
    reference: int | None
    values: tuple[int, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...]  # what was taken otherwise than it is written, each with its place


def read_header(names: Sequence[str], where: str, wanted: Collection[str] = ()) -> Header:
    """What the columns are. ``wanted``: merge fields that the content uses. Raises BadInput at ``where``."""
    plain = [field_name(name) for name in names]
    addresses = [at for at, name in enumerate(plain) if name.lower() in ADDRESS_COLUMNS]
    references = [at for at, name in enumerate(plain) if name.lower() == REFERENCE_COLUMN]
    if len(addresses) != 1:
        raise BadInput(where, f"must have one column address or email, has {len(addresses)}: {', '.join(names)!a}")
    if len(references) > 1:
        raise BadInput(where, "has more than one column reference")
    taken: dict[str, int] = {}
    notes: list[str] = []
    for at, name in enumerate(names):
        if at in addresses or at in references:
            continue
        field = _wanted_name(name, plain[at], wanted)
        column = f"{where}: column {at + 1}, {name[:80]!a}"
        if FIELD_NAME.fullmatch(field) is None:
            notes.append(f"{column}, is left out: it has no name that a merge field can have")
        elif field in taken:
            if field in wanted:
                raise BadInput(where, f"names the merge field {field} twice")
            notes.append(f"{column}, is left out: column {taken[field] + 1} is the merge field {field} already")
        else:
            taken[field] = at
            if field != name:
                notes.append(f"{column}, is the merge field {field}")
    check_fields(tuple(taken), where)
    reference = references[0] if references else None
    return Header(addresses[0], reference, tuple(taken.values()), tuple(taken), tuple(notes))


def field_name(name: str) -> str:
    """A column's name as a merge field could have it: ``First name`` is ``First_name``, ``Größe`` is ``Groesse``."""
    composed = unicodedata.normalize("NFC", name).translate(_LETTERS)
    letters = unicodedata.normalize("NFKD", composed)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return name if FIELD_NAME.fullmatch(name) is not None else _NO_NAME.sub("_", plain.strip()).strip("_")


def _wanted_name(name: str, plain: str, wanted: Collection[str]) -> str:
    """The field of the content that the column is; else its own name, as far as it can be one."""
    if name in wanted:
        return name
    found = [field for field in wanted if field.lower() == plain.lower()]
    return found[0] if len(found) == 1 else plain
