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


async def test_a_reader_far_behind_reads_by_the_page_and_misses_nothing(database: Database) -> None:
    async with database.pool.acquire() as conn:
        for number in range(0, 900, 3):  # more transactions than one statement looks at, some without lines
            await add(conn, number, 3)
            await conn.execute("SELECT pg_current_xact_id()")
        after, found = 0, []
        while True:
            page = await feed.read(conn, after, rows_max=40)
            assert len(page.lines) <= 42
            assert all(after < line["tx"] <= page.upto for line in page.lines)
            found += [line["number"] for line in page.lines]
            after = page.upto
            if page.is_last:
                break
        assert found == list(range(900))


async def test_a_long_time_of_nothing_is_passed_in_pieces(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await add(conn, 1)
        end = await feed.horizon(conn)
        page = await feed.read(conn, end - 3_000_000)  # as if three million transactions had been elsewhere
        looks = 1
        while not page.is_last:
            assert (page.lines, page.upto < end) == ([], True)
            page, looks = await feed.read(conn, page.upto), looks + 1
        assert [line["number"] for line in page.lines] == [1]
        assert looks > 1


async def test_who_dies_before_its_commit_reads_the_same_again(database: Database) -> None:
    async with database.pool.acquire() as writer:
        await add(writer, 0, 5)
        doomed = await asyncpg.connect(database.dsn)
        after = await feed.pointer(doomed, "r", from_the_beginning=True)
        transaction = doomed.transaction()
        await transaction.start()
        page = await feed.read(doomed, await feed.pointer(doomed, "r", is_locked=True))
        await feed.move(doomed, "r", page.upto)
        doomed.terminate()
        # Waits for the server to notice, for the row was locked.
        assert await feed.pointer(writer, "r", is_locked=True) == after
        assert (await numbers(writer, after))[0] == [0, 1, 2, 3, 4]


async def test_a_pointer_of_another_server_is_known_as_such(database: Database) -> None:
    async with database.pool.acquire() as conn:
        at = await feed.pointer(conn, "r")
        assert not await feed.is_of_another_server(conn, at)
        await feed.move(conn, "r", at + 1_000_000_000)
        assert await feed.is_of_another_server(conn, await feed.pointer(conn, "r"))
        await feed.begin_anew(conn, "r")
        assert not await feed.is_of_another_server(conn, await feed.pointer(conn, "r"))
        assert (await feed.read(conn, await feed.pointer(conn, "r"))).lines == []


async def test_how_far_readers_have_come_is_told(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await feed.pointer(conn, "r")
        for number in range(10):
            await add(conn, number)
        standing = {one.name: one for one in await feed.standings(conn)}
        assert standing["r"].transactions_behind >= 10
        assert "failures" in standing  # the keeper's, from when the log began to have transactions
