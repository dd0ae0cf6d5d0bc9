"""One text for what is said of many recipients."""

from __future__ import annotations

import pytest

from mta.failure.normalise import TEXT_CHARS_MAX, normalise, text_key


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("<a.b@example.com>: user  unknown\n", "*: user unknown"),
        ("550 5.1.1 user a@example.com is 3 times unknown", "550 5.1.1 user * is #NUMBER# times unknown"),
        ("550-5.7.1 see 550 5.7.1 https://example.com/x?id=1", "550-5.7.1 see 550 5.7.1 #URL#"),
        ("mx1.example.com says no", "#DOMAIN# says no"),
        ("client [192.0.2.1] or 2001:db8::1 blocked", "client #IP# or #IP# blocked"),
        ("id 4F2x9aBc77 - queued as A1B2C3D4E5", "id #ID# - queued as #ID#"),
        ("on Mon, 4 Jan 2027 10:11:12 +0100 (CET)", "on #DATE#"),
        ("at 2027-01-04T10:11:12Z", "at #DATE#"),
        ("RESOLVER.ADR.NotFound; not found", "RESOLVER.ADR.NotFound; not found"),
        ("quota 1,024.5 of 2000 KB", "quota #NUMBER# of #NUMBER# KB"),
        ("Benutzer unbekannt. Über Kontingent!", "Benutzer unbekannt. Über Kontingent!"),
        ("", ""),
    ],
)
def test_what_changes_is_masked(text: str, normal: str) -> None:
    assert normalise(text) == normal
    assert normalise(normal) == normal


def test_the_same_message_for_two_addresses_is_one_text() -> None:
    said = "<{}>: mailbox full, queue id {} at {} (see https://help.example.net/{})"
    first = said.format("anna@example.com", "4Bxq2L0ykz9", "mx1.example.com", "a?b=1")
    second = said.format("o.tto+x@mail.example.org", "7Kp9aa31Zq", "mail-03.example.org", "other")
    assert normalise(first) == normalise(second)
    assert text_key(first) == text_key(second) == text_key(normalise(first))
    assert len(text_key(first)) == 16
    assert text_key(first) != text_key("<anna@example.com>: mailbox gone")


def test_the_text_is_bounded() -> None:
    assert len(normalise("word " * 100_000)) <= TEXT_CHARS_MAX
