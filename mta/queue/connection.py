"""Connections to the database, and the one sentence said when there is none."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

from mta.queue.dsn import check_dsn, redact

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

CONNECT_TIMEOUT_S: Final = 10.0

# No answer, a server that starts or stops or has no room for us: whatever it is may be mended over there, so a
# daemon waits. The last is what asyncpg says of a connection that broke in the middle of a COPY.
DATABASE_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class DatabaseUnreachable(ConnectionError):  # noqa: N818 - reads as the sentence it prints
    """No connection to the database: wrong address, refused, no such database or user, or it is starting."""


async def connect(dsn: str, *, application_name: str = "mta") -> asyncpg.Connection[asyncpg.Record]:
    """Open one connection; the text of the error names host and cause, never the password.

    Raises BadInput for what is no DSN.
    """
    check_dsn(dsn, "database")
    try:
        return await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": application_name, "timezone": "UTC"}
        )
    except TimeoutError as error:
        raise DatabaseUnreachable(f"database: no answer within {CONNECT_TIMEOUT_S:.0f} s") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DatabaseUnreachable(f"database: {redact(str(error), dsn)}") from error


@contextlib.asynccontextmanager
async def connection(dsn: str, *, application_name: str = "mta") -> AsyncIterator[Conn]:
    """``connect`` for the length of a block."""
    conn = await connect(dsn, application_name=application_name)
    try:
        yield conn
    finally:
        await conn.close(timeout=CONNECT_TIMEOUT_S)
