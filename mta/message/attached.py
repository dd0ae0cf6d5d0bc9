"""What goes along with a message, the same for all its recipients: attachments and images shown inside the HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.model.address import shown
from mta.model.errors import BadInput
from mta.model.limits import ATTACHED_BYTES_MAX, ATTACHMENTS_MAX, IMAGES_MAX

FILE_NAME_CHARS_MAX: Final = 200
MEDIA_TYPE_CHARS_MAX: Final = 200
CID_CHARS_MAX: Final = 200

_WORD: Final = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
# RFC 2045 §5.1, with restricted names (RFC 6838 §4.2) and parameters such as "; charset=utf-8".
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
    rf'(?:; ?{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*"))*'
)
_ATOM: Final = (
    r"[A-Za-z0-9!#$&'*+/=?^_`{|}~-]+"  # atext of RFC 5322 §3.2.3, but for "%": it would need escapes in a URL
)
_CID: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_ATOM}(?:\.{_ATOM})*")
# Where HTML and style sheets have a URL: after a quote, a bracket, or an equals sign.
_CID_REFERENCE: Final = re.compile(r"""(?<=["'(=])\s*cid:([^"'()<>\s]*)(["'()<>\s]?)""", re.IGNORECASE)


class Attachment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file. ``content`` is base64 in JSON; ``media_type`` as in ``application/pdf``, parameters allowed."""

    name: str
    media_type: str
    content: bytes


class InlineImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image that the HTML part shows by ``<img src="cid:...">``.

    ``cid`` is what stands after ``cid:``, of the form ``logo@shop.example`` (RFC 2392 §2). ``content`` is base64
    in JSON.
    """

    cid: str
    media_type: str  # image/...
    content: bytes
    name: str | None = None  # for those who save it


def check_attached(attachments: Sequence[Attachment], images: Sequence[InlineImage], where: str) -> None:
    """Raises BadInput under ``where``."""
    for key, items, items_max in (("attachments", attachments, ATTACHMENTS_MAX), ("images", images, IMAGES_MAX)):
        if len(items) > items_max:
            raise BadInput(f"{where}.{key}", f"are {len(items)}, {items_max} are allowed")
    size_bytes = sum(len(item.content) for item in attachments) + sum(len(item.content) for item in images)
    if size_bytes > ATTACHED_BYTES_MAX:
        raise BadInput(where, f"has attachments and images of {size_bytes} bytes, {ATTACHED_BYTES_MAX} are allowed")
    for index, attachment in enumerate(attachments):
        here = f"{where}.attachments[{index}]"
        _check_name(attachment.name, f"{here}.name")
        _check_media_type(attachment.media_type, f"{here}.media_type")
    seen: set[str] = set()
    for index, image in enumerate(images):
        here = f"{where}.images[{index}]"
        if len(image.cid) > CID_CHARS_MAX or _CID.fullmatch(image.cid) is None:
            raise BadInput(f"{here}.cid", f"{shown(image.cid)} is not of the form name@your.domain (RFC 2392)")
        if image.cid in seen:
            raise BadInput(f"{here}.cid", f"{shown(image.cid)} is there twice")
        seen.add(image.cid)
        _check_media_type(image.media_type, f"{here}.media_type")
        if not image.media_type.lower().startswith("image/"):
            raise BadInput(f"{here}.media_type", f"{shown(image.media_type)} is no image; other files are attachments")
        if image.name is not None:
            _check_name(image.name, f"{here}.name")


def check_references(html: Sequence[str], images: Sequence[InlineImage], where: str) -> None:
    """Raises BadInput when a static piece of HTML shows an image (``cid:``) that is not there: readers would see a gap.

    A name that reaches a piece's end goes on in a merge field, and is not looked at.
    """
    known = {image.cid for image in images}
    for piece in html:
        for reference in _CID_REFERENCE.finditer(piece):
            if reference[2] and reference[1] not in known:
                there = ", ".join(sorted(known)) or "none"
                raise BadInput(where, f"shows the image cid:{shown(reference[1])[1:-1]}, which is not there: {there}")


def _check_name(name: str, where: str) -> None:
    if not 1 <= len(name) <= FILE_NAME_CHARS_MAX:
        raise BadInput(where, f"has {len(name)} characters, 1 to {FILE_NAME_CHARS_MAX} are allowed")
    if not name.isprintable() or re.search(r"[/\\]", name) is not None or name.strip(" .") == "":
        raise BadInput(where, f"{shown(name)} is no file name (no /, no \\, nothing that cannot be seen)")


def _check_media_type(media_type: str, where: str) -> None:
    if len(media_type) > MEDIA_TYPE_CHARS_MAX or _MEDIA_TYPE.fullmatch(media_type) is None:
        raise BadInput(where, f"{shown(media_type)} is no media type such as application/pdf")
    # RFC 2046 §5.1, §5.2.1: those must not be base64.
    if media_type.lower().startswith(("multipart/", "message/")):
        raise BadInput(where, f"{shown(media_type)} cannot be attached; application/octet-stream can hold such a file")
