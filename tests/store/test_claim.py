"""Claims: what is taken, by whom, in which order, and at what price; when a delivery is over."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import asyncpg
import pytest

from mta.queue import claim, deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.nodes import NodeRun
from mta.queue.part import Part
from tests.support.content import new_delivery
from tests.support.postgres import Database

LEASE_S = 15.0
MANY = 50_000
FILL = """
INSERT INTO mta.delivery_part (delivery_id, due_at, append_id, fields, count, recipients)
SELECT $1, now() + n * $3::interval, n, '{}', 1, '[["ann@example.com",null,[]]]' FROM generate_series(1, $2::int) n
"""


async def running(conn: asyncpg.Connection, parts: int = 0, **fields: object) -> int:
    """A running delivery with parts of one recipient each."""
    made = await new_delivery(conn, **fields)
    if parts:
        appended = [Part(f"part:{at}", (), [(f"u{at}@example.com", None, [])]) for at in range(parts)]
        await append_parts(conn, made, appended)
    await deliveries.start(conn, made)
    return made


async def a_node(conn: asyncpg.Connection, name: str = "one") -> NodeRun:
    return await nodes.register(conn, name, "boot", LEASE_S)


async def set_due(conn: asyncpg.Connection, delivery_id: int, due: dict[int, str]) -> None:
    """``due_at`` of parts by their place in the order of appending, as an interval from now."""
    ids = [
        row["id"] for row in await conn.fetch("SELECT id FROM mta.delivery_part WHERE delivery_id = $1", delivery_id)
    ]
    for place, interval in due.items():
        query = "UPDATE mta.delivery_part SET due_at = now() + $2::text::interval WHERE id = $1"
        await conn.execute(query, sorted(ids)[place], interval)


def places(parts: list[claim.ClaimedPart]) -> list[int]:
    """Which of the parts of `running` these are."""
    return [int(json.loads(part.recipients)[0][0].split("@")[0][1:]) for part in parts]


async def test_a_claim_takes_what_is_due_earliest_first_and_leaves_what_is_held_leased_or_not_due(
    conn: asyncpg.Connection,
) -> None:
    made = await running(conn, parts=6)
    await running(conn, parts=3)  # somebody else's
    node, other = await a_node(conn), await a_node(conn, "two")
    await set_due(conn, made, {0: "-1 minute", 1: "-3 minutes", 2: "1 hour", 3: "-2 minutes", 4: "-4 minutes"})
    await conn.execute(
        "UPDATE mta.delivery_part SET held = true WHERE recipients LIKE '%u4@%' AND delivery_id = $1", made
    )
    assert places(await claim.claim(conn, other.id, made, 1)) == [1]
    taken = await claim.claim(conn, node.id, made, 10)
    assert sorted(places(taken)) == [0, 3, 5]
    assert await claim.claim(conn, node.id, made, 10) == []
    assert sorted(places(await claim.claim(conn, node.id, made, 10, also_not_due=True))) == [2]
    owned = await conn.fetch(
        "SELECT owner, count(*) AS n FROM mta.delivery_part WHERE delivery_id = $1 GROUP BY 1", made
    )
    assert {row["owner"]: row["n"] for row in owned} == {None: 1, node.id: 4, other.id: 1}


async def test_nodes_that_claim_at_the_same_time_never_get_the_same_part(database: Database) -> None:
    async with database.pool.acquire() as conn:
        made = await running(conn, parts=200)
        runs = [await a_node(conn, name) for name in ("one", "two", "three", "four")]

    async def take_all(run: NodeRun) -> list[int]:
        taken: list[int] = []
        async with database.pool.acquire() as conn:
            while parts := await claim.claim(conn, run.id, made, 7):
                taken += places(parts)
        return taken

    shares = await asyncio.gather(*(take_all(run) for run in runs))
    assert sorted(place for share in shares for place in share) == list(range(200))


async def test_a_run_that_has_ended_claims_nothing(conn: asyncpg.Connection) -> None:
    made = await running(conn, parts=2)
    node = await a_node(conn)
    await nodes.end(conn, node.id)
    assert await claim.claim(conn, node.id, made, 10) == []


async def test_a_part_that_was_given_back_comes_with_what_is_settled_of_it(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await append_parts(conn, made, [Part("one", (), [(f"u{n}@example.com", None, []) for n in range(5)])])
    await deliveries.start(conn, made)
    first, second = await a_node(conn), await a_node(conn, "two")
    (part,) = await claim.claim(conn, first.id, made, 1)
    assert part.settled == []
    await conn.execute("INSERT INTO mta.part_settled VALUES ($1, '{0,3}'), ($1, '{4}')", part.id)
    assert [one.id for one in await claim.owned_parts(conn, first.id, 0, 10)] == [part.id]
    await claim.release(conn, first.id, [part.id])
    (again,) = await claim.claim(conn, second.id, made, 1)
    assert (again.id, sorted(again.settled)) == (part.id, [0, 3, 4])
    assert again.number(2) == part.number(2) == part.append_id << 16 | 2  # type: ignore[operator]


async def test_daemons_see_what_runs_or_was_cancelled_and_nothing_ahead_of_its_time(conn: asyncpg.Connection) -> None:
    now = datetime.datetime.now(datetime.UTC)
    due = await running(conn, parts=1)
    later = await running(conn, parts=1)
    await set_due(conn, later, {0: "1 hour"})
    empty = await running(conn)
    paused = await running(conn, parts=1)
    await deliveries.pause(conn, paused)
    cancelled = await running(conn, parts=1)
    await deliveries.cancel(conn, cancelled)
    await running(conn, parts=1, starts_at=now + datetime.timedelta(hours=1))
    await new_delivery(conn)
    views = {view.id: view for view in await claim.active_deliveries(conn)}
    assert set(views) == {due, later, empty, cancelled}
    assert views[due].due_in_s is not None
    assert views[due].due_in_s <= 0
    assert 3590 < (views[later].due_in_s or 0) <= 3600
    assert views[empty].due_in_s is None
    assert (views[cancelled].state, views[cancelled].due_in_s is not None) == ("cancelled", True)


async def test_a_delivery_ends_when_it_is_sealed_and_empty_and_at_its_limit_when_that_is_over(
    conn: asyncpg.Connection,
) -> None:
    open_end, sealed, busy, over, cancelled = [await running(conn) for _ in range(5)]
    await append_parts(conn, busy, [Part("one", (), [("ann@example.com", None, [])])])
    for one in (sealed, busy):
        await deliveries.seal(conn, one)
    await deliveries.cancel(conn, cancelled)
    await conn.execute("UPDATE mta.delivery SET valid_until = now() - interval '1 hour' WHERE id = $1", over)
    assert sorted(await claim.finish_ended_deliveries(conn)) == [sealed, over, cancelled]
    assert await claim.finish_ended_deliveries(conn) == []
    shown = {one.id: one for one in await deliveries.list_deliveries(conn)}
    states = {one: str(shown[one].state) for one in shown}
    assert states == {
        open_end: "running",
        sealed: "finished",
        busy: "running",
        over: "finished",
        cancelled: "cancelled",
    }
    assert shown[over].ended_at == shown[over].valid_until
    assert shown[cancelled].ended_at is not None


async def test_a_delivery_does_not_end_under_a_transaction_that_appends_to_it(database: Database) -> None:
    async with database.pool.acquire() as appender, database.pool.acquire() as conn:
        made = await running(conn)
        # Past its validity nothing but the open transaction holds it.
        await conn.execute("UPDATE mta.delivery SET valid_until = now() WHERE id = $1", made)
        async with appender.transaction():
            await append_parts(appender, made, [Part("late", (), [("ann@example.com", None, [])])])
            assert await claim.finish_ended_deliveries(conn) == []
        assert await claim.finish_ended_deliveries(conn) == []
        await conn.execute("DELETE FROM mta.delivery_part")
        assert await claim.finish_ended_deliveries(conn) == [made]


async def plan(conn: asyncpg.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    """Every node of the plan, as executed; what it did is taken back."""
    change = conn.transaction()
    await change.start()
    try:
        explained = json.loads(await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *values))
    finally:
        await change.rollback()
    found, ahead = [], [explained[0]["Plan"]]
    while ahead:
        node = ahead.pop()
        found.append(node)
        ahead += node.get("Plans", [])
    return found


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_a_claim_costs_the_same_however_many_parts_wait_due_or_not(
    conn: asyncpg.Connection, mode: str, is_analyzed: bool
) -> None:
    node = await a_node(conn)
    crowded, deferred = await running(conn), await running(conn)
    await conn.execute(FILL, crowded, MANY, datetime.timedelta(milliseconds=-1))
    await conn.execute(FILL, deferred, MANY, datetime.timedelta(minutes=1))
    await set_due(conn, deferred, {0: "-1 minute"})
    if is_analyzed:  # a table that has just been filled has no statistics yet: the plan must be right then too
        await conn.execute("ANALYZE mta.delivery_part")
    await conn.execute(f"SET plan_cache_mode = {mode}")
    for delivery, also_not_due, wanted in ((crowded, False, 16), (deferred, False, 1), (deferred, True, 16)):
        found = await plan(conn, claim.CLAIM, node.id, delivery, 16, also_not_due)
        scans = [one for one in found if one.get("Relation Name") == "delivery_part"]
        assert {one.get("Index Name") for one in scans} >= {"delivery_part_claim"}
        assert not [one for one in scans if one["Node Type"] == "Seq Scan"]
        touched = max(one["Actual Rows"] * one["Actual Loops"] + one.get("Rows Removed by Filter", 0) for one in scans)
        assert touched == wanted
        # Mostly what it writes: the new versions of the rows, in four indexes.
        assert found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"] < 600
