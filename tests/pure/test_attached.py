from __future__ import annotations

import email
import email.policy
import json
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.message import (
    Attachment,
    Content,
    Format,
    InlineImage,
    Structure,
    check_content,
    compile_content,
    load_content,
)
from mta.model.errors import BadInput
from mta.model.limits import ATTACHED_BYTES_MAX, TEMPLATE_BYTES_MAX

KEY = bytes(32)
PDF = Attachment("terms.pdf", "application/pdf", b"%PDF\x00" * 2000)
LOGO = InlineImage("logo@shop.example", "image/png", b"\x89PNG\r\n.\r\n")
AMP = "<!doctype html><html amp4email><head></head><body>{{a}}</body></html>"
INVITATION = "BEGIN:VCALENDAR\nVERSION:2.0\nMETHOD:REQUEST\nBEGIN:VEVENT\nSUMMARY:Käse\nEND:VEVENT\nEND:VCALENDAR\n"
HTML = '<img src="cid:logo@shop.example">{{a}}'


def content(**changes: Any) -> Content:
    return Content(**{"sender": "news@shop.example", "subject": "Hello", "text": "Hi {{a}}", **changes})


def render(made: Content, address: str = "ann@example.com") -> list[bytes]:
    renderer = compile_content(made, delivery_id=7, verp_key=KEY).bind(["a"])
    return renderer.render(address, None, ["Ann"], 5, 1_700_000_000).segments


def parsed(made: Content, address: str = "ann@example.com") -> EmailMessage:
    message = email.message_from_bytes(b"".join(render(made, address)), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not any(part.defects for part in message.walk())
    return message


def tree(part: EmailMessage) -> Any:
    """Media types, nested as the message is."""
    if not part.is_multipart():
        return part.get_content_type()
    return [part.get_content_subtype(), *[tree(inner) for inner in part.iter_parts()]]  # type: ignore[arg-type]


def refusal(made: Content) -> BadInput:
    with pytest.raises(BadInput) as refused:
        check_content(made, None)
    return refused.value


TEXT, WEB = "text/plain", "text/html"


@pytest.mark.parametrize(
    ("changes", "address", "expected"),
    [
        ({"attachments": [PDF]}, "a@x.example", ["mixed", TEXT, "application/pdf"]),
        ({"html": HTML, "images": [LOGO]}, "a@x.example", ["alternative", TEXT, ["related", WEB, "image/png"]]),
        ({"text": None, "html": HTML, "images": [LOGO]}, "a@x.example", ["related", WEB, "image/png"]),
        (
            {"html": HTML, "images": [LOGO], "attachments": [PDF, PDF]},
            "a@x.example",
            ["mixed", ["alternative", TEXT, ["related", WEB, "image/png"]], "application/pdf", "application/pdf"],
        ),
        ({"html": HTML, "images": [LOGO]}, "a@text.example", TEXT),
        ({"html": HTML, "images": [LOGO]}, "a@html.example", ["related", WEB, "image/png"]),
        ({"html": "x", "attachments": [PDF]}, "a@text.example", ["mixed", TEXT, "application/pdf"]),
        ({"html": "x", "attachments": [PDF]}, "a@HTML.example", ["mixed", WEB, "application/pdf"]),
        ({"html": "x"}, "a@sub.text.example", ["alternative", TEXT, WEB]),
        ({"html": "x"}, "a@any.test", WEB),
    ],
)
def test_a_message_has_the_structure_that_its_parts_and_its_recipients_domain_ask_for(
    changes: dict[str, Any], address: str, expected: Any
) -> None:
    made = content(**changes)
    if made.text is not None and made.html is not None:
        formats = [Format(["text.example"], Structure.TEXT), Format(["html.example", "*.test"], Structure.HTML)]
        made = content(**changes, formats=[*formats, Format(["*.test"], Structure.TEXT)])
    message = parsed(made, address)
    assert tree(message) == expected
    assert [part["MIME-Version"] for part in message.walk()][1:] == [None] * (len(list(message.walk())) - 1)


def test_attachments_are_the_same_octets_object_in_each_message_and_each_structure() -> None:
    made = content(html="x", attachments=[PDF], formats=[Format(["text.example"], Structure.TEXT)])
    renderer = compile_content(made, delivery_id=7, verp_key=KEY).bind(["a"])
    large = [
        [segment for segment in renderer.render(address, None, ["A"], 5, 1).segments if len(segment) > 10_000]
        for address in ("a@x.example", "b@x.example", "c@text.example")
    ]
    assert large[0][0] is large[1][0] is large[2][0]


def test_an_image_is_found_by_its_content_id() -> None:
    related = parsed(content(text=None, html=HTML, images=[LOGO]))
    assert related.get_param("type") == "text/html"
    _, image = related.iter_parts()
    assert image["Content-ID"] == "<logo@shop.example>"
    assert image.get_content_disposition() == "inline"
    assert image.get_payload(decode=True) == LOGO.content


@settings(max_examples=80, deadline=None)
@given(
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn")), min_size=1, max_size=80
    ),
    st.binary(max_size=300),
)
@example('a "quoted" name; x=y.pdf', b"")
@example("=?utf-8?q?x?=.pdf", b"\r\n.\r\n")
@example("x" * 200, b".")
@example("é%27 '*'.pdf", b"--=_\r\n")
def test_any_file_comes_back_with_its_name(name: str, octets: bytes) -> None:
    name = name.replace("/", "").replace("\\", "") or "x"
    name = name if name.strip(".") else "x"
    made = content(attachments=[Attachment(name, "application/octet-stream", octets)])
    raw = b"".join(render(made))
    assert all(len(line) <= 78 or b'name="' in line for line in raw.split(b"\r\n"))
    assert b"\n." not in raw
    assert raw.isascii()
    _, file = parsed(made).iter_parts()
    assert file.get_payload(decode=True) == octets
    # Not get_filename(), which takes "<>" off a name that begins and ends so.
    assert file["Content-Disposition"].params["filename"] == name
    assert file.get_content_disposition() == "attachment"
    # Readers that look for it there decode it so, whatever RFC 2047 §5 says.
    old = email.message_from_bytes(raw).get_payload()[1].get_param("name")
    assert str(make_header(decode_header(old))) == name


@pytest.mark.parametrize("length", [40, 78])
def test_a_plain_name_is_not_cut(length: int) -> None:
    name = "Terms and conditions of sale, valid from the first of January two thousand and.pdf"[-length:]
    raw = b"".join(render(content(attachments=[Attachment(name, "application/pdf", b"")]))).decode()
    assert f'Content-Type: application/pdf;\r\n name="{name}"\r\n' in raw
    assert f'Content-Disposition: attachment;\r\n filename="{name}"\r\n' in raw


def test_amp_and_an_invitation_are_alternatives_in_their_order() -> None:
    made = content(html=HTML, images=[LOGO], amp=AMP, calendar=INVITATION, attachments=[PDF])
    related = ["related", WEB, "image/png"]
    assert tree(parsed(made)) == [
        "mixed",
        ["alternative", TEXT, "text/x-amp-html", related, "text/calendar"],
        "application/pdf",
    ]
    _, amp, _, calendar = next(iter(parsed(made).iter_parts())).iter_parts()  # type: ignore[attr-defined]
    assert amp.get_content() == AMP.replace("{{a}}", "Ann") + "\r\n"
    assert (calendar.get_param("method"), calendar.get_param("charset")) == ("REQUEST", "utf-8")
    assert calendar.get_payload(decode=True) == INVITATION.replace("\n", "\r\n").encode()


@pytest.mark.parametrize("structure", [Structure.HTML, Structure.TEXT])
def test_a_format_of_one_kind_has_neither_amp_nor_an_invitation(structure: Structure) -> None:
    formats = [Format(["example.com"], structure)]
    made = content(html="x", amp=AMP, calendar=INVITATION, formats=formats)
    assert tree(parsed(made)) == (WEB if structure is Structure.HTML else TEXT)


def test_a_value_in_amp_is_escaped() -> None:
    renderer = compile_content(content(html="x", amp=AMP), delivery_id=7, verp_key=KEY).bind(["a"])
    raw = b"".join(renderer.render("ann@example.com", None, ["<script>"], 5, 1_700_000_000).segments)
    amp = list(email.message_from_bytes(raw, policy=email.policy.default).iter_parts())[1]  # type: ignore[attr-defined]
    assert "&lt;script&gt;" in amp.get_content()


def test_parameters_of_a_media_type_are_kept() -> None:
    made = content(attachments=[Attachment("a.ics", 'text/calendar; method=REQUEST; charset="utf-8"', b"BEGIN")])
    _, file = parsed(made).iter_parts()
    assert (file.get_param("method"), file.get_param("charset")) == ("REQUEST", "utf-8")


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"attachments": [PDF] * 21}, "content.attachments", "are 21, 20 are allowed"),
        ({"attachments": [Attachment("", "a/b", b"")]}, "content.attachments[0].name", "0 characters"),
        ({"attachments": [PDF, Attachment("../x", "a/b", b"")]}, "content.attachments[1].name", "no file name"),
        ({"attachments": [Attachment("a\r\nX: y", "a/b", b"")]}, "content.attachments[0].name", "no file name"),
        ({"attachments": [Attachment("..", "a/b", b"")]}, "content.attachments[0].name", "no file name"),
        ({"attachments": [Attachment("a", "pdf", b"")]}, "content.attachments[0].media_type", "no media type"),
        ({"attachments": [Attachment("a", "a/b\r\nX: y", b"")]}, "content.attachments[0].media_type", "no media type"),
        ({"attachments": [Attachment("a", "a/b; x=(", b"")]}, "content.attachments[0].media_type", "no media type"),
        ({"attachments": [Attachment("a", "message/rfc822", b"")]}, "content.attachments[0].media_type", "attached"),
        ({"images": [LOGO]}, "content.images", "no html that could show them"),
        ({"amp": AMP}, "content.amp", "no html for readers that show no AMP"),
        ({"html": HTML, "amp": HTML}, "content.amp", "is no AMP for Email"),
        ({"html": HTML, "amp": AMP + "{{b"}, "content.amp", "not closed"),
        ({"calendar": "Monday"}, "content.calendar", "is no iCalendar object"),
        ({"calendar": INVITATION.replace("METHOD:REQUEST\n", "")}, "content.calendar", "has 0 lines METHOD"),
        ({"calendar": INVITATION + "\0"}, "content.calendar", "NUL is not allowed"),
        (
            {"html": HTML, "images": [LOGO, LOGO]},
            "content.images[1].cid",
            "is there twice",
        ),
        ({"html": "x", "images": [InlineImage("logo", "image/png", b"")]}, "content.images[0].cid", "name@your.domain"),
        (
            {"html": "x", "images": [InlineImage("a@b>\r\n", "image/png", b"")]},
            "content.images[0].cid",
            "name@your.domain",
        ),
        (
            {"html": "x", "images": [InlineImage("a@b", "text/html", b"")]},
            "content.images[0].media_type",
            "is no image",
        ),
        ({"html": "<img src='cid:lgo@shop.example'>", "images": [LOGO]}, "content.html", "cid:lgo@shop.example, which"),
        ({"html": "<p style='background: url(cid:x@y)'>"}, "content.html", "is not there: none"),
        ({"attachments": [Attachment("a", "a/b", bytes(ATTACHED_BYTES_MAX + 1))]}, "content", "are allowed"),
    ],
)
def test_what_cannot_go_along_is_refused_with_its_place(changes: dict[str, Any], where: str, what: str) -> None:
    error = refusal(content(**changes))
    assert error.where == where
    assert what in error.what


def test_an_image_named_by_a_merge_field_or_in_plain_words_is_left_alone() -> None:
    check_content(content(html='<img src="cid:{{a}}"> <img src="cid:x{{a}}@y"> acid:rain cid:rain'), None)


def test_json_has_files_in_base64_and_a_bad_one_is_refused_with_its_place() -> None:
    written = {
        "sender": "news@shop.example",
        "subject": "x",
        "text": "y",
        "attachments": [{"name": "a.txt", "media_type": "text/plain", "content": "SGk="}],
        "formats": [{"domains": ["*.example"], "structure": "text"}],
    }
    loaded = load_content(json.dumps(written).encode(), "delivery.json")
    assert loaded.attachments == [Attachment("a.txt", "text/plain", b"Hi")]
    assert loaded.formats == [Format(["*.example"], Structure.TEXT)]
    for key, item, where in (
        ("attachments", {"name": "a", "media_type": "a/b", "content": "no base64!"}, "attachments[0].content"),
        ("attachments", {"name": "a", "media_type": "a/b", "content": "", "size": 1}, "attachments[0]"),
        ("formats", {"domains": ["a"], "structure": "pdf"}, "formats[0].structure"),
        ("formats", {"domains": "a", "structure": "text"}, "formats[0].domains"),
    ):
        with pytest.raises(BadInput) as refused:
            load_content(json.dumps({**written, key: [item]}).encode(), "delivery.json")
        assert refused.value.where == f"delivery.json.{where}"


def test_texts_keep_their_own_bound_beside_files() -> None:
    made = content(text="x" * (TEMPLATE_BYTES_MAX + 1), attachments=[PDF])
    assert f"{TEMPLATE_BYTES_MAX} are allowed" in refusal(made).what


def test_no_value_can_stand_for_a_boundary() -> None:
    made = content(html=HTML, images=[LOGO], attachments=[PDF])
    boundaries = [part.get_boundary() for part in parsed(made).walk() if part.is_multipart()]
    assert len(set(boundaries)) == 3
    assert not any(one != other and str(one).startswith(str(other)) for one in boundaries for other in boundaries)
    renderer = compile_content(made, delivery_id=7, verp_key=KEY).bind(["a"])
    for boundary in boundaries:
        raw = b"".join(renderer.render("a@x.example", None, [f"--{boundary}--"], 5, 1).segments)
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert tree(message) == ["mixed", ["alternative", TEXT, ["related", WEB, "image/png"]], "application/pdf"]
        assert f"--{boundary}--" in str(next(iter(message.walk())).get_body(("plain",)).get_content())  # type: ignore[attr-defined]
