"""Taking parts: which deliveries have something due, and leasing some of it to a node run.

A claim walks the index (delivery, due, id) of free parts from its start, so it costs the same with ten
thousand parts waiting as with ten million. Which delivery is asked is the caller's fair choice.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from mta.model.limits import PART_INDEX_BITS
from mta.model.outcome import InDoubtPolicy
from mta.queue import duplicates
from mta.queue.connection import Conn


class DeliveryView(msgspec.Struct, frozen=True):
    """What the daemon needs to know of a delivery; ``due_in_s`` is that of its earliest free part, if any."""

    id: int
    state: str
    sealed: bool
    priority: int
    weight: int
    egress_pool: str
    in_doubt_policy: InDoubtPolicy
    retry: str | None
    started_at: datetime | None
    valid_until: datetime
    due_in_s: float | None  # ≤ 0: due now; by the database's clock
    is_simulated: bool
    deadline: datetime | None = None
    keeps_quarantined: bool = False  # a proof: it excludes nobody
    has_waves: bool = False  # then its parts say when their waves are due, not when they were appended
    has_unchecked: bool = False  # parts wait to be looked at for duplicates


class ClaimedPart(msgspec.Struct, frozen=True):
    """A leased part as stored. ``settled`` are positions that were settled under an earlier lease."""

    id: int
    delivery_id: int
    site: str | None
    attempt: int
    appended_at: datetime
    append_id: int | None
    numbers: list[int] | None
    fields: tuple[str, ...]
    count: int
    recipients: bytes
    settled: list[int]
    egress: str | None = None  # from which they were greylisted: they are to come from there again
    dated_at: datetime | None = None  # of their first hand-out, the same for all of them; None: there was none yet

    def number(self, position: int) -> int:
        """The number of the recipient at ``position``."""
        if self.numbers is not None:
            return self.numbers[position]
        assert self.append_id is not None
        return self.append_id << PART_INDEX_BITS | position


_ACTIVE = """
SELECT d.id, d.state, d.sealed, d.priority, d.weight, d.egress_pool, d.in_doubt_policy, d.retry::text,
       d.started_at, d.valid_until, extract(epoch FROM p.due_at - clock_timestamp())::float8 AS due_in_s,
       d.is_simulated, d.deadline, d.keeps_quarantined, d.waves IS NOT NULL AS has_waves,
       EXISTS (SELECT FROM mta.delivery_part WHERE delivery_id = d.id AND due_when_checked IS NOT NULL) AS has_unchecked
FROM mta.delivery d
LEFT JOIN LATERAL (
    SELECT due_at FROM mta.delivery_part
    WHERE delivery_id = d.id AND owner IS NULL AND NOT held ORDER BY due_at, id LIMIT 1
) p ON true
WHERE d.state IN ('running', 'cancelled') AND d.ended_at IS NULL
  AND (d.state = 'cancelled' OR d.starts_at IS NULL OR d.starts_at <= now())
ORDER BY d.id
"""
_ONE = """
SELECT id, state, sealed, priority, weight, egress_pool, in_doubt_policy, retry::text, started_at, valid_until,
       NULL::float8 AS due_in_s, is_simulated, deadline, keeps_quarantined,
       waves IS NOT NULL AS has_waves
FROM mta.delivery WHERE id = $1
"""
_CONTENT = "SELECT content FROM mta.delivery WHERE id = $1"
# `due_at` is compared with one value in either case, so that it bounds the index scan: parts due later cost nothing.
CLAIM = """
WITH alive AS MATERIALIZED (
    SELECT id FROM mta.node n WHERE id = $1 AND ended_at IS NULL AND alive_until > to_timestamp(0)
      AND (SELECT e.id = n.epoch AND e.opened_at IS NOT NULL FROM mta.epoch e ORDER BY e.id DESC LIMIT 1)
    FOR KEY SHARE
),
picked AS MATERIALIZED (
    SELECT id FROM mta.delivery_part
    WHERE delivery_id = $2 AND owner IS NULL AND NOT held AND due_at <= CASE WHEN $4 THEN 'infinity' ELSE now() END
      AND (SELECT count(*) FROM alive) = 1
    ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE mta.delivery_part p SET owner = $1 FROM picked WHERE p.id = picked.id
RETURNING p.id, p.delivery_id, p.site, p.attempt, p.appended_at, p.append_id, p.numbers, p.fields, p.count,
          p.recipients, coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x
                                  WHERE s.part_id = p.id), '{}')::int4[] AS settled, p.egress, p.dated_at
"""
_OWNED = """
SELECT p.id, p.delivery_id, p.site, p.attempt, p.appended_at, p.append_id, p.numbers, p.fields, p.count,
       p.recipients, coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x
                               WHERE s.part_id = p.id), '{}')::int4[] AS settled, p.egress, p.dated_at
FROM mta.delivery_part p WHERE p.owner = $1 AND p.id > $2 ORDER BY p.id LIMIT $3
"""
_RELEASE = "UPDATE mta.delivery_part SET owner = NULL WHERE id = ANY($2::bigint[]) AND owner = $1"
_ENDED = """
SELECT d.id FROM mta.delivery d
WHERE d.state IN ('running', 'cancelled') AND d.ended_at IS NULL
  AND (d.sealed OR d.state = 'cancelled' OR d.valid_until <= now())
  AND (d.starts_at IS NULL OR d.starts_at <= now() OR d.state = 'cancelled')
  AND NOT EXISTS (SELECT 1 FROM mta.delivery_part p WHERE p.delivery_id = d.id AND p.owner IS NULL AND NOT p.held)
  AND NOT EXISTS (SELECT 1 FROM mta.delivery_part p WHERE p.delivery_id = d.id AND p.held)
  AND NOT EXISTS (SELECT 1 FROM mta.delivery_part p WHERE p.delivery_id = d.id AND p.owner IS NOT NULL)
"""
# Three questions instead of one: each has its partial index, and together they are every part.
# The lock of appends, taken before the statement that looks for parts: its snapshot then sees every append that
# was ever answered. Where an append is open the delivery is simply looked at again later.
_NO_APPENDS = "SELECT pg_try_advisory_xact_lock(20180, ($1::bigint & 2147483647)::int)"
_FINISH = """
UPDATE mta.delivery d SET state = CASE WHEN d.state = 'running' THEN 'finished' ELSE d.state END,
       ended_at = CASE WHEN d.state = 'cancelled' THEN now() ELSE least(now(), d.valid_until) END
WHERE d.id = $1 AND d.state IN ('running', 'cancelled') AND d.ended_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM mta.delivery_part p WHERE p.delivery_id = d.id)
RETURNING d.id
"""


async def active_deliveries(conn: Conn) -> list[DeliveryView]:
    """Deliveries that run now or have been cancelled and may still have parts; one index probe each."""
    return [msgspec.convert(dict(row), DeliveryView) for row in await conn.fetch(_ACTIVE)]


async def delivery_view(conn: Conn, delivery_id: int) -> DeliveryView:
    """One delivery, whatever its state; ``due_in_s`` is not looked up."""
    row = await conn.fetchrow(_ONE, delivery_id)
    assert row is not None, f"delivery {delivery_id} has vanished"
    return msgspec.convert(dict(row), DeliveryView)


async def delivery_content(conn: Conn, delivery_id: int) -> bytes:
    """The stored message content, JSON."""
    content = await conn.fetchval(_CONTENT, delivery_id)
    assert isinstance(content, bytes), f"delivery {delivery_id} has vanished"
    return content


async def claim(
    conn: Conn, node_id: int, delivery_id: int, parts_max: int, *, also_not_due: bool = False
) -> list[ClaimedPart]:
    """Leases up to ``parts_max`` free parts of a delivery, earliest first, to a living run.

    ``also_not_due``: those of a delivery that is over (cancelled, expired) need not wait for their time.
    """
    rows = await conn.fetch(CLAIM, node_id, delivery_id, parts_max, also_not_due)
    return [_part(row) for row in rows]


async def owned_parts(conn: Conn, node_id: int, after_id: int, parts_max: int) -> list[ClaimedPart]:
    """A page of the parts that are leased to a run, by id; for recovery."""
    return [_part(row) for row in await conn.fetch(_OWNED, node_id, after_id, parts_max)]


def _part(row: object) -> ClaimedPart:
    values = list(row)  # type: ignore[call-overload]
    values[7] = tuple(values[7])
    return ClaimedPart(*values)


async def owned_part_ids(conn: Conn, node_id: int) -> list[int]:
    """The ids of all parts that are leased to a run."""
    return [row["id"] for row in await conn.fetch("SELECT id FROM mta.delivery_part WHERE owner = $1", node_id)]


async def release(conn: Conn, node_id: int, part_ids: list[int]) -> None:
    """Gives parts back as they are; what is settled of them stays settled."""
    await conn.execute(_RELEASE, node_id, part_ids)


async def finish_ended_deliveries(conn: Conn) -> list[int]:
    """Marks as finished what is sealed (or past its validity) and has no part left; returns their ids."""
    finished = []
    for row in await conn.fetch(_ENDED):
        async with conn.transaction():
            if await conn.fetchval(_NO_APPENDS, row["id"]) and await conn.fetchval(_FINISH, row["id"]):
                await duplicates.forget(conn, row["id"])
                finished.append(row["id"])
    return finished
