"""Migrations on a real server: applied once, in order, refused when the schema is not what the program knows."""

from __future__ import annotations

import asyncio

import asyncpg
import msgspec
import pytest

from mta.model.errors import BadInput
from mta.queue import migrate
from mta.queue.connection import DatabaseUnreachable, connect, connection
from mta.queue.embedded import EmbeddedPostgres
from mta.queue.migrate import Migration, SchemaMismatch
from tests.support import postgres as support

EVERY_VERSION = [one.version for one in migrate.known_migrations()]


@pytest.fixture
async def empty_dsn(postgres: EmbeddedPostgres) -> str:
    return postgres.database_dsn(await support.create_database(postgres, "template1"))


def _migration(version: int, sql: str) -> Migration:
    return Migration(version, f"step_{version}", f"checksum of {sql}", sql)


async def test_an_empty_database_gets_every_migration_once(empty_dsn: str) -> None:
    async with connection(empty_dsn) as conn:
        assert not (await migrate.status(conn)).is_current
        applied = await migrate.migrate(conn)
        assert [one.version for one in applied] == EVERY_VERSION
        assert await migrate.migrate(conn) == []
        assert (await migrate.status(conn)).is_current
        assert await migrate.require_current(conn) == ()


async def test_two_programs_that_migrate_at_once_share_the_work(empty_dsn: str) -> None:
    async with connection(empty_dsn) as one, connection(empty_dsn) as other:
        done = await asyncio.gather(migrate.migrate(one), migrate.migrate(other))
    assert sorted(step.version for steps in done for step in steps) == EVERY_VERSION


async def test_a_database_without_schema_is_refused_with_the_command_to_run(empty_dsn: str) -> None:
    async with connection(empty_dsn) as conn:
        with pytest.raises(SchemaMismatch, match="mta db migrate"):
            await migrate.require_current(conn)


async def test_a_migration_that_fails_keeps_nothing_and_says_which(empty_dsn: str) -> None:
    steps = [_migration(1, "CREATE TABLE mta.a (x int)"), _migration(2, "CREATE TABLE mta.b (x int); SELECT 1/0")]
    async with connection(empty_dsn) as conn:
        with pytest.raises(SchemaMismatch, match=r"migration 0002_step_2: .*division by zero"):
            await migrate.migrate(conn, steps)
        assert await conn.fetchval("SELECT to_regclass('mta.b')") is None
        fixed = [steps[0], _migration(2, "CREATE TABLE mta.b (x int)")]
        assert [step.version for step in await migrate.migrate(conn, fixed)] == [2]


async def test_a_schema_newer_than_the_program_is_refused(conn: asyncpg.Connection) -> None:
    later = "INSERT INTO mta.schema_migration (version, name, checksum) VALUES ($1, 'later', 'x')"
    await conn.execute(later, EVERY_VERSION[-1] + 1)
    for ask in (migrate.migrate, migrate.status, migrate.require_current):
        with pytest.raises(SchemaMismatch, match="newer than the program"):
            await ask(conn)


async def test_a_changed_file_is_refused(conn: asyncpg.Connection) -> None:
    changed = [msgspec.structs.replace(one, checksum="other") for one in migrate.known_migrations()]
    with pytest.raises(SchemaMismatch, match="has changed since it was applied"):
        await migrate.migrate(conn, changed)


async def test_a_gap_in_what_was_applied_is_refused(conn: asyncpg.Connection) -> None:
    await conn.execute("DELETE FROM mta.schema_migration WHERE version = 2")
    with pytest.raises(SchemaMismatch, match="expected number 2, found 3"):
        await migrate.status(conn)


async def test_asynchronous_commit_is_a_finding(conn: asyncpg.Connection) -> None:
    await conn.execute("SET synchronous_commit = off")
    findings = await migrate.require_current(conn)
    assert len(findings) == 1
    assert "synchronous_commit" in findings[0]


def test_a_server_without_fsync_is_refused_and_data_survive_kill_and_restart(tmp_path: object) -> None:
    postgres = EmbeddedPostgres(f"{tmp_path}/pg", {"fsync": "off", "shared_buffers": "16MB"})
    with postgres:

        async def refused() -> None:
            async with connection(postgres.dsn) as conn:
                with pytest.raises(BadInput, match="fsync"):
                    await migrate.migrate(conn)
                await conn.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")

        asyncio.run(refused())
        postgres.kill()
        assert not postgres.is_running
        with pytest.raises(DatabaseUnreachable):
            asyncio.run(connect(postgres.dsn))
        postgres.start()

        async def kept() -> int:
            async with connection(postgres.dsn) as conn:
                return await conn.fetchval("SELECT x FROM kept")

        assert asyncio.run(kept()) == 7
        postgres.restart()
        assert asyncio.run(kept()) == 7
    assert not postgres.is_running
