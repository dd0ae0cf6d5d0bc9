"""Any values in any template: what a reader's software gets back is what was meant, and nothing else."""

from __future__ import annotations

import email
import email.header
import email.message
import email.policy
import html
import re
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.message import Content, RenderError, compile_content

KEY = bytes(range(32))
FIELDS = ["a", "b", "c"]
SENT_AT_UNIX_S = 1_700_000_000

# What a value may hold: no C0 controls, no DEL, no lone surrogates.
value_characters = st.characters(blacklist_categories=("Cs",), blacklist_characters=[*map(chr, range(32)), "\x7f"])
awkward = st.sampled_from(
    [
        "",
        ".",
        "..",
        " ",
        "=",
        "=\u00a0",
        "=20",
        "=?utf-8?q?=0D=0ABcc:_x@example.com?=",
        "{{a}}",
        "{{",
        "\\{{b}}",
        '"',
        "<script>",
        "&amp;",
        "'",
        "x" * 40,
        "x" * 41,
        "." * 200,
        "=" * 90,
        "é" * 60,
        "word " * 40,
        "\u2028",
        "\x85",
        "\U0001f600",
        "%s%(a)s{0}",
        *("F", "Fro", "From", "rom ", "From ", "From x", "From " * 20),
    ]
)
values = st.lists(
    st.one_of(
        awkward,
        st.text(value_characters, max_size=20),
        st.text(alphabet='.= aé"<', max_size=120),
        st.text(alphabet="From ", max_size=6),
        st.lists(awkward, max_size=4).map("".join),
    ),
    min_size=3,
    max_size=3,
)

# Static text has no braces and no backslash here: those are the language's own, tested by example.
static_body = st.text(
    st.one_of(
        st.sampled_from(list("\n\n. =ab\t")),
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="{}\\"),
    ),
    max_size=60,
) | st.sampled_from(
    [
        ".",
        "\n.\n",
        " ",
        " \n",
        "x" * 74,
        "y" * 76 + ".",
        "=" * 40,
        "\r\r\n.\r",
        "ab." * 30,
        "x" * 75 + "From ",
        "From " * 40,
    ]
)
static_body |= st.lists(st.sampled_from(["\n", "F", "rom", " ", "From ", "From", "x" * 75]), max_size=8).map("".join)
static_header = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="{}\\"), max_size=30
) | st.sampled_from(["Hello", " ", "  ", "=?", "?=", "word " * 20, "é", "x" * 80])


def template_of(static: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    piece = st.one_of(st.tuples(st.just(""), static), st.tuples(st.sampled_from(FIELDS), st.sampled_from(["", "|url"])))
    return st.lists(piece, max_size=6)


def written(template: list[tuple[str, str]]) -> str:
    return "".join(text if not name else f"{{{{{name}{text}}}}}" for name, text in template)


def meant(template: list[tuple[str, str]], merged: list[str]) -> str:
    """What the reader of a header shall see, made by other means than the product's: URLs with ``%ab``."""
    shown = [(name, text, shown_value(name, text, merged, is_html=False)) for name, text in template if name]
    in_header = iter([value if text != "|url" else _small_escapes(value) for _, text, value in shown])
    return "".join(text if not name else next(in_header) for name, text in template)


def _small_escapes(url: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), url)


def shown_value(name: str, chosen_filter: str, merged: list[str], is_html: bool) -> str:
    value = merged[FIELDS.index(name)]
    if chosen_filter == "|url":
        return "".join(
            char if re.fullmatch(r"[A-Za-z0-9._~-]", char) else "".join(f"%{octet:02X}" for octet in char.encode())
            for char in value
        )
    return html.escape(value) if is_html else value


def meant_body(template: list[tuple[str, str]], merged: list[str], *, is_html: bool = False) -> bytes:
    """Line ends are those of the template, made CRLF before values come in; the last line has one."""
    lines = "".join(text if not name else "\0" for name, text in template)
    lines = lines.replace("\r\n", "\n").replace("\r", "\n")
    lines = (lines if lines.endswith("\n") else lines + "\n").replace("\n", "\r\n")
    statics = lines.split("\0")
    shown = [shown_value(name, text, merged, is_html) for name, text in template if name]
    return "".join(part for pair in zip(statics, [*shown, ""], strict=True) for part in pair).encode()


def decoded(raw: bytes, name: str) -> str:
    """A header's text by the older of the standard library's decoders, which keeps all white space."""
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    unfolded = re.sub(r"\r\n(?=[ \t])", "", message[name])
    return str(email.header.make_header(email.header.decode_header(unfolded)))


def assert_transparent(raw: bytes) -> None:
    assert raw.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    assert b"\n." not in raw
    assert not raw.startswith(b".")
    assert b"\nFrom " not in raw  # a writer of mbox files puts a ">" before it
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.isascii()
    body = raw.partition(b"\r\n\r\n")[2]
    assert max(map(len, body.split(b"\r\n"))) <= 78
    assert not re.search(rb"[ \t]\r\n", body)


BASE_HEADERS = ["Date", "From", "To", "Subject", "Message-ID", "X-Note", "MIME-Version", "Content-Type"]


@settings(max_examples=250, deadline=None)
@given(
    template_of(static_header), template_of(static_header), template_of(static_body), template_of(static_body), values
)
@example([("a", "")], [("b", "")], [("", ".\n"), ("a", ""), ("", "."), ("b", "")], [("a", "")], ["", ".", ""])
@example(
    [("", "From")], [], [("a", ""), ("b", "")], [("", "F"), ("a", ""), ("", "\nFrom"), ("c", "")], ["From", " x", " "]
)
def test_any_message_reads_back_as_meant(
    subject: list[tuple[str, str]],
    note: list[tuple[str, str]],
    text: list[tuple[str, str]],
    html_body: list[tuple[str, str]],
    merged: list[str],
) -> None:
    content = Content(
        sender='"Shop" <news@shop.example>',
        subject=written(subject),
        text=written(text),
        html=written(html_body),
        headers={"X-Note": written(note)},
    )
    renderer = compile_content(content, delivery_id=7, verp_key=KEY).bind(FIELDS)
    rendered = renderer.render("ann@example.com", None, merged, 12345, SENT_AT_UNIX_S)
    raw = b"".join(rendered.segments)
    assert rendered.size_bytes == len(raw)
    assert_transparent(raw)

    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert list(message.keys()) == [*BASE_HEADERS]
    assert decoded(raw, "Subject") == meant(subject, merged)
    assert decoded(raw, "X-Note") == meant(note, merged)
    assert isinstance(message, email.message.EmailMessage)
    assert not message.defects
    parts = list(message.iter_parts())
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/html"]
    assert parts[0].get_payload(decode=True) == meant_body(text, merged)
    assert parts[1].get_payload(decode=True) == meant_body(html_body, merged, is_html=True)

    again = compile_content(content, delivery_id=7, verp_key=KEY).bind(FIELDS)
    again.render("bob@example.org", "r", ["x", "y", "z"], 1, 1)
    assert b"".join(again.render("ann@example.com", None, merged, 12345, SENT_AT_UNIX_S).segments) == raw


@settings(max_examples=150, deadline=None)
@given(
    values, st.sampled_from(["ann@example.com", "a" * 64 + "@" + ("b" * 60 + ".") * 2 + "example", '"a b"@example.com'])
)
def test_any_display_name_leaves_one_address_in_to(merged: list[str], address: str) -> None:
    merged = [value[:400] for value in merged]
    content = Content(sender="news@shop.example", subject="Hello", text="x", to_name="{{a}} {{b}}")
    renderer = compile_content(content, delivery_id=7, verp_key=KEY).bind(FIELDS)
    raw = b"".join(renderer.render(address, None, merged, 1, SENT_AT_UNIX_S).segments)
    assert_transparent(raw)
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert [str(found.addr_spec) for found in message["To"].addresses] == [address]
    assert re.search(rb"(^|[ <])" + re.escape(address.encode()) + rb">?\r\n", raw) is not None
    assert list(message.keys()).count("To") == 1
    shown = " ".join(word for word in f"{merged[0]} {merged[1]}".split(" ") if word)
    phrase = decoded(raw, "To").removesuffix(f"<{address}>" if shown else address).rstrip(" ")
    if phrase.startswith('"') and "=?" not in str(email.message_from_bytes(raw, policy=email.policy.compat32)["To"]):
        phrase = re.sub(r"\\(.)", r"\1", phrase[1:-1])
    assert phrase == shown


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["{{a}}", "{{a|url}}"]))
def test_a_value_is_refused_by_name_or_comes_back(value: str, field: str) -> None:
    content = Content(sender="news@shop.example", subject=f"S {field}", text=f"T {field}", html=f"H {field}")
    renderer = compile_content(content, delivery_id=7, verp_key=KEY).bind(["a"])
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", value) is not None:
        with pytest.raises(RenderError) as refused:
            renderer.render("ann@example.com", None, [value], 1, SENT_AT_UNIX_S)
        assert refused.value.field == "a"
        return
    rendered = renderer.render("ann@example.com", None, [value], 1, SENT_AT_UNIX_S)
    text = decoded(b"".join(rendered.segments), "Subject")
    assert (unquote(text) if "url" in field else text) == f"S {value}"
