from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.address import Mailbox, domain_of, is_sendable, parse_domain, parse_mailbox
from mta.model.errors import BadInput

IDN = "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ann@example.com", "ann@example.com"),
        ("Ann.Lee+shop@EXAMPLE.Com", "Ann.Lee+shop@example.com"),
        ("o'neil/{x}=y!#$%&*?^_`|~-@a.b", "o'neil/{x}=y!#$%&*?^_`|~-@a.b"),
        ("ann@localhost", "ann@localhost"),
        ("ann@3com.example", "ann@3com.example"),
        ("ann@r3---sn.example", "ann@r3---sn.example"),
        ("a" * 64 + "@" + "b" * 63 + ".example", "a" * 64 + "@" + "b" * 63 + ".example"),
        ('"ann lee"@example.com', '"ann lee"@example.com'),
        ('"a@b"@Example.com', '"a@b"@example.com'),
        (r'"a\"b\\c"@example.com', r'"a\"b\\c"@example.com'),
        ('""@example.com', '""@example.com'),
        ("ann@[192.0.2.1]", "ann@[192.0.2.1]"),
        ("ann@[ipv6:2001:DB8:0:0::1]", "ann@[IPv6:2001:db8::1]"),
    ],
)
def test_a_mailbox_has_one_canonical_form_that_stays_itself(text: str, canonical: str) -> None:
    mailbox = parse_mailbox(text, "row 1")
    assert mailbox.text == canonical
    assert f"{mailbox.local}@{mailbox.domain}" == canonical
    assert domain_of(canonical) == mailbox.domain
    assert not mailbox.needs_smtputf8
    assert parse_mailbox(canonical, "row 1") == mailbox
    assert is_sendable(text) == (text.lower() == canonical.lower())


@pytest.mark.parametrize(
    "domain",
    [
        "bücher.example",
        "BÜCHER.example",
        "bu\u0308cher.example",
        "bücher。example",
        "Xn--Bcher-Kva.Example",
        "bü\u00adcher.example",
    ],
)
def test_all_forms_of_an_idn_are_one_domain(domain: str) -> None:
    assert parse_mailbox(f"ann@{domain}", "row 1").text == f"ann@{IDN}"
    assert parse_domain(domain, "x") == IDN


def test_idna_is_non_transitional() -> None:
    assert parse_domain("faß.example", "x") == "xn--fa-hia.example"
    assert parse_domain("ı.example", "x") != parse_domain("i.example", "x")
    assert not is_sendable("ann@faß.example")


@pytest.mark.parametrize("local", ["jörg", "用户", "а.б", "نامه\u200cای", '"jörg h"'])
def test_a_local_part_beyond_ascii_is_kept_and_marked(local: str) -> None:
    mailbox = parse_mailbox(f"{local}@Bücher.example", "row 1")
    assert mailbox == Mailbox(local, IDN, f"{local}@{IDN}", True)
    assert is_sendable(mailbox.text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("ann", "has no @"),
        ("@example.com", "source route or no local part"),
        ("@a.example,@b.example:ann@example.com", "source route"),
        ("ann@lee@example.com", "more than one @"),
        ("ann@", "has no domain"),
        (".ann@example.com", "dot at its start"),
        ("ann.@example.com", "dot at its start"),
        ("ann..lee@example.com", "dot at its start"),
        ("ann lee@example.com", "U+0020 in its local part"),
        (" ann@example.com", "U+0020"),
        ("ann@example.com ", "U+0020 in its domain"),
        ("<ann@example.com>", "the character < in its local part"),
        ("ann@example.com>", "the character > in its domain"),
        ("ann@example.com\r\nRCPT TO:<eve@example.com>", "more than one @"),
        ("ann\r\n@example.com", "U+000D"),
        ("ann\n@example.com", "U+000A"),
        ("ann@example.com\n", "U+000A"),
        ("ann\0@example.com", "U+0000"),
        ("ann\x7f@example.com", "U+007F"),
        ("ann\x85@example.com", "U+0085"),
        ("ann\u202e@example.com", "U+202E"),
        ("ann\u2028@example.com", "U+2028"),
        ("ann\ufeff@example.com", "U+FEFF"),
        ("ann\ud800@example.com", "U+D800"),
        ('"ann@example.com', "not closed"),
        ('"ann"lee@example.com', "not closed"),
        ('"an"n"@example.com', "not closed"),
        ('"ann\r\n"@example.com', "not closed"),
        ('"ann\x85"@example.com', "U+0085"),
        ("ann@example.com.", "dot at the end"),
        ("ann@bücher.example。", "dot at the end"),
        ("ann@example..com", "empty label"),
        ("ann@.example.com", "empty label"),
        ("ann@-a.example", "hyphen"),
        ("ann@a-.example", "hyphen"),
        ("ann@a_b.example", "the character _"),
        ("ann@" + "a" * 64 + ".example", "label of 64 octets"),
        ("a" * 65 + "@example.com", "local part of 65 octets"),
        ("é" * 33 + "@example.com", "local part of 66 octets"),
        ("ann@" + "abcdefgh." * 28 + "ex", "octets, 253 are allowed"),
        ("a" * 64 + "@" + "abcdefgh." * 21 + "ex", "has 256 octets, 254 are allowed"),
        ("ann@" + "a" * 5000, "5004 characters"),
        ("a" * 5000 + "@example.com", "characters"),
        ("ann@192.0.2.1", "ends in a number"),
        ("ann@example.123", "ends in a number"),
        ("ann@[192.0.2.256]", "address literal"),
        ("ann@[192.0.2.01]", "address literal"),
        ("ann@[192.0.2.1", "address literal"),
        ("ann@[2001:db8::1]", "address literal"),
        ("ann@[IPv6:2001:db8::1%eth0]", "address literal"),
        ("ann@[x-tag:abc]", "address literal"),
        ("ann@xn--a.example", "IDNA refuses"),
        ("ann@xn--.example", "IDNA refuses"),
        ("ann@\u200d.example", "IDNA refuses"),
        ("ann@a\u2260b.example", "IDNA refuses"),
        ("ann@\ud800.example", "IDNA refuses"),
        ("ann@\u0661\u0062.example", "IDNA refuses"),
    ],
)
def test_what_is_no_mailbox_is_refused_with_its_place_and_reason(text: str, what: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_mailbox(text, "row 17")
    assert refused.value.where == "row 17"
    assert what in refused.value.what
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 800
    assert not is_sendable(text)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=20),
        st.tuples(st.text(max_size=8), st.text(max_size=12)).map("@".join),
        st.text(alphabet='ab.@"\\[]-é\u3002\r\n :', max_size=16),
    )
)
def test_any_text_is_a_mailbox_or_refused(text: str) -> None:
    try:
        mailbox = parse_mailbox(text, "row 1")
    except BadInput:
        assert not is_sendable(text)
        return
    assert parse_mailbox(mailbox.text, "row 1") == mailbox
    assert is_sendable(mailbox.text)
    assert mailbox.domain.isascii()
    assert not set(mailbox.text) & set("\r\n\0\x85\u2028")
    assert len(mailbox.text.encode()) <= 254
