"""What waits, what was recorded of each site, and forecasts that are kept: for people who look ahead or back.

Reads only, but for forecasts. Costs with the backlog or with the log since a time; no daemon asks.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from mta.message.keyring import sender_domain_of
from mta.model.address import domain_of
from mta.queue.connection import Conn

PARTS_AT_A_TIME: Final = 200
DUE_STEP_S: Final = 10.0
# A refusal for going too fast: 421, any 4.7.x, or words for it; the code 0 is of a site that could not be reached.
_TOO_FAST = r"too many|too fast|slow down|throttl|rate.?limit|connections|unusual rate|temporarily deferred"
_IS_REFUSAL = f"""(code = 421 OR (code BETWEEN 400 AND 499 AND (enhanced LIKE '4.7.%' OR reply ~* '{_TOO_FAST}'))
    OR (code = 0 AND status = 10 AND reply ~* '421|{_TOO_FAST}'))"""
_PARTS = """
SELECT p.id, p.delivery_id, p.recipients,
       greatest(extract(epoch FROM coalesce(p.due_when_checked, p.due_at) - now()), 0)::float8 AS due_in_s,
       coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x
                 WHERE s.part_id = p.id), '{}')::int4[] AS settled
FROM mta.delivery_part p WHERE p.delivery_id = ANY($1::bigint[]) AND NOT p.held AND p.id > $2 ORDER BY p.id LIMIT $3
"""
_RUNNING = """
SELECT id FROM mta.delivery WHERE state = 'running' AND ended_at IS NULL
  AND (starts_at IS NULL OR starts_at <= now() + interval '1 day') ORDER BY id
"""
# The busiest ten seconds of a site tell its pace, if there was enough to send.
_PACES = f"""
WITH lately AS (
    SELECT site, floor(extract(epoch FROM at) / 10) AS slot, count(*) AS attempts,
           count(*) FILTER (WHERE status = 2) AS failed,
           count(*) FILTER (WHERE status = 10 AND NOT {_IS_REFUSAL}) AS deferred,
           count(DISTINCT egress) AS egresses
    FROM mta.delivery_log WHERE at >= now() - $1::interval AND site <> '' AND status IN (1, 2, 10, 11)
    GROUP BY 1, 2
)
SELECT site, sum(attempts)::bigint AS attempts, sum(failed)::bigint AS failed, sum(deferred)::bigint AS deferred,
       max(attempts)::bigint AS busiest, max(egresses)::int AS egresses
FROM lately GROUP BY 1
"""  # noqa: S608 - a text of this file
# The first line of a recipient since then is the demand; a later one is a retry, which other rules would change.
_ATTEMPTS = f"""
WITH since AS (
    SELECT at, site, mx_host, peer, egress, status, address, delivery_id, number, {_IS_REFUSAL} AS is_refused,
           row_number() OVER (PARTITION BY delivery_id, number ORDER BY at) = 1 AS is_first
    FROM mta.delivery_log WHERE at >= $1 AND site <> '' AND status IN (1, 2, 10, 11)
)
SELECT floor(extract(epoch FROM at))::bigint AS second, site, egress, count(*)::bigint AS attempts,
       count(*) FILTER (WHERE is_first)::bigint AS fresh, count(*) FILTER (WHERE is_refused)::bigint AS refused,
       count(*) FILTER (WHERE status = 2)::bigint AS failed, min(split_part(address, '@', 2)) AS domain
FROM since GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""  # noqa: S608 - a text of this file
_HOSTS = """
SELECT DISTINCT site, mx_host, peer FROM mta.delivery_log
WHERE at >= $1 AND site <> '' AND mx_host <> '' AND peer <> '' ORDER BY 1, 2, 3
"""
_CREDITS = """
SELECT key, bucket, sum(used)::bigint FROM mta.quota_counter
WHERE bucket >= extract(epoch FROM now() - interval '1 day') / 10 GROUP BY 1, 2 ORDER BY 1, 2
"""
_CONTENT = "SELECT content FROM mta.delivery WHERE id = $1"
_RETRIES = "SELECT id, retry::text FROM mta.delivery WHERE id = ANY($1::bigint[])"
_NODES = "SELECT count(*)::int FROM mta.node WHERE ended_at IS NULL AND alive_until > now()"
_KEEP = """
INSERT INTO mta.forecast (delivery_id, made_at, rules, recipients, finish_at, detail)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb) RETURNING id
"""
_COMPARE = """
UPDATE mta.forecast f SET ended_at = d.ended_at,
       error_percent = 100 * extract(epoch FROM f.finish_at - d.ended_at)
                       / greatest(extract(epoch FROM d.ended_at - f.made_at), 0.001)
FROM mta.delivery d
WHERE d.id = f.delivery_id AND d.state = 'finished' AND d.ended_at IS NOT NULL AND f.ended_at IS NULL
"""
_KEPT = """
SELECT id, delivery_id, made_at, rules, recipients, finish_at, ended_at, error_percent
FROM mta.forecast WHERE $1::bigint IS NULL OR delivery_id = $1 ORDER BY made_at DESC, id DESC LIMIT $2
"""
_ACCURACY = """
SELECT count(*)::int, avg(abs(error_percent))::float8 FROM mta.forecast WHERE error_percent IS NOT NULL
"""

_rows: Final = msgspec.json.Decoder(list[tuple[str, msgspec.Raw, msgspec.Raw]])


class Waiting(msgspec.Struct, frozen=True):
    """Recipients of one delivery at one domain that are due in about so many seconds."""

    delivery_id: int
    domain: str
    due_in_s: float
    recipients: int


class SitePace(msgspec.Struct, frozen=True):
    """What the log says of a site: attempts by outcome, and how many there were in the busiest ten seconds."""

    site: str
    attempts: int
    failed: int
    deferred: int
    busiest: int
    egresses: int


class Attempts(msgspec.Struct, frozen=True):
    """Attempts at a site through an egress in one second. ``fresh``: of recipients that were not attempted before."""

    second: int  # Unix time
    site: str
    egress: str
    attempts: int
    fresh: int
    refused: int
    failed: int
    domain: str


class KeptForecast(msgspec.Struct, frozen=True):
    """``error_percent``: of the time it really took, + when the forecast was too late; None: it goes on yet."""

    id: int
    delivery_id: int
    made_at: datetime.datetime
    rules: str
    recipients: int
    finish_at: datetime.datetime
    ended_at: datetime.datetime | None
    error_percent: float | None


async def running_deliveries(conn: Conn) -> list[int]:
    """Those that compete for limits, or will within a day."""
    return [row[0] for row in await conn.fetch(_RUNNING)]


async def backlog(conn: Conn, deliveries: Collection[int]) -> list[Waiting]:
    """What of these waits or is under way, by domain and by when it is due. O(recipients), some 1 µs each."""
    found: Counter[tuple[int, str, float]] = Counter()
    after = 0
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        while parts := await conn.fetch(_PARTS, list(deliveries), after, PARTS_AT_A_TIME):
            for part in parts:
                settled = set(part["settled"])
                due_in_s = _stepped(part["due_in_s"])
                delivery_id = part["delivery_id"]
                for position, (address, _, _) in enumerate(_rows.decode(part["recipients"])):
                    if position not in settled:
                        found[delivery_id, domain_of(address), due_in_s] += 1
            after = parts[-1]["id"]
    return [Waiting(*key, recipients) for key, recipients in sorted(found.items())]


def _stepped(due_in_s: float) -> float:
    """Coarser for what is later: steps of ten seconds, or of a twentieth of the time."""
    if due_in_s <= 0.0:
        return 0.0
    step_s = max(DUE_STEP_S, DUE_STEP_S * round(due_in_s / 20 / DUE_STEP_S))
    return step_s * (int(due_in_s / step_s) + 1)


async def paces(conn: Conn, lookback: datetime.timedelta) -> dict[str, SitePace]:
    """By site, of the log since then."""
    return {row["site"]: SitePace(*row.values()) for row in await conn.fetch(_PACES, lookback)}


async def attempts_since(conn: Conn, since: datetime.datetime) -> list[Attempts]:
    """The record by seconds, in order."""
    return [Attempts(*row.values()) for row in await conn.fetch(_ATTEMPTS, since)]


async def hosts_since(conn: Conn, since: datetime.datetime) -> dict[str, dict[str, list[str]]]:
    """By site: the hosts that were tried, each with its addresses."""
    found: dict[str, dict[str, list[str]]] = {}
    for site, mx_host, peer in await conn.fetch(_HOSTS, since):
        found.setdefault(site, {}).setdefault(mx_host, []).append(peer)
    return found


async def credits_used(conn: Conn) -> list[tuple[str, int, int]]:
    """Of all nodes together, of the last day: (limit key, bucket of 10 s, used)."""
    return [(row[0], row[1], row[2]) for row in await conn.fetch(_CREDITS)]


async def retries(conn: Conn, deliveries: Collection[int]) -> dict[int, str | None]:
    """Of each delivery its retry schedule as JSON, see `mta.traffic.retry`."""
    return {row[0]: row[1] for row in await conn.fetch(_RETRIES, list(deliveries))}


async def sender_domains(conn: Conn, deliveries: Collection[int]) -> dict[int, str]:
    """Of each delivery the domain that it is sent for, as traffic events on a tenant name it; empty: it has none."""
    found = {}
    for delivery_id in deliveries:
        content = await conn.fetchval(_CONTENT, delivery_id)  # one at a time: with attachments they may be large
        found[delivery_id] = sender_domain_of(content) or ""
    return found


async def living_nodes(conn: Conn) -> int:
    living: int = await conn.fetchval(_NODES)
    return living


async def keep_forecast(
    conn: Conn,
    delivery_id: int,
    made_at: datetime.datetime,
    rules: str,
    recipients: int,
    finish_at: datetime.datetime,
    detail: bytes,
) -> int:
    """Stores a forecast; answers its id."""
    kept: int = await conn.fetchval(_KEEP, delivery_id, made_at, rules, recipients, finish_at, detail.decode())
    return kept


async def compare_forecasts(conn: Conn) -> None:
    """Writes down what happened, for forecasts of deliveries that have ended since."""
    await conn.execute(_COMPARE)


async def kept_forecasts(conn: Conn, delivery_id: int | None = None, *, limit: int = 100) -> Sequence[KeptForecast]:
    """The newest first; of one delivery, or of all."""
    return [KeptForecast(*row.values()) for row in await conn.fetch(_KEPT, delivery_id, limit)]


async def accuracy(conn: Conn) -> tuple[int, float | None]:
    """(forecasts whose end is known, their mean error in percent without its sign)."""
    row = await conn.fetchrow(_ACCURACY)
    assert row is not None
    return row[0], row[1]
