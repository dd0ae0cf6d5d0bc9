"""``[signing]`` and ``[[dkim]]``: read with their lines; and key files, which must be nobody else's business."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta.model.errors import BadInput
from mta.settings import load_settings
from mta.settings.dkim import DkimEntry, SigningSettings, read_key, stamp_of
from tests.support.keys import ec_pem, ed25519_pem, encrypted_pem, rsa_pem

ONE = """\
[[dkim]]
domain = "Shop.example"
selector = "R2026"
key = "keys/one.pem"
"""


def load(tmp_path: Path, text: str) -> SigningSettings:
    (tmp_path / "mta.toml").write_text(text)
    return load_settings(tmp_path / "mta.toml", environment={}, host_name="h").signing


def key_file(tmp_path: Path, pem: bytes, mode: int = 0o600) -> DkimEntry:
    path = tmp_path / "one.pem"
    path.write_bytes(pem)
    path.chmod(mode)
    return DkimEntry("shop.example", "r1", path, "shop.example", False, "mta.toml:7")


def refusal(entry: DkimEntry) -> str:
    with pytest.raises(BadInput) as refused:
        read_key(entry)
    assert refused.value.where == "mta.toml:7"
    assert refused.value.what.startswith(f"dkim.key: {entry.key} ")
    return refused.value.what.removeprefix(f"dkim.key: {entry.key} ")


def test_nothing_is_signed_unless_somebody_says_so(tmp_path: Path) -> None:
    assert load(tmp_path, "") == SigningSettings(False, 600.0, ())


def test_an_entry_arrives_canonical_with_its_path_and_line(tmp_path: Path) -> None:
    settings = load(tmp_path, "[signing]\nrequired = true\ncheck_s = 5\n" + ONE)
    where = f"{tmp_path / 'mta.toml'}:4"
    entry = DkimEntry("shop.example", "r2026", tmp_path / "keys" / "one.pem", "shop.example", False, where)
    assert settings == SigningSettings(True, 5.0, (entry,))
    assert entry.name == "r2026._domainkey.shop.example"


def test_several_entries_of_a_domain_keep_their_order(tmp_path: Path) -> None:
    text = ONE + ONE.replace("R2026", "e1") + ONE.replace("R2026", 'R2026"\nd = "Mail.example"\nsubdomains = true #')
    settings = load(tmp_path, text)
    assert [(entry.name, entry.subdomains) for entry in settings.entries] == [
        ("r2026._domainkey.shop.example", False),
        ("e1._domainkey.shop.example", False),
        ("r2026._domainkey.mail.example", True),
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[dkim]\ndomain = 'a.example'\n", ":1: dkim: expected an array of tables; write [[dkim]]"),
        ("[signing]\nrequired = 1\n", ":2: signing.required: 1 is not allowed; expected true or false"),
        ("[signing]\ncheck_s = 0\n", ":2: signing.check_s: 0 is not allowed; expected a number from 1"),
        (ONE.replace("selector", "selektor"), ":3: dkim.selektor: unknown key; did you mean 'selector'?"),
        (ONE.replace("key = ", "# "), ":1: dkim: the key 'key' is missing"),
        (ONE.replace("Shop.example", "a b"), ":2: dkim.domain: 'a b' has "),
        (ONE.replace("Shop.example", "[192.0.2.1]"), ":2: dkim.domain: '[192.0.2.1]' is an address, not a domain"),
        (ONE.replace("R2026", "a_b"), ":3: dkim.selector: 'a_b' is no selector"),
        (ONE + "d = 'a b'\n", ":5: dkim.d: 'a b' has "),
        (ONE.replace("keys/one.pem", ""), ":4: dkim.key: '' is no path"),
        (ONE + ONE, ":7: dkim.selector: r2026._domainkey.shop.example signs for shop.example by the entry at "),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_line(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(BadInput) as refused:
        load(tmp_path, text)
    assert str(refused.value).removeprefix(str(tmp_path / "mta.toml")).startswith(error)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o440, 0o700])
@pytest.mark.parametrize("pem", [rsa_pem(), ed25519_pem()])
def test_a_key_that_owner_and_group_alone_can_read_is_taken(tmp_path: Path, pem: bytes, mode: int) -> None:
    entry = key_file(tmp_path, pem, mode)
    read = read_key(entry)
    assert read.pem == pem
    assert read.stamp == stamp_of(entry.key)
    assert (read.signer(entry).domain, read.signer(entry).selector) == ("shop.example", "r1")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o606, 0o601, 0o620])
def test_a_key_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    assert refusal(key_file(tmp_path, ed25519_pem(), mode)).startswith(f"has mode {mode:04o}: a private key is")


@pytest.mark.parametrize(
    ("pem", "what"),
    [
        (b"", "is no PEM"),
        (ec_pem(), "holds a key that is neither RSA nor Ed25519"),
        (encrypted_pem(), "is encrypted with a passphrase"),
        (rsa_pem(1024), "holds an RSA key of 1024 bits"),
        (ed25519_pem() + b"#" * 9_000, "is larger than 8,192 bytes"),
    ],
)
def test_a_file_that_holds_no_key_to_sign_with_is_refused(tmp_path: Path, pem: bytes, what: str) -> None:
    assert refusal(key_file(tmp_path, pem)).startswith(what)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    entry = key_file(tmp_path, ed25519_pem())
    entry.key.unlink()
    assert refusal(entry) == "cannot be opened: No such file or directory"
    assert stamp_of(entry.key) is None
    os.mkfifo(entry.key, 0o600)
    assert refusal(entry) == "is not a regular file"


def test_neither_repr_nor_an_error_shows_a_key(tmp_path: Path) -> None:
    entry = key_file(tmp_path, ed25519_pem())
    secret = ed25519_pem().splitlines()[1].decode()
    assert secret not in repr(read_key(entry))
    entry.key.write_bytes(ed25519_pem()[:-30])
    assert secret not in refusal(entry)
