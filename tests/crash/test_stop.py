"""SIGTERM is obeyed within a bound, wherever the daemon is. What is tested is that there is a bound: it is generous."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mta.keeper.keeper import LOCK
from tests.support.forwarder import Forwarder, silent_listener
from tests.support.launch import launch
from tests.support.node import Node, World, addresses, until
from tests.support.postgres import Database
from tests.support.replication import free_port

BOUND_S = 40.0  # after the first signal, where it was minutes
SECOND_S = 20.0  # after the second one
LEASE_S = 2.0


async def _begin(node: Node) -> asyncio.Task[None]:
    """Starts a node that will not come to run."""
    starting = asyncio.create_task(node.start())
    await until("its process is there", lambda: node.process is not None)
    return starting


async def _end(node: Node, starting: asyncio.Task[None] | None = None, bound_s: float = BOUND_S) -> int:
    assert node.process is not None
    code = await asyncio.wait_for(node.process.wait(), bound_s)
    if starting is not None:
        with contextlib.suppress(AssertionError):  # it never ran, as was meant
            await starting
    assert not [entry for entry in node.log if "Traceback" in str(entry)], node.log
    return code


async def _until_counted(database: Database, query: str) -> None:
    async with asyncio.timeout(30):
        while True:
            if await database.pool.fetchval(query):
                return
            await asyncio.sleep(0.05)


def _with_dsn(node: Node, database: Database, dsn: str) -> None:
    node.config.write_text(node.config.read_text().replace(database.dsn, dsn))


@contextlib.asynccontextmanager
async def _refused() -> AsyncIterator[int]:
    """A port that nobody listens at."""
    async with silent_listener() as port:
        pass
    yield port


@pytest.mark.parametrize("listener", [_refused, silent_listener])
async def test_a_daemon_that_waits_for_its_database_ends_at_a_signal(
    tmp_path: Path, database: Database, listener: Callable[[], contextlib.AbstractAsyncContextManager[int]]
) -> None:
    async with World(tmp_path, database) as world, listener() as port:
        node = world.node()
        _with_dsn(node, database, f"postgresql://nobody@127.0.0.1:{port}/nothing?connect_timeout=2")
        starting = await _begin(node)
        await until("it says that it waits", lambda: node.said("waiting for the database"))
        node.signal(signal.SIGTERM)
        assert await _end(node, starting) == 0
        assert node.said("stopped before the database was there")


async def test_a_daemon_that_waits_for_the_first_answer_ends_at_a_signal(tmp_path: Path, database: Database) -> None:
    """Before the time limit of a connection: nothing is said yet."""
    async with World(tmp_path, database) as world, Forwarder(database.dsn) as forwarder:
        forwarder.fall_silent()
        node = world.node()
        _with_dsn(node, database, f"{forwarder.dsn}?connect_timeout=600")
        starting = await _begin(node)
        await until("it has connected", lambda: forwarder.connections)
        node.signal(signal.SIGTERM)
        assert await _end(node, starting) == 0


HOLDS_LEASE = """
INSERT INTO mta.node (name, boot_id, alive_until, epoch)
SELECT 'one', 'elsewhere', now() + interval '1 hour', max(id) FROM mta.epoch
"""
WAITS_FOR_LOCK = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'mta one' AND wait_event_type = 'Lock'
"""
OPEN_RUNS = "SELECT count(*) FROM mta.node WHERE ended_at IS NULL AND boot_id <> 'elsewhere'"


async def test_a_daemon_that_waits_for_the_lease_of_another_run_ends_at_a_signal(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        await database.pool.execute(HOLDS_LEASE)
        node = world.node(lease_s=LEASE_S)
        starting = await _begin(node)
        await until(
            "it waits",
            lambda: node.said("an earlier run keeps its journal elsewhere, waiting for the end of its lease"),
        )
        node.signal(signal.SIGTERM)
        assert await _end(node, starting) == 0
        assert node.said("stopped while it started")
        assert await database.pool.fetchval(OPEN_RUNS) == 0  # its own run is over, and leaves nothing to recover
        assert not list((node.directory / "journal").glob("*.run"))


async def test_a_start_that_waits_for_a_lock_ends_at_a_signal(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world, database.pool.acquire() as conn:
        node = world.node(lease_s=600.0)
        async with conn.transaction():
            await conn.execute("LOCK TABLE mta.node IN ACCESS EXCLUSIVE MODE")
            starting = await _begin(node)
            await _until_counted(database, WAITS_FOR_LOCK)
            node.signal(signal.SIGTERM)
            assert await _end(node, starting) == 0


async def test_a_start_whose_database_falls_silent_ends_at_a_signal(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world, Forwarder(database.dsn) as forwarder:
        await database.pool.execute(HOLDS_LEASE)
        node = world.node(lease_s=LEASE_S)
        _with_dsn(node, database, forwarder.dsn)
        starting = await _begin(node)
        await until(
            "it waits",
            lambda: node.said("an earlier run keeps its journal elsewhere, waiting for the end of its lease"),
        )
        forwarder.fall_silent()
        node.signal(signal.SIGTERM)
        assert await _end(node, starting) == 0
        assert node.said("the next start must end this run")


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_daemon_whose_database_falls_silent_ends_at_a_signal(
    tmp_path: Path, database: Database, signals: int
) -> None:
    script = '[[rule]]\nstep = "dot"\ndelay_ms = 20\n'
    async with World(tmp_path, database, script=script) as world, Forwarder(database.dsn) as forwarder:
        node = world.node(lease_s=LEASE_S)
        _with_dsn(node, database, forwarder.dsn)
        await node.start()
        to = addresses(2_000)
        delivery = await world.deliver(to)
        await world.wait_for(delivery, lambda shown: shown.delivered > 50)
        forwarder.fall_silent()
        await until("it has noticed", lambda: node.said("database is away"))
        node.signal(signal.SIGTERM)
        if signals == 2:
            await until("it drains", lambda: node.said("draining"))
            node.signal(signal.SIGTERM)
        assert await _end(node, bound_s=BOUND_S if signals == 1 else SECOND_S) == 0
        assert node.said("stopped")[0]["all_recorded"] is False
        # All that the database does not know stands in the journal: nobody gets it twice.
        forwarder.go_on()
        await node.start()
        await world.wait_for(delivery)
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert (await world.audit(delivery)).is_clean
        assert await node.stop() == 0


async def test_a_database_that_is_silent_for_a_while_is_missed_and_found_again(
    tmp_path: Path, database: Database
) -> None:
    script = '[[rule]]\nstep = "dot"\ndelay_ms = 20\n'
    async with World(tmp_path, database, script=script) as world, Forwarder(database.dsn) as forwarder:
        node = world.node(lease_s=LEASE_S)
        _with_dsn(node, database, forwarder.dsn)
        await node.start()
        to = addresses(2_000)
        delivery = await world.deliver(to)
        await world.wait_for(delivery, lambda shown: shown.delivered > 50)
        forwarder.fall_silent()
        await until("its lease ends", lambda: any(entry["held_by"] == "lease" for entry in node.said("sending")))
        forwarder.go_on()
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.in_doubt) == (len(to), 0)
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert node.said("database is back")
        assert await node.stop() == 0


async def test_a_drain_waits_for_a_server_that_hangs_says_so_and_a_second_signal_ends_it(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        await node.start()
        await world.deliver(["hangs+delay-600000@d0.test"])
        await until("the server has the message", lambda: world.record().accepted)
        node.signal(signal.SIGTERM)
        await until("it says again what it waits for", lambda: len(node.said("draining")) > 1, 30)
        said = node.said("draining")[-1]
        assert (said["waits_for"], said["sites"], said["sessions"], said["recipients"]) == ("servers", 1, 1, 1)
        assert 600 < float(str(said["seconds_left"])) < 660
        assert not node.said("stopped")
        shown = await launch("queue", "show", "--dsn", database.dsn)
        out, _ = await shown.communicate()
        assert "draining" in out.decode()
        assert not node.has_ended
        node.signal(signal.SIGTERM)
        assert await _end(node, bound_s=SECOND_S) == 0


SERVES = {
    # It is the one that keeps: from then on it repeats its look at the log.
    "keep": f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK} AND granted AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())",
    "inbound": "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mta one'"
    " AND datname = current_database()",
}
SERVICE = """
[inbound]
domains = ["bounces.test"]
listen = ["127.0.0.1:{port}"]
spool_dir = "spool"
[[stream]]
name = "file"
sink = "files"
directory = "events"
"""


@pytest.mark.parametrize("command", [("keep",), ("inbound", "run")])
@pytest.mark.parametrize("is_running", [False, True])
async def test_services_end_at_a_signal_though_their_database_is_silent(
    tmp_path: Path, database: Database, command: tuple[str, ...], is_running: bool
) -> None:
    async with World(tmp_path, database) as world, Forwarder(database.dsn) as forwarder:
        node = world.node(settings=SERVICE.format(port=free_port()))
        _with_dsn(node, database, forwarder.dsn)
        if not is_running:
            forwarder.fall_silent()
        process = await launch(*command, "--config", str(node.config), "--log-json")
        reading = asyncio.create_task(process.stderr.read())
        if is_running:
            here = SERVES[command[0]]
            await _until_counted(database, here)
            forwarder.fall_silent()
        else:
            await until("it has connected", lambda: forwarder.connections)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), BOUND_S) == 0, await reading
        assert b"Traceback" not in await reading
