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
ROUNDS: Final = 3  # other clients may take, in between, what would have told
_PID: Final = "SELECT pg_catalog.pg_backend_pid()"
_STATEMENT_MODE: Final = "statement pooling"  # of pgbouncer's words
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
    for _ in range(ROUNDS):
        if await _is_shared(conn, pid, options):
            raise BadInput(WHERE, _NEED)


async def _is_shared(conn: Conn, pid: int, options: ConnectionOptions) -> bool:
    """A pooler that takes its idle sessions in turn gives ``conn`` another one now; a pooler that takes the one that
    was used last, or has no other, gives that to whoever comes next."""
    if await _within(conn.fetchval(_PID)) != pid:
        return True
    other = await _within(open_connection(options, application_name=NAME, is_shared=True))
    try:
        await _within(other.execute("BEGIN"))
        if await _within(other.fetchval(_PID)) == pid:
            return True
    except asyncpg.PostgresConnectionError as error:
        if _STATEMENT_MODE not in str(error):
            raise
        return True  # no transactions at all
    finally:
        with contextlib.suppress(*DATABASE_AWAY):
            await other.close(timeout=CLOSE_S)
    return bool(await _within(conn.fetchval(_PID)) != pid)


async def _within(answer: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await answer
    except TimeoutError:
        raise DatabaseUnreachable("database: the connection pooler has no session left for this node") from None
