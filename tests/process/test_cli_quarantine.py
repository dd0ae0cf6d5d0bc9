"""``mta quarantine`` and the texts of ``mta bounce`` as an operator types them, against a real database."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from mta.failure.normalise import text_key
from tests.support.cli import Cli
from tests.support.postgres import Database

_FAILED = """
INSERT INTO mta.quarantine (address, status, errors, counted_at, reason, text, changed_at)
VALUES ($1, $2, 1, '2027-01-31T09:00:00Z', 1, $3, '2027-01-31T09:00:00Z')
"""
_LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply, type, category)
VALUES (now(), 1, 1, 1, 1, 2, 3, 550, '', 'ann@example.com', '', '', '', '', 'plugh', 1, 17)
"""
_TEXT = """
INSERT INTO mta.failure_text (digest, text, sample, occurrences, first_at, last_at, type, category)
VALUES ($1, 'plugh', 'plugh', 3, now(), now(), 1, 17)
"""


@pytest.fixture
def cli(database: Database, tmp_path: Path) -> Cli:
    return Cli(database.dsn, tmp_path)


def test_an_address_is_added_shown_and_lifted(cli: Cli) -> None:
    unknown = cli.json("quarantine", "show", "ann@example.com", expect=1)
    assert unknown == {"address": "ann@example.com", "is_mailed": True, "entries": []}
    added = cli.json("quarantine", "add", "Ann@Example.com", "--status", "denylisted", "--because", "by phone")
    assert added == {"changed": 1}
    shown = cli.json("quarantine", "show", "ann@example.com")
    (entry,) = shown["entries"]
    assert (shown["is_mailed"], entry["status"], entry["reason"], entry["text"]) == (
        *(False, "denylisted", "denylisted"),
        "by phone",
    )
    assert "@" in entry["changed_by"]
    assert "it is not mailed" in cli.run("quarantine", "show", "ann@example.com").stdout
    assert cli.json("quarantine", "lift", "ann@example.com") == {"changed": 1}
    assert cli.json("quarantine", "show", "ann@example.com")["is_mailed"] is True


def test_who_is_lifted_while_the_domain_is_denied_is_seen_not_to_be_mailed(cli: Cli) -> None:
    cli.run("quarantine", "add", "@example.com")
    shown = cli.json("quarantine", "show", "ann@example.com")
    assert (shown["is_mailed"], [one["address"] for one in shown["entries"]]) == (False, ["@example.com"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "ann"), "address"),
        (("add", "ann@example.com", "--status", "with-errors"), "--status"),
        (("search", "--status", "gone"), "--status"),
        (("import", "absent.txt"), "cannot be read"),
        (("export", "--format", "xml"), "--format"),
        (("outage", "--since", "2027-01-31T08:00:00Z", "--until", "2027-01-31T12:00:00Z"), "name a text"),
        (("outage", "--since", "2027-01-31T08:00:00Z", "--until", "2027-01-31T07:00:00Z", "--text", "x"), "begins"),
        (("outage", "--since", "2027-01-31T08:00:00", "--until", "2027-01-31T12:00:00Z", "--text", "x"), "time zone"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    assert says in cli.run("quarantine", *arguments, expect=2).stderr


@pytest.mark.parametrize(
    "text",
    [
        "Ann@example.com\n\nbob@example.com\n@example.org\n",
        "\ufeffname,Address\nA,Ann@example.com\nB,bob@example.com\nC,@example.org\n",
        '{"address": "Ann@example.com", "more": 1}\n{"address": "bob@example.com"}\n{"address": "@example.org"}\n',
    ],
    ids=["plain", "csv", "ndjson"],
)
def test_lists_of_each_form_are_imported(cli: Cli, text: str) -> None:
    (cli.directory / "bad.txt").write_text(text)
    imported = cli.json("quarantine", "import", "bad.txt", "--because", "the old system")
    assert imported == {"changed": 3, "left_out": 0}
    assert cli.json("quarantine", "import", "-", stdin=text) == {"changed": 0, "left_out": 0}
    found = cli.json("quarantine", "search", "--status", "quarantined")
    assert {(one["address"], one["text"]) for one in found} == {
        (address, "the old system") for address in ("ann@example.com", "bob@example.com", "@example.org")
    }


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("ann@example.com\nbob\n", "bad.txt:2"),
        ("address,status\nann@example.com,valid\nbob@example.com,gone\n", "bad.txt:3"),
        ("address\nann@example.com\n\n,\n", "bad.txt:4"),
        ('{"address": "ann@example.com"}\n{"adress": "bob@example.com"}\n', "bad.txt:2"),
        ('{"address": "ann@example.com"}\n{"address": \n', "bad.txt:2"),
    ],
)
def test_a_bad_row_is_named_and_nothing_of_the_file_is_kept(cli: Cli, text: str, where: str) -> None:
    (cli.directory / "bad.txt").write_text(text)
    assert where in cli.run("quarantine", "import", "bad.txt", expect=2).stderr
    assert cli.json("quarantine", "search") == []


async def test_what_is_exported_is_imported_elsewhere(cli: Cli, database: Database) -> None:
    cli.run("quarantine", "add", "ann@example.com", "--because", 'said "no", twice')
    cli.run("quarantine", "add", "bob@example.com", "--status", "allowlisted")
    cli.run("quarantine", "add", "@example.org", "--status", "denylisted")
    await database.pool.execute(_FAILED, "cas@example.com", 1, "full")
    statuses = {"ann@example.com": "quarantined", "bob@example.com": "allowlisted", "@example.org": "denylisted"}
    for kind in ("ndjson", "csv"):
        text = cli.run("quarantine", "export", "--format", kind).stdout
        rows: list[dict[str, Any]] = (
            list(csv.DictReader(io.StringIO(text)))
            if kind == "csv"
            else [json.loads(line) for line in text.splitlines()]
        )
        found = {row["address"]: row["status"] for row in rows}
        assert found == {**statuses, "cas@example.com": "with-errors"}
        await database.pool.execute("DELETE FROM mta.quarantine WHERE status <> 1")
        assert cli.json("quarantine", "import", "-", stdin=text) == {"changed": 3, "left_out": 1}
        kept = {one["address"]: one["status"] for one in cli.json("quarantine", "search")}
        assert kept == {**statuses, "cas@example.com": "with-errors"}
    only = cli.run("quarantine", "export", "--status", "denylisted").stdout
    assert [json.loads(line)["address"] for line in only.splitlines()] == ["@example.org"]


async def test_an_outage_is_corrected_and_a_keeper_that_is_late_is_told_of(cli: Cli, database: Database) -> None:
    await database.pool.execute(_FAILED, "ann@example.com", 4, "550 directory is down")
    await database.pool.execute(_FAILED, "bob@example.org", 4, "550 directory is down")
    span = ("--since", "2027-01-31T08:00:00+01:00", "--until", "2027-01-31T12:00:00+01:00")
    await database.pool.execute("UPDATE mta.log_pointer SET moved_at = '2027-01-31T08:00:00Z'")
    done = cli.run("quarantine", "outage", *span, "--domain", "example.com", "--text", "Directory")
    assert "1 changed" in done.stdout
    assert "has not come so far" in done.stderr
    await database.pool.execute("UPDATE mta.log_pointer SET moved_at = '2027-01-31T12:00:00Z'")
    done = cli.run("quarantine", "outage", *span, "--text", "directory", "--json")
    assert json.loads(done.stdout) == {"changed": 1}
    assert "has not come so far" not in done.stderr


async def test_full_mailboxes_are_released_by_the_figures_of_the_node(cli: Cli, database: Database) -> None:
    put = """INSERT INTO mta.quarantine (address, status, reason, changed_at)
             VALUES ($1, 4, 5, now() - $2 * interval '1 d')"""
    await database.pool.execute(put, "ann@example.com", 31)
    await database.pool.execute(put, "bob@example.com", 3)
    assert cli.json("quarantine", "release") == {"changed": 1}
    (cli.directory / "mta.toml").write_text("[quarantine]\nmailbox_full_s = 86400\n")
    assert cli.json("quarantine", "release", "--config", "mta.toml") == {"changed": 1}


def test_status_counts_addresses_and_tells_how_far_the_keeper_is(cli: Cli) -> None:
    cli.run("quarantine", "add", "ann@example.com")
    status = cli.json("quarantine", "status")
    assert status["addresses"] == {"quarantined": 1}
    (reader,) = status["readers"]
    assert (reader["name"], reader["transactions_behind"] > 0) == ("failures", True)
    assert "failures" in cli.run("quarantine", "status").stdout


async def test_an_append_says_how_many_are_not_mailed(cli: Cli) -> None:
    cli.run("quarantine", "add", "ann@example.com")
    rows = "email,first\nann@example.com,Ann\nbob@example.com,Bob\n"
    delivery = cli.create()
    assert "1 of them are not mailed" in cli.run("delivery", "append", delivery, "-", stdin=rows).stdout
    assert cli.json("delivery", "show", delivery)["excluded"] == 1
    proof = cli.create("--keep-quarantined")
    assert cli.json("delivery", "append", proof, "-", stdin=rows)["excluded"] == 0


async def test_a_text_is_listed_qualified_and_past_lines_follow(cli: Cli, database: Database) -> None:
    await database.pool.execute(_LINE)
    await database.pool.execute(_TEXT, text_key("plugh"))
    await database.pool.execute("UPDATE mta.log_pointer SET tx = pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    (text,) = cli.json("bounce", "unqualified")
    assert (text["text"], text["occurrences"], text["category"]) == ("plugh", 3, "other")
    said = cli.json("bounce", "qualify", text["key"][:6], "--category", "user_unknown")
    assert said["type"] == "hard"
    assert cli.json("bounce", "unqualified") == []
    changed = cli.json("bounce", "requalify", "--since", "2020-01-01T00:00:00Z")
    assert changed == {"changed": 1, "addresses": 1}
    assert cli.json("quarantine", "show", "ann@example.com")["is_mailed"] is False
    assert "--category" in cli.run("bounce", "qualify", "abcd", "--category", "odd", expect=2).stderr
