"""Whatever is sent with signers verifies, by another's software, as it is; and not with an octet changed."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.message import Attachment, Content, InlineImage, ListUnsubscribe, Rendered, compile_content
from mta.message.formats import Format, Structure
from tests.support.keys import ed25519_signer, is_verified, records, rsa_signer

KEY = bytes(range(32))
FIELDS = ["a", "b"]
SENT_AT_UNIX_S = 1_700_000_000

pieces = st.sampled_from(
    [
        *("{{a}}", "{{b}}", "{{a|url}}", "{{address}}", "{{delivery}}"),
        *("", " ", "  ", "word", ".", "=", "é", "日本", "Größe  x", "=?utf-8?q?x?=", "x" * 90, "word " * 30),
    ]
)
line_pieces = st.one_of(pieces, st.sampled_from(["\n", "\n\n", "\n.\n", "\t", " \n", "   <td>\n", "y\t z  \n" * 500]))
header_texts = st.lists(pieces, max_size=4).map("".join)
bodies = st.lists(line_pieces, max_size=7).map("".join)
values = st.lists(
    st.one_of(
        st.sampled_from(
            ["", " ", "  ", "a  b", " x", "x ", ".", "\u00a0", "é" * 60, "word  " * 20, "=", "<b>", "x" * 80]
        ),
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12),
    ),
    min_size=2,
    max_size=2,
)
files = st.lists(
    st.builds(
        Attachment,
        st.sampled_from(["terms.pdf", "Größe und Maße 2026 — eine Übersicht, länger als eine Zeile.pdf"]),
        st.sampled_from(["application/pdf", "text/plain; charset=utf-8"]),
        st.binary(max_size=60) | st.just(bytes(7000)),
    ),
    max_size=2,
)
IMAGE = InlineImage("logo@shop.example", "image/png", b"\x89PNG", "logo.png")
optional_parts: dict[str, st.SearchStrategy[Any]] = {
    "to_name": st.none() | header_texts,
    "reply_to": st.none() | st.just('"Größe" <service@shop.example>'),
    "headers": st.fixed_dictionaries(
        {}, optional={"X-Note": header_texts, "List-Id": st.just("<{{a|url}}.shop.example>")}
    ),
    "list_unsubscribe": st.none()
    | st.just(ListUnsubscribe("https://shop.example/u/{{b|url}}", "leave@shop.example?subject={{b|url}}")),
    "attachments": files,
}
with_html = {
    "subject": header_texts,
    "text": bodies,
    "html": bodies,
    "formats": st.sampled_from([Structure.TEXT, Structure.HTML]).map(lambda other: [Format(["*.example"], other)]),
    **optional_parts,
}
with_images = {
    **with_html,
    "html": bodies.map('<img src="cid:logo@shop.example">'.__add__),
    "images": st.just([IMAGE]),
}
contents = st.one_of(
    st.fixed_dictionaries({"subject": header_texts, "text": bodies, **optional_parts}),
    st.fixed_dictionaries({"subject": header_texts, "html": bodies, **optional_parts}),
    st.fixed_dictionaries(with_html),
    st.fixed_dictionaries(with_images),
)


def rendered_with(content: dict[str, Any], merged: list[str], address: str, *, both: bool) -> Rendered:
    signers = [rsa_signer(), ed25519_signer()] if both else [ed25519_signer()]
    made = Content(sender='"Shop" <news@shop.example>', **content)
    renderer = compile_content(made, delivery_id=7, verp_key=KEY, signers=signers).bind(FIELDS)
    renderer.render("another@example.com", "r", ["p  q", ""], 5, 1)
    return renderer.render(address, None, merged, 12345, SENT_AT_UNIX_S)


def plain_body_hash(message: bytes) -> bytes:
    """RFC 6376 §3.4.4 word for word, for the whole body at once."""
    lines = message.partition(b"\r\n\r\n")[2].split(b"\r\n")
    lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return base64.b64encode(hashlib.sha256(b"".join(line + b"\r\n" for line in lines)).digest())


ADDRESSES = st.sampled_from(["ann@example.com", "ann@mx.example", "jörg@example.com", '"a  b"@example.com'])


@settings(max_examples=400, deadline=None)
@given(contents, values, ADDRESSES)
@example({"subject": "", "text": ""}, ["", ""], "ann@example.com")
@example({"subject": "", "text": "{{a}}\n{{b}}"}, ["", ""], "ann@example.com")
@example({"subject": "", "text": "x {{a}}\n\n\n"}, ["", ""], "ann@example.com")
@example({"subject": "{{a}}", "text": "{{a}}\n\n"}, [" ", ""], "ann@example.com")
@example({"subject": "{{a}}", "text": " {{a}} {{b}}  x"}, ["  ", "  y"], "ann@example.com")
def test_both_signatures_of_any_message_verify(content: dict[str, Any], merged: list[str], address: str) -> None:
    signed = b"".join(rendered_with(content, merged, address, both=True).segments)
    keys = records(rsa_signer(), ed25519_signer())
    assert is_verified(signed, keys, 0)
    assert is_verified(signed, keys, 1)
    hashes = re.findall(rb"\r\n bh=([^;]+);", signed)
    assert hashes == [plain_body_hash(signed)] * 2


@settings(max_examples=200, deadline=None)
@given(contents, values, ADDRESSES)
def test_a_signature_comes_first_and_changes_nothing_behind_it(
    content: dict[str, Any], merged: list[str], address: str
) -> None:
    signed = rendered_with(content, merged, address, both=False)
    raw = b"".join(signed.segments)
    assert signed.size_bytes == len(raw)
    head, date, rest = raw.partition(b"Date: ")
    made = Content(sender='"Shop" <news@shop.example>', **content)
    unsigned = compile_content(made, delivery_id=7, verp_key=KEY).bind(FIELDS)
    assert date + rest == b"".join(unsigned.render(address, None, merged, 12345, SENT_AT_UNIX_S).segments)
    assert head.startswith(b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n d=mail.shop.example;")
    assert f" t={SENT_AT_UNIX_S};".encode() in head
    assert max(map(len, head.split(b"\r\n"))) <= 78
    assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
    assert b"\n." not in raw
    assert is_verified(raw, records(ed25519_signer()))


@pytest.mark.parametrize("both", [False, True])
def test_any_octet_changed_is_noticed(both: bool) -> None:
    content = {
        "subject": "Größe {{a}}",
        "text": "Dear  {{a}},\n\nbye",
        "html": "<p>{{b}}",
        "list_unsubscribe": ListUnsubscribe("https://shop.example/u/{{b|url}}"),
    }
    raw = b"".join(rendered_with(content, ["Ann", "é"], "ann@example.com", both=both).segments)
    keys = records(rsa_signer(), ed25519_signer())
    count = 2 if both else 1
    first = raw.index(b"Date: ")
    for place in range(first, len(raw)):
        changed = bytearray(raw)
        # Never to white space in the place of white space, which relaxed form takes for the same.
        changed[place] ^= 0x40 if raw[place] in b"\r\n" else 1
        for index in range(count):
            assert not is_verified(bytes(changed), keys, index), (place, raw[place - 9 : place + 9])


def test_an_octet_of_the_signature_header_changed_is_noticed() -> None:
    raw = b"".join(rendered_with({"subject": "x", "text": "y"}, ["", ""], "ann@example.com", both=False).segments)
    keys = records(ed25519_signer())
    signature = raw[: raw.index(b"Date: ")]
    # The last character of base64 has bits that say nothing, and white space around tags is free.
    places = [match.start() for match in re.finditer(rb"[A-Za-z0-9+/;:=]", signature)]
    last = signature.rindex(b"==") - 1
    for place in places:
        if place in (last, last + 1, last + 2):
            continue
        changed = bytearray(raw)
        changed[place] ^= 1
        assert not is_verified(bytes(changed), keys), (place, signature[place - 9 : place + 9])
