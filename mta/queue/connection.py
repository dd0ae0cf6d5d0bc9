"""Connections to the database: opened, given up and closed within a bound, whatever the other side does.

Three things keep a silent database from holding anybody up. TCP finds out that a peer is gone (`Keepalive`). When a
statement is given up, by its time limit or because its task is cancelled, asyncpg asks the server to cancel it; after
``CANCEL_S`` the connection is aborted. And `acquire` aborts a connection on which an answer is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from mta.model.errors import BadInput
from mta.queue.connection_string import WHERE, ConnectionOptions, Keepalive, parse_connection_string
from mta.queue.dsn import redact

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

ACQUIRE_S: Final = 10.0  # for a connection of a pool
RELEASE_S: Final = 5.0  # to put it back in order
CANCEL_S: Final = 2.0  # for the server's word that it has cancelled a statement
CLOSE_S: Final = 3.0  # for a goodbye

# No answer, a server that starts or stops or has no room for us: whatever it is may be mended over there, so a
# daemon waits. The last is what asyncpg says of a connection that broke in the middle of a COPY.
DATABASE_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# It may still be answering, or never will; or it is of a server that was the primary. It is not used again.
_UNUSABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.ReadOnlySQLTransactionError,
)
# Another host of the connection string may do.
_NEXT_HOST: Final = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
# A server refuses these whenever it is asked. A pooler says 08P01 to nearly everything, so its words decide.
_NEVER_TAKEN: Final = (
    asyncpg.InvalidParameterValueError,
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
)
_STARTUP_PARAMETER: Final = "startup parameter"
_SET: Final = "SELECT pg_catalog.set_config(s.n, s.v, false) FROM unnest($1::text[], $2::text[]) AS s (n, v)"
# What asyncpg's own query has but RESET ALL, which would undo what `open_connection` has set.
_RESET: Final = "SELECT pg_catalog.pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *;"


class DatabaseUnreachable(ConnectionError):  # noqa: N818 - reads as the sentence it prints
    """No connection to the database: wrong address, refused, no such database or user, or it is starting."""


class DatabaseConnection(_Connection):
    """asyncpg's connection, with a bound on what it does when a statement is given up."""

    async def _cancel(self, *waiters: asyncio.Future[Any]) -> None:
        # asyncpg asks by a second connection and waits for the answer as long as any statement may take; a rollback
        # and the return to the pool wait behind that. A silent server would hold each of them for a minute.
        bound = asyncio.get_running_loop().call_later(CANCEL_S, self.terminate)
        try:
            await super()._cancel(*waiters)  # type: ignore[misc]  # not in the stubs
        finally:
            bound.cancel()

    def get_reset_query(self) -> str:
        """What the pool runs when a connection comes back to it."""
        return _RESET

    def keep_alive(self, keepalive: Keepalive) -> None:
        """Has the kernel look for the peer; over TCP only."""
        sock = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # not in the stubs
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not keepalive.is_on:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.probes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, keepalive.user_timeout_ms)


async def open_connection(
    options: ConnectionOptions,
    *,
    application_name: str,
    session: Mapping[str, str] | None = None,
    command_timeout_s: float | None = None,
    is_shared: bool = False,
) -> DatabaseConnection:
    """Tries each host of the connection string in turn, each for its connect timeout.

    ``session``: settings of the server for this session. They are set by SQL, since poolers refuse nearly all of them
    while a session begins. ``is_shared``: a pooler may hand each transaction to another server, so nothing may be left
    in the session, prepared statements included.

    Raises BadInput for what no server would ever take, else what asyncpg raises, or ConnectionError that names the
    hosts.
    """
    wanted = options.target_session_attrs
    problems: list[str] = []
    attempts: Sequence[tuple[Any, Any]] = options.hosts or ((None, None),)
    # asyncpg's own list of hosts has one time limit for all: a silent one would use up that of those behind it.
    for attribute in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        for host, port in attempts:
            try:
                conn = await asyncpg.connect(
                    options.dsn,
                    host=host,
                    port=port,
                    timeout=options.connect_timeout_s,
                    command_timeout=command_timeout_s,
                    statement_cache_size=0 if is_shared else 100,
                    target_session_attrs=attribute,  # type: ignore[arg-type]  # the stubs want an enum
                    servicefile=options.service_file,
                    server_settings={"application_name": application_name, "timezone": "UTC"},
                    connection_class=DatabaseConnection,
                )
            except _NEXT_HOST as error:
                if len(options.hosts) < 2:
                    raise
                problems.append(f"{host}: {_sentence(error, options)}")
            except asyncpg.ClientConfigurationError as error:
                raise BadInput(WHERE, str(error)) from None
            except asyncpg.PostgresError as error:
                if isinstance(error, _NEVER_TAKEN) or _STARTUP_PARAMETER in str(error):
                    raise BadInput(WHERE, f"the server does not take it: {error}") from None
                raise
            else:
                await _prepare(conn, options, session or {})
                return conn
    raise ConnectionError("no host can be used: " + "; ".join(problems))


async def _prepare(conn: DatabaseConnection, options: ConnectionOptions, session: Mapping[str, str]) -> None:
    try:
        conn.keep_alive(options.keepalive)
        if session:
            async with asyncio.timeout(options.connect_timeout_s):
                await conn.fetch(_SET, list(session), list(session.values()))
    except BaseException:
        conn.terminate()
        raise


def _sentence(error: BaseException, options: ConnectionOptions) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {options.connect_timeout_s:.0f} s"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return f"is not {options.target_session_attrs}"
    return str(error) or type(error).__name__


async def open_pool(
    options: ConnectionOptions,
    *,
    application_name: str,
    session: Mapping[str, str],
    command_timeout_s: float,
    connections_max: int,
    check: Callable[[Conn], Awaitable[None]] | None = None,
) -> asyncpg.Pool:
    """A pool that opens its connections when they are needed, each as `open_connection` does.

    ``check`` looks at each before it is used, and may refuse it.
    """

    async def dial(*_: object, **__: object) -> DatabaseConnection:
        conn = await open_connection(
            options, application_name=application_name, session=session, command_timeout_s=command_timeout_s
        )
        if check is not None:
            await check(conn)
        return conn

    return await asyncpg.create_pool(
        min_size=0,  # what is lost is opened again when it is needed, and not by a task that logs each try
        max_size=connections_max,
        connect=dial,
        connection_class=DatabaseConnection,
    )


@contextlib.asynccontextmanager
async def acquire(pool: asyncpg.Pool, within_s: float = ACQUIRE_S) -> AsyncIterator[Conn]:
    """A connection of the pool for the length of a block; it is given back, or given up, within a bound.

    A cancelled task leaves by CancelledError, also where asyncpg's own clean-up raised something else in its place:
    else a loop that waits for its database would take its own end for an outage.
    """
    try:
        conn = await pool.acquire(timeout=within_s)
        try:
            yield conn
        except _UNUSABLE:
            conn.terminate()
            raise
        finally:
            await pool.release(conn, timeout=RELEASE_S)
    except DATABASE_AWAY as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise


async def close_pool(pool: asyncpg.Pool, within_s: float = CLOSE_S) -> None:
    """In good order where the database answers; else every connection is aborted."""
    try:
        async with asyncio.timeout(within_s):
            await pool.close()
    except DATABASE_AWAY:
        pass  # nobody waits for a database that does not answer
    finally:
        pool.terminate()


async def connect(
    dsn: str, *, application_name: str = "mta", is_shared: bool = True
) -> asyncpg.Connection[asyncpg.Record]:
    """Open one connection; the text of the error names host and cause, never the password.

    ``is_shared``: as of `open_connection`. Raises BadInput for a connection string that cannot be used.
    """
    options = parse_connection_string(dsn)
    name = options.application_name or application_name
    try:
        return await open_connection(options, application_name=name, is_shared=is_shared)
    except TimeoutError as error:
        raise DatabaseUnreachable(f"database: no answer within {options.connect_timeout_s:.0f} s") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseUnreachable(f"database: {redact(str(error), dsn)}") from error


@contextlib.asynccontextmanager
async def connection(dsn: str, *, application_name: str = "mta", is_shared: bool = True) -> AsyncIterator[Conn]:
    """``connect`` for the length of a block."""
    conn = await connect(dsn, application_name=application_name, is_shared=is_shared)
    try:
        yield conn
    finally:
        with contextlib.suppress(*DATABASE_AWAY):  # said by what was asked of it, if anything was
            await conn.close(timeout=CLOSE_S)
