"""The log as a stream: each line once, whatever is open, late or large."""

from __future__ import annotations

import asyncpg

from mta.queue import feed
from tests.support.postgres import Database

_LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                              reference, site, mx_host, peer, egress, reply)
SELECT now(), 1, $1 + i, 1, 1, 1, 0, 250, '', 'u@d.test', NULL, '', '', '', '', '' FROM generate_series(0, $2 - 1) i
"""


async def add(conn: asyncpg.Connection, first: int, count: int = 1) -> None:
    await conn.execute(_LINE, first, count)


async def numbers(conn: asyncpg.Connection, after: int, rows_max: int = feed.ROWS_MAX) -> tuple[list[int], int]:
    """All that can be read after a pointer, and where it stands then."""
    found: list[int] = []
    while True:
        page = await feed.read(conn, after, rows_max=rows_max)
        found += [line["number"] for line in page.lines]
        after = page.upto
        if page.is_last:
            return found, after


async def test_what_is_committed_later_is_read_later_and_nothing_is_missed(database: Database) -> None:
    async with database.pool.acquire() as reader, database.pool.acquire() as early, database.pool.acquire() as late:
        after = await feed.pointer(reader, "r", from_the_beginning=True)
        slow = early.transaction()
        await slow.start()
        await add(early, 1)
        await add(late, 2)  # its transaction is younger, and is over first
        found, after = await numbers(reader, after)
        assert found == []
        await slow.commit()
        found, after = await numbers(reader, after)
        assert found == [1, 2]
        await add(late, 3)
        assert (await numbers(reader, after))[0] == [3]


async def test_a_transaction_larger_than_a_page_comes_whole(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await add(conn, 0, 50)
        await add(conn, 50, 3)
        await add(conn, 53, 1)
        first = await feed.read(conn, 0, rows_max=10)
        assert sorted(line["number"] for line in first.lines) == list(range(50))
        assert not first.is_last
        found, _ = await numbers(conn, 0, rows_max=2)
        assert sorted(found) == list(range(54))
        assert len(found) == 54


async def test_a_new_reader_begins_now_or_at_the_beginning(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await add(conn, 1)
        late = await feed.pointer(conn, "late")
        assert (await numbers(conn, late))[0] == []
        assert (await numbers(conn, await feed.pointer(conn, "all", from_the_beginning=True)))[0] == [1]
        await add(conn, 2)
        assert (await numbers(conn, await feed.pointer(conn, "late")))[0] == [2]


async def test_a_pointer_never_goes_back_and_moves_only_with_its_transaction(database: Database) -> None:
    async with database.pool.acquire() as conn:
        at = await feed.pointer(conn, "r")
        transaction = conn.transaction()
        await transaction.start()
        await feed.move(conn, "r", at + 10)
        await transaction.rollback()
        assert await feed.pointer(conn, "r") == at
        await feed.move(conn, "r", at + 10)
        await feed.move(conn, "r", at + 5)
        assert await feed.pointer(conn, "r") == at + 10


async def test_a_filter_moves_the_pointer_past_what_it_leaves_out(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await add(conn, 1, 5)
        page = await feed.read(conn, 0, where="AND status = 2")
        assert page.lines == []
        assert page.is_last
        assert (await numbers(conn, page.upto))[0] == []
