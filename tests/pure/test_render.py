from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
from email.message import EmailMessage
from typing import Any

import pytest

from mta.message import Content, Rendered, RenderError, compile_content, parse_verp
from mta.message.verp import base36
from mta.model.errors import BadInput

KEY = b"an example of a key, 32 octets.."
SENT_AT_UNIX_S = 1_700_000_000
NUMBER = (5 << 16) | 3


def render(
    fields: dict[str, str] | None = None,
    *,
    address: str = "ann@example.com",
    reference: str | None = None,
    **changes: Any,
) -> Rendered:
    """The message of a content with ``changes``, for one recipient with ``fields``."""
    content = Content(**{"sender": '"Shop" <news@shop.example>', "subject": "Hello", "text": "Hi", **changes})
    fields = fields or {}
    renderer = compile_content(content, delivery_id=77, verp_key=KEY).bind(list(fields))
    return renderer.render(address, reference, list(fields.values()), NUMBER, SENT_AT_UNIX_S)


def raw(rendered: Rendered) -> bytes:
    return b"".join(rendered.segments)


def parsed(rendered: Rendered) -> EmailMessage:
    message = email.message_from_bytes(raw(rendered), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(rendered: Rendered) -> str:
    return str(parsed(rendered).get_payload(decode=True).decode())  # type: ignore[union-attr]


def header_of(rendered: Rendered, name: bytes) -> bytes:
    """The lines of a header as sent, without its name."""
    head = raw(rendered).partition(b"\r\n\r\n")[0] + b"\r\n"
    start = (b"\r\n" + head).index(b"\r\n" + name + b":")
    end = start
    while True:
        end = head.index(b"\r\n", end) + 2
        if head[end : end + 1] not in (b" ", b"\t"):
            return head[start + len(name) + 1 : end - 2].removeprefix(b" ")


def test_a_plain_message_is_this_to_the_octet() -> None:
    rendered = render(
        {"name": "Ann"}, text="Dear {{name}},\n.dot\n", headers={"X-Tag": "{{name}}"}, reply_to="a@b.example"
    )
    assert raw(rendered) == (
        b"Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n"
        b"From: Shop <news@shop.example>\r\n"
        b"To: ann@example.com\r\n"
        b"Reply-To: a@b.example\r\n"
        b"Subject: Hello\r\n"
        b"Message-ID: <70ub.25@shop.example>\r\n"
        b"X-Tag: Ann\r\n"
        b"MIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\n'
        b"Content-Transfer-Encoding: quoted-printable\r\n"
        b"\r\n"
        b"Dear=20Ann,\r\n"
        b"=2Edot\r\n"
    )
    assert rendered.size_bytes == len(raw(rendered))
    assert rendered.return_path == b"b-70ub-" + hmac_of("70ub") + b"@shop.example"
    assert not rendered.needs_smtputf8
    assert len(rendered.segments) == 1


def hmac_of(number36: str) -> bytes:
    return hmac.new(KEY, number36.encode(), hashlib.sha256).hexdigest()[:16].encode()


def test_short_ascii_bodies_without_fields_go_as_7bit() -> None:
    assert b"7bit\r\n\r\nHi = there\r\n" in raw(render(text="Hi = there"))
    for text in ("x" * 79, ".x", "é", "x "):
        assert b"quoted-printable" in raw(render(text=text))


def test_text_and_html_are_alternatives_in_that_order() -> None:
    message = parsed(render({"n": "<b>"}, text="{{n}}", html="{{n}} {{n|raw}} {{n|url}}"))
    assert message.get_content_type() == "multipart/alternative"
    text, html = message.iter_parts()
    assert text.get_payload(decode=True) == b"<b>\r\n"
    assert html.get_payload(decode=True) == b"&lt;b&gt; <b> %3Cb%3E\r\n"
    assert [part["MIME-Version"] for part in (message, text, html)] == ["1.0", None, None]
    assert parsed(render(text=None, html="<p>")).get_content_type() == "text/html"


@pytest.mark.parametrize(
    ("text", "merged", "sent"),
    [
        ("From us\r\nFrom: x\r\nFromage", "", b"=46rom us\r\nFrom: x\r\nFromage\r\n"),
        ("a\nFrom {{a}}", "Rome", b"a\r\nFrom=20Rome\r\n"),
        ("{{a}}", "From Rome", b"=46rom Rome\r\n"),
        ("{{a}} here", "From", b"=46rom here\r\n"),
        ("Fr{{a}}om here", "", b"=46rom here\r\n"),
        ("Fr{{a}}om here", "anz", b"=46ranzom here\r\n"),
        ("{{a}}From here", "", b"=46rom here\r\n"),
        ("{{a}}", "Frida", b"Frida\r\n"),
        ("x" * 75 + "From here", "", b"x" * 75 + b"=\r\n=46rom here\r\n"),
    ],
)
def test_no_line_begins_as_one_that_parts_messages_in_an_mbox_file(text: str, merged: str, sent: bytes) -> None:
    rendered = render({"a": merged}, text=text)
    assert raw(rendered).partition(b"\r\n\r\n")[2] == sent
    assert text_of(rendered).rstrip("\r\n") == text.replace("{{a}}", merged).replace("\r\n", "\n").replace("\n", "\r\n")


def test_values_in_html_are_escaped_also_in_attributes() -> None:
    rendered = render({"n": """'"><script>alert(1)</script>&"""}, text=None, html="<a title='{{n}}'>")
    assert text_of(rendered) == ("<a title='&#x27;&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;'>\r\n")


@pytest.mark.parametrize(
    "value", ["{{name}}", "{{address}}", "{{7*7}}", "{% for i in range(10**9) %}", r"\{{", "%s", "\\1"]
)
def test_a_value_is_never_a_template(value: str) -> None:
    rendered = render({"name": value}, subject="{{name}}", text="{{name}} {{name}}", to_name="{{name}}")
    assert text_of(rendered) == f"{value} {value}\r\n"
    assert parsed(rendered)["Subject"] == value
    assert parsed(rendered)["To"].addresses[0].display_name == value


def test_built_in_fields_are_the_recipients_own_and_hide_columns_of_their_name() -> None:
    rendered = render(
        {"address": "x", "reference": "y"},
        reference="r/1",
        subject="{{delivery}}",
        text="{{address}} {{reference}} {{reference|url}} {{delivery}} {{message_id}}",
    )
    assert text_of(rendered) == "ann@example.com r/1 r%2F1 77 70ub.25@shop.example\r\n"
    assert parsed(rendered)["Subject"] == "77"
    assert text_of(render(text="[{{reference}}]")) == "[]\r\n"


@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\t", "\x1b", "\x7f", "\ud800"])
@pytest.mark.parametrize(
    "content",
    [
        {"text": "{{a}} {{name}}"},
        {"text": None, "html": "{{a}} {{name}}"},
        {"text": "{{a}} {{name|url}}"},
        {"subject": "{{a}} {{name}}"},
        {"subject": "{{a}} {{name|url}}"},
        {"to_name": "{{a}} {{name}}"},
        {"headers": {"X-A": "{{a}} {{name}}"}},
        {"headers": {"List-Id": "{{a}} {{name}}"}},
    ],
)
def test_a_value_with_a_control_character_fails_its_recipient_by_name(character: str, content: dict[str, Any]) -> None:
    with pytest.raises(RenderError) as refused:
        render({"a": "fine", "name": f"Ann{character}Bcc: eve@example.com"}, **content)
    assert refused.value.field == "name"


def test_a_failed_recipient_leaves_the_next_ones_message_as_it_is() -> None:
    content = Content(sender="news@shop.example", subject="{{name}}", text="{{name}}")
    renderer = compile_content(content, delivery_id=77, verp_key=KEY).bind(["name"])
    before = renderer.render("ann@example.com", None, ["Ann"], NUMBER, SENT_AT_UNIX_S)
    with pytest.raises(RenderError):
        renderer.render("bob@example.com", None, ["\n"], 9, 9)
    assert renderer.render("ann@example.com", None, ["Ann"], NUMBER, SENT_AT_UNIX_S) == before


@pytest.mark.parametrize(
    "address",
    ["", "ann", "ann@example.com\r\nBcc: eve@x.example", "a b@x.example", "ann@bücher.example", "a@b.example>"],
)
def test_an_address_that_is_no_canonical_mailbox_fails_its_recipient(address: str) -> None:
    with pytest.raises(RenderError) as refused:
        render(address=address)
    assert refused.value.field == "address"


def test_values_must_match_the_fields_bound() -> None:
    content = Content(sender="news@shop.example", subject="{{b}}", text="x")
    template = compile_content(content, delivery_id=77, verp_key=KEY)
    with pytest.raises(RenderError, match="b: the content uses it"):
        template.bind(["a"])
    renderer = template.bind(["a", "b"])
    assert b"Subject: 2\r\n" in raw(renderer.render("ann@example.com", None, ["1", "2"], 1, 1))
    with pytest.raises(RenderError, match="values: there are 1, for 2 fields"):
        renderer.render("ann@example.com", None, ["1"], 1, 1)


def test_a_local_part_beyond_ascii_stands_raw_in_to_and_asks_for_smtputf8() -> None:
    rendered = render({"n": "Jörg"}, address="jörg@example.com", to_name="{{n}}", text="{{address}}")
    assert rendered.needs_smtputf8
    assert header_of(rendered, b"To") == b"=?utf-8?b?SsO2cmc=?= <j\xc3\xb6rg@example.com>"
    assert text_of(rendered) == "jörg@example.com\r\n"
    assert rendered.size_bytes == len(raw(rendered))


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("Ann Lee", b"Ann Lee <ann@example.com>"),
        ("Ann B. Lee", b'"Ann B. Lee" <ann@example.com>'),
        ('Ann "A" Lee\\', b'"Ann \\"A\\" Lee\\\\" <ann@example.com>'),
        ("eve@example.com", b'"eve@example.com" <ann@example.com>'),
        ("<eve@example.com>,", b'"<eve@example.com>," <ann@example.com>'),
        ("", b"ann@example.com"),
        ("  Ann   Lee ", b"Ann Lee <ann@example.com>"),
        ("Müller", b"=?utf-8?b?TcO8bGxlcg==?= <ann@example.com>"),
        ("=?utf-8?q?x?=", b"=?utf-8?b?PT91dGYtOD9xP3g/PQ==?= <ann@example.com>"),
        ("x" * 60, b"x" * 60 + b"\r\n <ann@example.com>"),
        ("日本" * 20, b"=?utf-8?b?" + b"5pel5pys" * 7 + b"5pel?=\r\n =?utf-8?b?5pys"),
    ],
)
def test_a_display_name_is_sent_as_atoms_quoted_or_encoded(name: str, sent: bytes) -> None:
    assert header_of(render({"n": name}, to_name="{{n}}"), b"To").startswith(sent)


def test_long_headers_fold_at_spaces_and_long_words_are_encoded() -> None:
    subject = "word " * 40 + "end"
    rendered = render({"s": subject}, subject="{{s}}")
    lines = header_of(rendered, b"Subject").split(b"\r\n")
    assert max(map(len, lines)) <= 78
    assert b"".join(lines).decode() == subject
    rendered = render({"s": "x" * 2000}, subject="{{s}}")
    assert max(map(len, header_of(rendered, b"Subject").split(b"\r\n"))) <= 76
    with pytest.raises(RenderError, match=r"headers\.Subject"):
        render({"s": "x" * 17_000}, subject="{{s}}")
    with pytest.raises(RenderError, match=r"headers\.Subject: has \d+ octets"):
        render({"s": "é" * 8_000}, subject="{{s}}")


def test_structured_headers_keep_their_items_apart() -> None:
    headers = {"List-Unsubscribe": "<https://shop.example/u/{{id|url}}>, <{{link}}>"}
    rendered = render({"id": "a>,<b", "link": "https://shop.example/x?a=1,2"}, headers=headers)
    assert header_of(rendered, b"List-Unsubscribe") == (
        b"<https://shop.example/u/a%3e%2c%3cb>,\r\n <https://shop.example/x?a=1,2>"
    )
    for link in ("https://x.example>,<https://eve.example", "https://é.example", '"'):
        with pytest.raises(RenderError) as refused:
            render({"id": "a", "link": link}, headers=headers)
        assert refused.value.field == "link"
    with pytest.raises(RenderError, match="cannot be folded"):
        render({"id": "a", "link": "x" * 1000}, headers=headers)


def test_lone_line_ends_of_a_template_become_crlf_before_anything_else() -> None:
    rendered = render({"a": ""}, text="one\r.\r\n{{a}}.\n\n.\nend {{a}}")
    assert text_of(rendered) == "one\r\n.\r\n.\r\n\r\n.\r\nend \r\n"
    assert b"\n." not in raw(rendered)
    assert raw(rendered).endswith(b"end=20\r\n")


def test_a_long_value_is_wrapped_and_the_text_around_it_kept() -> None:
    value = "." * 500
    rendered = render({"v": value}, text="before {{v}}.after {{v}}{{v}}\n")
    assert text_of(rendered) == f"before {value}.after {value}{value}\r\n"
    assert max(map(len, raw(rendered).split(b"\r\n"))) <= 76
    assert b"\n." not in raw(rendered)


def test_large_static_text_is_shared_between_messages_and_small_pieces_are_joined() -> None:
    block = "static text of a newsletter\n" * 400
    content = Content(sender="news@shop.example", subject="{{a}}", text=f"{{{{a}}}}\n{block}{{{{b}}}} {{{{a}}}}\n")
    renderer = compile_content(content, delivery_id=77, verp_key=KEY).bind(["a", "b"])
    one = renderer.render("ann@example.com", None, ["1", "2"], 1, SENT_AT_UNIX_S)
    two = renderer.render("bob@example.com", None, ["3", "é"], 2, SENT_AT_UNIX_S)
    assert len(one.segments) == len(two.segments) == 3
    assert one.segments[1] is two.segments[1]
    assert len(one.segments[1]) > 10_000
    assert text_of(two).endswith("\r\né 3\r\n")


def test_values_used_too_often_fail_their_recipient_not_the_memory() -> None:
    content = Content(sender="news@shop.example", subject="x", text="{{a}}" * 5000)
    renderer = compile_content(content, delivery_id=77, verp_key=KEY).bind(["a"])
    with pytest.raises(RenderError, match="values: put more than"):
        renderer.render("ann@example.com", None, ["x" * 65_536], 1, 1)


def test_message_id_and_date_follow_from_number_delivery_and_time() -> None:
    content = Content(sender="news@shop.example", subject="x", text="x", return_path_domain="Bounces.Bücher.example")
    renderer = compile_content(content, delivery_id=36**2, verp_key=KEY).bind([])
    rendered = renderer.render("ann@example.com", None, [], 35, 0)
    assert header_of(rendered, b"Message-ID") == b"<z.100@bounces.xn--bcher-kva.example>"
    assert header_of(rendered, b"Date") == b"Thu, 01 Jan 1970 00:00:00 +0000"
    assert rendered.return_path.endswith(b"@bounces.xn--bcher-kva.example")
    assert header_of(renderer.render("ann@example.com", None, [], 35, 1), b"Date").endswith(b":01 +0000")


def test_another_content_has_another_boundary_and_the_same_the_same() -> None:
    boundaries = [parsed(render(text=text, html="<p>")).get_boundary() for text in ("a", "a", "b")]
    assert boundaries[0] == boundaries[1] != boundaries[2]
    assert str(boundaries[0]).startswith("=_")


def test_a_stored_content_that_passed_no_checks_is_refused_when_compiled() -> None:
    content = Content(sender="news@shop.example", subject="Hello\r\nBcc: eve@example.com", text="x")
    with pytest.raises(BadInput, match=r"content\.subject"):
        compile_content(content, delivery_id=1, verp_key=KEY)


@pytest.mark.parametrize("number", [0, 35, 36, 1295, 1296, NUMBER, 36**7 - 1, 36**7, (1 << 63) - 1])
def test_a_return_path_gives_its_number_back_whatever_its_case(number: int) -> None:
    content = Content(sender="news@shop.example", subject="x", text="x")
    rendered = compile_content(content, delivery_id=1, verp_key=KEY).bind([]).render("a@b.example", None, [], number, 0)
    local = rendered.return_path.decode().partition("@")[0]
    assert len(local) <= 64
    assert int(base36(number), 36) == number
    assert parse_verp(local, KEY) == number
    assert parse_verp(local.upper(), KEY) == number


def test_a_return_path_that_is_not_ours_gives_nothing() -> None:
    good = f"b-70ub-{hmac_of('70ub').decode()}"
    assert parse_verp(good, KEY) == NUMBER
    for local in (
        "",
        "ann",
        good + "0",
        good[:-1],
        "b-70uc" + good[6:],
        "b-070ub" + good[6:],
        "c" + good[1:],
        f" {good}",
    ):
        assert parse_verp(local, KEY) is None
    assert parse_verp(good[:-1] + ("0" if good[-1] != "0" else "1"), KEY) is None
    assert parse_verp(good, KEY[::-1]) is None
    too_large = "z" * 13
    assert parse_verp(f"b-{too_large}-{hmac_of(too_large).decode()}", KEY) is None
