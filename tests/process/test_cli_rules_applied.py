"""``mta rules lint|apply|history|show|rollback|diff`` as an operator types them, against a real database."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mta.cli import terminal
from mta.cli.config import app as config_app
from mta.cli.rules import app
from mta.model.errors import BadInput
from mta.queue.replies import recorded_refusals
from mta.settings.addresses import address_fault
from tests.support.postgres import Database

RULES = """\
[[automation]]
name = "busy"
pattern = 'too busy'
act = "suspend"
samples = ["421 4.3.2 Too busy"]
[[rule]]
name = "few"
mx = "*.example.test"
connections_max = 5
automations = ["busy"]
[[rule]]
name = "rest"
mx = "*"
scope = "path"
connections_max = 10
"""
LOG = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
SELECT now() - make_interval(days => $5), 1, n, 1, 1, 10, 0, $1, '4.3.2', 'a@b.test', '', $2, '', 'only', $3
FROM generate_series(1, $4) n
"""


class Rules:
    """``mta rules`` on a database, in this process."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.file = directory / "rules.toml"
        self.file.write_text(RULES)
        self._env = {"MTA_DATABASE_URL": dsn}

    async def run(self, *arguments: str) -> str:
        """What it prints. Raises what it refuses."""
        invoked = await asyncio.to_thread(
            CliRunner().invoke, app, list(arguments), env=self._env, catch_exceptions=False
        )
        assert invoked.exit_code == 0, invoked.output
        return invoked.stdout

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "--json"))

    async def sets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.json("history"))["rule_sets"]
        return found


@pytest.fixture
def rules(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rules:
    # The console read its width when the first test of this process imported it.
    monkeypatch.setattr(terminal.out, "width", 200)
    return Rules(database.dsn, tmp_path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


# --- without a database -----------------------------------------------------------------------


def test_lint_says_where_and_what_and_ends_by_how_bad_it_is(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    assert invoke("lint", str(file)) == (0, f"{file}: 0 errors, 0 warnings, 0 notes\n")
    file.write_text(RULES.replace('scope = "path"\n', ""))
    code, said = invoke("lint", str(file))
    assert code == 0
    assert said.startswith(f"{file}:11: warning: rule rest: fits every host there is")
    assert said.splitlines()[0].endswith("[shared-catch-all]")
    assert invoke("lint", str(file), "--strict")[0] == 1
    file.write_text(RULES.replace("too busy", "two busy"))
    code, said = invoke("lint", str(file), "--json")
    found = json.loads(said)
    assert (code, found["ok"], found["errors"]) == (1, False, 1)
    assert [(one["check"], one["where"]) for one in found["findings"]] == [("sample-missed", f"{file}:1")]


def test_a_file_that_is_refused_is_one_finding(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.replace("connections_max = 5", "connections_max = 0"))
    code, said = invoke("lint", str(file), "--json")
    found = json.loads(said)
    assert code == 1
    assert [(one["check"], one["where"]) for one in found["findings"]] == [("refused", f"{file}:9")]
    assert "from 1 to 1,000,000,000" in found["findings"][0]["what"]


def test_a_corpus_is_a_file_of_replies(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    plain = tmp_path / "plain"
    plain.write_text("421 4.3.2 Host is too busy\n\n550 5.1.1 <a@b.test> unknown\n550 5.1.1 <c@d.test> unknown\n")
    table = tmp_path / "table.tsv"
    table.write_text("n\treply\tkind\n1\t421 too busy\tx\n2\t550 gone\ty\n")
    found = json.loads(invoke("lint", str(file), "--corpus", str(plain), "--json")[1])
    assert (found["corpus"]["replies"], found["corpus"]["matched"]) == (3, 1)
    assert found["corpus"]["unmatched"][0]["like"] == "550 5.1.1 <address> unknown"
    assert found["corpus"]["unmatched"][0]["count"] == 2
    found = json.loads(invoke("lint", str(file), "--corpus", str(table), "--json")[1])
    assert (found["corpus"]["replies"], found["corpus"]["matched"]) == (2, 1)
    assert "1 of 2 replies match no automation" in invoke("lint", str(file), "--corpus", str(table))[1]


def test_settings_are_held_against_rules_and_machine(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace('mx = "*.example.test"', 'mx = "*.example.test"\npool = "no"'))
    config = tmp_path / "mta.toml"
    config.write_text(
        '[rules]\nfile = "rules.toml"\n'
        '[[egress]]\nname = "here"\nid = 1\nhelo = "a.example"\nsource_ipv4 = "127.0.0.1"\n'
        '[[egress]]\nname = "away"\nid = 2\nhelo = "b.example"\nsource_ipv4 = "192.0.2.1"\n'
        '[pools]\ndefault = ["here", "away"]\n'
    )
    code, said = invoke("lint", "--config", str(config), "--json")
    found = json.loads(said)
    assert code == 1
    assert sorted((one["check"], one["subject"], one["where"]) for one in found["findings"]) == [
        ("address-not-here", "egress away", str(config)),
        ("pool-unknown", "rule few", f"{tmp_path}/rules.toml:9"),
    ]


def test_an_address_is_tried_on_the_machine() -> None:
    assert address_fault("127.0.0.1") == ""
    assert address_fault("192.0.2.1") != ""
    assert address_fault("2001:db8::1") != ""


def test_config_check_warns_of_addresses_that_another_machine_has(tmp_path: Path) -> None:
    config = tmp_path / "mta.toml"
    config.write_text(
        '[[egress]]\nname = "away"\nid = 2\nhelo = "b.example"\nsource_ipv4 = "192.0.2.1"\n'
        '[pools]\ndefault = ["away"]\n'
    )
    result = CliRunner().invoke(config_app, ["check", str(config), "--for-another-machine", "--json"])
    assert result.exit_code == 0
    assert [one["check"] for one in json.loads(result.stdout)["warnings"]] == ["address-not-here"]


def test_two_files_are_compared(tmp_path: Path) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(RULES)
    new.write_text(RULES.replace("connections_max = 5", "connections_max = 7"))
    code, said = invoke("diff", str(old), str(new))
    assert (code, said) == (0, f"rule few: connections_max: 5 -> 7 ({old}:9 -> {new}:9)\n1 changes\n")
    assert invoke("diff", str(old), str(old)) == (0, "nothing changes\n")
    found = json.loads(invoke("diff", str(old), str(new), "--json")[1])
    assert [(c["kind"], c["old"], c["new"]) for c in found["changes"]] == [("changed", 5, 7)]


# --- with one ---------------------------------------------------------------------------------


async def test_rules_are_applied_compared_shown_and_rolled_back(rules: Rules) -> None:
    with pytest.raises(BadInput, match="no rules were applied yet"):
        await rules.run("show")
    assert await rules.sets() == []
    first = await rules.json("apply", str(rules.file), "--note", "first")
    assert first["is_new"]
    assert first["rule_set"]["applied_by"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert not (await rules.json("apply", str(rules.file)))["is_new"]

    rules.file.write_text(RULES.replace("connections_max = 5", "connections_max = 7"))
    compared = await rules.json("diff", "--applied", str(rules.file))
    assert [(c["key"], c["old"], c["new"]) for c in compared["changes"]] == [("connections_max", 5, 7)]
    said = await rules.run("apply", str(rules.file), "--by", "ann")
    assert "rule few: connections_max: 5 -> 7" in said
    assert "is in force on all nodes" in said
    ids = [str(one["id"]) for one in await rules.sets()]
    between = (await rules.json("diff", ids[1], ids[0]))["changes"]
    assert [(c["key"], c["old"], c["new"], c["old_where"]) for c in between] == [
        ("connections_max", 5, 7, "rules.toml:9")
    ]

    back = await rules.json("rollback", "--note", "too wide", "--by", "bob")
    assert (back["is_new"], back["rule_set"]["restores"], back["rule_set"]["how"]) == (True, int(ids[1]), "rollback")
    shown = await rules.json("show")
    assert shown["texts"] == {"rules.toml": RULES}
    assert (shown["applied_by"], shown["note"]) == ("bob", "too wide")
    assert RULES in await rules.run("show")
    assert "connections_max = 7" in await rules.run("show", ids[0])
    assert not (await rules.json("rollback", ids[1]))["is_new"]
    assert (await rules.json("rollback", ids[0]))["is_new"]
    table = await rules.run("history")
    assert f"rollback of {ids[0]}" in table
    assert f"in force: rule set {int(ids[0]) + 2}" in table
    assert [one["in_force"] for one in await rules.sets()] == [True, False, False, False]


async def test_a_bad_file_changes_nothing(rules: Rules) -> None:
    await rules.run("apply", str(rules.file))
    good = rules.file.read_text()
    rules.file.write_text(good.replace("connections_max = 5", "conections_max = 5"))
    with pytest.raises(BadInput, match=r"rules.toml:9: rule.conections_max: unknown key; did you mean 'connections_"):
        await rules.run("apply", str(rules.file))
    rules.file.write_text(good.replace("connections_max = 5", "connections_max = 6"))
    for arguments, fault in (
        (["rollback", "99"], "rule set 99: does not exist"),
        (["rollback"], "is the first"),
        (["apply", "--config", str(rules.file.parent / "none.toml")], "none.toml: cannot be opened"),
        (["apply", str(rules.file), "--by", "a\nb"], "--by: must be"),
        (["apply", str(rules.file), "--note", "x" * 501], "note: must be at most 500"),
        (["diff", str(rules.file)], "OLD NEW: are both needed"),
        (["diff", "99", str(rules.file)], "rule set 99: does not exist"),
    ):
        with pytest.raises(BadInput, match=re.escape(fault)):
            await rules.run(*arguments)
    assert len(await rules.sets()) == 1


async def test_the_recorded_log_is_a_corpus(rules: Rules, database: Database) -> None:
    async with database.pool.acquire() as conn:
        await conn.execute(LOG, 421, "mx.example.test", "Sorry, too busy", 3, 0)
        await conn.execute(LOG, 421, "mx.other.test", "Sorry, too busy", 2, 0)  # of a rule that does not ask for it
        await conn.execute(LOG, 421, "mx.example.test", "Sorry, too busy", 7, 9)  # long ago
        since = await conn.fetchval("SELECT now() - interval '1 day'")
        assert sum(one.count for one in await recorded_refusals(conn, since, 100)) == 5
        assert sum(one.count for one in await recorded_refusals(conn, since, 4)) == 4
    found = await rules.json("lint", str(rules.file), "--log")
    assert (found["corpus"]["replies"], found["corpus"]["matched"]) == (5, 3)
    assert found["corpus"]["by_automation"] == {"busy": 3}
    found = await rules.json("lint", str(rules.file), "--log", "--since", "30d")
    assert (found["corpus"]["replies"], found["corpus"]["matched"]) == (12, 10)
    with pytest.raises(BadInput, match="--since: 'x' is no length of time"):
        await rules.run("lint", str(rules.file), "--log", "--since", "x")
