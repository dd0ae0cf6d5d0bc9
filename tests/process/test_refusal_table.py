"""Each row of the table "What a refusal means" in docs/failures.md, at a real sink.

There are two egresses, sites of two hosts, and a host of two families.

A delivery has recipients at four sites, each with hosts of its own, so that what one shows does not touch the others:

=========  =======================================  ================================
site       its hosts                                refused is what comes
=========  =======================================  ================================
egress     127.0.1.1, then 127.0.1.2                from the first egress
host       127.0.2.1, then 127.0.2.2                to the first host
family     127.0.3.1 and ::1 of one host            over IPv4, which is tried first
all        127.0.4.1, then 127.0.4.2                from anywhere
=========  =======================================  ================================

Loopback has one IPv6 address, so one egress has it as its source, and one host has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.model.outcome import Status
from mta.sink.record import Record
from tests.support.node import Node, World, until
from tests.support.outcomes import log_of, value
from tests.support.postgres import Database

DOC = Path(__file__).parents[2] / "docs" / "failures.md"
EGRESSES = """
batch_recipients = 2

[[egress]]
name = "one"
id = 1
helo = "one.example"
source_ipv4 = "127.0.0.2"
source_ipv6 = "::1"

[[egress]]
name = "two"
id = 2
helo = "two.example"
source_ipv4 = "127.0.0.3"

[pools]
default = ["one", "two"]
"""
RULES = """
[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = 2
"""
ZONES: dict[str, object] = {
    **{f"mx{n}.{site}.test": {"A": [f"127.0.{at}.{n}"]} for n in (1, 2) for at, site in ((1, "e"), (2, "h"), (4, "a"))},
    "mx1.f.test": {"A": ["127.0.3.1"], "AAAA": ["::1"]},
    **{f"{site}.test": {"MX": [(10, f"mx1.{site}.test"), (20, f"mx2.{site}.test")]} for site in "eha"},
    "f.test": {"MX": [(10, "mx1.f.test")]},
}
SINKS = ("127.0.1.1", "127.0.1.2", "127.0.2.1", "127.0.2.2", "127.0.3.1", "::1", "127.0.4.1", "127.0.4.2")
OF_SITE = {"egress": "e", "host": "h", "family": "f", "all": "a"}
EACH = 12  # recipients of a site
OTHERS, OTHER, SAME = "others are tried", "the other is tried", "the same"


class Row(NamedTuple):
    """One row, word for word. What is played, and what must come of it, follows from the words."""

    stage: str
    reply: str
    recipient: str
    session: str
    egress: str
    host: str
    family: str


def rows() -> Iterator[Row]:
    """Those of the document."""
    section = DOC.read_text().partition("## What a refusal means")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(Row._fields) and re.match(r"`\d{3} ", cells[1]):
            yield Row(*cells)


ROWS = list(rows())


def test_the_table_has_rows_of_every_stage_and_of_every_kind() -> None:
    assert {row.stage for row in ROWS} >= {"greeting", "EHLO", "MAIL", "RCPT", "content"}
    assert {word.partition(";")[0] for row in ROWS for word in (row.egress, row.host, row.family)} == {
        *(OTHERS, OTHER, SAME)
    }
    assert len({row.recipient for row in ROWS}) >= 5


def script(row: Row) -> str:
    """What the sink is to refuse, where."""
    step = {"greeting": "connect", "EHLO": "helo", "content": "dot"}.get(row.stage, row.stage.lower())
    code, _, text = row.reply.strip("`").partition(" ")
    said = f'code = {code}\ntext = "{text}"\n'
    from_one = 'server = "127.0.1.*"\nclient = "127.0.0.2"'
    refused = [from_one, *(f'server = "{address}"' for address in ("127.0.2.1", "127.0.3.1", "127.0.4.*"))]
    found = []
    if code == "530":
        found += [
            f'[[rule]]\nstep = "starttls"\n{where}\ncode = 454\ntext = "4.7.0 TLS not available"\n' for where in refused
        ]
        said = f"tls = false\n{said}"
    return "\n".join([*found, *(f'[[rule]]\nstep = "{step}"\n{where}\n{said}' for where in refused)])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.stage}-{row.reply.strip('`')[:40]}")
async def test_each_row_of_the_table_is_true(tmp_path: Path, database: Database, row: Row) -> None:
    async with World(
        tmp_path, database, zones=ZONES, sink_addresses=SINKS, script=script(row), tls="TLS" in row.reply
    ) as world:
        node = world.node(children=1, settings=EGRESSES, rules=RULES, ipv6=True)
        await node.start()
        to = [f"u{n}@{site}.test" for n in range(EACH) for site in OF_SITE.values()]
        delivery = await world.deliver(to)
        await world.wait_for(delivery, lambda shown: shown.delivered + shown.failed + shown.deferrals >= len(to))
        lines = await log_of(world, delivery)
        assert len(lines) == len(to)
        assert {line["attempt"] for line in lines} == {1}, "each is charged one attempt, however many paths refused it"
        by_site = {
            name: [line for line in lines if line["address"].endswith(f"@{site}.test")]
            for name, site in OF_SITE.items()
        }
        refused = refused_at(world.record())
        for name, cell in (("egress", row.egress), ("host", row.host), ("family", row.family)):
            _check_site(row, cell.partition(";")[0], by_site[name], refused[name])
        await _check_all(world, row, by_site["all"], refused["all"])
        _check_sessions(world.record(), row)
        await _check_rests(node, row)
        assert (await world.audit(delivery)).is_clean


def refused_at(record: Record) -> Counter[str]:
    """How often each site refused."""
    networks = {"127.0.1": "egress", "127.0.2": "host", "127.0.3": "family", "127.0.4": "all"}
    local = {one.connection: one.local for one in record.connections}
    return Counter(networks[local[one.connection].rpartition(".")[0]] for one in record.refused)


def _check_site(row: Row, cell: str, lines: list[asyncpg.Record], refused: int) -> None:
    """A site of which one egress, host or family is refused."""
    statuses = Counter(Status(line["status"]) for line in lines)
    if cell in (OTHERS, OTHER):
        assert statuses == {Status.DELIVERED: EACH}
        assert refused > 0, "nobody met the refusal"
    elif row.recipient.startswith(("failed", "deferred")):
        assert EACH - statuses[Status.DELIVERED] == refused, "each that was refused was offered nowhere else"
    else:
        assert statuses[Status.FAILED] == 0 or "as the code says" in row.recipient


async def _check_all(world: World, row: Row, lines: list[asyncpg.Record], refused: int) -> None:
    """The site that refuses whatever comes."""
    fails = row.recipient.startswith("failed") or "as the code says" in row.recipient
    assert {Status(line["status"]) for line in lines} == {Status.FAILED if fails else Status.DEFERRED}
    code, *_ = row.reply.strip("`").split()
    assert {line["code"] for line in lines} == {int(code)}
    assert all(FailureType(line["type"]) is not FailureType.HARD for line in lines) or "quarantined" in row.recipient
    if "not counted" in row.recipient or row.recipient.startswith("another"):
        assert {Category(line["category"]) for line in lines} <= OUR_FAULT
    if not row.recipient.startswith("another"):
        assert refused == EACH
    kept = await value(world, "SELECT count(*) FROM mta.delivery_part WHERE egress IS NOT NULL")
    assert (kept > 0) == ("same egress" in row.recipient)
    if not fails:
        due_s = await value(
            world, "SELECT extract(epoch FROM min(due_at) - now())::int FROM mta.delivery_part WHERE attempt = 1"
        )
        assert (due_s < 400) == ("within minutes" in row.recipient)


def _check_sessions(record: Record, row: Row) -> None:
    """Whether a session that was refused sent more."""
    of_session = Counter(one.connection for one in record.refused)
    of_session.update(one.connection for one in record.accepted if one.connection in of_session)
    if row.session == "goes on":
        assert max(of_session.values()) > 1
    elif row.session == "none":
        assert not {one.connection for one in record.accepted} & set(of_session)


async def _check_rests(node: Node, row: Row) -> None:
    """Whether a path was left alone, and by how many refusals."""
    said = node.said("path rests after refusals")
    if "rests" not in row.egress + row.host:
        assert not said
        return
    await until("a path rests", lambda: node.said("path rests after refusals"))
    met = [int(str(entry["recipients"])) for entry in node.said("path rests after refusals")]
    assert met
    if "in a row" in row.egress:
        assert min(met) >= 3
