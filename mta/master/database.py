"""The node's pool of connections, and the wait for a database that is not there yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import structlog

from mta.master.history import HistoryGuard
from mta.model.errors import BadInput
from mta.queue import migrate, nodes
from mta.queue.dsn import place_of, redact
from mta.settings.config import Settings
from mta.telemetry.outages import DATABASE
from mta.telemetry.systemd import notify

STATEMENT_LEASES = 4  # no statement of ours is allowed longer than so many leases (a minute)
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def closing(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """In good order after a good end; after a bad one nobody waits for a database that may not answer."""
    try:
        yield
        async with asyncio.timeout(10):
            await pool.close()
    except BaseException:
        pool.terminate()
        raise


def _server_settings(settings: Settings) -> dict[str, str]:
    lease_ms = int(settings.master.lease_s * 1000)
    return {
        "application_name": f"{nodes.APPLICATION_NAME_PREFIX}{settings.node.name}"[:63],
        "timezone": "UTC",
        # A process that was stopped in the middle of a transaction holds its locks; without these nobody could
        # take its work over. The second is for a COPY, which is not idle while it waits for its client.
        "idle_in_transaction_session_timeout": str(lease_ms),
        "statement_timeout": str(STATEMENT_LEASES * lease_ms),
    }


async def connect(
    settings: Settings, stop_wanted: asyncio.Event, guard: HistoryGuard | None = None
) -> asyncpg.Pool | None:
    """Waits for the database as long as it takes, and says so; None when told to stop meanwhile.

    ``guard`` looks at each connection before it is used.
    """
    said = ""
    while True:
        try:
            pool = await asyncpg.create_pool(
                settings.database.dsn,
                min_size=2,
                max_size=settings.database.pool_max,
                command_timeout=60,
                server_settings=_server_settings(settings),
                init=None if guard is None else guard.check,
            )
            try:
                async with pool.acquire() as conn:
                    await migrate.require_current(conn)
            except BaseException:
                pool.terminate()
                raise
            return pool
        except asyncpg.exceptions.ClientConfigurationError as error:  # nothing over there would mend that
            raise BadInput("database.dsn", redact(str(error), settings.database.dsn)) from None
        # Also no such database, a wrong password, too many connections: somebody will mend it over there.
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            if (text := redact(str(error), settings.database.dsn)) != said:
                said = text
                if not DATABASE.is_on:  # else that is said already
                    log.warning("waiting for the database", database=place_of(settings.database.dsn), error=said)
                notify(f"STATUS=waiting for the database: {said}")
            try:
                async with asyncio.timeout(1.0):
                    await stop_wanted.wait()
                return None
            except TimeoutError:
                continue
