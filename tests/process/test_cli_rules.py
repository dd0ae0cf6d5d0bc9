"""``mta rules`` against real files and a real name server on loopback."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mta.cli.rules import app
from tests.support.dns_server import DnsServer

RULES = """\
[[rule]]
name = "few"
mx = "mx?.example.test"
egress_ids = [1]
connections_max = 5
messages_per_hour_max = 1_200
[[rule]]
name = "rest"
mx = "*"
scope = "path"
connections_max = 10
recipients_per_transaction_max = 1_000
"""
ZONES = {
    "example.test": {"MX": ["10 mx1.example.test.", "20 backup.other.test."]},
    "mx1.example.test": {"A": ["192.0.2.1"]},
    "backup.other.test": {"A": ["192.0.2.2"]},
    "null.test": {"MX": ["0 ."]},
}


def settings_text(endpoint: str) -> str:
    return f"""\
[dns]
nameservers = ["{endpoint}"]
timeout_s = 1
tries = 2
ipv6 = false
allow_networks = ["192.0.2.0/24"]
[rules]
file = "rules.toml"
[[egress]]
name = "a"
id = 1
helo = "a.example"
[[egress]]
name = "b"
id = 2
helo = "b.example"
weight = 3
[pools]
default = ["a", "b"]
"""


async def explain(tmp_path: Path, *arguments: str) -> Result:
    (tmp_path / "rules.toml").write_text(RULES)
    async with DnsServer(ZONES) as server:  # type: ignore[arg-type]
        (tmp_path / "mta.toml").write_text(settings_text(server.endpoint))
        return await asyncio.to_thread(
            CliRunner().invoke, app, ["explain", "--config", str(tmp_path / "mta.toml"), *arguments]
        )


async def test_explain_names_hosts_rules_limits_and_egresses(tmp_path: Path) -> None:
    result = await explain(tmp_path, "ann@Example.test", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["address"] == "ann@example.test"
    assert found["rules_file"] == str(tmp_path / "rules.toml")
    assert [(e["name"], e["share_percent"]) for e in found["egresses"]] == [("a", 25.0), ("b", 75.0)]
    first, second = found["hosts"]
    assert (first["name"], first["addresses"]) == ("mx1.example.test", ["192.0.2.1"])
    assert [(r["rule"]["name"], r["egresses"]) for r in first["rules"]] == [("few", ["a"]), ("rest", ["b"])]
    assert {limit["limit"]: limit["value"] for limit in first["rules"][0]["limits"]} == {
        "connections_max": 5,
        "messages_per_hour_max": 1200,
    }
    assert [r["rule"]["name"] for r in second["rules"]] == ["rest"]
    assert first["rules"][0]["rule"]["origin"] == f"{tmp_path}/rules.toml:1"


async def test_explain_reads_well_for_people(tmp_path: Path) -> None:
    result = await explain(tmp_path, "ann@example.test")
    assert result.exit_code == 0, result.output
    assert "10 mx1.example.test  192.0.2.1" in result.stdout
    assert "messages_per_hour_max 1,200" in result.stdout
    assert "at most 100 in any 5 minutes" in result.stdout
    assert "not rule few: its mask fits, but egress 2 is not in its range 1" in result.stdout
    assert "simulated deliveries: up to 1,000 recipients a transaction" in result.stdout


async def test_another_rules_file_can_be_tried(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[[rule]]\nname = "other"\nmx = "*"\n')
    result = await explain(tmp_path, "ann@example.test", "--rules", str(other), "--json")
    assert json.loads(result.stdout)["hosts"][0]["rules"][0]["rule"]["name"] == "other"


@pytest.mark.parametrize(("domain", "is_final"), [("null.test", True), ("absent.test", True)])
async def test_a_domain_without_a_route_says_why(tmp_path: Path, domain: str, is_final: bool) -> None:
    result = await explain(tmp_path, f"ann@{domain}", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["no_route"]["is_final"] is is_final


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["not-an-address"], "address: "), (["a@example.test", "--pool", "x"], "--pool: no pool is named 'x'")],
)
async def test_bad_questions_are_refused(tmp_path: Path, arguments: list[str], error: str) -> None:
    result = await explain(tmp_path, *arguments)
    assert result.exit_code == 2
    assert error in result.stderr


def test_check_accepts_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0
    assert "2 rules" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["check", str(file), "--json"]).stdout)
    assert [rule["name"] for rule in found["rules"]] == ["few", "rest"]


def test_check_refuses_a_bad_file_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.replace("connections_max = 5", "connections_maks = 5"))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}:5: rule.connections_maks: unknown key; did you mean 'connections_max'?")
    result = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["where"] == f"{file}:5"
