"""Alerts about the machine of a node. Such a one is open for as long as its node says so."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from mta.queue.connection import Conn

_RAISE: Final = """
INSERT INTO mta.alert (key, kind, egress, node, cause, detail, reply, since, seen_at)
VALUES ($1, 'machine', $2, $3, $4, $5, $6, $7, now())
ON CONFLICT (kind, egress, sender, site, category, node, cause) WHERE delivery_id IS NULL AND ended_at IS NULL
DO UPDATE SET seen_at = now(), detail = excluded.detail, reply = excluded.reply
"""
_END: Final = """
UPDATE mta.alert SET ended_at = now()
WHERE kind = 'machine' AND node = $1 AND ended_at IS NULL
  AND (egress, cause) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""


class MachineAlert(msgspec.Struct, frozen=True):
    """``egress`` empty: of the children, or of the whole node. ``is_open``: it is not over."""

    egress: str
    cause: str
    what: str
    remedy: str
    since: datetime.datetime
    is_open: bool


async def record(conn: Conn, node: str, alerts: Sequence[MachineAlert]) -> None:
    """Raises those that are new, and ends those of the node that are not open any more."""
    async with conn.transaction():
        for one in alerts:
            key = f"machine {node} {one.egress} {one.cause} {one.since.isoformat()}"
            detail = f"node {node}, {one.what}"
            await conn.execute(_RAISE, key, one.egress, node, one.cause, detail, one.remedy, one.since)
        await conn.execute(_END, node, *_columns(one for one in alerts if one.is_open))


def _columns(alerts: Iterable[MachineAlert]) -> tuple[list[str], list[str]]:
    given = list(alerts)
    return [one.egress for one in given], [one.cause for one in given]
