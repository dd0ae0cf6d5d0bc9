"""Recipients that an operator takes out of the queue, or has sent sooner: found in the parts that nobody has leased.

What nodes have in memory they end themselves (`mta.traffic.effects.EffectKind.CANCEL`); nothing here touches a part
that is leased.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

PARTS_AT_ONCE: Final = 200  # in one transaction: their rows are locked for as long as that takes

# The text is looked for in the packed rows first, and each row is read only where it is found.
_MATCHING: Final = """
position($1::bytea IN p.recipients) > 0
AND ($2::text = '' OR position($2 IN lower(convert_from(p.recipients, 'UTF8'))) > 0)
AND ($4::bigint IS NULL OR p.delivery_id = $4)
"""
_ROWS: Final = """
SELECT p.id, p.delivery_id, p.site, p.count, p.held, p.owner, (i - 1)::smallint AS position,
       coalesce(p.numbers[i], p.append_id << 16 | i - 1) AS number, r ->> 0 AS address, r ->> 1 AS reference
FROM picked p, jsonb_array_elements(convert_from(p.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS one (r, i)
WHERE CASE WHEN $3::text LIKE '@%' THEN right(r ->> 0, length($3)) = $3 ELSE lower(r ->> 0) = $3 END
  AND NOT EXISTS (SELECT FROM mta.part_settled s WHERE s.part_id = p.id AND (i - 1)::smallint = ANY (s.positions))
"""
_COUNT: Final = f"""
WITH picked AS (SELECT p.* FROM mta.delivery_part p WHERE {_MATCHING})
SELECT count(*) FILTER (WHERE owner IS NULL) AS free, count(*) FILTER (WHERE owner IS NOT NULL) AS leased,
       coalesce((SELECT array_agg(DISTINCT n.name ORDER BY n.name) FROM mta.node n
                 WHERE n.id IN (SELECT owner FROM mta.delivery_part p WHERE owner IS NOT NULL AND {_MATCHING})),
                '{{}}') AS nodes
FROM ({_ROWS}) AS found
"""  # noqa: S608 - put together from constants
# A part of which nothing else is open goes as a whole; of another the positions are settled.
_CANCEL: Final = f"""
WITH picked AS MATERIALIZED (
    SELECT p.* FROM mta.delivery_part p WHERE p.owner IS NULL AND p.id > $5 AND {_MATCHING}
    ORDER BY p.id LIMIT {PARTS_AT_ONCE} FOR UPDATE SKIP LOCKED
), found AS MATERIALIZED (
    {_ROWS}
), touched AS MATERIALIZED (
    SELECT f.id, f.count, array_agg(f.position) AS positions,
           (SELECT coalesce(sum(cardinality(s.positions)), 0) FROM mta.part_settled s WHERE s.part_id = f.id) AS before
    FROM found f GROUP BY f.id, f.count
), logged AS (
    INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                  address, reference, site, mx_host, peer, egress, reply)
    SELECT now(), delivery_id, number, id, 0, $6, $7, 0, '', address, reference, coalesce(site, ''), '', '', '', $8
    FROM found
), settled AS (
    INSERT INTO mta.part_settled (part_id, positions)
    SELECT id, positions FROM touched WHERE before + cardinality(positions) < count
), emptied AS (
    DELETE FROM mta.delivery_part p USING touched t
    WHERE p.id = t.id AND t.before + cardinality(t.positions) >= t.count RETURNING p.id
), forgotten AS (
    DELETE FROM mta.part_settled s USING emptied e WHERE s.part_id = e.id
), counted AS (
    INSERT INTO mta.delivery_stats AS s (delivery_id, cancelled)
    SELECT delivery_id, count(*) FROM found GROUP BY delivery_id ORDER BY delivery_id
    ON CONFLICT (delivery_id) DO UPDATE SET cancelled = s.cancelled + excluded.cancelled
), announced AS (
    SELECT pg_notify('mta', 'delivery ' || delivery_id) FROM (SELECT DISTINCT delivery_id FROM found) d
)
SELECT (SELECT max(id) FROM picked) AS last_id, (SELECT count(*) FROM found) AS cancelled,
       (SELECT count(*) FROM announced) AS announced
"""  # noqa: S608
_DONE: Final = """
SELECT count(*) FROM mta.delivery_log WHERE at >= now() - interval '1 hour' AND status NOT IN (1, 5) AND status = $1
  AND reply = $2
"""
# A wave to come waits for its time by plan: only what was tried, put off or came back from a node's memory is moved.
_FLUSH: Final = """
WITH moved AS (
    UPDATE mta.delivery_part p SET due_at = now()
    WHERE p.owner IS NULL AND NOT p.held AND p.due_at > now() AND (p.attempt > 0 OR p.site IS NOT NULL) AND {}
    RETURNING p.delivery_id, p.count
), announced AS (
    SELECT pg_notify('mta', 'delivery ' || delivery_id) FROM (SELECT DISTINCT delivery_id FROM moved) d
)
SELECT coalesce(sum(count), 0)::bigint AS recipients, count(*) AS parts, (SELECT count(*) FROM announced) AS deliveries
FROM moved
"""


class Wanted(msgspec.Struct, frozen=True):
    """Whom: ``text`` is an address in lower case, or ``@`` and a domain; of one delivery, or of all."""

    text: str
    delivery_id: int | None = None

    def values(self) -> tuple[bytes, str, str, int | None]:
        """The first four values of the statements here."""
        domain = self.text[self.text.index("@") :]
        ends = msgspec.json.encode(domain)[1:]  # as the end of a JSON text
        is_domain = self.text.startswith("@")
        return ends, "" if is_domain else msgspec.json.encode(self.text).decode(), self.text, self.delivery_id


class Found(msgspec.Struct, frozen=True):
    """Open recipients: in parts that nobody has leased, and in those that ``nodes`` have in memory."""

    free: int
    leased: int
    nodes: list[str]


class Flushed(msgspec.Struct, frozen=True):
    """What was brought forward."""

    recipients: int
    parts: int
    deliveries: int


async def count(conn: Conn, wanted: Wanted) -> Found:
    """Reads the queue from one end to the other: up to two seconds for a million recipients."""
    row = await conn.fetchrow(_COUNT, *wanted.values())
    assert row is not None
    return Found(*row.values())


async def cancel_free(conn: Conn, wanted: Wanted, reply: str) -> int:
    """Ends what nobody has leased, held ones included, as cancelled; ``reply`` stands in the log. How many."""
    after_id, cancelled = 0, 0
    while True:
        row = await conn.fetchrow(
            _CANCEL, *wanted.values(), after_id, int(Status.CANCELLED), int(Reason.NOT_DEFINED), reply
        )
        assert row is not None
        if row["last_id"] is None:
            return cancelled
        after_id = row["last_id"]
        cancelled += row["cancelled"]


async def cancelled_with(conn: Conn, reply: str) -> int:
    """How many recipients were cancelled within an hour with this text in the log, by whoever recorded it."""
    found: int = await conn.fetchval(_DONE, int(Status.CANCELLED), reply)
    return found


async def flush_delivery(conn: Conn, delivery_id: int) -> Flushed:
    """What of a delivery waits for a retry, or was put off, is due now."""
    return await _flush(conn, "p.delivery_id = $1", delivery_id)


async def flush_domain(conn: Conn, domain: str) -> Flushed:
    """The same of a recipient domain; others in the same parts go with it, since they wait for the same site."""
    ends = msgspec.json.encode(f"@{domain}")[1:]
    return await _flush(conn, "(p.site = $1 OR position($2::bytea IN p.recipients) > 0)", f"@{domain}", ends)


async def flush_site(conn: Conn, site: str) -> Flushed:
    """The same of a site, by its key."""
    return await _flush(conn, "p.site = $1", site)


async def _flush(conn: Conn, which: str, *values: object) -> Flushed:
    row = await conn.fetchrow(_FLUSH.format(which), *values)
    assert row is not None
    return Flushed(*row.values())
