"""What the log and the queue say, for tests that hold them against the sink's record."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from mta.model.outcome import Status
from tests.support.node import WAIT_S, World


async def log_of(world: World, delivery_id: int) -> list[asyncpg.Record]:
    """Every line of a delivery in the log, by address and attempt."""
    async with world.database.pool.acquire() as conn:
        return await conn.fetch(
            "SELECT * FROM mta.delivery_log WHERE delivery_id = $1 ORDER BY address, attempt, at", delivery_id
        )


async def statuses(world: World, delivery_id: int) -> Counter[Status]:
    """How many lines of each status a delivery has in the log."""
    return Counter(Status(row["status"]) for row in await log_of(world, delivery_id))


async def story(world: World, delivery_id: int) -> dict[str, list[tuple[int, Status]]]:
    """For each address its attempts in order: (number of the attempt, status)."""
    told: dict[str, list[tuple[int, Status]]] = {}
    for row in await log_of(world, delivery_id):
        told.setdefault(row["address"], []).append((row["attempt"], Status(row["status"])))
    return told


async def value(world: World, query: str, *arguments: object) -> Any:
    """One value from the database."""
    async with world.database.pool.acquire() as conn:
        return await conn.fetchval(query, *arguments)


async def until_value(world: World, query: str, wanted: object, *arguments: object) -> None:
    """Waits until the query gives that value."""
    end = time.monotonic() + WAIT_S
    while (found := await value(world, query, *arguments)) != wanted:
        assert time.monotonic() < end, f"{query} gives {found}, not {wanted}"
        await asyncio.sleep(0.05)


async def leased(world: World) -> int:
    """Recipients that nodes have in hand: of leased parts, less those that are settled."""
    in_hand: int = await value(
        world,
        """
        SELECT coalesce(sum(p.count - coalesce(s.settled, 0)), 0)::bigint FROM mta.delivery_part p
        LEFT JOIN (SELECT part_id, sum(cardinality(positions)) AS settled FROM mta.part_settled GROUP BY 1) s
               ON s.part_id = p.id
        WHERE p.owner IS NOT NULL
        """,
    )
    return in_hand


def accepted_for(world: World, marker: str) -> int:
    """Messages that the sink took for addresses with ``marker`` in them."""
    return sum(marker in message.recipients[0] for message in world.record().accepted)


async def queue_says(what: str, ask: Callable[[], Awaitable[object]], wait_s: float = WAIT_S) -> None:
    """Waits until ``await ask()`` is true; fails with ``what`` after ``wait_s``."""
    end = time.monotonic() + wait_s
    while not await ask():
        assert time.monotonic() < end, f"not within {wait_s:.0f} s: {what}"
        await asyncio.sleep(0.02)


async def all_back_in_the_queue(world: World) -> None:
    """Waits until no node has a part: what was under way is on record then."""

    async def nothing_is_leased() -> bool:
        return not await value(world, "SELECT count(*) FROM mta.delivery_part WHERE owner IS NOT NULL")

    await queue_says("nothing is leased", nothing_is_leased)
