"""The node's pool of connections, and the wait for a database that is not there yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import structlog

from mta.master.history import HistoryGuard
from mta.queue import migrate, nodes
from mta.queue.connection import (
    CLOSE_S,
    DATABASE_AWAY,
    DatabaseUnreachable,
    close_pool,
    open_connection,
    open_pool,
)
from mta.queue.connection_string import ConnectionOptions, parse_connection_string
from mta.queue.dsn import place_of, redact
from mta.queue.pooler import require_own_session
from mta.settings.config import Settings
from mta.telemetry.outages import DATABASE
from mta.telemetry.systemd import notify
from mta.telemetry.waits import Stopped, event_or_timeout, until_stopped

STATEMENT_LEASES = 4  # no statement of ours is allowed longer than so many leases (a minute)
COMMAND_TIMEOUT_S_MAX = 60.0
AGAIN_S = 1.0
# The database answers, and says no. It may be mended over there, so it is asked again; but it is no outage.
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
log = structlog.get_logger()


@contextlib.asynccontextmanager
async def closing(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """In good order after a good end; after a bad one nobody waits for a database that may not answer."""
    try:
        yield
        await close_pool(pool)
    except BaseException:
        pool.terminate()
        raise


def _session(settings: Settings) -> dict[str, str]:
    lease_ms = int(settings.master.lease_s * 1000)
    return {
        # A process that was stopped in the middle of a transaction holds its locks; without these nobody could
        # take its work over. The second is for a COPY, which is not idle while it waits for its client.
        "idle_in_transaction_session_timeout": str(lease_ms),
        "statement_timeout": str(STATEMENT_LEASES * lease_ms),
    }


async def connect(
    settings: Settings, stop_wanted: asyncio.Event, guard: HistoryGuard | None = None
) -> asyncpg.Pool | None:
    """Waits for the database as long as it takes, and says so; None when told to stop meanwhile.

    ``guard`` looks at each connection before it is used. Raises BadInput for what no wait makes good: the connection
    string, the server's version and durability, the schema, a pooler that shares sessions.
    """
    dsn = settings.database.dsn
    options = parse_connection_string(dsn)
    said = ""
    while True:
        try:
            return await until_stopped(_open(settings, options, guard), stop_wanted)
        except Stopped:
            return None
        except DATABASE_AWAY as error:
            text = redact(str(error), dsn) or f"no answer within {options.connect_timeout_s:.0f} s"
            if text != said:
                said = text
                if isinstance(error, _REFUSALS):
                    where = place_of(dsn)
                    log.error(
                        "database refuses the connection, asked again until it does not", database=where, error=text
                    )
                elif not DATABASE.is_on:  # else that is said already
                    log.warning("waiting for the database", database=place_of(dsn), error=text)
                notify(f"STATUS=waiting for the database: {text}")
            await event_or_timeout(stop_wanted, AGAIN_S)
            if stop_wanted.is_set():
                return None


async def _open(settings: Settings, options: ConnectionOptions, guard: HistoryGuard | None) -> asyncpg.Pool:
    # Its sessions are found by this name when the node is dead (`mta.queue.nodes.end_sessions`), so no other will do.
    name = f"{nodes.APPLICATION_NAME_PREFIX}{settings.node.name}"[:63]
    timeout_s = min(COMMAND_TIMEOUT_S_MAX, STATEMENT_LEASES * settings.master.lease_s + 1.0)
    conn = await open_connection(options, application_name=name, command_timeout_s=timeout_s, is_shared=True)
    try:
        await migrate.require_current(conn)
        if await conn.fetchval("SELECT current_setting('transaction_read_only')::bool"):
            raise DatabaseUnreachable("the server takes no writes: it is a standby, or set read-only")
        await require_own_session(conn, options)
        await conn.close(timeout=CLOSE_S)
    finally:
        conn.terminate()
    return await open_pool(
        options,
        application_name=name,
        session=_session(settings),
        command_timeout_s=timeout_s,
        connections_max=settings.database.pool_max,
        check=None if guard is None else guard.check,
    )
