"""A primary and its streaming standby: two real PostgreSQL servers on loopback, to be cut apart, killed and promoted.

Both listen on TCP, as two machines would, so one connection string names both (`Pair.dsn`). What the standby lacks at
a failover is made definite by `Pair.stall`: from then on the primary sends it nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import asyncpg

from mta.queue.connection import connection
from mta.queue.embedded import SUPERUSER, EmbeddedPostgres
from tests.support import postgres as support

WAIT_S: Final = 30.0
STANDBY_NAME: Final = "standby"
_SMALL: Final[Mapping[str, str]] = MappingProxyType({"shared_buffers": "64MB", "max_connections": "60"})


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class ReplicatedServer(EmbeddedPostgres):
    """One of the two: on TCP, at a port of its own."""

    def __init__(self, directory: Path, port: int, settings: Mapping[str, str]) -> None:
        super().__init__(directory, {**_SMALL, **settings})
        self.port = port

    def _all_settings(self) -> dict[str, str]:
        return {**super()._all_settings(), "listen_addresses": "127.0.0.1", "port": str(self.port)}

    def database_dsn(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def copy_of(self, other: ReplicatedServer) -> None:
        """Becomes a standby of ``other``, which runs: its base backup, not started."""
        self._prepare_directories()
        source = f"host=127.0.0.1 port={other.port} user={SUPERUSER} application_name={STANDBY_NAME}"
        made = subprocess.run(
            [self._bin / "pg_basebackup", "-D", self._data, "-d", source, "-X", "stream", "-R", "-c", "fast", "-N"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            timeout=WAIT_S,
            **self._as_user(),
        )
        assert made.returncode == 0, made.stderr


@dataclass
class Pair:
    """The two servers and one database on both. ``dsn`` names both hosts and asks for the one that can write."""

    primary: ReplicatedServer
    standby: ReplicatedServer
    name: str

    @property
    def dsn(self) -> str:
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://{SUPERUSER}@{hosts}/{self.name}?target_session_attrs=read-write"

    @property
    def standby_dsn(self) -> str:
        return self.standby.database_dsn(self.name)

    async def stall(self) -> None:
        """The network between the two goes silent: nothing that is committed from here on reaches the standby."""
        async with connection(self.primary.dsn) as conn:
            senders = await conn.fetch("SELECT pid FROM pg_stat_replication")
        assert senders, "there is no standby"
        for sender in senders:
            os.kill(sender["pid"], signal.SIGSTOP)

    async def caught_up(self) -> None:
        """Returns when the standby has replayed all that the primary has written by now."""
        async with connection(self.primary.dsn) as conn:
            written = await conn.fetchval("SELECT pg_current_wal_flush_lsn()")
        async with connection(self.standby.dsn) as conn:
            await _until(lambda: conn.fetchval("SELECT pg_last_wal_replay_lsn() >= $1", written))

    async def kill_primary(self) -> None:
        """As a power cut would, and for good."""
        await asyncio.to_thread(self.primary.kill)

    async def promote(self) -> None:
        """The standby becomes the primary; returns when it takes writes."""
        async with connection(self.standby.dsn) as conn:
            assert await conn.fetchval("SELECT pg_promote(true, 30)")

    async def fail_over(self) -> None:
        await self.kill_primary()
        await self.promote()


async def _until(holds: Callable[[], Any]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not await holds():
        assert time.monotonic() < end_s, "the standby does not follow"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def server_pair(*, is_synchronous: bool) -> AsyncIterator[Pair]:
    """Both run, the standby follows, and a migrated database is on them.

    ``is_synchronous``: a commit is answered when the standby has it on disk.
    """
    with support.directories(2) as (first, second):
        primary = ReplicatedServer(first, free_port(), {})
        standby = ReplicatedServer(second, free_port(), {})
        try:
            await asyncio.to_thread(primary.start)
            await support.make_template(primary)
            name = await support.create_database(primary)
            await asyncio.to_thread(standby.copy_of, primary)
            await asyncio.to_thread(standby.start)
            pair = Pair(primary, standby, name)
            await _until(lambda: _streams(primary))
            await pair.caught_up()
            if is_synchronous:
                async with connection(primary.dsn) as conn:
                    await conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY_NAME}'")
                    await conn.execute("SELECT pg_reload_conf()")
                await _until(lambda: _streams(primary, "sync"))
            yield pair
        finally:
            for server in (primary, standby):
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.remove)


async def _streams(primary: EmbeddedPostgres, state: str = "async") -> bool:
    async with connection(primary.dsn) as conn:
        query = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1"
        return await conn.fetchval(query, state) is not None


@contextlib.asynccontextmanager
async def replicated_database(pair: Pair) -> AsyncIterator[support.Database]:
    """The database of the pair for a test: ``pool`` follows the server that takes writes."""
    async with asyncpg.create_pool(pair.dsn, min_size=0, max_size=4) as pool:
        yield support.Database(pair.dsn, pool)
