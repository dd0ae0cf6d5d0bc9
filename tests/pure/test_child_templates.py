"""A child's contents and keys: signed by the keys of the moment, or not to be sent."""

from __future__ import annotations

import pytest

from mta.child.letters import NoRenderer
from mta.child.templates import Templates
from mta.message import RenderError
from mta.model.errors import BadInput, LocalFault
from mta.wire import Batch, SigningKey, SigningKeys, Template
from tests.support.content import content_json
from tests.support.keys import ed25519_pem, rsa_pem

KEY = bytes(32)
A = SigningKey("shop.example", True, "shop.example", "a", ed25519_pem())
B = SigningKey("shop.example", False, "esp.example", "b", rsa_pem())
GONE = SigningKey("shop.example", False, "shop.example", "gone", b"")


def batch(delivery: int = 1, fields: tuple[str, ...] = ("first",)) -> Batch:
    return Batch(1, 1, delivery, fields, [], b"[]")


def templates(*keys: SigningKey, required: bool = False, sender: str = "news@shop.example") -> Templates:
    made = Templates()
    made.take_keys(SigningKeys(required, list(keys)))
    made.add(Template(1, content_json(sender=sender, text="Dear {{first}}")), KEY)
    return made


def signatures(made: Templates) -> list[bytes] | None:
    """``s=`` of the signatures of a message, None when there is to be no message."""
    renderer = made.renderer(batch())
    if renderer is None:
        return None
    raw = b"".join(renderer.render("ann@example.com", None, ["Ann"], 5, 1_700_000_000).segments)
    return [piece.partition(b" s=")[2].partition(b";")[0] for piece in raw.split(b"DKIM-Signature:")[1:]]


def test_messages_have_the_signatures_of_their_sender_domain() -> None:
    assert signatures(templates(A, B)) == [b"a", b"b"]
    assert signatures(templates(A, B, sender="news@mail.shop.example")) == [b"a"]
    assert signatures(templates(A, B, sender="news@other.example")) == []


def test_what_must_be_signed_and_cannot_be_has_no_renderer() -> None:
    assert signatures(templates(A, GONE)) is None
    assert signatures(templates(A, required=True, sender="news@other.example")) is None


def test_new_keys_hold_for_the_contents_that_are_there() -> None:
    made = templates(A)
    assert signatures(made) == [b"a"]
    made.take_keys(SigningKeys(False, [B]))
    assert signatures(made) == [b"b"]
    made.take_keys(SigningKeys(False, [GONE]))
    assert signatures(made) is None
    made.take_keys(SigningKeys(False, [A, B]))
    assert signatures(made) == [b"a", b"b"]
    made.take_keys(SigningKeys(False, []))
    assert signatures(made) == []


def test_before_the_keys_came_nothing_is_compiled() -> None:
    with pytest.raises(LocalFault, match="before the keys"):
        Templates().add(Template(1, content_json()), KEY)


def test_a_content_that_cannot_be_used_fails_its_recipients_with_or_without_keys() -> None:
    made = templates(GONE)
    made.add(Template(2, b"{}"), KEY)
    refused = made.renderer(batch(2))
    assert isinstance(refused, NoRenderer)
    with pytest.raises(BadInput):
        refused.render("a@example.com", None, [], 1, 1)
    made.take_keys(SigningKeys(False, [A]))
    assert isinstance(made.renderer(batch(2)), NoRenderer)
    without_field = made.renderer(batch(1, ()))
    assert without_field is not None
    with pytest.raises(RenderError):
        without_field.render("a@example.com", None, [], 1, 1)


def test_what_is_forgotten_must_be_sent_anew() -> None:
    made = templates(A)
    made.renderer(batch())
    made.forget(1)
    with pytest.raises(LocalFault, match="never sent"):
        made.renderer(batch())
