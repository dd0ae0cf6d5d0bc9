from __future__ import annotations

import copy
import pickle
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mta.message import Content, Signer, compile_content, load_key
from mta.message.dkim import OVERSIGNED_HEADERS, relaxed_lines, relaxed_text
from mta.model.errors import BadInput
from tests.support.keys import (
    ec_pem,
    ed25519_pem,
    ed25519_signer,
    encrypted_pem,
    is_verified,
    records,
    rsa_pem,
    rsa_signer,
)

CONTENT = Content(
    sender="news@shop.example",
    subject="{{a}}",
    text="Hello",
    headers={"X-Note": "{{a}}", "Feedback-ID": "1:2"},
    reply_to="service@shop.example",
)
KEY = bytes(32)


def signed(*signers: Signer, content: Content = CONTENT, value: str = "Hi", at_unix_s: int = 1_700_000_000) -> bytes:
    renderer = compile_content(content, delivery_id=7, verp_key=KEY, signers=signers).bind(["a"])
    return b"".join(renderer.render("ann@example.com", None, [value], 5, at_unix_s).segments)


def refusal(pem: bytes) -> BadInput:
    with pytest.raises(BadInput) as refused:
        load_key(pem, "keys/shop.pem")
    assert refused.value.where == "keys/shop.pem"
    assert refused.value.__cause__ is None
    return refused.value


@pytest.mark.parametrize("traditional", [False, True])
def test_an_rsa_key_is_read_in_either_of_its_forms(traditional: bool) -> None:
    assert load_key(rsa_pem(traditional=traditional), "key").algorithm == "rsa-sha256"
    assert load_key(b"a comment\n" + rsa_pem(traditional=traditional), "key").algorithm == "rsa-sha256"
    assert load_key(ed25519_pem(), "key").algorithm == "ed25519-sha256"


@pytest.mark.parametrize("part", ["d", "dmp1", "iqmp"])
def test_an_rsa_key_whose_parts_do_not_belong_together_is_refused(part: str) -> None:
    mine, other = (rsa_numbers() for _ in range(2))
    parts = {name: getattr(mine, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp", "public_numbers")}
    parts[part] = getattr(other, part)
    mixed = rsa.RSAPrivateNumbers(**parts).private_key(unsafe_skip_rsa_key_validation=True)
    pem = mixed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert "do not belong together" in refusal(pem).what
    assert load_key(pem, "key", is_proven=True).algorithm == "rsa-sha256"


def rsa_numbers() -> rsa.RSAPrivateNumbers:
    return rsa.generate_private_key(65537, 2048).private_numbers()


@pytest.mark.parametrize(
    ("pem", "what"),
    [
        (b"", "is no PEM"),
        (b"\x30\x82", "is no PEM"),
        (b"x" * 70_000, "has 70000 octets"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key that can be read"),
        (ed25519_pem()[:-30], "holds no private key that can be read"),
        (encrypted_pem(), "is encrypted with a passphrase"),
        (ec_pem(), "neither RSA nor Ed25519"),
        (rsa_pem(1024), "1024 bits, 2048 to 4096 are allowed"),
    ],
    ids=["empty", "DER", "too long", "not a key", "cut off", "encrypted", "elliptic curve", "short"],
)
def test_what_cannot_sign_is_refused_with_the_reason(pem: bytes, what: str) -> None:
    assert what in refusal(pem).what


def test_a_public_key_is_refused_by_what_it_is() -> None:
    body = rsa_signer().key.dns_record().rpartition("p=")[2]
    pem = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"
    assert "is it not the public one" in refusal(pem.encode()).what


def test_a_key_cannot_be_shown_or_written() -> None:
    for signer in (rsa_signer(), ed25519_signer()):
        secret = re.sub(rb"-----.*?-----|\n", b"", rsa_pem() if signer is rsa_signer() else ed25519_pem()).decode()
        for text in (repr(signer), str(signer.key), f"{signer.key!r} {signer!s}"):
            assert secret[30:60] not in text
            assert "object at" not in text
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="not to be written"):
                copied(signer.key)


@pytest.mark.parametrize(
    ("domain", "selector", "where"),
    [
        ("shop", "", "signer.selector"),
        ("", "s1", "signer.domain"),
        ("[192.0.2.1]", "s1", "signer.domain"),
        ("sh op.example", "s1", "signer.domain"),
        ("shop.example", "s;1", "signer.selector"),
        ("shop.example", "s1.", "signer.selector"),
        ("shop.example", "-s", "signer.selector"),
        ("shop.example", "s\r\nX: y", "signer.selector"),
        ("a." * 90 + "example", ".".join(["s" * 60] * 2), "signer.selector"),
    ],
)
def test_a_signer_needs_a_domain_and_a_selector(domain: str, selector: str, where: str) -> None:
    with pytest.raises(BadInput) as refused:
        Signer(domain, selector, ed25519_signer().key)
    assert refused.value.where == where


def test_a_signers_domain_is_sent_in_its_canonical_form() -> None:
    signer = Signer("Bücher.Example", "S1", ed25519_signer().key)
    raw = signed(signer)
    assert b" d=xn--bcher-kva.example;\r\n s=s1;" in raw
    assert is_verified(raw, records(signer))


def test_what_a_reader_sees_is_named_once_more_than_it_is_there() -> None:
    head = signed(ed25519_signer()).partition(b"\r\n bh=")[0].decode()
    names = re.sub(r"\s", "", head.rpartition(" h=")[2].removesuffix(";")).split(":")
    assert names == [
        *("From", "To", "Subject", "Date", "Message-ID", "Reply-To"),
        *("MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Feedback-ID"),
        *("From", "To", "Cc", "Subject", "Date", "Reply-To", "MIME-Version", "Content-Type"),
        *("List-Unsubscribe", "List-Unsubscribe-Post"),
    ]
    assert "; l=" not in head


def test_a_second_from_or_a_changed_one_is_noticed_and_headers_of_the_way_are_not() -> None:
    raw = signed(ed25519_signer(), rsa_signer())
    keys = records(rsa_signer(), ed25519_signer())
    for index in (0, 1):
        assert is_verified(b"Received: from a.example\r\n" + raw, keys, index)
        assert not is_verified(b"From: eve@example.com\r\n" + raw, keys, index)
        assert not is_verified(raw.replace(b"\r\nFrom: ", b"\r\nFrom: Eve "), keys, index)
        assert not is_verified(raw.replace(b"Reply-To: service", b"Reply-To: eve"), keys, index)


@pytest.mark.parametrize("name", OVERSIGNED_HEADERS)
def test_a_second_one_of_what_a_reader_sees_is_noticed(name: str) -> None:
    raw = signed(ed25519_signer())
    assert is_verified(raw, records(ed25519_signer()))
    assert not is_verified(f"{name}: of another hand\r\n".encode() + raw, records(ed25519_signer()))


def test_signatures_stand_in_the_order_of_their_signers() -> None:
    raw = signed(ed25519_signer(), rsa_signer())
    assert re.findall(rb"DKIM-Signature: v=1; a=([a-z0-9-]+);", raw) == [b"ed25519-sha256", b"rsa-sha256"]
    assert signed() == raw[raw.index(b"Date: ") :]


def test_the_same_message_signed_again_is_the_same_and_its_time_is_that_of_its_date() -> None:
    assert signed(ed25519_signer(), rsa_signer()) == signed(ed25519_signer(), rsa_signer())
    later = signed(rsa_signer(), at_unix_s=1_700_000_001)
    assert b" t=1700000001;" in later
    assert is_verified(later, records(rsa_signer()))


def test_a_renderer_signs_each_message_by_its_own_time_and_values() -> None:
    renderer = compile_content(CONTENT, delivery_id=7, verp_key=KEY, signers=[ed25519_signer()]).bind(["a"])
    for at_unix_s, value in ((1, "x"), (2, "y"), (1, "z"), (1, "é  ü")):
        raw = b"".join(renderer.render("ann@example.com", None, [value], 5, at_unix_s).segments)
        assert f" t={at_unix_s};".encode() in raw
        assert is_verified(raw, records(ed25519_signer()))


def test_a_template_takes_new_signers_and_the_old_one_keeps_its_own() -> None:
    old = compile_content(CONTENT, delivery_id=7, verp_key=KEY, signers=[rsa_signer()])
    new = old.signed_by([ed25519_signer()])
    messages = [b"".join(one.bind(["a"]).render("ann@example.com", None, ["x"], 5, 9).segments) for one in (old, new)]
    assert is_verified(messages[0], records(rsa_signer()))
    assert is_verified(messages[1], records(ed25519_signer()))
    assert messages[1].count(b"DKIM-Signature") == 1


def test_relaxed_form_of_the_standards_own_example() -> None:
    # RFC 6376 §3.4.5
    assert relaxed_text(" X") == "X"
    assert relaxed_text(" Y\t\r\n\tZ  ") == "Y Z"
    assert relaxed_lines(" C\r\nD \t E\r\n\r\n") == " C\r\nD E\r\n\r\n"
