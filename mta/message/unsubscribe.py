"""List-Unsubscribe (RFC 2369 §3.2) and one-click unsubscription (RFC 8058), from two templates."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from mta.message.fields import Filter, Piece, fields_of, parse_template, refuse_characters
from mta.message.headers import HEADER_OCTETS_MAX
from mta.model.address import parse_mailbox
from mta.model.errors import BadInput

LIST_UNSUBSCRIBE: Final = "List-Unsubscribe"
LIST_UNSUBSCRIBE_POST: Final = "List-Unsubscribe-Post"
_ONE_CLICK: Final = "List-Unsubscribe=One-Click"  # RFC 8058 §3.1, exactly so

_HTTPS: Final = r"<https://[A-Za-z0-9._~:\[\]%-]+(?:[/?#][!#-;=?-~]*)?>"
_MAILTO: Final = r"<mailto:[!#-;=?A-~]+@[A-Za-z0-9.-]+(?:\?[!#-;=?-~]*)?>"
_WHOLE: Final = re.compile(rf"{_HTTPS}(?:, {_MAILTO})?|{_MAILTO}")


class ListUnsubscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a recipient leaves the list: an https URL, a mailbox, or both; each may have merge fields.

    ``one_click``: with a URL, ``List-Unsubscribe-Post`` says that a POST to it is enough (RFC 8058 §3.1).
    """

    url: str | None = None
    mailto: str | None = None  # unsubscribe@shop.example?subject=...
    one_click: bool = True


def unsubscribe_headers(wanted: ListUnsubscribe, where: str) -> list[tuple[str, list[Piece]]]:
    """The headers, as templates. Raises BadInput under ``where``."""
    if wanted.url is None and wanted.mailto is None:
        raise BadInput(where, "has neither url nor mailto")
    pieces: list[Piece] = []
    if wanted.url is not None:
        pieces += ["<", *_checked(wanted.url, f"{where}.url", "<", "is no https URL"), ">"]
    if wanted.mailto is not None:
        # Without fields its address can be held to more than its look.
        address = wanted.mailto.partition("?")[0]
        if "{{" not in address:
            parse_mailbox(address, f"{where}.mailto")
        pieces += [", <mailto:" if pieces else "<mailto:"]
        pieces += [
            *_checked(wanted.mailto, f"{where}.mailto", "<mailto:", "is no mailbox with an optional ?subject="),
            ">",
        ]
    headers = [(LIST_UNSUBSCRIBE, _merged(pieces))]
    if wanted.url is not None and wanted.one_click:
        headers.append((LIST_UNSUBSCRIBE_POST, [_ONE_CLICK]))
    return headers


def fault_in_list_unsubscribe(text: str) -> str | None:
    """Why ``text``, values and all, is not what the header must hold here, or None."""
    if _WHOLE.fullmatch(text) is not None:
        return None
    return "is, with its values, no https URL, mailto URL, or one of each (RFC 8058 §3.1)"


def _checked(template: str, where: str, opening: str, fault: str) -> list[Piece]:
    refuse_characters(template, where, may_have_lines=False)
    if not 0 < len(template) <= HEADER_OCTETS_MAX // 8:
        raise BadInput(where, f"has {len(template)} characters, 1 to {HEADER_OCTETS_MAX // 8} are allowed")
    pieces = parse_template(template, where)
    if any(field.filter is Filter.RAW for field in fields_of(pieces)):
        raise BadInput(where, "has a field with the filter raw, which is for the HTML part only")
    if isinstance(pieces[0], str):
        # A letter stands for each value, but where a field could be all that is missing.
        sample = "".join([piece if isinstance(piece, str) else "x" for piece in pieces])
        if _WHOLE.fullmatch(f"{opening}{sample}>") is None:
            raise BadInput(where, fault)
    return pieces


def _merged(pieces: list[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
