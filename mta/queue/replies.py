"""Refusals from the log, counted by what a rule could tell apart about them."""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.queue.connection import Conn

# The newest lines first, and not more than so many: a day of trouble may be millions.
_REFUSALS: Final = """
SELECT code, enhanced, reply, mx_host, site, egress, substring(address FROM '[^@]*$') AS domain, count(*) AS count
FROM (
    SELECT * FROM mta.delivery_log
    WHERE at >= $1 AND status NOT IN (1, 5) AND code >= 400 AND mx_host <> '' ORDER BY at DESC LIMIT $2
) newest
GROUP BY code, enhanced, reply, mx_host, site, egress, domain ORDER BY count DESC
"""


class Recorded(msgspec.Struct, frozen=True):
    """A refusal, and how often it was recorded."""

    code: int
    enhanced: str
    reply: str
    mx_host: str
    site: str
    egress: str  # its name
    domain: str
    count: int


async def recorded_refusals(conn: Conn, since: datetime.datetime, lines_max: int) -> list[Recorded]:
    """Of the newest ``lines_max`` lines since then; the most frequent first."""
    return [Recorded(*row) for row in await conn.fetch(_REFUSALS, since, lines_max)]
