"""What comes back about recipients, recorded: a line of the log each, and the counters of their deliveries.

Each kind counts once for a recipient, whatever is sent again (`mta.feedback`); so a spool that is read twice, a
provider that reports twice and somebody who replays a bounce a million times all make no difference.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

KINDS: Final = {
    Status.BOUNCED: "bounce",
    Status.COMPLAINED: "complaint",
    Status.UNSUBSCRIBED: "unsubscribe",
}
# Only of what was delivered (or may have been) the outcome becomes another; the rest is seen, and that is all.
_RECORD: Final = """
WITH given AS (
    SELECT DISTINCT ON (number, kind) *
    FROM unnest($1::bigint[], $2::text[], $3::smallint[], $4::timestamptz[], $5::smallint[], $6::smallint[],
                $7::smallint[], $8::smallint[], $9::text[], $10::text[])
         AS g (number, kind, status, at, type, reason, category, code, enhanced, reply)
    ORDER BY number, kind
), known AS (
    SELECT g.*, a.delivery_id, l.part_id, l.attempt, l.address, l.reference, l.site, l.mx_host, l.egress,
           l.status IN (1, 11) AS was_delivered
    FROM given g JOIN mta.delivery_append a ON a.append_id = g.number >> 16
    JOIN LATERAL (
        SELECT * FROM mta.delivery_log l
        WHERE l.delivery_id = a.delivery_id AND l.number = g.number AND l.status < 20 ORDER BY l.at DESC LIMIT 1
    ) l ON true
), fresh AS (
    INSERT INTO mta.feedback (number, kind, delivery_id, at) SELECT number, kind, delivery_id, at FROM known
    ON CONFLICT DO NOTHING RETURNING number, kind
), logged AS (
    INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                                  reference, site, mx_host, peer, egress, reply, type, category)
    SELECT k.at, k.delivery_id, k.number, k.part_id, k.attempt, k.status, k.reason, k.code, k.enhanced, k.address,
           k.reference, k.site, k.mx_host, '', k.egress, k.reply, k.type, k.category
    FROM known k JOIN fresh USING (number, kind) WHERE k.was_delivered
    RETURNING delivery_id, status
), counted AS (
    INSERT INTO mta.delivery_stats AS s (delivery_id, bounced, complaints, unsubscribed)
    SELECT delivery_id, count(*) FILTER (WHERE status = 20), count(*) FILTER (WHERE status = 21),
           count(*) FILTER (WHERE status = 22)
    FROM logged GROUP BY delivery_id ORDER BY delivery_id
    ON CONFLICT (delivery_id) DO UPDATE SET bounced = s.bounced + excluded.bounced,
        complaints = s.complaints + excluded.complaints, unsubscribed = s.unsubscribed + excluded.unsubscribed
)
SELECT number, kind, EXISTS (SELECT FROM fresh f WHERE f.number = k.number AND f.kind = k.kind) AS is_fresh FROM known k
"""


class Feedback(msgspec.Struct, frozen=True):
    """``status`` is BOUNCED, COMPLAINED or UNSUBSCRIBED; ``reply`` is what was said."""

    number: int
    status: Status
    at: datetime.datetime
    type: FailureType = FailureType.IGNORED
    reason: Reason = Reason.DENYLISTED
    category: Category = Category.NONE
    code: int = 0
    enhanced: str = ""
    reply: str = ""


class Recorded(msgspec.Struct, frozen=True):
    """``unknown``: numbers of which the log has no line, yet or ever."""

    fresh: int
    repeated: int
    unknown: frozenset[int]


async def record(conn: Conn, items: Sequence[Feedback]) -> Recorded:
    """All of them in one transaction."""
    columns: list[list[object]] = [
        [item.number for item in items],
        [KINDS[item.status] for item in items],
        [item.status for item in items],
        [item.at for item in items],
        [item.type for item in items],
        [item.reason for item in items],
        [item.category for item in items],
        [item.code for item in items],
        [item.enhanced for item in items],
        [item.reply for item in items],
    ]
    rows = await conn.fetch(_RECORD, *columns)
    fresh = sum(row["is_fresh"] for row in rows)
    known = {row["number"] for row in rows}
    return Recorded(fresh, len(items) - fresh, frozenset(item.number for item in items if item.number not in known))


async def unsubscribe(conn: Conn, number: int, at: datetime.datetime, how: str) -> bool:
    """One recipient leaves (a click, a mail); False when that is known already, or nobody has the number."""
    return (await record(conn, [Feedback(number, Status.UNSUBSCRIBED, at, reply=how)])).fresh == 1
