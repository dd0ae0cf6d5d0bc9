"""The real program, as an operator runs it: arguments in, words or JSON and an exit code out."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import asyncpg
import pytest

from mta.queue.embedded import EmbeddedPostgres
from tests.support import postgres as support
from tests.support.cli import Cli
from tests.support.postgres import Database


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    return Cli(dsn, tmp_path)


def _write_rows(path: Path, rows: int) -> None:
    path.write_text("email,first\n" + "".join(f"user{i}@example.com,First{i}\n" for i in range(rows)))


async def test_an_empty_database_is_migrated_and_says_its_status(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    cli = Cli(postgres.database_dsn(await support.create_database(postgres, "template1")), tmp_path)
    assert "run: mta db migrate" in cli.run("delivery", "list", expect=2).stderr
    assert cli.json("db", "status", expect=1)["is_current"] is False
    assert "0001_core" in cli.run("db", "migrate").stdout
    assert cli.json("db", "migrate") == {"applied": []}
    status = cli.json("db", "status")
    assert status["is_current"] is True
    assert len(status["log_partitions"]) == 5


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli.run("--version").stdout == f"mta {importlib.metadata.version('mta')}\n"


def test_a_delivery_from_file_to_audit(cli: Cli) -> None:
    made = cli.create("--priority", "1", "--valid-for", "36h", "--in-doubt", "hold")
    _write_rows(cli.directory / "rows.csv", 1000)
    first = cli.json("delivery", "append", made, "rows.csv", "--seal")
    assert (first["is_complete"], first["appended"], first["bad"]) == (True, 1000, 0)
    again = cli.json("delivery", "append", made, "rows.csv", "--seal")
    assert (again["appended"], again["already_there"]) == (0, 1000)
    assert cli.json("delivery", "start", made)["state"] == "running"
    assert cli.json("delivery", "pause", made)["state"] == "paused"
    shown = cli.json("delivery", "show", made)
    assert (shown["appended"], shown["waiting"], shown["sealed"], shown["validity_s"]) == (1000, 1000, True, 129_600)
    queue = cli.json("queue", "show")
    assert (queue["waiting"][0]["recipients"], queue["waiting"][0]["due"], queue["nodes"]) == (1000, 1000, [])
    audit = cli.json("delivery", "audit", made)
    assert (audit["is_clean"], audit["open"]) == (True, 1000)
    assert "clean" in cli.run("delivery", "audit", made).stdout
    assert "Spring" in cli.run("delivery", "list").stdout
    assert "Spring" in cli.run("queue", "show").stdout
    assert "is running" in cli.run("delivery", "resume", made).stdout
    assert "is cancelled" in cli.run("delivery", "cancel", made).stdout
    refused = cli.run("delivery", "resume", made, expect=2)
    assert (
        refused.stderr.strip()
        == f"error: delivery {made}: is cancelled, so it cannot resume; nothing can be done with it any more"
    )


def test_bad_rows_are_reported_by_line_and_skipped_or_refused_as_asked(cli: Cli) -> None:
    rows = "email,first\nann@example.com,Ann\nnobody,x\nbob@example.com,Bob\n"
    made = cli.create()
    refused = cli.run("delivery", "append", made, "-", "--on-bad-row", "refuse", "--seal", expect=1, stdin=rows)
    assert "stdin:3: address: 'nobody' has no @" in refused.stderr
    assert "not sealed" in refused.stderr
    assert cli.json("delivery", "show", made)["appended"] == 0
    skipped = cli.run("delivery", "append", made, "-", "--seal", expect=1, stdin=rows)
    assert "not sealed: 1 bad rows were left out" in skipped.stderr
    assert cli.json("delivery", "show", made)["sealed"] is False
    given = ("delivery", "append", made, "-", "--seal-anyway", "--json")
    sealed = json.loads(cli.run(*given, expect=1, stdin=rows).stdout)
    assert (sealed["appended"], sealed["already_there"], sealed["bad"], sealed["is_complete"]) == (0, 2, 1, False)
    assert cli.json("delivery", "show", made)["sealed"] is True
    assert "error: missing.csv: No such file" in cli.run("delivery", "append", made, "missing.csv", expect=2).stderr
    late = cli.run("delivery", "append", made, "-", "--key-prefix", "more", expect=2, stdin=rows)
    assert "is sealed: nothing can be appended" in late.stderr


def test_ndjson_from_a_pipe(cli: Cli) -> None:
    made = cli.create()
    lines = "".join(json.dumps({"email": f"user{i}@example.com", "first": f"F{i}"}) + "\n" for i in range(300))
    summary = cli.json("delivery", "append", made, "-", "--format", "ndjson", "--part-recipients", "100", stdin=lines)
    assert (summary["appended"], summary["parts"]) == (300, 3)


def test_content_comes_as_toml_or_json(cli: Cli) -> None:
    (cli.directory / "c.toml").write_text('sender = "news@shop.example"\nsubject = "Hi"\ntext = """\nHello\n"""\n')
    (cli.directory / "c.json").write_text('{"sender": "news@shop.example", "subject": "Hi", "html": "<p>Hello</p>"}')
    for name in ("c.toml", "c.json"):
        assert cli.json("delivery", "create", "--name", name, "--content", name)["id"] > 0
    (cli.directory / "bad.toml").write_text(
        'sender = "news@shop.example"\nsubject = "Hi"\ntext = "x"\ncolour = "red"\n'
    )
    assert "colour" in cli.run("delivery", "create", "--name", "x", "--content", "bad.toml", expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("delivery", "show", "99"), "delivery 99: does not exist"),
        (("delivery", "in-doubt", "99"), "delivery 99: does not exist"),
        (("delivery", "in-doubt", "1", "--resend", "--drop"), "cannot be asked for together"),
        (("delivery", "create", "--name", "x"), "--content: is missing"),
        (
            ("delivery", "create", "--name", "x", "--from", "a@b.example", "--subject", "s", "--start-at", "soon"),
            "is no time",
        ),
        (
            ("delivery", "create", "--name", "x", "--from", "a@b.example", "--subject", "s", "--valid-for", "5"),
            "length of time",
        ),
        (("log", "find", "not an address"), "address: "),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    done = cli.run(*arguments, expect=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_a_database_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    for dsn in (f"postgresql://x:secret@/y?host={tmp_path}", "postgresql://x:secret@127.0.0.1:1/y", "nonsense"):
        done = Cli(dsn, tmp_path).run("delivery", "list", expect=2)
        assert done.stderr.startswith(("error: database: ", "error: --dsn or MTA_DATABASE_URL: expected postgresql://"))
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr
    assert "MTA_DATABASE_URL" in Cli("", tmp_path).run("delivery", "list", expect=2).stderr


async def test_in_doubt_and_log_show_what_was_recorded(database: Database, conn: asyncpg.Connection, cli: Cli) -> None:
    made = cli.create("--in-doubt", "hold")
    (cli.directory / "one.csv").write_text("email,first\nann@example.com,Ann\n")
    cli.run("delivery", "append", made, "one.csv")
    await conn.execute("UPDATE mta.delivery_part SET held = true")
    await conn.execute(
        "INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)"
        " SELECT delivery_id, append_id << 16, id, 1, 'ann@example.com', 'mx.example.com', '192.0.2.1', 'hold', 'lost'"
        " FROM mta.delivery_part"
    )
    assert cli.json("delivery", "in-doubt", made)["held"] is True
    assert "ann@example.com" in cli.run("delivery", "in-doubt", made).stdout
    assert cli.json("delivery", "in-doubt", made, "--drop")["settled"] == 1
    line = cli.json("log", "find", "ann@EXAMPLE.com")
    assert (line["status_name"], line["reply"]) == ("failed", "in doubt, dropped by operator")
    assert "dropped by operator" in cli.run("log", "find", "ann@example.com").stdout
    assert cli.json("delivery", "audit", made)["is_clean"] is True


def test_help_is_there_for_every_command(cli: Cli) -> None:
    text = cli.run("--help").stdout
    for name in ("db", "delivery", "queue", "log"):
        assert name in text
        assert "Usage: mta " + name in cli.run(name, "--help").stdout
