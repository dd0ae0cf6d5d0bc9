"""The books: each kind of fault is found and named; held messages are settled in one transaction."""

from __future__ import annotations

import json

import asyncpg
import pytest

from mta.model.errors import BadInput
from mta.model.outcome import InDoubtPolicy, Status
from mta.queue import audit as audits
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.part import Part
from tests.support.content import new_delivery
from tests.support.postgres import Database

LOG = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
SELECT now(), $1, number, 1, 1, $3, 0, 250, '', 'x@example.com', '', '', '', '', '' FROM unnest($2::bigint[]) number
"""
RETRY = """
INSERT INTO mta.delivery_part (delivery_id, attempt, held, site, fields, numbers, count, recipients)
SELECT $1, 1, $3, 'mx.example.com', '{}', $2::bigint[], cardinality($2::bigint[]), convert_to(jsonb_agg(
    jsonb_build_array('user' || (n & 65535) || '@example.com', 'ref ' || (n & 65535), '[]'::jsonb)
    ORDER BY i)::text, 'UTF8')
FROM unnest($2::bigint[]) WITH ORDINALITY u (n, i)
"""
STATS = "UPDATE mta.delivery_stats SET delivered = $2, deferrals = $3 WHERE delivery_id = $1"


class Books:
    """One delivery of two parts, ten recipients each, and what a daemon would write of them."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn
        self.id = 0
        self.numbers: list[list[int]] = []

    async def open(self) -> None:
        self.id = await new_delivery(self.conn, in_doubt_policy=InDoubtPolicy.HOLD)
        parts = [Part(f"f:{p}", (), [(f"user{i}@example.com", f"ref {i}", []) for i in range(10)]) for p in (1, 2)]
        results = await append_parts(self.conn, self.id, parts)
        self.numbers = [[one.append_id << 16 | i for i in range(10)] for one in results]

    async def log(self, numbers: list[int], status: Status = Status.DELIVERED) -> None:
        await self.conn.execute(LOG, self.id, numbers, status.value)

    async def settle(self, part: int, positions: list[int]) -> None:
        part_id = await self.conn.fetchval("SELECT id FROM mta.delivery_part ORDER BY id OFFSET $1 LIMIT 1", part)
        await self.conn.execute("INSERT INTO mta.part_settled VALUES ($1, $2)", part_id, positions)

    async def retry(self, numbers: list[int], *, held: bool = False) -> None:
        await self.conn.execute(RETRY, self.id, numbers, held)

    async def end_part(self, part: int) -> None:
        await self.conn.execute("DELETE FROM mta.delivery_part WHERE append_id = $1", self.numbers[part][0] >> 16)

    async def count(self, delivered: int, deferrals: int = 0) -> None:
        await self.conn.execute(STATS, self.id, delivered, deferrals)

    async def audit(self) -> audits.Audit:
        return await audits.audit(self.conn, self.id)


@pytest.fixture
async def books(conn: asyncpg.Connection) -> Books:
    opened = Books(conn)
    await opened.open()
    return opened


async def test_a_delivery_under_way_is_clean(books: Books) -> None:
    first, second = books.numbers
    # First part: leased, six delivered, two deferred into a part of their own, one held, one still to go.
    await books.settle(0, [0, 1, 2])
    await books.settle(0, [3, 4, 5, 6, 7, 8])
    await books.log(first[:6])
    await books.log(first[6:8], Status.DEFERRED)
    await books.retry(first[6:8])
    await books.retry(first[8:9], held=True)
    # Second part: over and done.
    await books.log(second)
    await books.end_part(1)
    await books.count(16, deferrals=2)
    found = await books.audit()
    assert found.is_clean, found
    assert (found.appended, found.final, found.open, found.held) == (20, 16, 4, 1)


async def test_a_lost_recipient_is_named_by_part_and_index(books: Books) -> None:
    await books.settle(1, [7])
    found = await books.audit()
    assert not found.is_clean
    assert found.lost.count == 1
    assert (found.lost.examples[0].key, found.lost.examples[0].index) == ("f:2", 7)


async def test_two_final_outcomes_are_a_duplicate(books: Books) -> None:
    await books.settle(0, [3])
    await books.log([books.numbers[0][3]])
    await books.log([books.numbers[0][3]], Status.FAILED)
    found = await books.audit()
    assert [one.number for one in found.duplicates.examples] == [books.numbers[0][3]]
    assert {one.name for one in found.wrong_counters} == {"delivered", "failed"}


async def test_final_and_still_queued_is_found(books: Books) -> None:
    await books.log(books.numbers[0][:2])
    assert (await books.audit()).both.count == 2


async def test_queued_twice_is_found(books: Books) -> None:
    await books.retry(books.numbers[0][4:6])
    assert (await books.audit()).open_twice.count == 2


async def test_what_was_never_appended_is_found(books: Books) -> None:
    await books.log([books.numbers[0][0] + 10, 1 << 40])
    found = await books.audit()
    assert found.invented.count == 2
    assert [one.key for one in found.invented.examples] == ["f:1", None]


async def test_a_wrong_counter_is_found(books: Books) -> None:
    await books.count(1)
    found = await books.audit()
    assert [(one.name, one.counted, one.logged) for one in found.wrong_counters] == [("delivered", 1, 0)]


async def test_it_sees_one_snapshot_of_a_delivery_that_runs(database: Database, books: Books) -> None:
    """Half of a settlement is never seen: the other connection commits between the audit's own queries."""
    pages = audits._pages
    steps = 0

    async def pages_with_a_writer_between(conn: asyncpg.Connection, query: str, *values: object):
        nonlocal steps
        async for page in pages(conn, query, *values):
            yield page
        steps += 1
        async with database.pool.acquire() as other, other.transaction():
            moved = books.numbers[0][steps]
            await other.execute(LOG, books.id, [moved], Status.DELIVERED.value)
            await other.execute(
                "INSERT INTO mta.part_settled SELECT min(id), ARRAY[$1::int] FROM mta.delivery_part", steps
            )
            await other.execute(
                "UPDATE mta.delivery_stats SET delivered = delivered + 1 WHERE delivery_id = $1", books.id
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "_pages", pages_with_a_writer_between)
        during = await books.audit()
    assert steps == 3
    assert during.is_clean, during
    assert during.final == 0
    after = await books.audit()
    assert after.is_clean
    assert after.final == 3


async def test_an_unknown_delivery_is_said(conn: asyncpg.Connection) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        await audits.audit(conn, 99)
    with pytest.raises(BadInput, match="does not exist"):
        await audits.in_doubt(conn, 99)


async def _doubt(books: Books) -> list[int]:
    """Three of the first part in doubt and held; one of them is the part's own position, settled there."""
    held = books.numbers[0][2:5]
    await books.settle(0, [2, 3, 4])
    await books.retry(held, held=True)
    await books.conn.executemany(
        "INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)"
        " VALUES ($1, $2, 1, 1, $3, 'mx.example.com', '192.0.2.1', 'hold', 'connection lost')",
        [(books.id, number, f"user{number & 65535}@example.com") for number in held],
    )
    return held


async def test_held_messages_are_listed_and_sent_again_on_a_word(books: Books) -> None:
    held = await _doubt(books)
    assert [(one.number, one.held) for one in await audits.in_doubt(books.conn, books.id)] == [(n, True) for n in held]
    assert await audits.settle_in_doubt(books.conn, books.id, audits.Action.RESEND) == 3
    part = await books.conn.fetchrow(
        "SELECT held, due_at <= now() AS due FROM mta.delivery_part WHERE numbers IS NOT NULL"
    )
    assert (part["held"], part["due"]) == (False, True)
    assert [one.held for one in await audits.in_doubt(books.conn, books.id)] == [False] * 3
    assert (await books.audit()).is_clean


async def test_dropping_held_messages_records_each_as_failed(books: Books) -> None:
    held = await _doubt(books)
    assert await audits.settle_in_doubt(books.conn, books.id, audits.Action.DROP) == 3
    lines = await books.conn.fetch("SELECT * FROM mta.delivery_log ORDER BY number")
    assert [
        (line["number"], line["status"], line["address"], line["reference"], line["site"], line["reply"])
        for line in lines
    ] == [
        (number, Status.FAILED, f"user{i}@example.com", f"ref {i}", "mx.example.com", audits.DROPPED_REPLY)
        for i, number in enumerate(held, start=2)
    ]
    found = await books.audit()
    assert found.is_clean, found
    assert (found.final, found.open, found.held) == (3, 17, 0)
    assert (await deliveries.show(books.conn, books.id)).failed == 3
    assert await audits.settle_in_doubt(books.conn, books.id, audits.Action.DROP) == 0


async def test_dropping_a_held_part_of_an_append_counts_its_open_positions_only(books: Books) -> None:
    await books.settle(1, [0, 9])
    await books.log([books.numbers[1][0], books.numbers[1][9]])
    await books.count(2)
    await books.conn.execute("UPDATE mta.delivery_part SET held = true WHERE append_id = $1", books.numbers[1][0] >> 16)
    assert await audits.settle_in_doubt(books.conn, books.id, audits.Action.DROP) == 8
    assert (await books.audit()).is_clean
    assert await books.conn.fetchval("SELECT count(*) FROM mta.part_settled") == 0
    assert json.loads(await books.conn.fetchval("SELECT json_agg(DISTINCT attempt) FROM mta.delivery_log")) == [0, 1]
