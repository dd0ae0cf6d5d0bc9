"""What people are told of the queue."""

from __future__ import annotations

import asyncpg

from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.overview import LARGE_RECIPIENTS, large_beside
from mta.queue.part import Part
from tests.support.content import new_delivery


async def _with_recipients(conn: asyncpg.Connection, name: str, recipients: int) -> int:
    delivery_id = await new_delivery(conn, name=name)
    for at in range(0, recipients, 10_000):
        rows = [(f"u{n}@d.test", None, list[str]()) for n in range(at, min(at + 10_000, recipients))]
        await append_parts(conn, delivery_id, [Part(f"part:{at}", (), rows)])
    await deliveries.start(conn, delivery_id)
    return delivery_id


async def test_large_deliveries_that_run_together_are_named_and_small_ones_are_not(conn: asyncpg.Connection) -> None:
    small = await _with_recipients(conn, "small", 10)
    first = await _with_recipients(conn, "first", LARGE_RECIPIENTS)
    assert await large_beside(conn, first) == []
    second = await _with_recipients(conn, "second", LARGE_RECIPIENTS)
    assert [(found.id, found.waiting) for found in await large_beside(conn, second)] == [(first, LARGE_RECIPIENTS)]
    assert await large_beside(conn, small) == []
    await deliveries.pause(conn, first)
    assert await large_beside(conn, second) == []
