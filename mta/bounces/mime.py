"""A mail taken apart, within bounds: its headers, its report, its own words, and what it returns.

Bounds (threats I4, I9): 256 KiB are looked at, and 64 KiB where a report stands further behind; a mail of more than 50
boundaries is one text. So the parser of the standard library stays linear, whatever it is given.
"""

from __future__ import annotations

import binascii
import email
import email.header
import html
import quopri
import re
from dataclasses import dataclass, field
from email.errors import MessageError
from email.message import Message
from typing import Final

from mta.bounces.charsets import text_of

HEAD_BYTES: Final = 256 << 10
REPORT_BYTES: Final = 64 << 10
TEXT_CHARS: Final = 64 << 10
BOUNDARIES_MAX: Final = 50
PARTS_MAX: Final = 200
DELIMITERS_MAX: Final = 1_500  # lines that begin with "--"
EMPTY_LINES_MAX: Final = 6_000
FIELD_BYTES: Final = 2_000  # of a header field of MIME: RFC 2046 §5.1.1 allows a boundary 70
BLOCKS_MAX: Final = 2_000  # of a report; one for each recipient
_REPORTS: Final = (b"message/delivery-status", b"message/global-delivery-status", b"message/feedback-report")
_STATUS: Final = frozenset({"message/delivery-status", "message/global-delivery-status"})  # the second: RFC 6533 §3
_RETURNED: Final = frozenset(
    ("message/rfc822", "message/global", "message/global-headers", "text/rfc822-headers", "message/rfc822-headers")
)
_BOUNDARY_LINE: Final = re.compile(r"(?m)^--([^\s-][^\n]{0,68}?)[ \t]*$")
_CONTENT_FIELD: Final = re.compile(rb"(?im)^content-[a-z-]{1,30}:[^\n]*(?:\n[ \t][^\n]*)*")
_TAGS: Final = re.compile(r"<(?:br|/?p|/?div|/?tr|/?li|/?h\d)\b[^<>]{0,500}>", re.IGNORECASE)
_TAG: Final = re.compile(r"<(?![^<>@\s]{1,64}@[^<>@\s]{1,255}>)/?[a-zA-Z!][^<>]{0,2000}>")
_LINE_END: Final = re.compile(r"[ \t\xa0]{0,500}\n[ \t\xa0]{0,500}")
_LINES: Final = re.compile(r"\n{3,}")
_HIDDEN: Final = re.compile(r"<(/?)(style|script|head)\b[^<>]{0,500}>", re.IGNORECASE)
_FIELD: Final = re.compile(r"^([A-Za-z][A-Za-z0-9-]{1,60}):[ \t]*(.*)$")


@dataclass
class Opened:
    """Field names are in lower case; of several of one name the first counts."""

    headers: dict[str, str]
    subject: str
    report_type: str = ""  # of a multipart/report
    status: list[dict[str, str]] = field(
        default_factory=list
    )  # blocks of delivery-status: of the message, of recipients
    feedback: dict[str, str] = field(default_factory=dict)  # of a feedback-report
    texts: list[str] = field(default_factory=list)  # what the report says to people, in order
    returned: dict[str, str] = field(default_factory=dict)  # headers of the message that it returns
    has_returned: bool = False  # though its headers may not be there


def opened(raw: bytes) -> Opened:
    """Never raises."""
    raw = _bounded(raw)
    try:
        message = email.message_from_bytes(raw)
        headers = {name.lower(): _one_line(value) for name, value in reversed(list(message.raw_items()))}
        headers["from"] = _decoded(headers.get("from", ""))
        found = Opened(headers, _decoded(headers.get("subject", "")))
        found.report_type = str(message.get_param("report-type", "") or "").lower()
        _walk(message, found, 0)
    except (MessageError, ValueError, LookupError, RecursionError, AssertionError, TypeError, IndexError):
        # Broken beyond what the parser takes: its own words are all there is.
        found = Opened({}, "", texts=[raw.decode("utf-8", "replace")[:TEXT_CHARS]])
    return found


def _bounded(raw: bytes) -> bytes:
    head, further = raw[:HEAD_BYTES].lstrip(), b""
    if len(raw) > HEAD_BYTES:
        at = min((at for kind in _REPORTS if (at := raw.find(kind, HEAD_BYTES)) > 0), default=0)
        begins = raw.rfind(b"\n--", 0, at) if at else 0
        further = raw[begins : begins + REPORT_BYTES] if begins > 0 else b""
    raw = (head + further).replace(b"\r\n", b"\n")
    if raw.startswith(b"From "):  # of a mailbox file, perhaps with notes of its reader below it
        raw = raw[raw.find(b"\n") + 1 :]
        while raw[:1] in (b" ", b"\t"):
            raw = raw[raw.find(b"\n") + 1 :] if b"\n" in raw else b""
    lower = raw.lower()
    if lower.count(b"boundary=") + lower.count(b"boundary*") > BOUNDARIES_MAX:
        head, _, body = raw.partition(b"\n\n")
        return b"Subject: " + b" ".join(re.findall(rb"(?im)^subject:(.*)$", head)[:1]) + b"\n\n" + body
    # What the parser takes its time over: parts, blocks of a report, and parameters.
    raw = _cut_at(raw, b"\n--", DELIMITERS_MAX)
    if any(kind in raw for kind in _REPORTS):
        raw = _cut_at(raw, b"\n\n", EMPTY_LINES_MAX)
    # The parser makes a pattern of each boundary, which takes it a second for a long one.
    return _CONTENT_FIELD.sub(lambda match: match[0][:FIELD_BYTES], raw)


def _cut_at(raw: bytes, mark: bytes, most: int) -> bytes:
    """Up to the ``most``-th ``mark``."""
    if raw.count(mark) <= most:
        return raw
    at = -1
    for _ in range(most):
        at = raw.find(mark, at + 1)
    return raw[:at]


def _walk(message: Message, found: Opened, count: int) -> int:
    """In order; what is returned is not gone into. Answers how many parts were seen."""
    count += 1
    if count > PARTS_MAX:
        return count
    kind = message.get_content_type()
    if kind in _STATUS:
        found.status += _blocks(message)
    elif kind == "message/feedback-report":
        for block in _blocks(message):
            found.feedback = block | found.feedback
    elif kind in _RETURNED:
        _take_returned(message, found)
    elif message.is_multipart():
        for part in message.get_payload():
            if isinstance(part, Message):
                count = _walk(part, found, count)
    elif kind.startswith("multipart/") and (mended := _with_its_boundary(message)) is not None:
        count = _walk(mended, found, count)
    elif kind.startswith("text/") or kind == "application/json":
        found.texts.append(_text(message, kind))
    return count


def _with_its_boundary(message: Message) -> Message | None:
    """The parts of a mail that are divided by another boundary than it declares; None where there are none."""
    text = str(message.get_payload())[:HEAD_BYTES]
    for line in _BOUNDARY_LINE.finditer(text):
        boundary = line[1]
        if text.count(f"\n--{boundary}") >= (1 if line.start() == 0 else 2) and '"' not in boundary:
            kind = message.get_content_type()
            return email.message_from_string(f'Content-Type: {kind}; boundary="{boundary}"\n\n{text}')
    return None


def _take_returned(message: Message, found: Opened) -> None:
    payload = message.get_payload()
    inner = payload[0] if isinstance(payload, list) and payload else None
    if isinstance(inner, Message):
        fields = {name.lower(): _one_line(value) for name, value in reversed(list(inner.raw_items()))}
    else:
        fields = fields_in(_text(message, "text/plain"))
    found.returned = fields | found.returned
    found.has_returned = True


def _blocks(message: Message) -> list[dict[str, str]]:
    payload = message.get_payload()
    encoding = str(message.get("content-transfer-encoding", "")).strip().lower()
    if isinstance(payload, list) and encoding in ("base64", "quoted-printable"):
        return blocks_in(_decoded_report(payload, encoding))
    if isinstance(payload, list):
        # Some leave out the empty line below the part's own header: its fields stand there, then.
        blocks = [
            {name.lower(): _one_line(value) for name, value in reversed(list(part.raw_items()))}
            for part in (message, *payload[:BLOCKS_MAX])
            if isinstance(part, Message)
        ]
        # Some write fields of recipients without the empty line before them, some encode the part.
        rest = "\n".join(_body_text(part) for part in payload if isinstance(part, Message))
        blocks += [block for block in blocks_in(rest) if "final-recipient" in block or "original-recipient" in block]
        if any(blocks):
            return [block for block in blocks if block]
    return blocks_in(_text(message, "text/plain"))


def _body_text(part: Message) -> str:
    """What stands below a part's fields; octets beyond ASCII as they came, which the parser would replace."""
    octets = part.get_payload(decode=True)
    return text_of(octets, "") if isinstance(octets, bytes) else ""


def _decoded_report(parts: list[Message | str], encoding: str) -> str:
    """A report that is encoded, which the parser has taken for fields all the same."""
    pieces = []
    for part in parts[:BLOCKS_MAX]:
        if isinstance(part, Message):
            fields = "".join(f"{name}: {value}\n" for name, value in part.raw_items())
            pieces.append(f"{fields}\n{part.get_payload()}")
    octets = "\n".join(pieces).encode("utf-8", "surrogateescape")
    if encoding == "base64":
        try:
            octets = binascii.a2b_base64(octets)
        except binascii.Error:
            return ""
    else:
        octets = quopri.decodestring(octets)
    return text_of(octets, "utf-8").replace("\r\n", "\n")


def blocks_in(text: str) -> list[dict[str, str]]:
    """Groups of fields, with an empty line between them; a second recipient begins a group, too."""
    blocks: list[dict[str, str]] = [{}]
    last = ""
    for line in text.splitlines():
        named = _FIELD.match(line)
        if not line.strip():
            blocks.append({})
            last = ""
        elif named is not None:
            last = named[1].lower()
            if last in blocks[-1] and last in ("final-recipient", "original-recipient"):
                blocks.append({})
            blocks[-1].setdefault(last, named[2].strip())
        elif line[0] in " \t" and last:
            blocks[-1][last] += " " + line.strip()
    return [block for block in blocks if block]


def fields_in(text: str) -> dict[str, str]:
    """The header at the beginning of a text."""
    blocks = blocks_in(text.lstrip())
    return blocks[0] if blocks else {}


def _text(message: Message, kind: str) -> str:
    payload = message.get_payload(decode=True)
    if not isinstance(payload, bytes):
        payload = str(message.get_payload()).encode("utf-8", "replace")
    payload = payload[: 4 * TEXT_CHARS]
    text = text_of(payload, message.get_content_charset() or "")
    text = text.replace("\r\n", "\n")
    return from_html(text) if kind == "text/html" else text[:TEXT_CHARS]


def from_html(text: str) -> str:
    """Its words, roughly by line; ``<ann@example.com>`` is no tag."""
    text = _without_hidden(text[: 2 * TEXT_CHARS])
    text = html.unescape(_TAG.sub(" ", _TAGS.sub("\n", text)))
    return _LINES.sub("\n\n", _LINE_END.sub("\n", text))[:TEXT_CHARS]


def _without_hidden(text: str) -> str:
    """Without styles, scripts and heads that end."""
    pieces: list[str] = []
    end = 0  # of what is dealt with
    hidden, begins = "", 0
    for tag in _HIDDEN.finditer(text):
        closes, name = bool(tag[1]), tag[2].lower()
        if not hidden and not closes:
            hidden, begins = name, tag.start()
        elif hidden == name and closes:
            pieces.append(text[end:begins])
            hidden, end = "", tag.end()
    return " ".join([*pieces, text[end:]])


def _one_line(value: object) -> str:
    text = str(value)
    if not text.isascii():  # octets that no header may hold, kept as surrogates by the parser
        text = text_of(text.encode("utf-8", "surrogateescape"), "")
    return " ".join(text.split())[:8_192]


def _decoded(value: str) -> str:
    try:
        pieces = email.header.decode_header(value)
    except (ValueError, MessageError):
        return value
    return "".join(
        piece if isinstance(piece, str) else text_of(piece, charset or "latin-1") for piece, charset in pieces
    )
