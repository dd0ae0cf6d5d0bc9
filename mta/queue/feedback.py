"""What comes back about recipients, recorded: a line of the log each, and the counters of their deliveries.

Each kind counts once for a recipient, whatever is sent again (`mta.feedback`); so a spool that is read twice, a
provider that reports twice and somebody who replays a bounce a million times all make no difference.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from mta.message.leaving import TOKEN, parse_leaving_token
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

KINDS: Final = {
    Status.BOUNCED: "bounce",
    Status.COMPLAINED: "complaint",
    Status.UNSUBSCRIBED: "unsubscribe",
}
# A bounce makes the outcome of what was delivered (or may have been) another one; of what failed it is seen, and that
# is all. What was deferred may have been delivered since: nothing is known until its line is there. A recipient that
# complains or leaves is heard whatever became of the message, but for one that was never sent.
_RECORD: Final = """
WITH given AS (
    SELECT DISTINCT ON (number, kind) *
    FROM unnest($1::bigint[], $2::text[], $3::smallint[], $4::timestamptz[], $5::smallint[], $6::smallint[],
                $7::smallint[], $8::smallint[], $9::text[], $10::text[], $11::bigint[], $12::text[])
         AS g (number, kind, status, at, type, reason, category, code, enhanced, reply, of_delivery, of_address)
    ORDER BY number, kind, at
), known AS (
    SELECT g.*, a.delivery_id, l.part_id, l.attempt, l.address, l.reference, l.site, l.mx_host, l.egress,
           CASE WHEN g.kind = 'bounce' THEN l.status IN (1, 11) ELSE l.status NOT IN (5, 6) END AS is_news
    FROM given g
    JOIN mta.delivery_append a ON a.append_id = g.number >> 16 AND g.of_delivery IN (0, a.delivery_id)
    JOIN LATERAL (
        SELECT * FROM mta.delivery_log l
        WHERE l.delivery_id = a.delivery_id AND l.number = g.number AND l.status < 20
              AND (l.status <> 10 OR g.kind <> 'bounce')
        ORDER BY l.status >= 10, l.at DESC LIMIT 1
    ) l ON g.of_address IN ('', lower(l.address))
), fresh AS (
    INSERT INTO mta.feedback (number, kind, delivery_id, at)
    SELECT number, kind, delivery_id, at FROM known ORDER BY number, kind
    ON CONFLICT DO NOTHING RETURNING number, kind
), logged AS (
    INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                                  reference, site, mx_host, peer, egress, reply, type, category)
    SELECT k.at, k.delivery_id, k.number, k.part_id, k.attempt, k.status, k.reason, k.code, k.enhanced, k.address,
           k.reference, k.site, k.mx_host, '', k.egress, k.reply, k.type, k.category
    FROM known k JOIN fresh USING (number, kind) WHERE k.is_news
    RETURNING delivery_id, status
), counted AS (
    INSERT INTO mta.delivery_stats AS s (delivery_id, bounced, complaints, unsubscribed)
    SELECT delivery_id, count(*) FILTER (WHERE status = 20), count(*) FILTER (WHERE status = 21),
           count(*) FILTER (WHERE status = 22)
    FROM logged GROUP BY delivery_id ORDER BY delivery_id
    ON CONFLICT (delivery_id) DO UPDATE SET bounced = s.bounced + excluded.bounced,
        complaints = s.complaints + excluded.complaints, unsubscribed = s.unsubscribed + excluded.unsubscribed
)
SELECT k.number, k.kind, f.number IS NOT NULL AS is_fresh
FROM known k LEFT JOIN fresh f ON f.number = k.number AND f.kind = k.kind
"""
_COUNT: Final = """
INSERT INTO mta.inbound_count AS c (day, what, count)
SELECT (now() AT TIME ZONE 'UTC')::date, what, count
FROM unnest($1::text[], $2::bigint[]) AS n (what, count) ORDER BY what
ON CONFLICT (day, what) DO UPDATE SET count = c.count + excluded.count
"""
_COUNTED: Final = "SELECT day, what, count FROM mta.inbound_count WHERE day > $1 ORDER BY day DESC, what"
_LATEST: Final = """
SELECT DISTINCT ON (wanted) w.wanted, l.number
FROM unnest($1::text[]) AS w (wanted) JOIN mta.delivery_log l ON l.address IN (w.wanted, lower(w.wanted))
WHERE l.status = 1 ORDER BY wanted, l.at DESC
"""


class Feedback(msgspec.Struct, frozen=True):
    """``status`` is BOUNCED, COMPLAINED or UNSUBSCRIBED; ``reply`` is what was said.

    ``delivery`` and ``address``, where they are given, must be those of the recipient, or nobody is meant.
    """

    number: int
    status: Status
    at: datetime.datetime
    type: FailureType = FailureType.IGNORED
    reason: Reason = Reason.DENYLISTED
    category: Category = Category.NONE
    code: int = 0
    enhanced: str = ""
    reply: str = ""
    delivery: int = 0
    address: str = ""


class Recorded(msgspec.Struct, frozen=True):
    """``unknown``: those given of which the log has no line, yet or ever."""

    fresh: int
    repeated: int
    unknown: frozenset[tuple[int, Status]]


async def record(conn: Conn, items: Sequence[Feedback]) -> Recorded:
    """All of them in one statement, so in one transaction."""
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
        [item.delivery for item in items],
        [item.address.lower() for item in items],
    ]
    rows = await conn.fetch(_RECORD, *columns)
    known = {(row["number"], row["kind"]) for row in rows}
    unknown = frozenset((i.number, i.status) for i in items if (i.number, KINDS[i.status]) not in known)
    fresh = sum(row["is_fresh"] for row in rows)
    nobody = sum((item.number, item.status) in unknown for item in items)
    return Recorded(fresh, len(items) - fresh - nobody, unknown)


async def record_unsubscribe(conn: Conn, token: str, key: bytes, how: str = "one click") -> bool:
    """A click (RFC 8058) on a URL with a token (`mta.message.leaving`). ``key``: `mta.queue.installation.verp_key`.

    False when nobody has the token. True as often as it is clicked; what is recorded is the first.
    """
    number = parse_leaving_token(token, key) if TOKEN.fullmatch(token.lower()) else None
    if number is None:
        return False
    at = datetime.datetime.now(datetime.UTC)
    return not (await record(conn, [Feedback(number, Status.UNSUBSCRIBED, at, reply=f"unsubscribed: {how}")])).unknown


async def latest_numbers(conn: Conn, addresses: Collection[str]) -> dict[str, int]:
    """By address the recipient to whom something was delivered last."""
    return {row["wanted"]: row["number"] for row in await conn.fetch(_LATEST, list(addresses))}


async def count(conn: Conn, counts: Mapping[str, int]) -> None:
    """Adds to what is counted a day (UTC) of mail that came back, and of what was answered to whom brought it."""
    await conn.execute(_COUNT, list(counts), list(counts.values()))


async def counted(conn: Conn, days: int) -> list[tuple[datetime.date, str, int]]:
    """(day, what, count) of the last days, the newest first."""
    since = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days)
    return [(row["day"], row["what"], row["count"]) for row in await conn.fetch(_COUNTED, since)]
