"""Traffic events in the database: told by several nodes, steered by operators, never missed."""

from __future__ import annotations

import asyncio
import datetime
import math
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.model.errors import BadInput
from mta.queue import events
from mta.queue.events import NewEvent, StoredEvent, Told
from mta.traffic.effects import EffectKind, Target, effect_key
from mta.traffic.limits import LIMIT_KEYS, Limits, tighter
from tests.support.postgres import Database

HOUR = datetime.timedelta(hours=1)


def told(name: str = "google slows", on: str = "google|1", **more: Any) -> Told:
    given_: dict[str, Any] = {
        "id": None,
        "version": 0,
        "key": effect_key(name, Target.RULE, on),
        "name": name,
        "kind": "lower",
        "target": "rule",
        "on_what": on,
        "began_in_s": -2.0,
        "until_in_s": 600.0,
        "node": "one",
        "automation": name,
        "rule": "google",
        "limits": Limits(connections_max=5),
        "base": Limits(connections_max=10),
        "pool": "",
        "step": 0,
        "replies": 1,
        "detail": "421 4.7.28 slow down",
        "is_over": False,
    }
    return Told(**{**given_, **more})


def suspension(on: str, *, target: Target = Target.DOMAIN, **more: Any) -> NewEvent:
    return NewEvent(name="by hand", kind=EffectKind.SUSPEND, target=target, on_what=on, **{"lasts": HOUR, **more})


async def again(conn: asyncpg.Connection, event: StoredEvent) -> StoredEvent:
    return next(one for one in await events.history(conn) if one.id == event.id)


async def test_two_nodes_that_tell_of_one_thing_make_one_event(database: Database) -> None:
    async with database.pool.acquire() as one, database.pool.acquire() as two:
        first, second = await asyncio.gather(
            events.tell(one, [told(limits=Limits(connections_max=5, ramp_up_s=1), replies=3)]),
            events.tell(two, [told(limits=Limits(connections_max=4, ramp_up_s=9), until_in_s=900, node="two")]),
        )
        assert first[0].id == second[0].id
        (merged,) = (await events.look(one, None)).events
        assert merged.limits == Limits(connections_max=4, ramp_up_s=9)
        assert (merged.replies, merged.version) == (4, 2)
        assert merged.until_in_s == pytest.approx(900, abs=5)
        assert merged.began_in_s == pytest.approx(-2, abs=5)


async def test_who_knows_the_row_as_it_is_may_ease_it_and_who_does_not_may_not(conn: asyncpg.Connection) -> None:
    (row,) = await events.tell(conn, [told()])
    eased = Limits(connections_max=6)
    of_row: dict[str, Any] = {"id": row.id, "version": row.version}
    (row,) = await events.tell(conn, [told(**of_row, limits=eased, step=1, until_in_s=60, replies=0)])
    assert (row.limits, row.step, row.replies, row.version) == (eased, 1, 1, 2)
    assert row.until_in_s == pytest.approx(60, abs=5)
    (row,) = await events.tell(conn, [told(**of_row, limits=Limits(connections_max=3), until_in_s=30)])
    assert (row.limits, row.step, row.replies) == (Limits(connections_max=3), 0, 2)
    assert row.until_in_s == pytest.approx(60, abs=5)


async def test_what_an_operator_has_ended_does_not_come_back(conn: asyncpg.Connection) -> None:
    (row,) = await events.tell(conn, [told()])
    await events.cancel(conn, row.id, "ann")
    assert await events.tell(conn, [told(id=row.id, version=row.version, until_in_s=9_000)]) == []
    assert await events.in_force(conn) == []
    # A new reason, told of without the old row, is a new event.
    (new,) = await events.tell(conn, [told()])
    assert new.id != row.id


async def test_an_end_is_told_once_and_not_of_what_was_prolonged(conn: asyncpg.Connection) -> None:
    (row,) = await events.tell(conn, [told()])
    await events.change(conn, row.id, "ann", lasts=HOUR)
    assert await events.tell(conn, [told(id=row.id, version=row.version, is_over=True)]) == []
    (row,) = await events.in_force(conn)
    (ended,) = await events.tell(conn, [told(id=row.id, version=row.version, is_over=True, replies=0)])
    assert (ended.ended_why, ended.ended_at is not None) == ("over", True)
    assert await events.tell(conn, [told(id=row.id, version=ended.version, is_over=True)]) == []
    # Over before the database could be told of it: it is history at once.
    (past,) = await events.tell(conn, [told(on="google|2", is_over=True, began_in_s=-900, until_in_s=-5)])
    assert past.ended_why == "over"
    assert [one.id for one in await events.history(conn)] == [row.id, past.id]


async def test_a_look_misses_nothing_however_long_a_transaction_takes(database: Database) -> None:
    async with database.pool.acquire() as slow, database.pool.acquire() as fast:
        start = await events.look(fast, None)
        assert start.events == []
        open_ = slow.transaction()
        await open_.start()
        (early,) = await events.tell(slow, [told(on="google|1")])
        (late,) = await events.tell(fast, [told(on="google|2")])
        seen = await events.look(fast, start.looked_at)
        assert [one.id for one in seen.events] == [late.id]
        await open_.commit()
        seen = await events.look(fast, seen.looked_at)
        assert early.id in [one.id for one in seen.events]
        assert (await events.look(fast, seen.looked_at)).events == []
        await events.cancel(fast, early.id, "ann")
        (ended,) = (await events.look(fast, seen.looked_at)).events
        assert (ended.id, ended.ended_why) == (early.id, "cancelled")
        assert [one.id for one in (await events.look(fast, None)).events] == [late.id]


async def test_every_change_is_announced_by_whatever_hand(database: Database, conn: asyncpg.Connection) -> None:
    async with database.pool.acquire() as listener:
        heard: asyncio.Queue[str] = asyncio.Queue()
        await listener.add_listener(events.CHANNEL, lambda *said: heard.put_nowait(said[2]))
        made = await events.put_in_force(conn, suspension("a.example"), "ann")
        await asyncio.wait_for(heard.get(), 5)
        await conn.execute("UPDATE mta.traffic_event SET until_at = 'infinity' WHERE id = $1", made.id)
        await asyncio.wait_for(heard.get(), 5)
        found = await again(conn, made)
        assert (found.version, found.until_at, found.until_in_s) == (2, None, math.inf)
        await listener.reset()


async def test_an_operators_word_on_the_same_target_replaces_and_says_so(conn: asyncpg.Connection) -> None:
    first = await events.put_in_force(conn, suspension("a.example"), "ann")
    second = await events.put_in_force(conn, suspension("a.example", lasts=None), "bob")
    assert [one.id for one in await events.in_force(conn)] == [second.id]
    replaced = await again(conn, first)
    assert (replaced.ended_why, replaced.touched_by) == ("replaced", "bob")
    ended = await events.resume(conn, Target.DOMAIN, "a.example", "eve")
    assert [one.id for one in ended] == [second.id]
    assert await events.resume(conn, Target.DOMAIN, "a.example", "eve") == []


async def test_what_is_past_its_time_is_in_force_no_more_though_nobody_ended_it(conn: asyncpg.Connection) -> None:
    made = await events.put_in_force(conn, suspension("a.example", lasts=datetime.timedelta(milliseconds=1)), "ann")
    await asyncio.sleep(0.01)
    assert await events.in_force(conn) == []
    assert [one.id for one in await events.history(conn, since=HOUR)] == [made.id]


async def put_off(conn: asyncpg.Connection, site: str | None, due_in: datetime.timedelta) -> int:
    delivery = await conn.fetchval("SELECT id FROM mta.delivery")
    if delivery is None:
        delivery = await conn.fetchval("INSERT INTO mta.delivery (name, content) VALUES ('x', '{}') RETURNING id")
    part: int = await conn.fetchval(
        "INSERT INTO mta.delivery_part (delivery_id, due_at, site, numbers, fields, count, recipients)"
        " VALUES ($1, now() + $2, $3, '{1}', '{}', 1, '[]') RETURNING id",
        delivery,
        due_in,
        site,
    )
    return part


async def test_the_end_of_a_block_brings_forward_what_waits_for_it_and_nothing_else(conn: asyncpg.Connection) -> None:
    made = await events.put_in_force(conn, suspension("a.example"), "ann")
    parts = {site: await put_off(conn, site, HOUR) for site in ("@a.example", "@b.example", "a.example", None)}

    async def due_in_s() -> dict[str | None, float]:
        query = "SELECT extract(epoch FROM due_at - now())::float8 FROM mta.delivery_part WHERE id = $1"
        return {site: round(await conn.fetchval(query, part), -1) for site, part in parts.items()}

    await events.change(conn, made.id, "ann", lasts=datetime.timedelta(minutes=10))
    assert await due_in_s() == {"@a.example": 600, "@b.example": 3600, "a.example": 3600, None: 3600}
    # Another event blocks it for longer: the end of the first frees nothing.
    longer = await events.put_in_force(conn, suspension("a.example", lasts=2 * HOUR), "ann")
    await conn.execute("UPDATE mta.traffic_event SET key = 'other' WHERE id = $1", longer.id)
    await events.put_in_force(conn, suspension("a.example"), "ann")
    (short,) = [one for one in await events.in_force(conn) if one.id != longer.id]
    await events.cancel(conn, short.id, "ann")
    assert (await due_in_s())["@a.example"] == 600
    await events.resume(conn, Target.DOMAIN, "a.example", "ann")
    assert await due_in_s() == {"@a.example": 0, "@b.example": 3600, "a.example": 3600, None: 3600}


async def test_bringing_forward_uses_its_index(conn: asyncpg.Connection) -> None:
    await conn.execute("SET enable_seqscan = off")
    plan = await conn.fetch("EXPLAIN " + events._BRING_FORWARD, ["a.example"])
    assert any("delivery_part_put_off" in row[0] for row in plan), plan
    plan = await conn.fetch("EXPLAIN " + events._LOOK_CHANGED, "1")
    assert any("traffic_event_changed" in row[0] for row in plan), plan
    await conn.execute("RESET enable_seqscan")


@pytest.mark.parametrize(
    ("new", "where"),
    [
        (suspension("a.example", lasts=datetime.timedelta(0)), "for"),
        (suspension("a.example", until_at=datetime.datetime(2999, 1, 1), lasts=None), "until"),
        (suspension(" "), "on"),
        (suspension("a.example", detail="x\n"), "why"),
        (suspension("4711", target=Target.DELIVERY), "delivery 4711"),
        (NewEvent(name="x", kind=EffectKind.LOWER, target=Target.RULE, on_what="google", lasts=HOUR), "limit"),
        (NewEvent(name="x", kind=EffectKind.LOWER, target=Target.SITE, on_what="google", lasts=HOUR), "on"),
    ],
)
async def test_what_cannot_be_is_refused(conn: asyncpg.Connection, new: NewEvent, where: str) -> None:
    with pytest.raises(BadInput) as refused:
        await events.put_in_force(conn, new, "ann")
    assert refused.value.where == where
    assert await events.history(conn) == []


async def test_sql_and_python_agree_on_what_is_tighter(conn: asyncpg.Connection) -> None:
    cases: list[tuple[Limits, Limits]] = []
    figures = st.dictionaries(st.sampled_from(LIMIT_KEYS), st.integers(1, 10**12), max_size=6)

    @given(one=figures, other=figures)
    def collect(one: dict[str, int], other: dict[str, int]) -> None:
        cases.append((Limits(**one), Limits(**other)))

    collect()
    query = "SELECT mta.tighter_limits($1::text::jsonb, $2::text::jsonb)::text"
    for one, other in cases:
        texts = [msgspec.json.encode(events.given_limits(limits)).decode() for limits in (one, other)]
        merged = msgspec.json.decode(await conn.fetchval(query, *texts), type=Limits)
        assert merged == tighter(one, other)
