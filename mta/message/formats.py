"""Which MIME structure a recipient's domain gets: the first format with a mask that fits it, or all there is."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.model.address import domain_of, shown
from mta.model.errors import BadInput
from mta.model.limits import FORMATS_MAX
from mta.model.masks import compile_masks, mask_fault

MASKS_MAX: Final = 1000  # of all formats together: each one is tried for a domain that fits none
_DOMAINS_KEPT_MAX: Final = 10_000


class Structure(enum.Enum):
    """What a message is made of, attachments aside."""

    MULTIPART = "multipart"  # text and HTML, as far as the content has them
    HTML = "html"  # HTML and its images only
    TEXT = "text"  # text only


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A structure for recipients whose domain fits one of ``domains`` (masks with ``*`` and ``?``, A-labels)."""

    domains: list[str]
    structure: Structure


def check_formats(formats: Sequence[Format], *, has_text: bool, has_html: bool, where: str) -> None:
    """Raises BadInput under ``where``."""
    if len(formats) > FORMATS_MAX:
        raise BadInput(where, f"are {len(formats)}, {FORMATS_MAX} are allowed")
    masks = sum(len(wanted.domains) for wanted in formats)
    if masks > MASKS_MAX:
        raise BadInput(where, f"have {masks} masks, {MASKS_MAX} are allowed")
    for index, wanted in enumerate(formats):
        here = f"{where}[{index}]"
        if not wanted.domains:
            raise BadInput(f"{here}.domains", "is empty: it would fit no recipient")
        for position, mask in enumerate(wanted.domains):
            fault = mask_fault(mask) if len(mask) < 1000 else f"{shown(mask)} is too long for a mask"
            if fault is not None:
                raise BadInput(f"{here}.domains[{position}]", fault)
        if wanted.structure is Structure.TEXT and not has_text:
            raise BadInput(f"{here}.structure", "is text, and the content has none")
        if wanted.structure is Structure.HTML and not has_html:
            raise BadInput(f"{here}.structure", "is html, and the content has none")


class FormatChooser:
    """Finds a recipient's structure. Keeps what it found for each domain, within a bound."""

    def __init__(self, formats: Sequence[Format]) -> None:
        self._formats = [(compile_masks(wanted.domains).fullmatch, wanted.structure) for wanted in formats]
        self._found: dict[str, Structure] = {}

    def structure_for(self, address: str) -> Structure:
        domain = domain_of(address).lower()
        found = self._found.get(domain)
        if found is None:
            if len(self._found) >= _DOMAINS_KEPT_MAX:
                self._found.clear()
            found = next((structure for fits, structure in self._formats if fits(domain)), Structure.MULTIPART)
            self._found[domain] = found
        return found
