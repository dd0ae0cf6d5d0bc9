"""``mta dkim`` and ``mta config`` against real files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mta.cli import config, dkim
from mta.message import load_key
from mta.model.errors import BadInput
from tests.support.keys import ed25519_pem

SETTINGS = """\
[[dkim]]
domain = "shop.example"
selector = "r1"
key = "rsa.pem"
subdomains = true
[[dkim]]
domain = "shop.example"
selector = "e1"
d = "esp.example"
key = "ed.pem"
"""


@pytest.mark.parametrize(("kind", "algorithm"), [("rsa2048", "rsa-sha256"), ("ed25519", "ed25519-sha256")])
def test_a_key_is_made_for_its_owner_alone_and_never_written_over(tmp_path: Path, kind: str, algorithm: str) -> None:
    out = tmp_path / "key.pem"
    result = CliRunner().invoke(dkim.app, ["generate", "--type", kind, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_mode & 0o777 == 0o600
    key = load_key(out.read_bytes(), "key")
    assert key.algorithm == algorithm
    strings = re.findall(r'"([^"]*)"', result.stdout)
    assert "".join(strings) == key.dns_record()
    assert all(len(string) <= 255 for string in strings)
    assert "PRIVATE" not in result.output
    before = out.read_bytes()
    again = CliRunner().invoke(dkim.app, ["generate", "--type", kind, "--out", str(out)])
    assert isinstance(again.exception, BadInput)
    assert out.read_bytes() == before


def settings_with_keys(tmp_path: Path) -> Path:
    runner = CliRunner()
    assert runner.invoke(dkim.app, ["generate", "--out", str(tmp_path / "rsa.pem")]).exit_code == 0
    (tmp_path / "ed.pem").write_bytes(ed25519_pem())
    (tmp_path / "ed.pem").chmod(0o600)
    (tmp_path / "mta.toml").write_text(SETTINGS)
    return tmp_path / "mta.toml"


def test_show_prints_what_dns_must_have(tmp_path: Path) -> None:
    file = settings_with_keys(tmp_path)
    result = CliRunner().invoke(dkim.app, ["show", "--config", str(file)])
    assert result.exit_code == 0, result.output
    comment, rsa, _, ed25519 = result.stdout.splitlines()
    assert comment == f"; for shop.example and the domains below it, {file}:1"
    assert rsa.startswith('r1._domainkey.shop.example. IN TXT ( "v=DKIM1; k=rsa; p=')
    record = load_key(ed25519_pem(), "key").dns_record()
    assert ed25519 == f'e1._domainkey.esp.example. IN TXT ( "{record}" )'
    shown = json.loads(CliRunner().invoke(dkim.app, ["show", "--config", str(file), "--json"]).stdout)
    assert [(one["name"], one["sender_domain"]) for one in shown] == [
        ("r1._domainkey.shop.example", "shop.example"),
        ("e1._domainkey.esp.example", "shop.example"),
    ]
    assert shown[1]["txt"] == record


def test_show_names_a_key_that_cannot_be_used_beside_those_that_can(tmp_path: Path) -> None:
    file = settings_with_keys(tmp_path)
    (tmp_path / "rsa.pem").chmod(0o644)
    result = CliRunner().invoke(dkim.app, ["show", "--config", str(file)])
    assert result.exit_code == 1
    assert f"; error: {file}:1: dkim.key: {tmp_path / 'rsa.pem'} has mode 0644" in result.stdout
    assert "e1._domainkey.esp.example. IN TXT" in result.stdout


def test_check_names_every_fault_of_settings_rules_and_keys(tmp_path: Path) -> None:
    file = settings_with_keys(tmp_path)
    result = CliRunner().invoke(config.app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 egresses, 2 signing keys, all well" in result.stdout
    assert json.loads(CliRunner().invoke(config.app, ["check", str(file), "--json"]).stdout)["ok"]
    assert "one-click" not in result.stderr
    (tmp_path / "unsigned.toml").write_text("")
    said = CliRunner().invoke(config.app, ["check", str(tmp_path / "unsigned.toml")]).stderr
    assert "no signature covers" in " ".join(said.split())  # wrapped, wherever the path leaves room

    (tmp_path / "rsa.pem").unlink()
    (tmp_path / "ed.pem").write_text("nothing")
    file.write_text(SETTINGS + '[rules]\nfile = "gone.toml"\n')
    result = CliRunner().invoke(config.app, ["check", str(file)])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{tmp_path / 'gone.toml'}: cannot be opened: No such file or directory",
        f"{file}:1: dkim.key: {tmp_path / 'rsa.pem'} cannot be opened: No such file or directory",
        f"{file}:6: dkim.key: {tmp_path / 'ed.pem'} is no PEM: no line starts with -----BEGIN",
    ]
    file.write_text(SETTINGS.replace("selector", "selektor"))
    result = CliRunner().invoke(config.app, ["check", str(file), "--json"])
    assert result.exit_code == 1
    [fault] = json.loads(result.stdout)["faults"]
    assert fault["where"] == f"{file}:3"
