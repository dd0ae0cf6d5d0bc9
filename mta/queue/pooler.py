"""What stands between us and the server: whether a session is ours, as a daemon needs it.

A daemon listens for NOTIFY, holds advisory locks and sets time limits, all for as long as a session lives. A pooler in
transaction mode hands each transaction to whatever server session is free, so all of that would go astray in silence.
Commands need nothing of the kind and work behind either mode.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import asyncpg

from mta.model.errors import BadInput
from mta.queue.connection import CLOSE_S, DATABASE_AWAY, Conn, DatabaseUnreachable, open_connection
from mta.queue.connection_string import WHERE, ConnectionOptions

T = TypeVar("T")

NAME: Final = "mta probe"
ANSWER_S: Final = 5.0
_PID: Final = "SELECT pg_catalog.pg_backend_pid()"
_NEED: Final = (
    "leads to a connection pooler that hands each transaction, or each statement, to another session of the server; "
    "a daemon needs sessions of its own: connect it to PostgreSQL itself, or set pool_mode = session for it"
)


async def require_own_session(conn: Conn, options: ConnectionOptions) -> None:
    """Raises BadInput where sessions are shared between clients. ``conn``: opened as `is_shared`, in no transaction."""
    pid = await conn.fetchval(_PID)
    # What the server said when the session began. A pooler makes up a number of its own.
    if pid == conn.get_server_pid():
        return
    async with contextlib.AsyncExitStack() as others:
        # Two: a pooler that takes its idle sessions in turn may give the first one a session that nobody used.
        for _ in range(2):
            other = await _within(open_connection(options, application_name=NAME, is_shared=True))
            others.push_async_callback(_close, other)
            try:
                await _within(other.execute("BEGIN"))
                shared = await _within(other.fetchval(_PID)) == pid
            except asyncpg.ProtocolViolationError:
                shared = True  # statement mode: no transactions at all
            if shared:
                raise BadInput(WHERE, _NEED)
        if await _within(conn.fetchval(_PID)) != pid:
            raise BadInput(WHERE, _NEED)


async def _within(answer: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await answer
    except TimeoutError:
        raise DatabaseUnreachable("database: the connection pooler has no session left for this node") from None


async def _close(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    with contextlib.suppress(*DATABASE_AWAY):
        await conn.close(timeout=CLOSE_S)
