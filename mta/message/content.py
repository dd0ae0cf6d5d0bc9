"""What a delivery sends: sender, subject, bodies and headers, checked before anything is stored or sent."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final

import msgspec

from mta.message.attached import Attachment, InlineImage, check_attached, check_references
from mta.message.fields import (
    BUILT_IN,
    MERGE_FIELD_USES_MAX,
    Field,
    Filter,
    Piece,
    fields_of,
    parse_template,
    refuse_characters,
)
from mta.message.formats import Format, check_formats
from mta.message.headers import (
    DISPLAY_NAME_CHARS_MAX,
    HEADER_NAME,
    HEADER_OCTETS_MAX,
    NamedMailbox,
    header_line,
    is_structured,
    parse_named_mailbox,
)
from mta.message.quoted import with_line_ends
from mta.message.unsubscribe import LIST_UNSUBSCRIBE, LIST_UNSUBSCRIBE_POST, ListUnsubscribe, unsubscribe_headers
from mta.message.verp import LOCAL_PART_OCTETS
from mta.model.address import parse_domain, parse_mailbox, shown
from mta.model.errors import BadInput
from mta.model.limits import CONTENT_BYTES_MAX, MERGE_FIELDS_MAX, TEMPLATE_BYTES_MAX

EXTRA_HEADERS_MAX: Final = 50

# Written by us, by those who pass the message on, or (Bcc) by nobody.
_FORBIDDEN_HEADERS: Final = frozenset(
    (
        "authentication-results",
        "bcc",
        "cc",
        "date",
        "delivered-to",
        "dkim-signature",
        "domainkey-signature",
        "from",
        "message-id",
        "mime-version",
        "received",
        "received-spf",
        "reply-to",
        "return-path",
        "sender",
        "subject",
        "to",
    )
)
_FORBIDDEN_PREFIXES: Final = ("arc-", "content-", "resent-")
_AMP: Final = re.compile(r"<html[^>]*?\s(?:amp4email|\u26a1\ufe0f?4email)[\s=>]", re.IGNORECASE)
_CALENDAR_METHOD: Final = re.compile(r"METHOD:([A-Za-z-]{1,32})", re.IGNORECASE)
_MSGSPEC_PLACE: Final = re.compile(r" - at `\$(.*)`$")


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a delivery, as its JSON has it. Merge fields: ``mta.message.fields``.

    ``sender`` and ``reply_to`` are a mailbox with an optional name, without merge fields; all the other
    texts, and the values of ``headers``, may have them. At least one of ``text`` and ``html`` is there.
    All of it is explained in docs/content.md.
    """

    sender: str  # "Shop" <news@shop.example>
    subject: str
    text: str | None = None
    html: str | None = None
    amp: str | None = None  # AMP for Email, beside html
    calendar: str | None = None  # an invitation: an iCalendar object with its METHOD
    headers: dict[str, str] = {}
    to_name: str | None = None  # the name shown in To
    reply_to: str | None = None
    return_path_domain: str | None = None  # where bounces come back to; None: the sender's domain
    list_unsubscribe: ListUnsubscribe | None = None
    attachments: list[Attachment] = []
    images: list[InlineImage] = []  # shown by the HTML part as cid:...
    formats: list[Format] = []  # domains that do not get text and HTML; the first that fits counts


class CheckedContent(msgspec.Struct, frozen=True):
    """A content taken apart by its checks, ready to be compiled."""

    sender: NamedMailbox
    reply_to: NamedMailbox | None
    return_path_domain: str
    subject: list[Piece]
    to_name: list[Piece]  # empty: no name
    headers: list[tuple[str, list[Piece]]]
    text: list[Piece] | None
    html: list[Piece] | None
    amp: list[Piece] | None
    calendar: str | None
    calendar_method: str
    unsubscribe: list[tuple[str, list[Piece]]]  # headers
    attachments: list[Attachment]
    images: list[InlineImage]
    formats: list[Format]

    def templates(self) -> list[list[Piece]]:
        bodies = [body for body in (self.text, self.html, self.amp) if body is not None]
        headers = [pieces for _, pieces in (*self.headers, *self.unsubscribe)]
        return [self.subject, self.to_name, *headers, *bodies]


def load_content(content_json: bytes, where: str) -> Content:
    """The content that ``content_json`` holds, checked as by ``check_content``. Raises BadInput under ``where``."""
    if len(content_json) > CONTENT_BYTES_MAX:
        raise BadInput(where, f"has {len(content_json)} bytes, {CONTENT_BYTES_MAX} are allowed")
    try:
        content = msgspec.json.decode(content_json, type=Content)
    except msgspec.ValidationError as refused:
        place = _MSGSPEC_PLACE.search(str(refused))
        what = str(refused)[: place.start()] if place is not None else str(refused)
        raise BadInput(where + (place[1] if place is not None else ""), what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as refused:
        raise BadInput(where, f"is not JSON: {refused}") from None
    # msgspec takes the last of two equal keys, so half of what somebody wrote would not be sent. By now the
    # document is known to be three levels deep at most, so this cannot recurse far.
    json.loads(content_json, object_pairs_hook=lambda pairs: _refuse_twice(pairs, where))
    take_apart(content, where=where)
    return content


def check_content(content: Content, known_fields: Collection[str] | None) -> frozenset[str]:
    """The names of the merge fields that ``content`` uses, built-in ones left out.

    Raises BadInput that names the place (``content.subject``), line and column; also for a field that is
    neither built in nor among ``known_fields`` (None: any name will do).
    """
    checked = take_apart(content)
    if known_fields is not None:
        _refuse_unknown_fields(content, checked, known_fields)
    return used_fields(checked)


def used_fields(checked: CheckedContent) -> frozenset[str]:
    names = {field.name for pieces in checked.templates() for field in fields_of(pieces)}
    return frozenset(names.difference(BUILT_IN))


def take_apart(content: Content, *, where: str = "content") -> CheckedContent:
    """All checks that need no list of fields. Raises BadInput under ``where``."""
    _check_size(content, where)
    sender = _header_mailbox(content.sender, f"{where}.sender")
    checked = CheckedContent(
        sender=sender,
        reply_to=None if content.reply_to is None else _header_mailbox(content.reply_to, f"{where}.reply_to"),
        return_path_domain=_return_path_domain(content, sender, where),
        subject=_header_template(content.subject, f"{where}.subject"),
        to_name=_header_template(content.to_name or "", f"{where}.to_name", chars_max=DISPLAY_NAME_CHARS_MAX),
        headers=_extra_headers(content.headers, f"{where}.headers"),
        text=_body_template(content.text, f"{where}.text", may_have_raw=False),
        html=_body_template(content.html, f"{where}.html", may_have_raw=True),
        amp=_amp(content.amp, f"{where}.amp"),
        calendar=None if content.calendar is None else with_line_ends(content.calendar),
        calendar_method="" if content.calendar is None else _calendar_method(content.calendar, f"{where}.calendar"),
        unsubscribe=_unsubscribe(content, where),
        attachments=content.attachments,
        images=content.images,
        formats=content.formats,
    )
    _check_bodies(checked, where)
    check_attached(content.attachments, content.images, where)
    uses = sum(len(fields_of(pieces)) for pieces in checked.templates())
    if uses > MERGE_FIELD_USES_MAX:
        raise BadInput(where, f"uses merge fields {uses} times, {MERGE_FIELD_USES_MAX} are allowed")
    names = len(used_fields(checked))
    if names > MERGE_FIELDS_MAX:
        raise BadInput(where, f"uses {names} different merge fields, {MERGE_FIELDS_MAX} are allowed")
    return checked


def _check_bodies(checked: CheckedContent, where: str) -> None:
    if checked.text is None and checked.html is None:
        raise BadInput(where, "has neither text nor html")
    if checked.images and checked.html is None:
        raise BadInput(f"{where}.images", "are there, and no html that could show them")
    if checked.amp is not None and checked.html is None:
        raise BadInput(f"{where}.amp", "is there, and no html for readers that show no AMP")
    check_formats(
        checked.formats,
        has_text=checked.text is not None,
        has_html=checked.html is not None,
        where=f"{where}.formats",
    )
    static = [piece for piece in checked.html or [] if isinstance(piece, str)]
    check_references(static, checked.images, f"{where}.html")


def _unsubscribe(content: Content, where: str) -> list[tuple[str, list[Piece]]]:
    if content.list_unsubscribe is None:
        return []
    for name in content.headers:
        if name.lower() in (LIST_UNSUBSCRIBE.lower(), LIST_UNSUBSCRIBE_POST.lower()):
            raise BadInput(f"{where}.headers.{name}", "cannot be set here too: list_unsubscribe sets it")
    return unsubscribe_headers(content.list_unsubscribe, f"{where}.list_unsubscribe")


def _refuse_twice(pairs: list[tuple[str, object]], where: str) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadInput(where, f"has the key {shown(key)} twice")
        seen.add(key)


def _check_size(content: Content, where: str) -> None:
    # Characters first: a lone surrogate, refused with its place later, has no encoding.
    bodies = [body or "" for body in (content.text, content.html, content.amp, content.calendar)]
    texts = [content.sender, content.subject, *bodies, *content.headers.values()]
    size_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size_bytes > TEMPLATE_BYTES_MAX:
        raise BadInput(where, f"has {size_bytes} bytes, {TEMPLATE_BYTES_MAX} are allowed")


def _header_mailbox(text: str, where: str) -> NamedMailbox:
    named = parse_named_mailbox(text, where)
    if named.mailbox.needs_smtputf8:
        raise BadInput(where, f"{shown(text)} needs SMTPUTF8, so few recipients' servers would take the message")
    if len(named.name) > DISPLAY_NAME_CHARS_MAX:
        raise BadInput(where, f"has a name of {len(named.name)} characters, {DISPLAY_NAME_CHARS_MAX} are allowed")
    return named


def _return_path_domain(content: Content, sender: NamedMailbox, where: str) -> str:
    where = f"{where}.return_path_domain"
    if content.return_path_domain is None:
        domain = sender.mailbox.domain
    else:
        domain = parse_domain(content.return_path_domain, where)
    # The longest return path must be a mailbox too.
    parse_mailbox(f"{'b' * LOCAL_PART_OCTETS}@{domain}", where)
    return domain


def _header_template(text: str, where: str, *, chars_max: int = HEADER_OCTETS_MAX // 4) -> list[Piece]:
    refuse_characters(text, where, may_have_lines=False)
    if len(text) > chars_max:
        raise BadInput(where, f"has {len(text)} characters, {chars_max} are allowed")
    pieces = parse_template(text, where)
    _refuse_raw(pieces, where)
    return pieces


def _body_template(text: str | None, where: str, *, may_have_raw: bool) -> list[Piece] | None:
    if text is None:
        return None
    refuse_characters(text, where, may_have_lines=True)
    pieces = parse_template(with_line_ends(text), where)
    if not may_have_raw:
        _refuse_raw(pieces, where)
    return pieces


def _amp(text: str | None, where: str) -> list[Piece] | None:
    if text is not None and _AMP.search(text) is None:
        raise BadInput(where, "is no AMP for Email: its html element does not say amp4email")
    return _body_template(text, where, may_have_raw=True)


def _calendar_method(text: str, where: str) -> str:
    """What the invitation asks for: the media type has to say the same (RFC 6047 §2.4)."""
    refuse_characters(text, where, may_have_lines=True)
    lines = text.strip().splitlines()
    if not lines or lines[0].strip() != "BEGIN:VCALENDAR" or lines[-1].strip() != "END:VCALENDAR":
        raise BadInput(where, "is no iCalendar object: it does not begin with BEGIN:VCALENDAR and end with its END")
    methods = [found[1].upper() for line in lines if (found := _CALENDAR_METHOD.fullmatch(line.strip())) is not None]
    if len(methods) != 1:
        raise BadInput(where, f"has {len(methods)} lines METHOD, an invitation has one, such as METHOD:REQUEST")
    return methods[0]


def _refuse_raw(pieces: list[Piece], where: str) -> None:
    for field in fields_of(pieces):
        if field.filter is Filter.RAW:
            raise BadInput(where, f"field {field.name} has the filter raw, which is for the HTML part only")


def _extra_headers(headers: dict[str, str], where: str) -> list[tuple[str, list[Piece]]]:
    if len(headers) > EXTRA_HEADERS_MAX:
        raise BadInput(where, f"has {len(headers)} headers, {EXTRA_HEADERS_MAX} are allowed")
    seen: set[str] = set()
    checked = []
    for name, text in headers.items():
        if HEADER_NAME.fullmatch(name) is None:
            raise BadInput(where, f"{shown(name)} is no header name (letters, digits, _ and -, at most 50)")
        here = f"{where}.{name}"
        lower = name.lower()
        if lower in _FORBIDDEN_HEADERS or lower.startswith(_FORBIDDEN_PREFIXES):
            raise BadInput(here, "cannot be set here")
        if lower in seen:
            raise BadInput(here, "is there twice (names differ in case only)")
        seen.add(lower)
        pieces = _header_template(text, here)
        _check_static_header(name, pieces, here)
        checked.append((name, pieces))
    return checked


def _check_static_header(name: str, pieces: list[Piece], where: str) -> None:
    static = "".join(piece for piece in pieces if isinstance(piece, str))
    if is_structured(name) and not static.isascii():
        raise BadInput(where, "is not ASCII, which this header allows no encoding for")
    if not fields_of(pieces):
        try:
            header_line(name, static)
        except ValueError as refused:
            raise BadInput(where, str(refused)) from None


def _refuse_unknown_fields(content: Content, checked: CheckedContent, known_fields: Collection[str]) -> None:
    known = {*known_fields, *BUILT_IN}
    places: list[tuple[str, list[Piece]]] = [
        ("content.subject", checked.subject),
        ("content.to_name", checked.to_name),
        *[(f"content.headers.{name}", pieces) for name, pieces in checked.headers],
        *[("content.list_unsubscribe", pieces) for _, pieces in checked.unsubscribe],
        ("content.text", checked.text or []),
        ("content.html", checked.html or []),
        ("content.amp", checked.amp or []),
    ]
    for where, pieces in places:
        for piece in pieces:
            if isinstance(piece, Field) and piece.name not in known:
                there = ", ".join(sorted(known_fields)) or "none"
                raise BadInput(
                    where, f"the field {piece.name} is not known (known: {there}; built in: {', '.join(BUILT_IN)})"
                )
