"""The mailbox provider: its limits, and that it notices whoever breaks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.errors import BadInput, LocalFault
from mta.sink.provider import Provider, ProviderLimits, Refusal, Violation, read_provider

CLIENT, HOST = "127.0.0.9", "127.0.0.2"


def code(refusal: Refusal | None) -> int:
    return 250 if refusal is None else int(refusal.reply[:3])


def send(provider: Provider, connection: str, now: float, recipients: int = 1) -> int:
    """One message; the first code that is not 250, or that of the final dot."""
    codes = [code(provider.mail(connection, "a@shop.example", now))]
    codes += [code(provider.rcpt(connection, f"r{number}@x.example", now)) for number in range(recipients)]
    refused = [one for one in codes if one != 250]
    return refused[0] if refused else code(provider.dot(connection, now))


def test_without_limits_everything_is_welcome() -> None:
    provider = Provider(ProviderLimits())
    for number in range(50):
        assert provider.connect(str(number), CLIENT, HOST, 0.0) is None
        assert send(provider, str(number), 0.0, recipients=200) == 250
    assert not provider.violations


def test_connections_are_counted_per_client_and_come_back_when_closed() -> None:
    provider = Provider(ProviderLimits(connections_max=2))
    assert [code(provider.connect(name, CLIENT, HOST, 0.0)) for name in "abc"] == [250, 250, 421]
    assert provider.connect("d", "127.0.0.8", HOST, 0.0) is None
    for name in "ac":
        provider.closed(name)
    assert provider.connect("e", CLIENT, HOST, 1.0) is None
    assert provider.violations == {Violation.CONNECTIONS: 1}


def test_scope_path_counts_each_local_address_apart() -> None:
    provider = Provider(ProviderLimits(scope="path", connections_max=1))
    assert provider.connect("a", CLIENT, "127.0.0.2", 0.0) is None
    assert provider.connect("b", CLIENT, "127.0.0.3", 0.0) is None
    assert code(provider.connect("c", CLIENT, "127.0.0.2", 0.0)) == 421


def test_messages_per_connection() -> None:
    provider = Provider(ProviderLimits(messages_per_connection_max=3))
    provider.connect("a", CLIENT, HOST, 0.0)
    provider.connect("b", CLIENT, HOST, 0.0)
    assert [send(provider, "a", 0.0) for _ in range(4)] == [250, 250, 250, 421]
    assert send(provider, "b", 0.0) == 250
    assert provider.violations == {Violation.MESSAGES_PER_CONNECTION: 1}


def test_messages_in_any_sliding_period() -> None:
    provider = Provider(ProviderLimits(messages_per_period_max=3, period_s=10.0))
    provider.connect("a", CLIENT, HOST, 0.0)
    assert [send(provider, "a", now) for now in (0.0, 4.0, 8.0, 9.999)] == [250, 250, 250, 421]
    assert [send(provider, "a", now) for now in (10.0, 13.9, 14.0)] == [250, 421, 250]
    assert provider.violations == {Violation.MESSAGES_PER_PERIOD: 2}


def test_messages_begun_within_the_period_but_ended_beyond_it_are_refused_at_the_dot() -> None:
    provider = Provider(ProviderLimits(messages_per_period_max=1, period_s=10.0))
    for name in "ab":
        provider.connect(name, CLIENT, HOST, 0.0)
        assert provider.mail(name, "a@shop.example", 0.0) is None
        assert provider.rcpt(name, "r@x.example", 0.0) is None
    assert [code(provider.dot(name, 0.1)) for name in "ab"] == [250, 421]


def test_recipients_per_message_are_452_and_another_message_starts_anew() -> None:
    provider = Provider(ProviderLimits(recipients_per_message_max=2, block_s=60.0))
    provider.connect("a", CLIENT, HOST, 0.0)
    assert send(provider, "a", 0.0, recipients=3) == 452
    assert send(provider, "a", 0.0, recipients=2) == 250
    assert provider.violations == {Violation.RECIPIENTS_PER_MESSAGE: 1}


def test_greylisting_refuses_first_tries_for_a_while_and_is_no_violation() -> None:
    provider = Provider(ProviderLimits(greylist_s=300.0))
    provider.connect("a", CLIENT, HOST, 0.0)
    assert [send(provider, "a", now) for now in (0.0, 299.9, 300.0, 4000.0)] == [451, 451, 250, 250]
    provider.mail("a", "other@shop.example", 4000.0)
    assert code(provider.rcpt("a", "r0@x.example", 4000.0)) == 451
    assert code(provider.rcpt("a", "R0@X.example", 4300.0)) == 250
    assert not provider.violations


def test_who_exceeds_is_blocked_for_a_while_and_alone() -> None:
    provider = Provider(ProviderLimits(connections_max=1, block_s=60.0))
    provider.connect("a", CLIENT, HOST, 0.0)
    assert code(provider.connect("b", CLIENT, HOST, 1.0)) == 421
    assert send(provider, "a", 2.0) == 421
    provider.closed("a")
    provider.closed("b")
    assert code(provider.connect("c", CLIENT, HOST, 60.9)) == 421
    provider.closed("c")
    assert provider.connect("d", "127.0.0.8", HOST, 2.0) is None
    assert provider.connect("e", CLIENT, HOST, 61.0) is None
    assert provider.violations == {Violation.CONNECTIONS: 1, Violation.BLOCK_IGNORED: 1}


def test_a_block_does_not_grow_by_being_ignored() -> None:
    provider = Provider(ProviderLimits(connections_max=1, block_s=60.0))
    provider.connect("a", CLIENT, HOST, 0.0)
    provider.connect("b", CLIENT, HOST, 0.0)
    for at in range(1, 60):
        provider.connect(f"x{at}", CLIENT, HOST, float(at))
        provider.closed(f"x{at}")
    provider.closed("a")
    provider.closed("b")
    assert provider.connect("c", CLIENT, HOST, 60.0) is None


def test_one_connection_id_twice_is_our_fault() -> None:
    provider = Provider(ProviderLimits())
    provider.connect("a", CLIENT, HOST, 0.0)
    with pytest.raises(LocalFault):
        provider.connect("a", CLIENT, HOST, 0.0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("connections_max = -1", "connections_max"),
        ("period_s = inf", "period_s"),
        ("greylist_s = nan", "greylist_s"),
        ("messages_per_period_max = 5\nperiod_s = 0", "period_s"),
        ('connections_max = "ten"', "connections_max"),
        ('scope = "domain"', "scope"),
        ("connection_max = 5", "connection_max"),
        ("= 5", "line 1"),
    ],
)
def test_a_bad_provider_file_names_file_and_key(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "provider.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_provider(path)
    assert str(path) in caught.value.where
    assert what in str(caught.value)


def test_a_provider_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "provider.toml"
    path.write_text('scope = "path"\nconnections_max = 5\nblock_s = 1.5\n')
    assert ProviderLimits(scope="path", connections_max=5, block_s=1.5) == read_provider(path)
