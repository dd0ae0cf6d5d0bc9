"""Each row of the table of a host's limits, in "What a refusal means" of docs/failures.md, at a real sink.

Its provider takes ten messages a connection, or two connections at a time, and refuses what is more as the row says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mta.queue import host_facts
from mta.sink.record import Record
from tests.support.node import World, addresses
from tests.support.outcomes import log_of
from tests.support.postgres import Database

DOC = Path(__file__).parents[2] / "docs" / "failures.md"
SLOW = '[[rule]]\nstep = "dot"\ndelay_ms = 20\n'
LIMIT = {"messages": "messages_per_connection_max = 10\nmessages", "connections": "connections_max = 2\nconnections"}
LEARNT = {"messages a session": {"messages_per_session": 10}, "connections": {"connections": 2}}
COUNT = 120


class Row(NamedTuple):
    """One row, word for word. What is played, and what must come of it, follows from the words."""

    stage: str
    reply: str
    recipient: str
    session: str
    learnt: str

    @property
    def is_of_connections(self) -> bool:
        return "others go on" in self.session


def rows() -> Iterator[Row]:
    """Those of the document."""
    section = DOC.read_text().partition("## What a refusal means")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(Row._fields) and re.match(r"`\d{3} ", cells[1]):
            yield Row(*cells)


ROWS = list(rows())


def test_the_table_has_rows_of_every_stage_and_of_both_limits() -> None:
    assert {row.stage for row in ROWS} == {"greeting", "MAIL", "RCPT", "DATA"}
    assert {row.is_of_connections for row in ROWS} == {True, False}
    assert {row.recipient for row in ROWS} == {"returned, not charged"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.stage}-{row.reply.strip('`')[:40]}")
async def test_each_row_of_a_limit_is_true(tmp_path: Path, database: Database, row: Row) -> None:
    limit = LIMIT["connections" if row.is_of_connections else "messages"]
    step = "connect" if row.stage == "greeting" else row.stage.lower()
    provider = f'{limit}_reply = "{row.reply.strip("`")}"\nreply_at = "{step}"\n'
    async with World(tmp_path, database, provider=provider, script=SLOW if row.is_of_connections else "") as world:
        node = world.node()
        await node.start()
        delivery = await world.deliver(addresses(COUNT))
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (COUNT, 0, 0)
        assert {line["attempt"] for line in await log_of(world, delivery)} == {1}
        assert set(world.record().recipients().values()) == {1}
        assert (await world.audit(delivery)).is_clean
        _check_sessions(world.record(), row)
        async with database.pool.acquire() as conn:
            known = {one.fact.value: one.value for one in await host_facts.known(conn)}
        # One that has just been opened by another child may not be known to be open: then one less is learnt.
        assert known.keys() == LEARNT.get(row.learnt, {}).keys()
        assert all(1 <= known[fact] <= number for fact, number in LEARNT.get(row.learnt, {}).items())
        assert await node.stop() == 0


def _check_sessions(record: Record, row: Row) -> None:
    """One that met the limit sends no more."""
    refused = {one.connection for one in record.refused}
    assert refused, "nobody met the limit"
    accepted = Counter(one.connection for one in record.accepted if one.connection in refused)
    assert set(accepted.values()) <= (set() if row.is_of_connections else {10})
