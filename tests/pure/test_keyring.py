"""Which signers a sender domain has, and when it must not be sent at all."""

from __future__ import annotations

import pytest

from mta.message import KeyRing, RingEntry, Signer, load_key, sender_domain_of
from tests.support.content import content_json
from tests.support.keys import ed25519_pem


def signer(selector: str) -> Signer:
    return Signer("d.example", selector, load_key(ed25519_pem(), "key"))


A, B, C = signer("a"), signer("b"), signer("c")


def test_a_domain_has_its_own_signers_in_their_order() -> None:
    ring = KeyRing(
        [RingEntry("shop.example", False, A), RingEntry("x.example", False, C), RingEntry("shop.example", False, B)]
    )
    assert ring.signers_for("shop.example") == (A, B)


@pytest.mark.parametrize(
    ("domain", "signers"),
    [
        ("shop.example", (A,)),
        ("mail.shop.example", (B,)),  # its own entry
        ("a.mail.shop.example", (A,)),  # that entry is not for those below it
        ("deep.news.shop.example", (C,)),  # the nearest parent
        ("ashop.example", ()),
        ("example", ()),
        ("[192.0.2.1]", ()),
    ],
)
def test_subdomains_have_the_signers_of_their_nearest_parent_that_allows_it(
    domain: str, signers: tuple[Signer, ...]
) -> None:
    ring = KeyRing(
        [
            RingEntry("shop.example", True, A),
            RingEntry("mail.shop.example", False, B),
            RingEntry("news.shop.example", True, C),
        ]
    )
    assert ring.signers_for(domain) == signers


def test_a_domain_whose_key_cannot_be_used_is_not_sent_unsigned_nor_half_signed() -> None:
    ring = KeyRing([RingEntry("shop.example", True, A), RingEntry("shop.example", True, None)])
    assert ring.signers_for("shop.example") is None
    assert ring.signers_for("mail.shop.example") is None
    assert ring.signers_for("other.example") == ()


def test_where_signing_is_required_a_domain_without_entry_is_not_sent() -> None:
    ring = KeyRing([RingEntry("shop.example", False, A)], is_required=True)
    assert ring.signers_for("shop.example") == (A,)
    assert ring.signers_for("other.example") is None


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("Shop <news@Shop.EXAMPLE>", "shop.example"),
        ('"a, b" <news@bücher.example>', "xn--bcher-kva.example"),
        ("news@mail.shop.example", "mail.shop.example"),
        ("nobody", None),
        ("", None),
    ],
)
def test_keys_are_chosen_by_the_domain_of_the_sender(sender: str, domain: str | None) -> None:
    assert sender_domain_of(content_json(sender=sender)) == domain


@pytest.mark.parametrize("content", [b"", b"{}", b'{"sender": 1}', b"\xff", b"[]"])
def test_a_content_that_is_none_has_no_sender_domain(content: bytes) -> None:
    assert sender_domain_of(content) is None
