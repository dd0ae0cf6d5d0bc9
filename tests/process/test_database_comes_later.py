"""A daemon outlives what is wrong with its database: it waits, says so, and goes on when it is mended."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from urllib.parse import urlsplit

from mta.queue.connection import connection
from mta.queue.embedded import EmbeddedPostgres
from tests.support.node import World, until
from tests.support.postgres import TEMPLATE, Database

REFUSED = "database refuses the connection, asked again until it does not"


async def test_a_database_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, postgres: EmbeddedPostgres, database: Database
) -> None:
    late = f"{urlsplit(database.dsn).path.strip('/')}_late"
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        text = node.config.read_text()
        node.config.write_text(text.replace(database.dsn, postgres.database_dsn(late)))
        starting = asyncio.create_task(node.start())
        await until("the daemon says that it waits", lambda: node.said(REFUSED))
        assert late in str(node.said(REFUSED)[0]["error"])
        # It hears a reload already, and starts with what it has read then.
        node.config.write_text(f"{node.config.read_text()}[signing]\nrequired = true\n")
        node.signal(signal.SIGHUP)
        await until("rules are reloaded", lambda: node.said("rules reloaded"))
        assert node.said("signing keys changed")
        async with connection(postgres.dsn) as conn:
            await conn.execute(f"CREATE DATABASE {late} TEMPLATE {TEMPLATE}")
        await starting
        assert not [entry for entry in node.log if "Traceback" in str(entry)]
        assert await node.stop() == 0
        async with connection(postgres.dsn) as conn:
            await conn.execute(f"DROP DATABASE {late} WITH (FORCE)")
