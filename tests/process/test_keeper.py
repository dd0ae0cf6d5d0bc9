"""``mta keep`` in processes of its own: killed in the middle it counts once, one of several works, it ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg

from tests.support.launch import Launched, launch
from tests.support.node import until
from tests.support.postgres import Database

FAILURES, TRANSACTION = 20_000, 500
KILLED_AFTER_S = (0.0, 0.1, 0.2)
_LINES = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply, type, category)
SELECT $2::timestamptz, 1, n, 1, 1, 10, 3, 450, '', 'u' || n || '@d.test', '', '', '', '',
       'no room for u' || n || '@d.test', 1, 7
FROM generate_series($1::int, $1::int + $3::int - 1) n
"""
# The keeper waits where all is applied and only its pointer has not moved yet.
_GATE = """
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$;
CREATE TRIGGER gate BEFORE UPDATE ON mta.log_pointer FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
"""
_AT_GATE = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted)"
_STANDS_BY = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                                              AND query LIKE '%pg_try_advisory_lock%' AND state = 'idle')
"""
_HAS_READ_ALL = """
SELECT (SELECT tx FROM mta.log_pointer WHERE name = 'failures') >= (SELECT max(tx) FROM mta.delivery_log)
"""
_BEHIND = "SELECT tx FROM mta.log_pointer WHERE name = 'failures'"


class Keep:
    """One ``mta keep``."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self._config = directory / "mta.toml"
        self._config.write_text(f'[database]\ndsn = "{dsn}"\n')
        self.log: list[dict[str, object]] = []
        self.process: Launched | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> Keep:
        self.process = await launch("keep", "--config", str(self._config), "--log-json")
        self._reader = asyncio.create_task(self._read(self.process))
        return self

    async def _read(self, process: Launched) -> None:
        async for line in process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode(errors="replace")})

    def said(self, event: str) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log
        return any(entry.get("event") == event for entry in self.log)

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        assert self._reader is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 30)
        await asyncio.wait_for(self._reader, 30)
        return code


@contextlib.asynccontextmanager
async def keeping(directory: Path, dsn: str) -> AsyncIterator[Keep]:
    keep = await Keep(directory, dsn).start()
    try:
        yield keep
    finally:
        await keep.end(signal.SIGKILL)


async def fill(conn: asyncpg.Connection) -> None:
    for day in range(2):
        for first in range(0, FAILURES, TRANSACTION):
            at = await conn.fetchval("SELECT now() - make_interval(days => $1)", 3 - 2 * day)
            await conn.execute(_LINES, first, at, TRANSACTION)


async def has_read_all(database: Database) -> bool:
    # Not by what could be read now: a line is held back while an older transaction is open.
    return bool(await database.pool.fetchval(_HAS_READ_ALL))


async def has_moved(conn: asyncpg.Connection, began: int) -> bool:
    return bool(await conn.fetchval(_BEHIND) != began)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.005)


async def test_killed_in_the_middle_it_has_counted_each_failure_once(tmp_path: Path, database: Database) -> None:
    async with database.pool.acquire() as conn:
        await fill(conn)
        for wait_s in KILLED_AFTER_S:
            began = await conn.fetchval(_BEHIND)
            async with keeping(tmp_path, database.dsn):
                await eventually(lambda began=began: has_moved(conn, began))
                await asyncio.sleep(wait_s)
        assert not await has_read_all(database)
        async with keeping(tmp_path, database.dsn):
            await eventually(lambda: has_read_all(database))
        rows = await conn.fetch("SELECT status, errors, count(*) FROM mta.quarantine GROUP BY 1, 2")
        assert [tuple(row) for row in rows] == [(1, 2, FAILURES)]
        assert await conn.fetchval("SELECT sum(occurrences) FROM mta.failure_text") == 2 * FAILURES


async def test_killed_between_what_it_counted_and_its_pointer_it_counts_again_and_once(
    tmp_path: Path, database: Database
) -> None:
    async with database.pool.acquire() as conn, database.pool.acquire() as gate:
        await conn.execute(_GATE)
        await conn.execute(_LINES, 1, await conn.fetchval("SELECT now()"), 10)
        await gate.execute("SELECT pg_advisory_lock(4711)")
        async with keeping(tmp_path, database.dsn):
            await eventually(lambda: conn.fetchval(_AT_GATE))
        await gate.execute("SELECT pg_advisory_unlock(4711)")
        assert await conn.fetchval("SELECT count(*) FROM mta.quarantine") == 0
        async with keeping(tmp_path, database.dsn):
            await eventually(lambda: has_read_all(database))
        rows = await conn.fetch("SELECT errors, count(*) FROM mta.quarantine GROUP BY 1")
        assert [tuple(row) for row in rows] == [(1, 10)]
        assert await conn.fetchval("SELECT sum(occurrences) FROM mta.failure_text") == 10


async def test_one_works_and_another_takes_over_when_it_is_gone(tmp_path: Path, database: Database) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with keeping(tmp_path / "a", database.dsn) as first:
        await until("the first keeps", lambda: first.said("keeping"))
        async with keeping(tmp_path / "b", database.dsn) as second:
            await eventually(lambda: database.pool.fetchval(_STANDS_BY))
            assert not second.said("keeping")
            await first.end(signal.SIGKILL)
            await until("the second keeps", lambda: second.said("keeping"))
            assert await second.end(signal.SIGTERM) == 0


async def test_it_waits_for_a_database_that_throws_it_out(tmp_path: Path, database: Database) -> None:
    async with database.pool.acquire() as conn, keeping(tmp_path, database.dsn) as keep:
        await until("it keeps", lambda: keep.said("keeping"))
        keep.log.clear()
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until("it keeps again", lambda: keep.said("keeping"))
        await conn.execute(_LINES, 1, await conn.fetchval("SELECT now()"), 1)
        await eventually(lambda: has_read_all(database))
        assert await conn.fetchval("SELECT count(*) FROM mta.quarantine") == 1
        assert await keep.end(signal.SIGTERM) == 0
