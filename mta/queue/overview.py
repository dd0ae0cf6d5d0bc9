"""What waits, where and since when; who leases it; what the log knows of an address. For people, not for daemons."""

from __future__ import annotations

import datetime

import msgspec

from mta.model.address import parse_mailbox
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

# One pass over the waiting parts: costs with the length of the queue, so it is asked by people only.
_WAITING = """
SELECT p.delivery_id, d.name, d.state, p.site, count(*) AS parts, sum(p.count)::bigint AS recipients,
       coalesce(sum(p.count) FILTER (WHERE p.owner IS NULL AND NOT p.held AND p.due_at <= now()), 0)::bigint AS due,
       coalesce(sum(p.count) FILTER (WHERE p.owner IS NOT NULL), 0)::bigint AS leased,
       coalesce(sum(p.count) FILTER (WHERE p.held), 0)::bigint AS held,
       -- Of a wave to come it lies ahead.
       greatest(extract(epoch FROM now() - min(p.appended_at)), 0)::float8 AS oldest_age_s,
       extract(epoch FROM min(coalesce(p.due_when_checked, p.due_at)) FILTER (WHERE p.owner IS NULL AND NOT p.held)
               - now())::float8 AS next_due_in_s
FROM mta.delivery_part p JOIN mta.delivery d ON d.id = p.delivery_id
GROUP BY p.delivery_id, d.name, d.state, p.site ORDER BY p.delivery_id, recipients DESC LIMIT $1
"""
_NODES = """
SELECT n.id, n.name, n.started_at, n.ended_at IS NULL AND n.alive_until > now() AS alive,
       n.ended_at IS NULL AND n.draining_since IS NOT NULL AS draining,
       extract(epoch FROM n.alive_until - now())::float8 AS lease_left_s,
       count(p.id) AS parts, coalesce(sum(p.count), 0)::bigint AS recipients
FROM mta.node n LEFT JOIN mta.delivery_part p ON p.owner = n.id
WHERE n.ended_at IS NULL OR p.id IS NOT NULL GROUP BY n.id ORDER BY n.id
"""
# From this on a delivery is large: several at once hold each other up (campaign-mta §10).
LARGE_RECIPIENTS = 100_000
TOGETHER = datetime.timedelta(hours=1)
# What begins at one time: a wave, or all that waits of a delivery and is of no wave to come.
_LARGE_BESIDE = """
WITH running AS (
    SELECT d.id, d.name, greatest(d.started_at, now()) AS begins_at,
           (SELECT sum(recipients - excluded - duplicates)::bigint FROM mta.delivery_append WHERE delivery_id = d.id)
           - coalesce(s.delivered + s.failed + s.expired + s.cancelled + s.simulated + s.excluded, 0) AS waiting
    FROM mta.delivery d LEFT JOIN mta.delivery_stats s ON s.delivery_id = d.id
    WHERE d.state = 'running' AND d.ended_at IS NULL
), wave AS (
    SELECT r.id, r.name, w.due_at, w.recipients
    FROM running r JOIN mta.delivery_wave w ON w.delivery_id = r.id AND w.due_at > r.begins_at
), portion AS (
    SELECT r.id, r.name, r.begins_at, r.waiting - coalesce(sum(w.recipients), 0) AS recipients
    FROM running r LEFT JOIN wave w ON w.id = r.id GROUP BY r.id, r.name, r.begins_at, r.waiting
    UNION ALL
    SELECT * FROM wave
)
SELECT DISTINCT ON (o.id) o.id, o.name, o.recipients::bigint, o.begins_at
FROM portion own JOIN portion o ON o.id <> own.id AND o.begins_at - own.begins_at BETWEEN - $3::interval AND $3
WHERE own.id = $1 AND own.recipients >= $2 AND o.recipients >= $2
ORDER BY o.id, o.begins_at
"""
FIND_BY_ADDRESS = """
SELECT at, delivery_id, number, attempt, status, reason, code, enhanced, address, reference, site, mx_host, peer,
       egress, reply
FROM mta.delivery_log WHERE lower(address) = lower($1) ORDER BY at DESC, attempt DESC LIMIT $2
"""


class LargeDelivery(msgspec.Struct, frozen=True):
    """A running delivery, or a wave of one, with many recipients that wait for the same time."""

    id: int
    name: str
    waiting: int
    begins_at: datetime.datetime  # now, where it has begun


class Waiting(msgspec.Struct, frozen=True):
    """What waits of one delivery for one site (None: not known yet). Counts are recipients, but for ``parts``.

    Positions that are settled already count until their part ends.
    """

    delivery_id: int
    name: str
    state: str
    site: str | None
    parts: int
    recipients: int
    due: int
    leased: int
    held: int
    oldest_age_s: float
    next_due_in_s: float | None


class NodeLeases(msgspec.Struct, frozen=True):
    """A run of a daemon that has not ended, or still owns parts."""

    id: int
    name: str
    started_at: datetime.datetime
    alive: bool
    draining: bool  # told to stop: it finishes what is on the wire
    lease_left_s: float
    parts: int
    recipients: int


class LogLine(msgspec.Struct, frozen=True):
    """One attempt as recorded."""

    at: datetime.datetime
    delivery_id: int
    number: int
    attempt: int
    status: Status
    reason: Reason
    code: int
    enhanced: str
    address: str
    reference: str | None
    site: str
    mx_host: str
    peer: str
    egress: str
    reply: str


async def waiting(conn: Conn, *, limit: int = 1000) -> list[Waiting]:
    """By delivery, and in it by site, the fullest first."""
    return [Waiting(*row.values()) for row in await conn.fetch(_WAITING, limit)]


async def leases_by_node(conn: Conn) -> list[NodeLeases]:
    return [NodeLeases(*row.values()) for row in await conn.fetch(_NODES)]


async def find_in_log(conn: Conn, address: str, *, limit: int = 100) -> list[LogLine]:
    """Every attempt for an address, in any of its forms and in any case, the newest first."""
    canonical = parse_mailbox(address, "address").text
    return [msgspec.convert(dict(row), LogLine) for row in await conn.fetch(FIND_BY_ADDRESS, canonical, limit)]


async def large_beside(conn: Conn, delivery_id: int) -> list[LargeDelivery]:
    """Large ones that begin within ``TOGETHER`` of a time at which much of this one begins; one line for each."""
    return [
        LargeDelivery(*row.values()) for row in await conn.fetch(_LARGE_BESIDE, delivery_id, LARGE_RECIPIENTS, TOGETHER)
    ]
