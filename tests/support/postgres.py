"""A real server for the tests, and a fresh database for each test, cloned from a migrated template."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import asyncpg

from mta.queue.connection import connection
from mta.queue.embedded import EmbeddedPostgres
from mta.queue.migrate import migrate
from mta.queue.partitions import ensure_partitions

TEMPLATE = "mta_template"
_PREFIX = "mta-tests-pg-"
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES_MIN = 8 << 30
_serial = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database of the test's own: ``dsn`` for processes, ``pool`` for the test itself."""

    dsn: str
    pool: asyncpg.Pool


def _base() -> Path:
    """In memory where there is much: tests kill processes, never the machine, and need not wait for a disk."""
    try:
        room = os.statvfs(_MEMORY)
    except OSError:
        return Path(tempfile.gettempdir())
    is_enough = os.access(_MEMORY, os.W_OK) and room.f_bavail * room.f_frsize > _MEMORY_BYTES_MIN
    return _MEMORY if is_enough else Path(tempfile.gettempdir())


@contextlib.contextmanager
def directories(count: int) -> Iterator[list[Path]]:
    """Directories for servers; those of processes that died are cleared away.

    Whoever uses one holds its lock. A process id would not do: in a container it means another process.
    """
    base = _base()
    for left in base.glob(_PREFIX + "*"):
        with _locked(left) as is_ours:
            if is_ours:
                EmbeddedPostgres(left).kill()
                shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as locks:
        yield [_new_directory(base, locks) for _ in range(count)]


def _new_directory(base: Path, locks: contextlib.ExitStack) -> Path:
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # Somebody who clears away may have come between.
        if locks.enter_context(_locked(made)) and made.exists():
            return made


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    try:
        fd = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


@contextlib.contextmanager
def server(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[EmbeddedPostgres]:
    """A server in a directory of its own."""
    with directories(1) as (directory,):
        yield from _served(EmbeddedPostgres(directory, settings))


def _served(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.kill()  # nobody needs its last checkpoint
        postgres.remove()


async def make_template(postgres: EmbeddedPostgres) -> None:
    async with connection(postgres.dsn) as conn:
        await conn.execute(f"CREATE DATABASE {TEMPLATE}")
    async with connection(postgres.database_dsn(TEMPLATE)) as conn:
        await migrate(conn)
        await ensure_partitions(conn)


async def create_database(postgres: EmbeddedPostgres, template: str = TEMPLATE) -> str:
    """A new database; answers its name."""
    name = f"test_{next(_serial)}"
    # Its files are copied between two checkpoints, which cost nothing in memory and much on a disk; else by pages.
    strategy = "FILE_COPY" if postgres.directory.is_relative_to(_MEMORY) else "WAL_LOG"
    async with connection(postgres.dsn) as conn:
        await conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
    return name


async def drop_database(postgres: EmbeddedPostgres, name: str) -> None:
    """Gone with all who are still connected to it."""
    async with connection(postgres.dsn) as conn:
        await conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
