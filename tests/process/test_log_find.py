"""``mta log find``: by all that an operator may know of a message."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
from rich.cells import cell_len

from tests.support.cli import Cli

LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, type, reason, category, code, enhanced,
                              address, reference, site, mx_host, peer, egress, reply)
VALUES (now() - $1::text::interval, $2, $3, 1, $4, $5, $6, $7, $8, $9, $10, $11, $12, 's', 'mx.example', '192.0.2.1',
        'e1', $13)
"""
LINES = [
    ("1 minute", 7, 1000, 1, 10, 1, 5, 4, 452, "4.2.2", "Ann@a.example", "crm-1", "Mailbox is over its quota"),
    ("0 minutes", 7, 1000, 2, 1, 0, 0, 0, 250, "2.0.0", "Ann@a.example", "crm-1", "taken"),
    ("2 minutes", 7, 1001, 1, 2, 2, 1, 1, 550, "5.1.1", "bob@a.example", None, "no such user"),
    ("3 minutes", 8, 1002, 1, 2, 2, 1, 1, 550, "5.1.1", "bob@sub.a.example", None, "no such user"),
    ("3 days", 9, 1003, 1, 2, 3, 0, 11, 554, "5.7.1", "old@a.example", "crm-9", "policy"),
]


@pytest.fixture
async def cli(conn: asyncpg.Connection, dsn: str, tmp_path: Path) -> Cli:
    await conn.executemany(LINE, LINES)
    return Cli(dsn, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ("ann@A.example", [1000, 1000]),
        ("ANN@a.example --code 452", [1000]),
        ("--domain a.example", [1000, 1000, 1001]),
        ("--domain a.example --since 5d", [1000, 1000, 1001, 1003]),
        ("--domain a.example --since 5d --until 1d", [1003]),
        ("--delivery 9", [1003]),
        ("--reply QUOTA", [1000]),
        ("--reply 5.1.1", [1001, 1002]),
        ("--code 550 --limit 1", [1001]),
        ("--reference crm-9", []),
        ("--reference crm-9 --delivery 9", [1003]),
        ("--since 2000-01-01T00:00:00Z --until 1d", [1003]),
        ("--message-id <rt.9@shop.example>", [1002]),
    ],
)
async def test_lines_are_found_for_which_all_holds(cli: Cli, arguments: str, numbers: list[int]) -> None:
    arguments = arguments.replace("<rt.9@", f"<{_base36(1002)}.{_base36(8)}@")
    said = cli.run("log", "find", *arguments.split(), "--json").stdout.splitlines()
    assert [int(line.partition('"number":')[2].partition(",")[0]) for line in said] == numbers
    rows = cli.run("log", "find", *arguments.split()).stdout.splitlines()[2:]
    assert len(rows) == len(numbers)
    assert max(map(cell_len, cli.on_terminal("log", "find", *arguments.split()))) <= 80


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return (_base36(number // 36) if number >= 36 else "") + digits[number % 36]


async def test_what_was_made_of_the_reply_is_shown(cli: Cli) -> None:
    row = cli.run("log", "find", "--code", "452").stdout.splitlines()[2].split("\t")
    assert row[1:] == [
        *("7", "1", "deferred", "soft", "mailbox_full", "mailbox_full", "mx.example", "Ann@a.example"),
        "452 4.2.2 Mailbox is over its quota",
    ]
    found = cli.json("log", "find", "--code", "452")
    assert (found["type_name"], found["reason_name"], found["category_name"]) == (
        "soft",
        "mailbox_full",
        "mailbox_full",
    )
    assert "452 4.2.2" in "\n".join(cli.on_terminal("log", "find", "--code", "452"))


async def test_a_search_without_an_index_says_how_far_back_it_went(cli: Cli) -> None:
    assert "looked back to" in cli.run("log", "find", "--code", "554").stderr
    assert cli.run("log", "find", "old@a.example").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "needs an address, or one of its options"),
        (("--code", "99"), "code: 99 is no reply code"),
        (("--message-id", "<x@y.example>"), "is none that was made here"),
        (("--since", "soon"), "--since: 'soon' is no length of time"),
        (("--domain", "a b"), "domain: "),
    ],
)
def test_what_cannot_be_looked_for_is_one_line(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    said = cli.run("log", "find", *arguments, expect=2).stderr
    assert words in said
    assert said.count("\n") == 1
