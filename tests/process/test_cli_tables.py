"""What commands print as tables: within 80 columns on a terminal, one whole line a row without one."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest
from rich.cells import cell_len

from tests.support.cli import Cli

REPLY = (
    "5.7.1 [192.0.2.1] our system has seen an unusual rate of unsolicited mail that comes from your address, see page"
)
FAR = "mx-of-a-provider-with-a-long-name.protection.mail.example.com"
ADDRESS = "a.rather.long.name.of.a.person@mail.of.a.department.example.com"
# Nothing here comes about by a command in a moment, so it is written where daemons would write it.
SEED = f"""
INSERT INTO mta.delivery (name, state, content, valid_until, started_at) VALUES
    ('A campaign of spring with a name that is long enough for two lines', 'running', '{{}}',
     now() + interval '5 days', now());
INSERT INTO mta.delivery_append (delivery_id, key, recipients, digest) VALUES (1, 'k', 2345678, '');
INSERT INTO mta.delivery_part (delivery_id, site, attempt, fields, append_id, count, recipients, due_at)
    SELECT 1, '{FAR}+sts', 3, '{{}}', 1, 10000, '[]', now() + interval '1 hour' FROM generate_series(1, 150);
INSERT INTO mta.delivery_stats (delivery_id, delivered, failed, expired, cancelled) VALUES
    (1, 1234567, 123456, 1234, 12);
INSERT INTO mta.node (name, boot_id, alive_until, epoch) VALUES
    ('node-with-a-long-name-1.example.com', 'b', now() + interval '1 minute', 1);
INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause) VALUES
    (1, 1, 1, 1, '{ADDRESS}', '{FAR}', '192.0.2.1', 'hold', 'the session was lost: {REPLY}');
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
    SELECT now() - interval '1 minute', 1, n, 1, 1, 10, 3, 450, '4.7.1', '{ADDRESS}', '{FAR}', '{FAR}',
           '2001:db8:1234:5678::9abc', 'egress-of-the-first-pool', '{REPLY}' FROM generate_series(1, 1200) n;
INSERT INTO mta.traffic_minute (minute, node, egress, delivered, failed, deferred, bytes_delivered) VALUES
    (date_trunc('minute', now()), 'n', 'e', 1234567, 123456, 234567, 98765432100);
INSERT INTO mta.path_refusal (node, egress, peer, mx_host, site, scope, stage, code, enhanced, reply, category, refused,
                              since, rests_until) VALUES
    ('n', 'egress-of-the-first-pool', '2001:db8:1234:5678::9abc', '{FAR}', '{FAR}', 'egress', 'rcpt', 450,
     '4.7.1', '{REPLY}', 0, 12345, now(),
     now() + interval '1 hour');
INSERT INTO mta.quarantine (address, status, errors, reason, text, changed_at, changed_by) VALUES
    ('{ADDRESS}', 3, 5, 1, '{REPLY}', now(), 'an operator with a long name');
INSERT INTO mta.log_pointer (name, tx) VALUES ('keeper', 1);
"""


@pytest.fixture
async def cli(conn: asyncpg.Connection, dsn: str, tmp_path: Path) -> Cli:
    await conn.execute(SEED)
    return Cli(dsn, tmp_path)


# The arguments, and what must be there whole: numbers, however narrow it is.
TABLES = [
    ("delivery list", ("2,345,678", "1,234,567", "123,456")),
    ("delivery show 1", ("2,345,678", "1,234,567")),
    ("delivery in-doubt 1", (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",)),
    ("queue show", ("1,500,000", "150")),
    (f"log find {ADDRESS} --limit 2", (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",)),
    ("db status", (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",)),
    ("db failover", ()),
    ("monitor throughput", ("1,234,567", "123,456", "234,567", r"98,765\.4")),
    ("monitor errors --min 1", ("1,200", "12,345")),
    ("monitor errors --egress egress-of-the-first-pool", ("1,200",)),
    ("monitor domains --min 0", ("0",)),
    ("monitor alerts", ()),
    ("quarantine search --text unusual", ("5",)),
    ("quarantine status", ("1",)),
    ("bounce unqualified", ()),
    ("traffic events", ()),
    ("traffic hosts", ()),
    ("rules history", ()),
    ("stream list", ()),
    ("stream lag", ()),
    ("deliverability history", ()),
    ("explain 1", ("1,500,000",)),
]
IDS = [arguments.partition(" --")[0] for arguments, _ in TABLES]


@pytest.mark.parametrize(("arguments", "whole"), TABLES, ids=IDS)
async def test_a_table_fits_80_columns_and_is_whole_for_programs(
    cli: Cli, arguments: str, whole: tuple[str, ...]
) -> None:
    lines = cli.on_terminal(*arguments.split())
    assert lines
    assert [line for line in lines if cell_len(line) > 80 and not _is_sentence(line)] == []
    for number in whole:
        assert re.search(rf"(?<![\d.,]){number}(?![\d,])", "\n".join(lines)), (number, lines)
    text = cli.run(*arguments.split()).stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for number in whole:
        assert re.search(rf"(?<![\d.,]){number.replace(',', '')}(?!\d)", text), (number, text)
    _check_rows(text.splitlines())


def _is_sentence(line: str) -> bool:
    """A terminal breaks those by itself; nothing stands below anything in them."""
    return line.startswith(("warning:", "delivery ", "Delivery 1", "no daemon answers"))


def _check_rows(lines: list[str]) -> None:
    """Each row has as many cells as its head."""
    tabs = 0
    for line in lines:
        if line.startswith("# ") and "\t" in line:
            tabs = line.count("\t")
        elif "\t" in line:
            assert line.count("\t") == tabs, line


async def test_grep_finds_a_row_with_its_reply(cli: Cli) -> None:
    lines = cli.run("log", "find", ADDRESS, "--limit", "3").stdout.splitlines()
    assert len([line for line in lines if "unusual rate" in line and REPLY[:20] in line]) == 3
    assert len({line.count("\t") for line in lines if not line.startswith("# A")}) == 1


def test_tables_are_laid_out_in_one_place() -> None:
    sources = (Path(__file__).parents[2] / "mta/cli").rglob("*.py")
    assert [path.name for path in sources if "rich.table" in path.read_text()] == []
