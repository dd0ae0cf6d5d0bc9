"""The master's keys: what is read, what holds when a file is exchanged or gone, what children are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from mta.master.keys import KeyStore
from mta.settings.dkim import DkimEntry, SigningSettings
from mta.wire import FrameSplitter, SigningKeys, decode_master_frame, encode_frame


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def new_key(path: Path) -> bytes:
    """A new key renamed into place, as whoever exchanges one should do it."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = path.with_suffix(".new")
    fresh.write_bytes(pem)
    fresh.chmod(0o600)
    fresh.rename(path)
    return pem


def entry(path: Path, domain: str = "shop.example", selector: str = "a") -> DkimEntry:
    return DkimEntry(domain, selector, path, domain, False, f"mta.toml:{selector}")


def selectors(store: KeyStore, domain: str = "shop.example") -> list[str] | None:
    signers = store.ring.signers_for(domain)
    return None if signers is None else [signer.selector for signer in signers]


def errors(log: list[Any]) -> list[tuple[str, bool]]:
    return [(one["error"], one["earlier_keys_hold"]) for one in log if one["event"] == "signing key cannot be used"]


def test_children_are_told_all_that_the_master_knows(tmp_path: Path) -> None:
    pem = new_key(tmp_path / "a.pem")
    store = KeyStore(SigningSettings(True, 600, (entry(tmp_path / "a.pem"), entry(tmp_path / "gone", "b.example"))))
    [body] = FrameSplitter().feed(encode_frame(store.frame))
    frame = decode_master_frame(body)
    assert isinstance(frame, SigningKeys)
    assert frame.is_required
    assert [(key.domain, key.d, key.selector, key.pem) for key in frame.keys] == [
        ("shop.example", "shop.example", "a", pem),
        ("b.example", "b.example", "a", b""),
    ]
    assert pem.splitlines()[1].decode() not in repr(frame)
    assert (selectors(store), selectors(store, "b.example"), selectors(store, "c.example")) == (["a"], None, None)


def test_a_key_that_is_exchanged_is_found_and_one_that_is_not_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    new_key(path)
    store = KeyStore(SigningSettings(entries=(entry(path),)))
    before = store.frame
    assert not store.check()
    assert store.frame is before
    pem = new_key(path)
    assert store.check()
    assert store.frame.keys[0].pem == pem


@pytest.mark.parametrize("harm", ["gone", "not a key", "for all to read"])
def test_a_key_whose_file_turns_bad_stays_in_use_and_is_spoken_of_once(
    tmp_path: Path, log: list[Any], harm: str
) -> None:
    path = tmp_path / "a.pem"
    new_key(path)
    store = KeyStore(SigningSettings(entries=(entry(path),)))
    if harm == "gone":
        path.unlink()
    elif harm == "not a key":
        path.write_text("-----BEGIN NOTHING-----")
    else:
        path.chmod(0o644)
    assert not store.check()
    assert not store.check()
    assert selectors(store) == ["a"]
    [(error, earlier_holds)] = errors(log)
    assert error.startswith(f"mta.toml:a: dkim.key: {path} ")
    assert earlier_holds
    new_key(path)
    assert store.check()
    path.unlink()
    assert not store.check()
    assert len(errors(log)) == 2  # mended meanwhile, so this is news


def test_a_domain_takes_over_new_settings_when_all_their_keys_can_be_read(tmp_path: Path, log: list[Any]) -> None:
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    new_key(old)
    store = KeyStore(SigningSettings(entries=(entry(old, selector="old"),)))
    both = SigningSettings(entries=(entry(new, selector="new"), entry(old, selector="old")))
    assert not store.reload(both)
    assert selectors(store) == ["old"]
    assert [earlier_holds for _, earlier_holds in errors(log)] == [True]
    new_key(new)
    assert store.check()
    assert selectors(store) == ["new", "old"]
    assert store.reload(SigningSettings(entries=(entry(new, selector="new"),)))
    assert selectors(store) == ["new"]


def test_a_domain_that_never_had_its_key_is_held_until_it_comes_and_holds_up_no_other(
    tmp_path: Path, log: list[Any]
) -> None:
    new_key(tmp_path / "b.pem")
    entries = (entry(tmp_path / "a.pem"), entry(tmp_path / "b.pem", "b.example"))
    store = KeyStore(SigningSettings(entries=entries))
    assert (selectors(store), selectors(store, "b.example")) == (None, ["a"])
    assert [earlier_holds for _, earlier_holds in errors(log)] == [False]
    new_key(tmp_path / "a.pem")
    assert store.check()
    assert selectors(store) == ["a"]


def test_an_entry_that_is_taken_out_signs_no_more(tmp_path: Path) -> None:
    new_key(tmp_path / "a.pem")
    store = KeyStore(SigningSettings(entries=(entry(tmp_path / "a.pem"),)))
    assert store.reload(SigningSettings(required=True))
    assert selectors(store) is None
    assert store.reload(SigningSettings())
    assert selectors(store) == []
