"""Behind the real pgbouncer: commands in both of its modes, daemons where a session is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path

import pytest

from mta.model.errors import BadInput
from mta.queue.connection import connection, open_connection
from mta.queue.connection_string import parse_connection_string
from mta.queue.pooler import require_own_session
from tests.support.content import content_json
from tests.support.launch import launch
from tests.support.node import World, addresses
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer
from tests.support.postgres import Database

pytestmark = needs_pgbouncer
MODES = ("session", "transaction")
SESSIONS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mta one' AND datname = current_database()
"""


async def mta(*arguments: str) -> tuple[int, str, str]:
    """A command to its end: exit code, standard output, standard error."""
    process = await launch(*arguments)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def done(*arguments: str) -> str:
    code, out, err = await mta(*arguments)
    assert code == 0, (arguments, err)
    return out


@pytest.mark.parametrize("mode", MODES)
async def test_commands_work_behind_a_pooler(tmp_path: Path, database: Database, mode: str) -> None:
    (tmp_path / "content.json").write_bytes(content_json())
    (tmp_path / "to.csv").write_text("email,first\n" + "".join(f"u{i}@d0.test,Ann\n" for i in range(3_000)))
    file = str(tmp_path / "to.csv")
    async with pgbouncer(database.dsn, mode, "default_pool_size = 2") as dsn:
        made = await done(
            *("delivery", "create", "--name", "behind", "--content", str(tmp_path / "content.json"), "--dsn", dsn),
            *("--duplicates", "keep"),
        )
        delivery = re.findall(r"\d+", made)[0]
        # Several at a time share its sessions: what one left there another would find.
        appended = await asyncio.gather(
            *(done("delivery", "append", delivery, file, "--key-prefix", f"file-{i}", "--dsn", dsn) for i in range(3))
        )
        assert all(appended)
        for _ in range(2):
            await done("quarantine", "add", "ann@example.com", "--because", "by phone", "--dsn", dsn)
            assert "ann@example.com" in await done("quarantine", "export", "--dsn", dsn)
        for arguments in (
            ("delivery", "seal", delivery),
            ("delivery", "start", delivery),
            ("delivery", "show", delivery),
            ("delivery", "audit", delivery),
            ("delivery", "pause", delivery),
            ("queue", "show", "--json"),
            ("log", "find", "ann@example.com"),
            ("monitor", "throughput"),
            ("rules", "history"),
            ("db", "status"),
            ("db", "migrate"),
        ):
            await done(*arguments, "--dsn", dsn)
        waiting = json.loads(await done("queue", "show", "--json", "--dsn", dsn))["waiting"]
        assert sum(one["recipients"] for one in waiting) == 9_000


async def test_a_daemon_works_behind_a_pooler_in_session_mode(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world, pgbouncer(database.dsn, "session") as dsn:
        node = world.node(poll_idle_s=60.0)  # so that a delivery is heard of by NOTIFY, or far too late
        node.config.write_text(node.config.read_text().replace(database.dsn, dsn).replace("poll_idle_s = 0.1\n", ""))
        await node.start()
        assert await database.pool.fetchval(SESSIONS)  # they are found by this name when the node is dead
        delivery = await world.deliver(addresses(300))
        await world.wait_for(delivery, lambda shown: shown.delivered == 300, 30)
        assert (await world.audit(delivery)).is_clean
        assert await node.stop() == 0


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("command", [("run",), ("keep",), ("inbound", "run")])
async def test_a_daemon_says_what_it_needs_behind_a_pooler_in_another_mode(
    tmp_path: Path, database: Database, mode: str, command: tuple[str, ...]
) -> None:
    async with World(tmp_path, database) as world, pgbouncer(database.dsn, mode) as dsn:
        node = world.node(settings='[inbound]\ndomains = ["bounces.test"]\n')
        node.config.write_text(node.config.read_text().replace(database.dsn, dsn))
        code, _, err = await mta(*command, "--config", str(node.config), "--log-json")
        assert code == 2
        assert "pool_mode = session" in err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("round_robin", [0, 1])
@pytest.mark.parametrize("idle", [1, 2, 3])
async def test_a_pooler_that_shares_sessions_is_found_out_whatever_it_has_idle(
    database: Database, round_robin: int, idle: int
) -> None:
    async with pgbouncer(database.dsn, "transaction", f"server_round_robin = {round_robin}") as dsn:
        options = parse_connection_string(dsn)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(idle):  # each transaction at the same time is one more session of the server
                other = await stack.enter_async_context(connection(dsn))
                await stack.enter_async_context(other.transaction())
                await other.execute("SELECT 1")
        conn = await open_connection(options, application_name="test", is_shared=True)
        with pytest.raises(BadInput, match="pool_mode = session"):
            await require_own_session(conn, options)
        await conn.close()


async def test_a_session_of_ones_own_is_recognised(database: Database) -> None:
    options = parse_connection_string(database.dsn)
    conn = await open_connection(options, application_name="test")
    await require_own_session(conn, options)
    async with pgbouncer(database.dsn, "session") as dsn:
        options = parse_connection_string(dsn)
        behind = await open_connection(options, application_name="test")
        await require_own_session(behind, options)
        await behind.close()
    await conn.close()
