from __future__ import annotations

import json
from typing import Any

import pytest

from mta.message import Content, check_content, load_content
from mta.model.errors import BadInput
from mta.model.limits import CONTENT_BYTES_MAX


def content(**changes: Any) -> Content:
    return Content(**{"sender": '"Shop" <news@shop.example>', "subject": "Hello", "text": "Hi", **changes})


def refusal(made: Content, known: list[str] | None = None) -> BadInput:
    with pytest.raises(BadInput) as refused:
        check_content(made, known)
    return refused.value


def test_fields_used_anywhere_are_named_and_built_in_ones_left_out() -> None:
    made = content(
        subject="{{subject}} {{reference}}",
        text="{{ text }} {{address}}",
        html="{{html|raw}} {{delivery}}",
        to_name="{{to}}",
        headers={"X-Note": "{{note|url}} {{message_id}}"},
    )
    assert check_content(made, None) == {"subject", "text", "html", "to", "note"}


def test_an_unknown_field_is_named_with_its_place() -> None:
    error = refusal(content(html="{{name}} {{nmae}}"), ["name", "city"])
    assert error.where == "content.html"
    assert "the field nmae is not known (known: city, name; built in: address" in error.what
    assert refusal(content(headers={"X-A": "{{q}}"}), []).where == "content.headers.X-A"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("Hello {{name", "line 1, column 7: {{ is not closed"),
        ("{{a {{b}}", "line 1, column 1: {{ is not closed"),
        ("{{}}", "is no field name"),
        ("{{7*7}}", "'7*7' is no field name"),
        ("{{name.__class__}}", "is no field name"),
        ("{{name()}}", "is no field name"),
        ("{{#each x}}", "is no field name"),
        ("{{{name}}}", "is no field name"),
        ("{{prénom}}", "is no field name"),
        ("{{name|}}", "unknown filter ''"),
        ("{{name|upper}}", "unknown filter 'upper', allowed: url, raw"),
        ("{{name|url|raw}}", "unknown filter"),
        ("{{name|raw}}", "for the HTML part only"),
        ("{{" + "n" * 65 + "}}", "is no field name"),
        ("{{" + "n" * 10_000 + "}}", "is not closed"),
    ],
)
def test_what_is_no_merge_field_is_refused_in_each_text(template: str, what: str) -> None:
    for changes in ({"subject": template[:3000]}, {"text": template}, {"headers": {"X-A": template[:3000]}}):
        error = refusal(content(**changes))
        assert what in error.what
        assert error.where == f"content.{next(iter(changes))}" + (".X-A" if "headers" in changes else "")


def test_positions_count_lines_and_columns() -> None:
    for end in ("\n", "\r\n"):
        assert "line 3, column 4:" in refusal(content(text=f"one{end}two{end}abc{{{{x y}}}}")).what


def test_braces_that_are_no_field_can_be_written() -> None:
    assert check_content(content(text=r"\{{name}} {{a}} } }} { \{{", html="a{b:c}}"), None) == {"a"}


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\0", "\x0b", "\x7f", "\t", "\ud800"])
def test_control_characters_are_refused_in_what_becomes_a_header(character: str) -> None:
    text = f"Hello{character}Bcc: eve@example.com"
    for name, changes in {
        "content.subject": {"subject": text},
        "content.to_name": {"to_name": text},
        "content.headers.X-A": {"headers": {"X-A": text}},
        "content.sender": {"sender": f'"{text}" <news@shop.example>'},
        "content.reply_to": {"reply_to": f'"{text}" <news@shop.example>'},
    }.items():
        error = refusal(content(**changes))
        assert error.where == name
        assert "is not allowed here" in error.what


def test_bodies_may_have_lines_and_tabs_and_no_other_control_characters() -> None:
    check_content(content(text="a\tb\nc\r\nd\re"), None)
    assert "line 2, column 2: NUL is not allowed here" in refusal(content(text="a\nb\0")).what
    assert "half of a surrogate pair U+DC00" in refusal(content(html="\udc00")).what


@pytest.mark.parametrize(
    "name",
    [
        *("Bcc", "cc", "DKIM-Signature", "Return-Path", "DATE", "Message-ID", "From", "To", "Subject", "Sender"),
        *("Reply-To", "MIME-Version", "Content-Type", "Received", "ARC-Seal", "Resent-To"),
    ],
)
def test_headers_that_are_not_the_contents_own_are_refused(name: str) -> None:
    error = refusal(content(headers={name: "x"}))
    assert error.where == f"content.headers.{name}"
    assert error.what == "cannot be set here"


@pytest.mark.parametrize("name", ["", "X A", "X:A", "X\r\nBcc", "Ünder", "X" * 51, "1st"])
def test_what_is_no_header_name_is_refused(name: str) -> None:
    assert "is no header name" in refusal(content(headers={name: "x"})).what


def test_a_header_twice_is_refused_whatever_its_case() -> None:
    assert "is there twice" in refusal(content(headers={"X-Tag": "a", "x-tag": "b"})).what


def test_a_structured_header_takes_ascii_only() -> None:
    assert refusal(content(headers={"List-Id": "Größe <a.example>"})).where == "content.headers.List-Id"
    assert "cannot be folded" in refusal(content(headers={"List-Unsubscribe": f"<https://{'x' * 1000}>"})).what
    check_content(content(headers={"List-Unsubscribe": "<https://shop.example/u/{{reference|url}}>"}), [])


@pytest.mark.parametrize(
    ("sender", "what"),
    [
        ("Shop", "has no @"),
        ("Shop <news@shop.example", "has no @|in its|IDNA|character"),
        ("news@shop.example>", "a > without a <"),
        ("Shop, Inc <news@shop.example>", "put the name in quotes"),
        ("eve@example.com, Shop <news@shop.example>", "put the name in quotes"),
        ('"Sh"op" <news@shop.example>', "not escaped"),
        ("jörg@shop.example", "needs SMTPUTF8"),
        (f'"{"x" * 1001}" <news@shop.example>', "1001 characters"),
    ],
)
def test_a_sender_that_is_no_mailbox_is_refused(sender: str, what: str) -> None:
    error = refusal(content(sender=sender))
    assert error.where == "content.sender"
    assert any(part in error.what for part in what.split("|"))


def test_the_return_path_domain_must_leave_room_for_its_local_part() -> None:
    check_content(content(return_path_domain="bounces.shop.example"), None)
    assert refusal(content(return_path_domain="a b")).where == "content.return_path_domain"
    assert refusal(content(return_path_domain="abcdefgh." * 25 + "example")).where == "content.return_path_domain"


def test_a_content_has_a_body_and_bounds() -> None:
    assert refusal(content(text=None)).what == "has neither text nor html"
    assert "bytes" in refusal(content(html="x" * (5 * 1024 * 1024))).what
    assert "5001 times" in refusal(content(text="{{a}}" * 5001)).what
    assert "201 different" in refusal(content(text="".join(f"{{{{f{i}}}}}" for i in range(201)))).what
    assert "51 headers" in refusal(content(headers={f"X-{i}": "" for i in range(51)})).what
    assert refusal(content(subject="x" * 5000)).where == "content.subject"


def test_json_loads_as_written() -> None:
    written = {"sender": "news@shop.example", "subject": "Hi", "html": "<p>", "headers": {"X-A": "b"}}
    loaded = load_content(json.dumps(written).encode(), "delivery.json")
    assert loaded == Content(sender="news@shop.example", subject="Hi", html="<p>", headers={"X-A": "b"})


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (b"{", "delivery.json", "is not JSON"),
        (b"\xff", "delivery.json", "is not JSON"),
        (b"[]", "delivery.json", "Expected `object`"),
        (b"{}", "delivery.json", "missing required field `sender`"),
        (b'{"sender":"a@b.c","subject":1}', "delivery.json.subject", "Expected `str`, got `int`"),
        (b'{"sender":"a@b.c","subject":"x","txt":"y"}', "delivery.json", "unknown field `txt`"),
        (b'{"sender":"a@b.c","subject":"x","text":"y","subject":"z"}', "delivery.json", "'subject' twice"),
        (b'{"sender":"a@b.c","subject":"x","text":"y","headers":{"X":"1","X":"2"}}', "delivery.json", "'X' twice"),
        (b'{"sender":"a@b.c","subject":"x\\r\\n","text":"y"}', "delivery.json.subject", "a carriage return"),
        (b'{"sender":"a@b.c","subject":"x","headers":' + b"[" * 100_000, "delivery.json.headers", "Expected `object`"),
        (b" " * (CONTENT_BYTES_MAX + 1), "delivery.json", "bytes"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_its_place(text: bytes, where: str, what: str) -> None:
    with pytest.raises(BadInput) as refused:
        load_content(text, "delivery.json")
    assert refused.value.where == where
    assert what in refused.value.what
