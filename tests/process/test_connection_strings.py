"""What a connection string asks for is done by a real server; what cannot be done ends at once, in one line."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mta.queue.connection import (
    DATABASE_AWAY,
    DatabaseUnreachable,
    acquire,
    close_pool,
    connection,
    open_connection,
    open_pool,
)
from mta.queue.connection_string import parse_connection_string
from tests.pure.test_connection_string import NOT_SUPPORTED, OF_LIBPQ
from tests.support.forwarder import Forwarder, silent_listener
from tests.support.launch import launch
from tests.support.node import World, until
from tests.support.postgres import Database

# With what a server on a unix socket or on a bare TCP port can do.
WORKING = sorted(
    set(OF_LIBPQ)
    - NOT_SUPPORTED
    - {*("host", "hostaddr", "port", "dbname", "user", "service", "sslrootcert", "sslcert", "sslcrl", "sslkey")}
)


@pytest.mark.parametrize("name", WORKING)
async def test_a_parameter_that_is_obeyed_connects(database: Database, name: str) -> None:
    async with Forwarder(database.dsn) as forwarder, connection(f"{forwarder.dsn}?{name}={OF_LIBPQ[name]}") as conn:
        assert await conn.fetchval("SELECT current_setting('timezone')") == "UTC"
        name_there = await conn.fetchval("SELECT current_setting('application_name')")
        assert name_there == ("x" if name == "application_name" else "mta")
        assert await conn.fetchval("SHOW geqo") == ("off" if name == "options" else "on")


@pytest.mark.parametrize("given", ["hostaddr=127.0.0.1", "host=127.0.0.1", "host=db.invalid&hostaddr=127.0.0.1"])
async def test_a_host_may_be_a_parameter(database: Database, given: str) -> None:
    async with Forwarder(database.dsn) as forwarder:
        dsn = f"postgresql://postgres@{urlsplit(database.dsn).path}?port={forwarder.port}&{given}"
        async with connection(dsn) as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def test_a_service_file_is_read(tmp_path: Path, database: Database) -> None:
    parts = urlsplit(database.dsn)
    directory = parse_qs(parts.query)["host"][0]
    (tmp_path / "services").write_text(f"[mail]\nhost={directory}\nuser={parts.username}\ndbname={parts.path[1:]}\n")
    async with connection(f"postgresql://?service=mail&servicefile={tmp_path / 'services'}") as conn:
        assert await conn.fetchval("SELECT current_database()") == parts.path[1:]


async def test_the_kernel_watches_over_a_connection(database: Database) -> None:
    async with Forwarder(database.dsn) as forwarder:
        options = parse_connection_string(f"{forwarder.dsn}?keepalives_idle=7&tcp_user_timeout=9000")
        conn = await open_connection(options, application_name="test")
        watched = conn._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert watched.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert watched.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert watched.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9_000
        await conn.close()


async def test_a_host_that_is_silent_does_not_hide_the_one_behind_it(database: Database) -> None:
    async with Forwarder(database.dsn) as forwarder, silent_listener() as silent:
        hosts = f"127.0.0.1:{silent},127.0.0.1:{forwarder.port}"
        dsn = f"postgresql://postgres@{hosts}{urlsplit(database.dsn).path}?connect_timeout=1&target_session_attrs=any"
        async with connection(dsn) as conn:
            assert await conn.fetchval("SELECT 1") == 1
        with pytest.raises(DatabaseUnreachable, match=r"no answer within 1 s; 127\.0\.0\.1: is not standby"):
            async with connection(dsn.replace("=any", "=standby")):
                pass


async def test_a_statement_that_is_given_up_on_a_silent_server_ends_soon(database: Database) -> None:
    """Also within a transaction, whose rollback would wait as well; and the task ends as one that was cancelled."""
    async with Forwarder(database.dsn) as forwarder:
        options = parse_connection_string(forwarder.dsn)
        pool = await open_pool(options, application_name="test", session={}, command_timeout_s=600.0, connections_max=2)

        async def ask() -> None:
            while True:  # as the loops of a daemon do
                try:
                    async with acquire(pool) as conn, conn.transaction():
                        await conn.execute("SELECT pg_sleep(600)")
                except DATABASE_AWAY:
                    continue

        asking = asyncio.create_task(ask())
        await until("it is asked", lambda: forwarder.connections)
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)' AND state = 'active'"
        async with asyncio.timeout(30):
            while True:
                if await database.pool.fetchval(running):
                    break
                await asyncio.sleep(0.01)
        forwarder.fall_silent()
        asking.cancel()
        await asyncio.wait([asking], timeout=20)
        assert asking.cancelled()
        async with asyncio.timeout(20):
            await close_pool(pool)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("?require_auth=none", "require_auth: is not supported"),
        ("?channel_binding=require", "channel_binding"),
        ("?statement_timeout=5s", "is no parameter of a connection string"),
        ("?options=-c%20nonsense%3D1", "nonsense"),
        ("?sslmode=nonsense", "sslmode"),
    ],
)
async def test_a_daemon_that_cannot_do_what_is_asked_ends_at_once_in_one_line(
    tmp_path: Path, database: Database, asked: str, says: str
) -> None:
    async with World(tmp_path, database) as world, Forwarder(database.dsn) as forwarder:
        node = world.node()
        node.config.write_text(node.config.read_text().replace(database.dsn, f"{forwarder.dsn}{asked}"))
        process = await launch("run", "--config", str(node.config), "--log-json")
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 2
        assert says in err.decode()
        assert len(err.decode().strip().splitlines()) == 1


async def test_a_refusal_is_told_from_a_server_that_is_not_there(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        nobody = database.dsn.replace("postgres@", "nobody_known@")
        node.config.write_text(node.config.read_text().replace(database.dsn, nobody))
        starting = asyncio.create_task(node.start())
        refused = "database refuses the connection, asked again until it does not"
        await until("it says so", lambda: node.said(refused))
        assert node.said(refused)[0]["level"] == "error"
        async with connection(database.dsn) as conn:  # somebody mends it, and no restart is needed
            await conn.execute("CREATE ROLE nobody_known SUPERUSER LOGIN")
        await starting
        assert await node.stop() == 0
        assert (len(node.said(refused)), node.said("waiting for the database")) == (1, [])
        async with connection(database.dsn) as conn:
            await conn.execute("DROP ROLE nobody_known")
