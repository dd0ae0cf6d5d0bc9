"""Figures for people: how much went and failed by time, which paths fail, what to be warned of, why something is slow.

Volume by time is read from ``traffic_minute``, which moves with the log; errors from the log, by the index of what went
wrong; alerts are looked for among the deliveries that run or have just ended.
"""

from __future__ import annotations

import datetime
import enum
from typing import Final

import msgspec

from mta.model.failure import Category
from mta.queue.connection import Conn

ERRORS_MIN: Final = 50  # on a path in an hour; fewer are everyday
PATHS_MAX: Final = 200
REPLIES_MAX: Final = 20
TRAFFIC_KEPT_DAYS: Final = 40  # minutes of traffic are kept for so long
# By hours that are looked at: seconds of a bucket.
BUCKETS_S: Final = {1: 300, 3: 900, 24: 3_600}

THROUGHPUT: Final = """
SELECT b.bucket AS begins_at, coalesce(sum(t.delivered), 0)::bigint AS delivered,
       coalesce(sum(t.failed), 0)::bigint AS failed, coalesce(sum(t.deferred), 0)::bigint AS deferred,
       coalesce(sum(t.in_doubt), 0)::bigint AS in_doubt, coalesce(sum(t.expired), 0)::bigint AS expired,
       coalesce(sum(t.cancelled), 0)::bigint AS cancelled, coalesce(sum(t.simulated), 0)::bigint AS simulated,
       coalesce(sum(t.bytes_delivered), 0)::bigint AS bytes_delivered,
       coalesce(sum(t.bytes_other), 0)::bigint AS bytes_other
FROM generate_series(date_bin(make_interval(secs => $2), now(), 'epoch') - make_interval(secs => $2) * ($1::int - 1),
                     now(), make_interval(secs => $2)) AS b (bucket)
LEFT JOIN mta.traffic_minute t
    ON t.minute >= b.bucket AND t.minute < b.bucket + make_interval(secs => $2)
       AND ($3::text IS NULL OR t.egress = $3) AND ($4::text IS NULL OR t.node = $4)
GROUP BY b.bucket ORDER BY b.bucket
"""
_DOMAIN: Final = "substring(address FROM '[^@]*$')"
# The last reply is looked up for the paths that are listed, by its time; sorting all of them would cost the most.
ERRORS: Final = f"""
WITH trouble AS (
    SELECT {_DOMAIN} AS domain, egress, count(*) AS errors,
           count(*) FILTER (WHERE status = 2) AS failed, count(*) FILTER (WHERE status = 10) AS deferred,
           count(*) FILTER (WHERE status = 11) AS in_doubt, count(*) FILTER (WHERE code > 0) AS refused,
           max(at) AS last_at
    FROM mta.delivery_log
    WHERE at >= now() - make_interval(secs => $1) AND status NOT IN (1, 5) AND status IN (2, 10, 11)
    GROUP BY 1, 2 HAVING count(*) >= $2 ORDER BY errors DESC LIMIT $3
)
SELECT t.domain, t.egress, t.errors, t.failed, t.deferred, t.in_doubt, t.refused, t.last_at, l.code, l.enhanced,
       l.reply, l.mx_host
FROM trouble t CROSS JOIN LATERAL (
    SELECT code, enhanced, reply, mx_host FROM mta.delivery_log
    WHERE at = t.last_at AND at >= now() - make_interval(secs => $1) AND status NOT IN (1, 5) AND egress = t.egress
      AND {_DOMAIN} = t.domain LIMIT 1
) l ORDER BY t.errors DESC, t.domain, t.egress
"""  # noqa: S608 - put together from constants
PATHS: Final = f"""
SELECT {_DOMAIN} AS domain, egress, count(*) AS attempted, count(*) FILTER (WHERE status = 1) AS delivered,
       count(*) FILTER (WHERE status IN (2, 10) AND code > 0) AS refused,
       count(*) FILTER (WHERE status IN (2, 10) AND code = 0) AS unreachable,
       count(*) FILTER (WHERE status = 2) AS failed, count(*) FILTER (WHERE status = 10) AS deferred,
       count(*) FILTER (WHERE status = 11) AS in_doubt, count(*) FILTER (WHERE status = 3) AS expired,
       count(*) FILTER (WHERE status = 4) AS cancelled
FROM mta.delivery_log
WHERE at >= now() - make_interval(secs => $1) AND ($2::text IS NULL OR egress = $2)
  AND ($3::text IS NULL OR {_DOMAIN} = $3)
GROUP BY 1, 2 ORDER BY count(*) FILTER (WHERE status IN (2, 10, 11)) DESC, 1, 2 LIMIT $4
"""  # noqa: S608
REPLIES: Final = f"""
SELECT code, enhanced, reply, count(*) AS times, max(at) AS last_at
FROM mta.delivery_log
WHERE at >= now() - make_interval(secs => $1) AND status NOT IN (1, 5) AND ($2::text IS NULL OR egress = $2)
  AND ($3::text IS NULL OR {_DOMAIN} = $3)
GROUP BY 1, 2, 3 ORDER BY times DESC LIMIT $4
"""  # noqa: S608


class Bucket(msgspec.Struct, frozen=True):
    """Attempts that ended in a span of time, by their end, and bytes of content that were accepted or not."""

    begins_at: datetime.datetime
    delivered: int
    failed: int
    deferred: int
    in_doubt: int
    expired: int
    cancelled: int
    simulated: int
    bytes_delivered: int
    bytes_other: int

    @property
    def errors(self) -> int:
        return self.failed + self.deferred + self.in_doubt + self.expired


class PathErrors(msgspec.Struct, frozen=True):
    """What failed lately between an egress and a recipient domain, with the last reply."""

    domain: str
    egress: str  # empty: no session was to be had
    errors: int
    failed: int
    deferred: int
    in_doubt: int
    refused: int  # of the errors, those with a reply
    last_at: datetime.datetime
    code: int
    enhanced: str
    reply: str
    mx_host: str


class PathFigures(msgspec.Struct, frozen=True):
    """All that was attempted between an egress and a recipient domain."""

    domain: str
    egress: str
    attempted: int
    delivered: int
    refused: int
    unreachable: int
    failed: int
    deferred: int
    in_doubt: int
    expired: int
    cancelled: int


class ReplyFigures(msgspec.Struct, frozen=True):
    """One reply and how often it was given."""

    code: int
    enhanced: str
    reply: str
    times: int
    last_at: datetime.datetime


async def has_sent(conn: Conn, egress: str) -> bool:
    """True when anything left by an egress of that name, as far back as minutes are kept."""
    return bool(await conn.fetchval("SELECT EXISTS (SELECT FROM mta.traffic_minute WHERE egress = $1)", egress))


async def throughput(
    conn: Conn, hours: int, *, egress: str | None = None, node: str | None = None
) -> tuple[int, list[Bucket]]:
    """Seconds of a bucket, and the buckets of the last ``hours`` (a key of ``BUCKETS_S``), the present one last."""
    width_s = BUCKETS_S[hours]
    rows = await conn.fetch(THROUGHPUT, hours * 3_600 // width_s, width_s, egress, node)
    return width_s, [Bucket(**row) for row in rows]


async def errors(conn: Conn, *, hours: int = 1, minimum: int = ERRORS_MIN) -> list[PathErrors]:
    """Paths with at least ``minimum`` errors in the time, the worst first."""
    return [PathErrors(**row) for row in await conn.fetch(ERRORS, hours * 3_600, minimum, PATHS_MAX)]


async def paths(
    conn: Conn, *, hours: int = 1, egress: str | None = None, domain: str | None = None
) -> tuple[list[PathFigures], list[ReplyFigures]]:
    """All that was attempted on paths of an egress or to a domain, those that fail most first; and the replies."""
    span_s = hours * 3_600
    figures = [PathFigures(**row) for row in await conn.fetch(PATHS, span_s, egress, domain, PATHS_MAX)]
    replies = [ReplyFigures(**row) for row in await conn.fetch(REPLIES, span_s, egress, domain, REPLIES_MAX)]
    return figures, replies


async def forget_traffic(conn: Conn) -> None:
    """Drops minutes that nobody asks for any more."""
    await conn.execute(
        "DELETE FROM mta.traffic_minute WHERE minute < now() - make_interval(days => $1)", TRAFFIC_KEPT_DAYS
    )


# --- alerts --------------------------------------------------------------------------------------


class AlertKind(enum.StrEnum):
    """What an alert is about."""

    FAILED = "failed"  # a delivery has ended and nothing of it was delivered
    SLOW = "slow"  # at its pace so far it takes longer than it may
    LOW_SUCCESS = "low-success"  # too small a part of what has ended was delivered
    MACHINE = "machine"  # a node's machine cannot connect from an egress, or open sessions at all
    NODE_LOST = "node-lost"  # a node's lease ended before the node did
    FEEDBACK_DOWN = "feedback-down"  # `mta keep` ran, and does not now
    OUR_FAULT = "our-fault"  # an egress or a sender domain is refused for what is no address's fault


class AlertBounds(msgspec.Struct, frozen=True):
    """From where on something is worth waking somebody."""

    outcomes_min: int = 50  # before a share of them says anything
    success_percent_min: float = 80.0
    slow_after_s: float = 600.0  # a delivery is not judged before it has run for so long
    duration_s_max: float = 86_400.0  # it should be done in this time, or before its validity ends


class Alert(msgspec.Struct, frozen=True):
    """One alert. ``key`` is what it is about: it is raised once. Of no delivery (`mta.queue.faults`): more is set."""

    key: str
    kind: AlertKind
    delivery_id: int | None
    detail: str
    raised_at: datetime.datetime | None = None
    egress: str = ""
    sender: str = ""  # domain
    site: str = ""
    category: Category = Category.NONE
    reply: str = ""  # a sample; of a machine, what to do
    since: datetime.datetime | None = None
    seen_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None
    node: str = ""
    cause: str = ""  # mta.model.machine_fault.FaultCause


# Of deliveries that have waves only what is due by now counts as their work.
_JUDGED: Final = """
SELECT d.id, d.name, d.state, d.ended_at IS NOT NULL AS has_ended,
       extract(epoch FROM coalesce(d.ended_at, now()) - greatest(d.started_at, d.starts_at))::float8 AS ran_s,
       extract(epoch FROM d.valid_until - greatest(d.started_at, d.starts_at))::float8 AS valid_s,
       coalesce(s.delivered + s.simulated, 0) AS good, coalesce(s.failed, 0) AS failed,
       coalesce(s.expired, 0) AS expired, coalesce(s.deferrals, 0) AS deferrals,
       (SELECT coalesce(sum(recipients - excluded - duplicates), 0)::bigint FROM mta.delivery_append a
        WHERE a.delivery_id = d.id)
       - (SELECT coalesce(sum(w.recipients), 0)::bigint FROM mta.delivery_wave w
          WHERE w.delivery_id = d.id AND w.due_at > now()) AS due
FROM mta.delivery d LEFT JOIN mta.delivery_stats s ON s.delivery_id = d.id
WHERE d.started_at IS NOT NULL AND coalesce(d.starts_at, d.started_at) <= now()
  AND (d.state = 'running' AND d.ended_at IS NULL OR d.state = 'finished' AND d.ended_at > now() - interval '1 day')
"""
_RAISE: Final = """
INSERT INTO mta.alert (key, kind, delivery_id, detail)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
ON CONFLICT DO NOTHING RETURNING key, kind, delivery_id, detail, raised_at
"""
_ALERTS: Final = """
SELECT key, kind, delivery_id, detail, raised_at, egress, sender, site, category, reply, since, seen_at, ended_at,
       node, cause
FROM mta.alert WHERE $2::text IS NULL OR kind = $2 ORDER BY raised_at DESC LIMIT $1
"""


class Judged(msgspec.Struct, frozen=True):
    """A delivery as alerts see it. Seconds since its start; ``due`` are its recipients but for waves to come."""

    id: int
    name: str
    state: str
    has_ended: bool
    ran_s: float
    valid_s: float
    good: int
    failed: int
    expired: int
    deferrals: int
    due: int


def alerts_for(one: Judged, bounds: AlertBounds) -> list[Alert]:
    """What there is to be said of a delivery. Pure."""
    found = []
    ended = one.good + one.failed + one.expired
    if one.has_ended and one.due and not one.good:
        detail = (
            f"{one.name}: has ended, nothing of {one.due:,} was delivered"
            f" ({one.failed:,} failed, {one.expired:,} expired)"
        )
        found.append(_alert(AlertKind.FAILED, one.id, detail))
    elif ended >= bounds.outcomes_min and 100 * one.good < bounds.success_percent_min * ended:
        detail = (
            f"{one.name}: {100 * one.good / ended:.1f} % of {ended:,} delivered, {one.failed:,} failed,"
            f" {one.expired:,} expired; expected {bounds.success_percent_min:g} %"
        )
        found.append(_alert(AlertKind.LOW_SUCCESS, one.id, detail))
    if not one.has_ended and one.ran_s >= bounds.slow_after_s and one.due > ended:
        whole_s = one.ran_s * one.due / ended if ended else float("inf")
        if whole_s > min(one.valid_s, bounds.duration_s_max):
            pace = f"{ended / one.ran_s * 3_600:,.0f} an hour" if ended else "no outcome"
            waits = f"{one.due - ended:,} of {one.due:,} wait after {one.ran_s / 60:,.0f} minutes"
            detail = f"{one.name}: {waits}; {pace} so far"
            found.append(_alert(AlertKind.SLOW, one.id, detail))
    return found


def _alert(kind: AlertKind, delivery_id: int, detail: str) -> Alert:
    return Alert(f"{kind.value} {delivery_id}", kind, delivery_id, detail)


async def check_alerts(conn: Conn, bounds: AlertBounds | None = None) -> list[Alert]:
    """Raises what is to be raised; those that nobody had raised before. Any number of nodes may look at once."""
    judged = [Judged(**row) for row in await conn.fetch(_JUDGED)]
    found = [alert for one in judged for alert in alerts_for(one, bounds or AlertBounds())]
    if not found:
        return []
    columns = [[getattr(alert, name) for alert in found] for name in ("key", "kind", "delivery_id", "detail")]
    return [msgspec.convert(dict(row), Alert) for row in await conn.fetch(_RAISE, *columns)]


async def alerts(conn: Conn, *, limit: int = 100, kind: AlertKind | None = None) -> list[Alert]:
    """Those that were raised (all, or of a kind), the latest first."""
    return [msgspec.convert(dict(row), Alert) for row in await conn.fetch(_ALERTS, limit, kind)]
