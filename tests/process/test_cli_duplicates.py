"""Duplicates as an operator chooses and sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.outcome import Reason, Status
from tests.support.cli import Cli

ROWS = "email,first\nAnn@BÜCHER.example,Ann\nbob@x.example,Bob\nAnn@xn--bcher-kva.example,Ann\nANN@bücher.example,Ann\n"


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    (tmp_path / "rows.csv").write_text(ROWS)
    return Cli(dsn, tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "duplicates", "excluded"),
    [
        ((), "campaign", "exclude", 1),
        (("--duplicates-ignore-case",), "campaign", "exclude", 2),
        (("--duplicates", "keep"), "campaign", "keep", 0),
        (("--kind", "transactional"), "transactional", "keep", 0),
        (("--kind", "transactional", "--duplicates", "exclude"), "transactional", "exclude", 1),
    ],
)
def test_they_are_excluded_or_kept_as_it_was_chosen(
    cli: Cli, options: tuple[str, ...], kind: str, duplicates: str, excluded: int
) -> None:
    made = cli.create(*options)
    said = cli.json("delivery", "append", made, "rows.csv", "--seal")
    assert (said["appended"], said["excluded"], said["duplicates"]) == (4, 0, excluded)
    shown = cli.json("delivery", "show", made)
    assert (shown["kind"], shown["duplicates"]) == (kind, duplicates)
    assert (shown["excluded"], shown["excluded_duplicates"], shown["waiting"]) == (excluded, excluded, 4 - excluded)
    assert shown["unchecked"] == 0
    assert cli.json("delivery", "audit", made)["is_clean"]


def test_a_seal_tells_how_many_and_the_log_says_why(cli: Cli) -> None:
    made = cli.create()
    cli.json("delivery", "append", made, "rows.csv")
    cli.json("delivery", "append", made, "rows.csv", "--key-prefix", "again")
    assert cli.json("delivery", "show", made)["unchecked"] == 8
    assert (
        "5 recipients are not mailed: their addresses were in the delivery before"
        in cli.run("delivery", "seal", made).stdout
    )
    assert cli.json("delivery", "seal", made) == {"id": int(made), "sealed": True, "duplicates": 0}
    line = cli.json("log", "find", "bob@x.example")
    assert (line["status"], line["reason"], line["reply"]) == (Status.EXCLUDED, Reason.DOUBLE, "duplicate")


def test_what_cannot_be_meant_is_one_clear_line(cli: Cli) -> None:
    (cli.directory / "body.txt").write_text("x")
    made = ("delivery", "create", "--name", "x", "--from", "a@b.example", "--subject", "s", "--text", "body.txt")
    done = cli.run(*made, "--duplicates", "keep", "--duplicates-ignore-case", expect=2)
    assert (
        "duplicates_ignore_case: compares addresses of duplicates, and those of this delivery are kept" in done.stderr
    )


def test_what_waits_to_be_looked_at_is_explained(cli: Cli) -> None:
    made = cli.create()
    cli.json("delivery", "append", made, "rows.csv")
    cli.run("delivery", "start", made)
    assert "not looked at for duplicates yet" in cli.run("explain", "bob@x.example").stdout
