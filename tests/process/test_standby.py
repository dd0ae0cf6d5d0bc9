"""Commands on a hot standby: what reads works, what writes says in one line that it cannot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.queue.connection import connection
from tests.support.content import content_json, new_delivery
from tests.support.launch import launch
from tests.support.node import World, until
from tests.support.postgres import Database
from tests.support.replication import Pair, server_pair

READING = (
    ("delivery", "list"),
    ("delivery", "show", "1"),
    ("delivery", "audit", "1"),
    ("delivery", "in-doubt", "1"),
    ("queue", "show"),
    ("log", "find", "ann@example.com"),
    ("monitor", "throughput"),
    ("monitor", "errors"),
    ("monitor", "alerts"),
    ("monitor", "domains"),
    ("monitor", "slow", "1"),
    ("quarantine", "show", "ann@example.com"),
    ("quarantine", "search"),
    ("quarantine", "export"),
    ("quarantine", "status"),
    ("bounce", "unqualified"),
    ("rules", "history"),
    ("traffic", "events"),
    ("stream", "lag"),
    ("db", "status"),
    ("inbound", "status"),
)
WRITING = (
    ("delivery", "start", "1"),
    ("delivery", "pause", "1"),
    ("delivery", "seal", "1"),
    ("quarantine", "add", "ann@example.com", "--because", "test"),
    ("quarantine", "release"),
    ("monitor", "check"),
    ("db", "migrate"),
)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with server_pair(is_synchronous=False) as servers:
        async with connection(servers.primary.database_dsn(servers.name)) as conn:
            await new_delivery(conn)
        await servers.caught_up()
        yield servers


async def test_commands_on_a_standby(tmp_path: Path, pair: Pair) -> None:
    config = tmp_path / "mta.toml"
    config.write_text(
        f'[database]\ndsn = "{pair.standby_dsn}"\n[node]\njournal_dir = "{tmp_path}"\n'
        f'[inbound]\nspool_dir = "{tmp_path}/spool"\n'
    )
    env = {"MTA_DATABASE_URL": pair.standby_dsn, "MTA_CONFIG": str(config)}
    for arguments in READING:
        code, err = await _mta(arguments, env)
        assert code in (0, 1), (arguments, err)  # 1: of an address of which nothing is known
        assert "Traceback" not in err
    (tmp_path / "content.json").write_bytes(content_json())
    create = ("delivery", "create", "--name", "x", "--content", str(tmp_path / "content.json"))
    for arguments in (*WRITING, create):
        code, err = await _mta(arguments, env)
        assert code == 2, (arguments, err)
        assert "standby" in err
        assert len(err.strip().splitlines()) == 1, err


async def _mta(arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int | None, str]:
    process = await launch(*arguments, env={**os.environ, "COLUMNS": "200", **env})
    _, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, err.decode()


async def test_a_daemon_waits_until_its_server_takes_writes(tmp_path: Path, pair: Pair, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        node.config.write_text(node.config.read_text().replace(database.dsn, pair.standby_dsn))
        starting = asyncio.create_task(node.start())
        await until("it waits", lambda: node.said("waiting for the database"))
        assert "standby" in str(node.said("waiting for the database")[0]["error"])
        await pair.fail_over()
        await starting
        assert await node.stop() == 0
