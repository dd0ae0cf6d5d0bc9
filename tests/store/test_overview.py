"""What people are told of the queue."""

from __future__ import annotations

import datetime

import asyncpg

from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.overview import LARGE_RECIPIENTS, TOGETHER, large_beside
from mta.queue.part import Part
from tests.support.content import new_delivery

MINUTE = datetime.timedelta(minutes=1)


async def _with_recipients(conn: asyncpg.Connection, name: str, recipients: int, **fields: object) -> int:
    delivery_id = await new_delivery(conn, name=name, **fields)
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


async def _beside(conn: asyncpg.Connection, delivery_id: int) -> list[tuple[str, int]]:
    return [(found.name, found.waiting) for found in await large_beside(conn, delivery_id)]


async def test_large_ones_that_are_scheduled_together_are_named_and_those_apart_are_not(
    conn: asyncpg.Connection,
) -> None:
    noon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    first = await _with_recipients(conn, "noon", LARGE_RECIPIENTS, starts_at=noon)
    assert await _beside(conn, first) == []
    evening = await _with_recipients(conn, "evening", LARGE_RECIPIENTS, starts_at=noon + TOGETHER + MINUTE)
    assert await _beside(conn, evening) == []
    soon_after = await _with_recipients(conn, "soon after", LARGE_RECIPIENTS, starts_at=noon + 10 * MINUTE)
    assert await _beside(conn, soon_after) == [("noon", LARGE_RECIPIENTS), ("evening", LARGE_RECIPIENTS)]
    (found, _) = await large_beside(conn, soon_after)
    assert found.begins_at == noon
    now = await _with_recipients(conn, "now", LARGE_RECIPIENTS)
    assert await _beside(conn, now) == []


async def test_a_wave_counts_by_itself(conn: asyncpg.Connection) -> None:
    noon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    large = await _with_recipients(conn, "large", LARGE_RECIPIENTS, starts_at=noon)
    by_tenths = '{"share": "10%", "every_s": 1800}'
    ramped = await _with_recipients(conn, "ramped", LARGE_RECIPIENTS, starts_at=noon, waves=by_tenths)
    assert await _beside(conn, ramped) == []
    at_noon = '{"calendar": [{"after_s": 0, "share": 10}, {"after_s": 86400, "share": 10}]}'
    start = noon - datetime.timedelta(days=1, seconds=-60)
    second = await _with_recipients(conn, "second wave", LARGE_RECIPIENTS + 10, starts_at=start, waves=at_noon)
    assert await _beside(conn, second) == [("large", LARGE_RECIPIENTS)]
    assert await _beside(conn, large) == [("second wave", LARGE_RECIPIENTS)]
