"""A PostgreSQL server of a test's own, which it may stop and kill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import asyncpg

from mta.queue.embedded import EmbeddedPostgres
from tests.support import postgres as support
from tests.support.postgres import Database


@contextlib.asynccontextmanager
async def own_server(
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[tuple[EmbeddedPostgres, Database]]:
    """The server and a migrated database on it."""
    with contextlib.ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, support.server(settings))
        await support.make_template(server)
        dsn = server.database_dsn(await support.create_database(server))
        async with asyncpg.create_pool(dsn, min_size=0, max_size=4) as pool:
            yield server, Database(dsn, pool)
