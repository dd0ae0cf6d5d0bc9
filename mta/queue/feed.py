"""The log as a stream: everything that is committed to it, once and in an order that never changes.

A reader keeps a pointer: all of that transaction and of those before it were read. What is younger than the oldest
transaction that still runs is not shown yet, so nothing that is committed later can stand before the pointer. Times
would not do: a line may be days older than its commit.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import asyncpg

from mta.queue.connection import Conn

ROWS_MAX: Final = 5_000
# How many transactions a look spans at first; it doubles while nothing is found.
_SPAN: Final = 10_000

_HORIZON: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_POINTER: Final = "SELECT tx FROM mta.log_pointer WHERE name = $1"
_BEGIN: Final = "INSERT INTO mta.log_pointer (name, tx) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_MOVE: Final = "UPDATE mta.log_pointer SET tx = $2, moved_at = now() WHERE name = $1 AND tx <= $2"
_LINES: Final = """
SELECT tx, at, delivery_id, number, part_id, attempt, status, reason, type, category, code, enhanced, address,
       reference, site, mx_host, egress, reply, bytes
FROM mta.delivery_log WHERE tx > $1 AND tx <= $2 {where}
ORDER BY tx FETCH FIRST {rows} ROWS WITH TIES
"""


class Page(NamedTuple):
    """Lines in the order of their transactions, whole transactions only; all up to ``upto`` was looked at."""

    lines: list[asyncpg.Record]
    upto: int
    is_last: bool  # nothing more is committed for now


async def pointer(conn: Conn, name: str, *, from_the_beginning: bool = False) -> int:
    """Where a reader stands. A new one begins now, or with the first line that there is."""
    found: int | None = await conn.fetchval(_POINTER, name)
    if found is None:
        at = 0 if from_the_beginning else await horizon(conn) - 1
        await conn.execute(_BEGIN, name, at)
        found = await conn.fetchval(_POINTER, name)
    assert found is not None
    return found


async def move(conn: Conn, name: str, upto: int) -> None:
    """In the transaction that records what was made of the lines: so each is dealt with exactly once."""
    await conn.execute(_MOVE, name, upto)


async def horizon(conn: Conn) -> int:
    """The oldest transaction that may still run: all before it are over."""
    found: int = await conn.fetchval(_HORIZON)
    return found


async def read(conn: Conn, after: int, *, rows_max: int = ROWS_MAX, where: str = "") -> Page:
    """What was committed after a pointer: about ``rows_max`` lines, more where one transaction has more.

    ``where``: a condition on them (``AND ...``), a constant of the program.
    """
    end = await horizon(conn) - 1
    span = _SPAN
    query = _LINES.format(where=where, rows=int(rows_max))
    while after < end:
        upto = min(end, after + span)
        lines = await conn.fetch(query, after, upto)
        if len(lines) >= rows_max:
            return Page(lines, lines[-1]["tx"], False)
        if lines or upto == end:
            return Page(lines, upto, upto == end)
        after, span = upto, span * 2
    return Page([], after, True)
