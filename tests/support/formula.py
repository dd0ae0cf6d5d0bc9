"""The acceptance formula: what was appended, held against the sink's record and the system's own books.

A: recipients of answered appends. D: envelope recipients that the sink stored. F: final failures on record.
Q: still queued. H: in doubt and held. Then A ⊆ D ∪ F ∪ Q ∪ H (nothing lost), D ⊆ A (nothing invented), whoever is
twice in D is in the system's own list of doubts, and what is recorded as delivered is in D.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from mta.model.outcome import Status
from mta.queue import audit
from tests.support.node import World

_OPEN = """
SELECT p.held, p.recipients,
       coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x WHERE s.part_id = p.id),
                '{}')::int4[] AS settled
FROM mta.delivery_part p WHERE p.delivery_id = $1
"""
_LOGGED = "SELECT address, status FROM mta.delivery_log WHERE delivery_id = $1"


@dataclass(frozen=True)
class Account:
    """One delivery, as the sink and as the database see it."""

    stored: Counter[str]
    delivered: set[str]
    failed: set[str]
    queued: set[str]
    held: set[str]
    doubts: Counter[str]  # address -> how often it was in doubt

    @property
    def twice(self) -> set[str]:
        return {address for address, copies in self.stored.items() if copies > 1}


async def account(world: World, delivery_id: int) -> Account:
    """Both records as they are now; for a moment at which nothing is sent."""
    async with world.database.pool.acquire() as conn:
        logged = await conn.fetch(_LOGGED, delivery_id)
        parts = await conn.fetch(_OPEN, delivery_id)
        doubts = await audit.in_doubt(conn, delivery_id, limit=1_000_000)
    waiting: dict[bool, set[str]] = {False: set(), True: set()}
    for part in parts:
        rows = json.loads(part["recipients"])
        settled = set(part["settled"])
        waiting[part["held"]].update(row[0] for position, row in enumerate(rows) if position not in settled)
    return Account(
        stored=world.record().recipients(),
        delivered={row["address"] for row in logged if row["status"] == Status.DELIVERED},
        failed={row["address"] for row in logged if row["status"] in (Status.FAILED, Status.EXPIRED, Status.CANCELLED)},
        queued=waiting[False],
        held=waiting[True],
        doubts=Counter(doubt.address for doubt in doubts),
    )


async def hold_formula(world: World, delivery_id: int, appended: Collection[str]) -> Account:
    """Fails with the recipients that break it; answers the account for what a test asks beyond."""
    seen = await account(world, delivery_id)
    stored = seen.stored.keys()
    assert not set(appended) - stored - seen.failed - seen.queued - seen.held, "lost"
    assert not stored - set(appended), "invented"
    # Each copy beyond the first has a doubt of its own.
    unnamed = {address for address in seen.twice if seen.stored[address] - 1 > seen.doubts[address]}
    assert not unnamed, f"{len(unnamed)} repeated and not in doubt: {sorted(unnamed)[:5]}"
    assert not seen.delivered - stored, "recorded as delivered, and not at the sink"
    audited = await world.audit(delivery_id)
    assert audited.is_clean, audited
    return seen
