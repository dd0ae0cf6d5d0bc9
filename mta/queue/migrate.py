"""Forward-only numbered migrations, and what the daemon asks of a database before it trusts it.

Each file ``schema/NNNN_name.sql`` is applied once, in a transaction of its own that also records it; an advisory lock
keeps two migrating programs apart. A file that was applied never changes: its checksum is kept and compared.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Final

import asyncpg
import msgspec

from mta.model.errors import BadInput
from mta.queue.connection import Conn

MIGRATION_LOCK: Final = 0x6D7461  # "mta"; any number that every version of this program agrees on
SERVER_VERSION_MIN: Final = 140000
_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

_LOCK = "SELECT pg_advisory_xact_lock($1)"
_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS mta;
CREATE TABLE IF NOT EXISTS mta.schema_migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""
_EXISTS = "SELECT to_regclass('mta.schema_migration') IS NOT NULL"
_APPLIED = "SELECT version, name, checksum, applied_at FROM mta.schema_migration ORDER BY version"
_RECORD = "INSERT INTO mta.schema_migration (version, name, checksum) VALUES ($1, $2, $3)"
_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
       current_setting('fsync')::bool AS fsync, current_setting('full_page_writes')::bool AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit
"""


class SchemaMismatch(BadInput):
    """The database's schema is not the one this program was made for; nothing was changed."""


class Migration(msgspec.Struct, frozen=True):
    """One file. ``checksum`` is the SHA-256 of its bytes, hexadecimal."""

    version: int
    name: str
    checksum: str
    sql: str


class AppliedMigration(msgspec.Struct, frozen=True):
    version: int
    name: str
    checksum: str
    applied_at: datetime.datetime


class SchemaStatus(msgspec.Struct, frozen=True):
    """What is applied, what is still to be applied, and warnings about the server's settings."""

    applied: tuple[AppliedMigration, ...]
    pending: tuple[str, ...]  # "0002_append", in order
    findings: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        return not self.pending


def known_migrations() -> tuple[Migration, ...]:
    """The files of this program, in order; a gap or a doubled number is a fault of the package itself."""
    found = []
    for entry in resources.files("mta.queue").joinpath("schema").iterdir():
        match = _FILE_NAME.fullmatch(entry.name)
        if match is None:
            continue
        content = entry.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        found.append(Migration(int(match[1]), match[2], checksum, content.decode("utf-8")))
    found.sort(key=lambda migration: migration.version)
    _require_no_gap("package mta, queue/schema", [migration.version for migration in found])
    return tuple(found)


async def migrate(conn: Conn, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is pending, one transaction a migration; answers those that this call applied.

    Raises SchemaMismatch when the schema is newer, has a gap, or was made by a file that has changed since;
    BadInput when the server cannot be trusted (see ``check_server``).
    """
    known = known_migrations() if migrations is None else tuple(migrations)
    await check_server(conn)
    done: list[Migration] = []
    while True:
        async with conn.transaction():
            await conn.execute(_LOCK, MIGRATION_LOCK)
            await conn.execute(_BOOTSTRAP)
            pending = _pending(await _applied(conn), known)
            if not pending:
                return done
            migration = pending[0]
            try:
                await conn.execute(migration.sql)
            except asyncpg.PostgresError as error:
                where = f"migration {migration.version:04}_{migration.name}"
                raise SchemaMismatch(where, f"cannot be applied, nothing of it was kept: {error}") from error
            await conn.execute(_RECORD, migration.version, migration.name, migration.checksum)
            done.append(migration)


async def status(conn: Conn) -> SchemaStatus:
    """What is applied and what is not. Raises as ``migrate`` does; changes nothing."""
    findings = await check_server(conn)
    applied = await _applied(conn)
    pending = _pending(applied, known_migrations())
    return SchemaStatus(applied, tuple(f"{one.version:04}_{one.name}" for one in pending), findings)


async def require_current(conn: Conn) -> tuple[str, ...]:
    """For every program that uses the queue: the schema is exactly ours, the server durable. Answers warnings."""
    found = await status(conn)
    if not found.applied:
        raise SchemaMismatch("database", "holds no mta schema yet; run: mta db migrate")
    if found.pending:
        raise SchemaMismatch("database", f"lacks the migrations {', '.join(found.pending)}; run: mta db migrate")
    return found.findings


async def check_server(conn: Conn) -> tuple[str, ...]:
    """Refuse a server that can lose what it has acknowledged, or is too old; answer milder findings as sentences."""
    server = await conn.fetchrow(_SERVER)
    assert server is not None
    if server["version"] < SERVER_VERSION_MIN:
        raise BadInput("database", f"needs PostgreSQL {SERVER_VERSION_MIN // 10000} or newer")
    if server["encoding"] != "UTF8":
        raise BadInput("database", f"has the encoding {server['encoding']}; it must be UTF8")
    for setting in ("fsync", "full_page_writes"):
        if not server[setting]:
            raise BadInput(f"database setting {setting}", "is off: a crash can lose or damage what was acknowledged")
    if server["synchronous_commit"] == "off":
        return ("synchronous_commit is off: a crash of the server can lose appends and outcomes already acknowledged",)
    return ()


async def _applied(conn: Conn) -> tuple[AppliedMigration, ...]:
    if not await conn.fetchval(_EXISTS):
        return ()
    return tuple(AppliedMigration(*row.values()) for row in await conn.fetch(_APPLIED))


def _pending(applied: Sequence[AppliedMigration], known: Sequence[Migration]) -> list[Migration]:
    """Migrations still to apply; SchemaMismatch when what is applied is not a beginning of what is known."""
    if applied and (not known or applied[-1].version > known[-1].version):
        newest = known[-1].version if known else 0
        what = f"is at version {applied[-1].version}, this program knows {newest}: the schema is newer than the program"
        raise SchemaMismatch("database", what)
    _require_no_gap("database, mta.schema_migration", [one.version for one in applied])
    for have, file in zip(applied, known, strict=False):
        if have.checksum != file.checksum:
            where = f"migration {file.version:04}_{file.name}"
            raise SchemaMismatch(
                where, f"has changed since it was applied (as {have.name}, {have.applied_at:%Y-%m-%d})"
            )
    return list(known[len(applied) :])


def _require_no_gap(where: str, versions: Sequence[int]) -> None:
    for expected, version in enumerate(versions, start=1):
        if version != expected:
            raise SchemaMismatch(where, f"has a gap: expected number {expected}, found {version}")
