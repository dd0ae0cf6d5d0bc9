"""The log as a stream: everything that is committed to it, once and in an order that never changes.

A reader keeps a pointer: all of that transaction and of those before it were read. What is younger than the oldest
transaction that still runs is not shown yet, so nothing that is committed later can stand before the pointer. Times
would not do: a line may be days older than its commit.
"""

from __future__ import annotations

import datetime
from typing import Final, NamedTuple

import asyncpg
import msgspec

from mta.queue.connection import Conn

ROWS_MAX: Final = 5_000
# How many transactions one statement looks at. It begins small, since in busy times each may have thousands of lines,
# of which those behind a full page are looked at again; it doubles where little is found.
_SPAN_MIN: Final = 32
_SPAN_MAX: Final = 2_048
_STATEMENTS_MAX: Final = 256  # of one look, so that whoever reads can do something else in between

_HORIZON: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_POINTER: Final = "SELECT tx FROM mta.log_pointer WHERE name = $1"
_BEGIN: Final = "INSERT INTO mta.log_pointer (name, tx) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_MOVE: Final = "UPDATE mta.log_pointer SET tx = $2, moved_at = now() WHERE name = $1 AND tx <= $2"
_RESET: Final = "UPDATE mta.log_pointer SET tx = $2, moved_at = now() WHERE name = $1"
_STANDING: Final = """
SELECT name, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 - tx AS transactions_behind, moved_at
FROM mta.log_pointer ORDER BY name
"""
_LINES: Final = """
SELECT tx, at, delivery_id, number, part_id, attempt, status, reason, type, category, code, enhanced, address,
       reference, site, mx_host, egress, reply, bytes
FROM mta.delivery_log WHERE tx > $1 AND tx <= $2 {where}
ORDER BY tx FETCH FIRST $3 ROWS WITH TIES
"""


class Page(NamedTuple):
    """Lines in the order of their transactions, whole transactions only; all up to ``upto`` was looked at."""

    lines: list[asyncpg.Record]
    upto: int
    is_last: bool  # nothing more is committed for now


class Standing(msgspec.Struct, frozen=True):
    """How far a reader has come. ``moved_at`` is when it last read something, or found that there was nothing."""

    name: str
    transactions_behind: int
    moved_at: datetime.datetime


async def pointer(conn: Conn, name: str, *, from_the_beginning: bool = False, is_locked: bool = False) -> int:
    """Where a reader stands. A new one begins now, or with the first line that there is.

    ``is_locked``: nobody else moves or locks it before the end of this transaction.
    """
    query = _POINTER + (" FOR UPDATE" if is_locked else "")
    found: int | None = await conn.fetchval(query, name)
    if found is None:
        at = 0 if from_the_beginning else await horizon(conn) - 1
        await conn.execute(_BEGIN, name, at)
        found = await conn.fetchval(query, name)
    assert found is not None
    return found


async def move(conn: Conn, name: str, upto: int) -> None:
    """In the transaction that records what was made of the lines: so each is dealt with exactly once."""
    await conn.execute(_MOVE, name, upto)


async def is_of_another_server(conn: Conn, after: int) -> bool:
    """True for a pointer to transactions that have not been: the database was dumped there and restored here."""
    return after >= await horizon(conn)


async def begin_anew(conn: Conn, name: str) -> None:
    """A reader's pointer is now, whatever it was."""
    await conn.execute(_RESET, name, await horizon(conn) - 1)


async def standings(conn: Conn) -> list[Standing]:
    """All readers."""
    return [msgspec.convert(dict(row), Standing) for row in await conn.fetch(_STANDING)]


async def horizon(conn: Conn) -> int:
    """The oldest transaction that may still run: all before it are over."""
    found: int = await conn.fetchval(_HORIZON)
    return found


async def read(conn: Conn, after: int, *, rows_max: int = ROWS_MAX, where: str = "") -> Page:
    """What was committed after a pointer: up to ``rows_max`` lines, more where one transaction has more.

    ``where``: a condition on them (``AND ...``), a constant of the program. A page may have no lines and not be the
    last, where long nothing of interest happened.
    """
    end = await horizon(conn) - 1
    span = _SPAN_MIN
    query = _LINES.format(where=where)
    lines: list[asyncpg.Record] = []
    for _ in range(_STATEMENTS_MAX):
        if after >= end or len(lines) >= rows_max:
            break
        upto = min(end, after + span)
        wanted = rows_max - len(lines)
        found = await conn.fetch(query, after, upto, wanted)
        lines += found
        after = found[-1]["tx"] if len(found) >= wanted else upto
        if len(found) < wanted // 4:
            span = min(2 * span, _SPAN_MAX)
    return Page(lines, after, after >= end)
