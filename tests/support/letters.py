"""Contents of every kind with recipients of every kind, and what a reader's software must make of each message.

What is meant is worked out here from the template and the values, without the product: merge fields by one pattern,
escapes by the standard library, MIME by its parser.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import email.utils
import html
import random
import re
from dataclasses import dataclass, field
from email.headerregistry import AddressHeader
from typing import Any
from urllib.parse import quote

from mta.message import (
    Attachment,
    Content,
    Format,
    InlineImage,
    ListUnsubscribe,
    Renderer,
    Signer,
    Structure,
    compile_content,
)

FIELDS = ("a", "b", "c")
SENDER = ("Größe & Söhne, GmbH", "news@shop.example")
SENT_AT_UNIX_S = 1_700_000_000
VERP_KEY = bytes(range(32))
_FIELD = re.compile(r"\\\{\{|\{\{(\w+)(?:\|(\w+))?\}\}")


@dataclass(frozen=True)
class Person:
    """A recipient with their values of ``FIELDS``."""

    address: str
    values: tuple[str, str, str] = ("Ann", "Größe <b>", "x y&z=1")
    reference: str = "ref-1"

    def row(self, message_id: str, delivery_id: int) -> dict[str, str]:
        return {
            **dict(zip(FIELDS, self.values, strict=True)),
            "address": self.address,
            "reference": self.reference,
            "delivery": str(delivery_id),
            "message_id": message_id,
        }


@dataclass(frozen=True)
class Sample:
    """A content and who gets it. ``structures``: of those whose domain has one of its own, by address."""

    name: str
    keys: dict[str, Any]
    people: tuple[Person, ...] = (Person("ann@one.example"), Person("bob@two.example", (".", "", "=20" * 30)))
    structures: dict[str, Structure] = field(default_factory=dict)

    @property
    def content(self) -> Content:
        return Content(sender='"Größe & Söhne, GmbH" <news@shop.example>', **{"subject": "Hello", **self.keys})

    def renderer(self, delivery_id: int, *signers: Signer) -> Renderer:
        return compile_content(self.content, delivery_id=delivery_id, verp_key=VERP_KEY, signers=signers).bind(FIELDS)


def assert_reads_as_meant(sample: Sample, person: Person, octets: bytes, delivery_id: int) -> None:
    """Raises AssertionError when the standard library's parser reads anything but what went in."""
    if octets.isascii():
        message = email.message_from_bytes(octets, policy=email.policy.SMTP)
    else:  # from octets the parser takes no header of RFC 6532
        message = email.message_from_string(octets.decode(), policy=email.policy.SMTPUTF8)
    assert isinstance(message, email.message.EmailMessage)
    assert not any(part.defects for part in message.walk())
    row = person.row(message["Message-ID"].strip("<>"), delivery_id)
    _assert_headers(sample, person, message, row)
    wanted = sample.structures.get(person.address, Structure.MULTIPART)
    bodies: dict[str, bytes] = {}
    files: list[tuple[str, str | None, bytes]] = []
    images: list[tuple[str, str, str | None, bytes]] = []
    for part in message.walk():
        payload = part.get_payload(decode=True)
        if part.is_multipart():
            continue
        assert isinstance(payload, bytes)
        kind = part.get_content_disposition()
        if kind == "attachment":
            files.append((part.get_content_type(), part.get_filename(), payload))
        elif kind == "inline":
            images.append((part["Content-ID"], part.get_content_type(), part.get_filename(), payload))
        else:
            assert part.get_content_type() not in bodies
            bodies[part.get_content_type()] = payload
    content = sample.content
    meant = {}
    if content.text is not None and wanted is not Structure.HTML:
        meant["text/plain"] = meant_body(content.text, row, is_html=False)
    if content.html is not None and wanted is not Structure.TEXT:
        meant["text/html"] = meant_body(content.html, row, is_html=True)
    assert bodies == meant, f"{sample.name}, {person}: {bodies}, not {meant}"
    assert files == [(one.media_type.split(";")[0], one.name, one.content) for one in content.attachments]
    shown = content.images if "text/html" in meant else []
    assert images == [(f"<{one.cid}>", one.media_type, one.name, one.content) for one in shown]


def _assert_headers(sample: Sample, person: Person, message: email.message.EmailMessage, row: dict[str, str]) -> None:
    content = sample.content
    assert mailboxes(message["From"]) == [SENDER]
    to_name = " ".join(meant_text(content.to_name or "", row).split())
    assert mailboxes(message["To"]) == [(to_name, person.address)]
    assert message["Date"].datetime.timestamp() == SENT_AT_UNIX_S
    expected = {"Subject": meant_text(content.subject, row)}
    expected |= {name: meant_text(text, row) for name, text in content.headers.items()}
    leave = content.list_unsubscribe
    if leave is not None:
        items = [f"<{leave.url}>"] if leave.url else []
        items += [f"<mailto:{leave.mailto}>"] if leave.mailto else []
        expected["List-Unsubscribe"] = meant_text(", ".join(items), row)
        if leave.url and leave.one_click:
            expected["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    found = {name: str(message[name]) for name in expected}
    assert found == expected, f"{sample.name}, {person}: {found}, not {expected}"


def mailboxes(header: AddressHeader) -> list[tuple[str, str]]:
    return [(mailbox.display_name, mailbox.addr_spec) for mailbox in header.addresses]


def date_of(message: bytes) -> int:
    """The Date of a stored message; 0 when it has none."""
    found = re.search(rb"^Date: (.*?)\r\n", message, re.MULTILINE)
    return int(email.utils.parsedate_to_datetime(found[1].decode()).timestamp()) if found else 0


def meant_text(template: str, row: dict[str, str], *, is_body: bool = False, is_html: bool = False) -> str:
    """``template`` with its values in place, each escaped for where it stands: headers have ``%ab``."""

    def put(match: re.Match[str]) -> str:
        if match[1] is None:
            return "{{"
        value = row[match[1]]
        if match[2] == "url":
            quoted = quote(value, safe="")
            return quoted if is_body else re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
        return html.escape(value) if is_html and match[2] != "raw" else value

    return _FIELD.sub(put, template)


def meant_body(template: str, row: dict[str, str], *, is_html: bool) -> bytes:
    lines = "\r\n".join(re.split(r"\r\n|\r|\n", template))
    return meant_text(lines if lines.endswith("\r\n") else f"{lines}\r\n", row, is_body=True, is_html=is_html).encode()


# -- the samples ---------------------------------------------------------------------------------------------------

_HTML = (
    '<html><body style="margin:0">\n<p>Dear {{a}}, <b>{{b}}</b> {{c|raw}}</p>\n'
    '.<a href="https://shop.example/o?u={{c|url}}&amp;r={{reference|url}}">{{c}}</a>\n'
    "<!-- \\{{a}} {{message_id}} {{delivery}} -->\n..\n</body></html>\n"
)
_OCTETS = bytes(range(256)) * 3
_LONG_NAME = "Größe und Maße, eine Übersicht für alle unsere Kundinnen und Kunden 2026 (länger als eine Zeile).pdf"
_PNG = b"\x89PNG\r\n\x1a\n" + _OCTETS
_LEAVE = ListUnsubscribe(
    "https://shop.example/u/{{reference|url}}?m={{address|url}}", "leave@shop.example?subject={{c|url}}"
)
_MANY = Person("many@one.example", ("Zoë " * 60, "日本語" * 60, "?&=/" * 60), "r/1 ?")

SAMPLES = (
    Sample("plain ASCII", {"text": "Hello,\n\nthis is plain.\n-- \nShop\n"}),
    Sample("7bit", {"text": "Hello,\nthis is plain.\n"}),
    Sample("no line end", {"text": "Hello"}),
    Sample("nothing", {"text": "", "subject": ""}),
    Sample("line ends of all kinds", {"text": "one\rtwo\nthree\r\nfour\n\rfive\r\r\n"}),
    Sample("long lines", {"text": f"{'x' * 997}\n{'x' * 998}\n{'x' * 999}\n{'y ' * 40_000}\n{'=' * 2000}"}),
    Sample("dots", {"text": ".\n..\n.x\n...\n\n.\n.\r\n..x\n .\n."}),
    Sample("dots where soft breaks fall", {"text": "\n".join(f"{'x' * n}{'.' * 80}" for n in range(60, 80))}),
    Sample("dots around values", {"text": "{{a}}.{{b}}.\n.{{b}}{{b}}.{{b}}\n{{a}}{{a}}\n{{c}}.", "html": ".{{b}}."}),
    Sample("smuggling", {"text": "x\n.\nMAIL FROM:<a@b.example>\n\r.\r\nRCPT TO:<c@d.example>\n.\n.\r.\n"}),
    Sample("white space at line ends", {"text": "one \ntwo  \t\n \n\t\n   three\n "}),
    Sample("empty lines", {"text": "\n\n\n\nbody\n\n\n\n", "html": "\n\n"}),
    Sample("UTF-8", {"text": "Grüße aus Köln\n日本語のテキスト\n\u00a0\u2028\U0001f600\n" + "é" * 500}),
    Sample("looks encoded", {"text": "=20 =\n=3D=\n=?utf-8?q?x?=", "subject": "=?utf-8?q?no?= {{c}}"}),
    Sample("HTML", {"html": _HTML}, (Person("ann@one.example"), _MANY)),
    Sample(
        "text and HTML", {"text": "Dear {{a}} {{b}}: {{c|url}}\n", "html": _HTML}, (Person("ann@one.example"), _MANY)
    ),
    Sample(
        "attachments",
        {
            "text": "See below.\n",
            "attachments": [
                Attachment("terms.pdf", "application/pdf", _OCTETS),
                Attachment("empty", "application/octet-stream", b""),
                Attachment("Größe und Maße.pdf", "application/pdf", b"\r\n.\r\n"),
                Attachment(_LONG_NAME, "text/plain; charset=utf-8; format=flowed", b"x" * 57),
                Attachment('日本 "quoted" 100%.txt', "application/x-data", b"y" * 58),
                Attachment('a "b" c.bin', "application/x-data", b"\0" * 30_000),
            ],
        },
    ),
    Sample(
        "large",  # over mta.smtp.dialogue.PIPELINED_BODY_BYTES_MAX
        {"text": "x", "attachments": [Attachment("a.bin", "application/x-data", _OCTETS * 280)]},
        (Person("ann@one.example"),),
    ),
    Sample(
        "all at once",
        {
            "text": "See below, {{a}}.\n",
            "html": f'<img src="cid:logo@shop.example"><img src="cid:line@shop.example">{_HTML}',
            "images": [
                InlineImage("logo@shop.example", "image/png", _PNG, "Schriftzug Größe.png"),
                InlineImage("line@shop.example", "image/gif", b""),
            ],
            "attachments": [Attachment("terms.pdf", "application/pdf", _OCTETS * 20)],
            "list_unsubscribe": _LEAVE,
        },
    ),
    Sample(
        "formats",
        {
            "text": "Text for {{a}}\n",
            "html": f'<img src="cid:logo@shop.example">{_HTML}',
            "images": [InlineImage("logo@shop.example", "image/png", _PNG)],
            "attachments": [Attachment("terms.pdf", "application/pdf", _OCTETS)],
            "formats": [Format(["*.text.example"], Structure.TEXT), Format(["html.example"], Structure.HTML)],
        },
        (Person("ann@one.example"), Person("bob@mx.text.example"), Person("eve@html.example")),
        {"bob@mx.text.example": Structure.TEXT, "eve@html.example": Structure.HTML},
    ),
    Sample("unsubscribe by post", {"text": "x", "list_unsubscribe": _LEAVE}, (Person("ann@one.example"), _MANY)),
    Sample("unsubscribe by mail", {"text": "x", "list_unsubscribe": ListUnsubscribe(mailto="leave@shop.example")}),
    Sample(
        "long headers",
        {
            "text": "x",
            "subject": "word " * 200 + "end",
            "headers": {
                "X-Words": "word {{a}} " * 60 + "end",
                "X-Unbroken": "x" * 3000,
                "X-Wörter".replace("ö", "oe"): "Wörter über Wörter " * 40 + "{{b}}",
                "List-Id": "Shop news <news.{{a|url}}.shop.example>",
                "X-Empty": "",
            },
        },
    ),
    Sample(
        "encoded words", {"text": "x", "subject": "Größe {{b}} 日本語 {{a}} " + "ü" * 100, "to_name": "{{a}} {{b}}"}
    ),
    Sample("names to quote", {"text": "x", "to_name": '{{a}}, "Dr." (x) @ \\ {{b}}'}),
    Sample(
        "addresses",
        {"text": "{{address}}\n", "subject": "{{address}}"},
        (
            Person('"a b..c"@one.example'),
            Person("o'hara+tag=x@xn--grsse-kva6j.example"),
            Person(f"{'l' * 64}@one.example"),
        ),
    ),
)

INTERNATIONAL = Sample(
    "internationalised addresses",
    {"text": "Grüße an {{address}}\n", "html": "<p>{{address}} {{address|url}}", "to_name": "{{a}} é"},
    (Person("jörg@one.example"), Person("用户@xn--fiqs8s.example"), Person("plain@one.example")),
)

_TEXTS = (
    *(
        "Hello",
        ".",
        "..",
        " ",
        "  ",
        "\t",
        "\n",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\n.",
        "\n..\n",
        "=",
        "=\n",
        "é",
        "日本",
        "\u2028",
    ),
    *(
        "{{a}}",
        "{{b}}",
        "{{c|url}}",
        "{{address}}",
        "{{reference|url}}",
        "{{delivery}}",
        "\\{{a}}",
        "}}",
        "x" * 70,
        "y" * 1200,
    ),
    *("word " * 20, "." * 76, "<b>", "&amp;", '"', "'", "From ", "\nFrom x\n", "--=_x--", "\n--\n", "%s", "\x85"),
)
_VALUES = (
    *(
        "",
        ".",
        "..",
        " ",
        "a b",
        "é",
        "日本語",
        "=",
        "=20",
        "x" * 40,
        "x" * 41,
        "." * 77,
        "<script>",
        "&amp;",
        '"',
        "{{b}}",
    ),
    *("\\{{a}}", "word " * 40, "ü" * 60, "?a=1&b=2", "-", "--=_", "\u00a0", "\U0001f600", "%0D%0A.", "From "),
)


def random_samples(seed: int, count: int) -> list[Sample]:
    """Bodies, values and files drawn from what is awkward; the same for the same seed."""
    source = random.Random(seed)

    def text() -> str:
        return "".join(source.choices(_TEXTS, k=source.randrange(12)))

    def made(number: int) -> Sample:
        keys: dict[str, Any] = {"text": text(), "html": text(), "subject": "Größe {{a|url}} x"}
        keys.pop(source.choice(("text", "html", "subject")))
        if source.random() < 0.4:
            sizes = [source.choice((0, 1, 2, 3, 56, 57, 58, 114, 3000, 9000)) for _ in range(source.randrange(3))]
            keys["attachments"] = [
                Attachment(f"{source.choice(_TEXTS[:1])} {size} ü.bin", "application/x-data", source.randbytes(size))
                for size in sizes
            ]
        people = [
            Person(f"r{number}-{index}@one.example", tuple(source.choices(_VALUES, k=3)))  # type: ignore[arg-type]
            for index in range(2)
        ]
        return Sample(f"random {seed}/{number}", keys, tuple(people))

    return [made(number) for number in range(count)]
