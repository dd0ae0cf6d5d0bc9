"""Daily partitions of the log: made ahead, never too late, dropped whole."""

from __future__ import annotations

import datetime

import asyncpg
import pytest

from mta.queue import partitions

INSERT = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
SELECT $1, 1, n, 1, 1, 1, 0, 250, '', 'ann@example.com', '', '', '', '', '' FROM generate_series(1, $2::int) n
"""


async def _today(conn: asyncpg.Connection) -> datetime.date:
    return await conn.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")


async def test_partitions_are_there_for_today_and_ahead_and_only_once(conn: asyncpg.Connection) -> None:
    today = await _today(conn)
    assert await partitions.ensure_partitions(conn) == []
    assert await partitions.ensure_partitions(conn, days_ahead=5) == [
        today + datetime.timedelta(days=n) for n in (4, 5)
    ]
    days = [one.day for one in await partitions.list_partitions(conn)]
    assert days == [None, *(today + datetime.timedelta(days=n) for n in range(6))]


async def test_rows_that_came_before_their_partition_move_into_it(conn: asyncpg.Connection) -> None:
    early = datetime.datetime.combine(await _today(conn) + datetime.timedelta(days=4), datetime.time(), datetime.UTC)
    await conn.execute(INSERT, early, 3)
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log_default") == 3
    await partitions.ensure_partitions(conn, days_ahead=4)
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log_default") == 0
    where = await conn.fetch("SELECT DISTINCT tableoid::regclass::text FROM mta.delivery_log")
    assert [row[0] for row in where] == [f"mta.delivery_log_{early:%Y%m%d}"]


async def test_days_are_those_of_utc_whatever_the_session_thinks(conn: asyncpg.Connection) -> None:
    await conn.execute("SET timezone = 'Pacific/Auckland'")
    day = await _today(conn) + datetime.timedelta(days=9)
    await conn.fetchval("SELECT mta.create_log_partition($1)", day)
    for at in (datetime.time(0), datetime.time(23, 59, 59, 999999)):
        await conn.execute(INSERT, datetime.datetime.combine(day, at, datetime.UTC), 1)
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log_default") == 0


async def test_dropping_takes_whole_days_and_leaves_the_rest(conn: asyncpg.Connection) -> None:
    today = await _today(conn)
    await conn.execute(INSERT, datetime.datetime.now(datetime.UTC), 10)
    names = [f"delivery_log_{today + datetime.timedelta(days=n):%Y%m%d}" for n in (0, 1)]
    assert await partitions.drop_before(conn, today) == []
    assert await partitions.drop_before(conn, today + datetime.timedelta(days=2)) == names
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log") == 0
    assert len(await partitions.list_partitions(conn)) == 3


async def test_a_long_reader_makes_it_give_up_instead_of_queueing(
    database: object, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT_MS", 50)
    async with database.pool.acquire() as reader, reader.transaction():  # type: ignore[attr-defined]
        await reader.fetch("SELECT 1 FROM mta.delivery_log LIMIT 1")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await partitions.drop_before(conn, await _today(conn) + datetime.timedelta(days=2))
