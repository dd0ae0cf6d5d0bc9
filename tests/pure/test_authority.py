"""TLSA records against what a server shows: which are usable, what fits, and what must be right besides (RFC 7672)."""

from __future__ import annotations

import datetime

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from mta.session.authority import mismatch, usable
from tests.support.authorities import HOST, certificate_of, expired, key_of, tlsa

Key = ec.EllipticCurvePrivateKey
ROOT = trustme.CA()
BELOW = ROOT.create_child_ca()
LEAF = BELOW.issue_cert(HOST)
CHAIN = [certificate_of(LEAF), certificate_of(BELOW), certificate_of(ROOT)]
STRANGER = trustme.CA()


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_a_servers_own_certificate_or_key_fits_in_every_form(selector: int, matching: int) -> None:
    record = tlsa(3, selector, matching, CHAIN[0])
    assert usable((record,)) == (record,)
    assert mismatch((record,), CHAIN[:1], HOST) == ""
    other = certificate_of(STRANGER.issue_cert(HOST))
    assert mismatch((record,), [other], HOST) == "its certificate or key is another"
    # An authority above it is not the server.
    assert mismatch((tlsa(3, selector, matching, CHAIN[1]),), CHAIN, HOST) != ""


def test_for_a_servers_own_key_neither_names_nor_dates_nor_issuers_count() -> None:
    old = certificate_of(expired(STRANGER, "other.test"))
    assert mismatch((tlsa(3, 1, 1, old),), [old], HOST) == ""


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("named", [1, 2])
def test_an_authority_of_the_chain_vouches_for_the_host(selector: int, matching: int, named: int) -> None:
    record = tlsa(2, selector, matching, CHAIN[named])
    assert mismatch((record,), CHAIN, HOST) == ""
    assert "subjectAltName" in mismatch((record,), CHAIN, "other.example.test")


def test_an_authority_does_not_vouch_for_what_it_has_not_issued() -> None:
    record = tlsa(2, 0, 1, CHAIN[2])
    stranger = certificate_of(STRANGER.issue_cert(HOST))
    assert "candidates exhausted" in mismatch((record,), [stranger, *CHAIN[1:]], HOST)
    assert "candidates exhausted" in mismatch((record,), [CHAIN[0], CHAIN[2]], HOST)  # the one between is missing
    assert mismatch((record,), CHAIN[:2], HOST) == "no certificate of its chain is the authority that DNS names"


def test_an_authority_that_dns_has_as_a_whole_need_not_be_shown() -> None:
    assert mismatch((tlsa(2, 0, 0, CHAIN[2]),), CHAIN[:2], HOST) == ""
    assert mismatch((tlsa(2, 0, 0, CHAIN[1]),), CHAIN[:1], HOST) == ""


def made_by_hand(subject: str, issuer: x509.Name, issuer_key: Key, own_key: Key, *, is_ca: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer)
        .public_key(own_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.mark.parametrize("is_ca", [True, False])
def test_a_certificate_of_a_server_vouches_for_no_other(is_ca: bool) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root.test")])
    root = made_by_hand("root.test", name, keys[0], keys[0], is_ca=True)
    middle = made_by_hand("middle.test", root.subject, keys[0], keys[1], is_ca=is_ca)
    leaf = made_by_hand(HOST, middle.subject, keys[1], keys[2], is_ca=False)
    chain = [one.public_bytes(Encoding.DER) for one in (leaf, middle, root)]
    assert (mismatch((tlsa(2, 0, 1, chain[2]),), chain, HOST) == "") is is_ca
    # Nor is it an authority because DNS calls it one.
    assert (mismatch((tlsa(2, 0, 1, chain[1]),), chain, HOST) == "") is is_ca


def test_below_an_authority_dates_count() -> None:
    old = certificate_of(expired(ROOT))
    assert "validation time" in mismatch((tlsa(2, 0, 1, CHAIN[2]),), [old, CHAIN[2]], HOST)
    dated = ROOT.create_child_ca()
    leaf = dated.issue_cert(HOST, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    assert mismatch((tlsa(2, 0, 1, certificate_of(dated)),), [certificate_of(leaf), certificate_of(dated)], HOST)


def test_one_record_of_several_is_enough() -> None:
    records = (tlsa(3, 1, 1, certificate_of(STRANGER)), tlsa(2, 0, 1, CHAIN[2]))
    assert mismatch(records, CHAIN, HOST) == ""
    assert mismatch((records[0], tlsa(3, 1, 1, CHAIN[0])), CHAIN, HOST) == ""


def test_a_weaker_digest_does_not_count_beside_a_stronger_one_of_its_kind() -> None:
    right, wrong = tlsa(3, 1, 1, CHAIN[0]), tlsa(3, 1, 2, certificate_of(STRANGER))
    assert usable((right, wrong)) == (wrong,)
    assert mismatch((right, wrong), CHAIN, HOST) != ""
    other_kind = tlsa(3, 0, 2, certificate_of(STRANGER))
    assert mismatch((right, other_kind), CHAIN, HOST) == ""


@pytest.mark.parametrize(
    "record",
    [
        tlsa(0, 1, 1, CHAIN[0]),
        tlsa(1, 1, 1, CHAIN[0]),
        (3, 2, 1, bytes(32)),
        (3, 1, 3, bytes(32)),
        (3, 1, 1, bytes(31)),
        (3, 1, 2, bytes(32)),
        (3, 1, 1, b""),
        (3, 0, 0, b"no certificate"),
        (2, 1, 0, CHAIN[0]),
        (255, 255, 255, b""),
    ],
)
def test_what_smtp_does_not_use_is_passed_over(record: tuple[int, int, int, bytes]) -> None:
    assert usable((record,)) == ()


def test_what_cannot_be_read_proves_nothing() -> None:
    record = tlsa(3, 1, 1, CHAIN[0])
    assert mismatch((record,), [], HOST) == "it has shown none"
    assert mismatch((record,), [b"garbage"], HOST).startswith("it cannot be read")
    assert mismatch((record,), [key_of(CHAIN[0])], HOST).startswith("it cannot be read")


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3), st.binary(max_size=70)), max_size=4
    ).map(tuple),
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(CHAIN)), max_size=3),
)
def test_nothing_fits_by_chance_and_nothing_raises(
    records: tuple[tuple[int, int, int, bytes], ...], chain: list[bytes]
) -> None:
    assert mismatch(records, chain, HOST) != ""
