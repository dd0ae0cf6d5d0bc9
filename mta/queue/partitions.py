"""Daily partitions of ``mta.delivery_log`` (UTC days): made ahead, listed with their sizes, dropped whole.

A row for a day without a partition goes to the default partition and moves when the day's partition is made, so a
daemon that was down for a week loses nothing.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.queue.connection import Conn

DAYS_AHEAD: Final = 3  # a long weekend without a working daemon
# Making or dropping a partition queues for a strong lock, and every reader and writer then queues behind it.
# Rather give up and try again later: there are days to spare.
LOCK_TIMEOUT_MS: Final = 3000

_SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, true)"
_TODAY = "SELECT (now() AT TIME ZONE 'UTC')::date"
_CREATE = "SELECT mta.create_log_partition($1)"
_DROP = "SELECT mta.drop_log_partitions($1)"
_LIST = "SELECT name, day, size_bytes, rows_estimated FROM mta.log_partition"


class LogPartition(msgspec.Struct, frozen=True):
    """One partition; ``day`` is None for the default one. ``rows_estimated`` is the planner's figure."""

    name: str
    day: datetime.date | None
    size_bytes: int
    rows_estimated: int


async def ensure_partitions(conn: Conn, *, days_ahead: int = DAYS_AHEAD) -> list[datetime.date]:
    """Make the partitions of today (the database's clock) and ``days_ahead`` days more; answers those made now.

    Raises asyncpg.LockNotAvailableError when a long reader is in the way; what was made before stays made.
    """
    today = await conn.fetchval(_TODAY)
    made = []
    for ahead in range(days_ahead + 1):
        day = today + datetime.timedelta(days=ahead)
        async with conn.transaction():
            await conn.execute(_SET_LOCK_TIMEOUT, str(LOCK_TIMEOUT_MS))
            if await conn.fetchval(_CREATE, day):
                made.append(day)
    return made


async def drop_before(conn: Conn, day: datetime.date) -> list[str]:
    """Drop the partitions of all days before ``day``; answers their names. The default partition stays."""
    async with conn.transaction():
        await conn.execute(_SET_LOCK_TIMEOUT, str(LOCK_TIMEOUT_MS))
        return [row[0] for row in await conn.fetch(_DROP, day)]


async def list_partitions(conn: Conn) -> list[LogPartition]:
    """The default partition first, then by day."""
    return [LogPartition(*row.values()) for row in await conn.fetch(_LIST)]
