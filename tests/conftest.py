"""Fixtures that every kind of test may ask for: a real PostgreSQL server, and a database of the test's own."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings

from mta.queue.embedded import EmbeddedPostgres
from tests.support import postgres as support
from tests.support.compiled import followed
from tests.support.postgres import Database

# How fast the machine is today is no property of the code.
settings.register_profile("mta", deadline=None)
settings.load_profile("mta")


def pytest_configure(config: pytest.Config) -> None:
    """What is compiled must be what stands in the sources, or the tests would be of something else."""
    if os.environ.get("MTA_INTERPRETED") == "1" or hasattr(config, "workerinput"):
        return
    compiled_s = min((path.stat().st_mtime for path in Path("mta").rglob("*.cpython-*.so")), default=math.inf)
    for source in followed():
        if Path(source).stat().st_mtime > compiled_s:
            raise pytest.UsageError(f"{source} is newer than what was compiled from it: run make compile")


# In which order workers take files: long ones first, so that none is left with one when the others have ended.
_LONG_FILES = (
    "process/test_bench.py",
    "crash/test_kill.py",
    "crash/test_lease.py",
    "process/test_limits_nodes.py",
)
_DIRECTORIES = ("crash", "process", "property", "store", "pure", "docs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, int]:
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    long = _LONG_FILES.index(name) if name in _LONG_FILES else len(_LONG_FILES)
    directory = name.partition("/")[0]
    return long, _DIRECTORIES.index(directory) if directory in _DIRECTORIES else len(_DIRECTORIES)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped, and what a test has measured: neither is seen in a row of dots."""
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {reason}", yellow=True)
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name} {value}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the whole run, with a migrated template database in it."""
    with support.server() as server:
        # In a thread: this fixture may be asked for inside a running loop.
        failures: list[BaseException] = []

        def prepare() -> None:
            try:
                asyncio.run(support.make_template(server))
            except BaseException as error:
                failures.append(error)

        worker = threading.Thread(target=prepare)
        worker.start()
        worker.join()
        if failures:
            raise failures[0]
        yield server


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A fresh database with the current schema, empty."""
    name = await support.create_database(postgres)
    dsn = postgres.database_dsn(name)
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=10)
    try:
        yield Database(dsn, pool)
    finally:
        await asyncio.wait_for(pool.close(), 10)
        await support.drop_database(postgres, name)


@pytest.fixture
def dsn(database: Database) -> str:
    return database.dsn


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's own database."""
    async with database.pool.acquire() as connection:
        yield connection
