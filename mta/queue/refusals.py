"""Paths that refused recipients, as nodes have seen them: on record, and with an alert while they rest."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.model.failure import Category
from mta.queue.connection import Conn
from mta.queue.faults import raise_alert

KEPT_DAYS: Final = 7
LISTED_MAX: Final = 200
_RECORD: Final = """
INSERT INTO mta.path_refusal AS p
    (node, egress, peer, mx_host, site, scope, stage, code, enhanced, reply, category, refused, rests_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, now() + make_interval(secs => $13::float8))
ON CONFLICT (node, egress, peer) DO UPDATE
SET mx_host = excluded.mx_host, site = excluded.site, scope = excluded.scope, stage = excluded.stage,
    code = excluded.code, enhanced = excluded.enhanced, reply = excluded.reply, category = excluded.category,
    refused = excluded.refused, rests_until = excluded.rests_until, last_at = now(),
    since = CASE WHEN p.rests_until IS NULL THEN now() ELSE p.since END
"""
_FORGET: Final = "DELETE FROM mta.path_refusal WHERE node = $1 AND last_at < now() - make_interval(days => $2)"
LISTED: Final = """
SELECT node, egress, peer, mx_host, site, scope, stage, code, enhanced, reply, category, refused, since, last_at,
       rests_until
FROM mta.path_refusal
WHERE last_at >= now() - make_interval(hours => $1) AND ($2::text IS NULL OR egress = $2)
ORDER BY rests_until IS NULL, refused DESC LIMIT $3
"""


class PathRefusalRow(msgspec.Struct, frozen=True):
    """A path, its last refusal, and how many recipients met one there. ``rests_until`` None: it is good again."""

    node: str
    egress: str
    peer: str
    mx_host: str
    site: str
    scope: str
    stage: str
    code: int
    enhanced: str
    reply: str
    category: Category
    refused: int
    since: datetime.datetime
    last_at: datetime.datetime
    rests_until: datetime.datetime | None


class RestedPath(msgspec.Struct, frozen=True):
    """A path that rests after refusals, or is good again: ``rests_s`` None. ``reply``: the last, as the server said."""

    egress: str
    peer: str
    mx_host: str
    site: str
    scope: str
    stage: str
    code: int
    enhanced: str
    reply: str
    category: Category
    refused: int
    rests_s: float | None

    @property
    def said(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.reply) if part)

    @property
    def detail(self) -> str:
        """What the alert says."""
        return (
            f"egress {self.egress} is refused by {self.mx_host} [{self.peer}] of {self.site} at {self.stage}"
            f" ({self.scope}): {self.refused:,} recipients met it, went by other paths or were deferred; the path rests"
        )


async def record(conn: Conn, node: str, paths: Sequence[RestedPath]) -> list[RestedPath]:
    """Puts the state of these paths on record, and raises or prolongs an alert for each that rests; those raised."""
    raised = []
    for one in paths:
        async with conn.transaction():
            await conn.execute(
                _RECORD,
                node,
                one.egress,
                one.peer,
                one.mx_host,
                one.site,
                one.scope,
                one.stage,
                one.code,
                one.enhanced,
                storable(one.reply),
                int(one.category),
                one.refused,
                one.rests_s,
            )
            if one.rests_s is not None and await raise_alert(
                conn, one.egress, "", one.site, one.category, one.detail, storable(one.said)
            ):
                raised.append(one)
    await conn.execute(_FORGET, node, KEPT_DAYS)
    return raised


async def listed(conn: Conn, *, hours: int, egress: str | None = None) -> list[PathRefusalRow]:
    """Paths that refused recipients in the last hours, those that rest first."""
    rows = await conn.fetch(LISTED, hours, egress, LISTED_MAX)
    return [PathRefusalRow(**{**row, "category": Category(row["category"])}) for row in rows]


def storable(text: str) -> str:
    """A server's words, as far as PostgreSQL can keep them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
