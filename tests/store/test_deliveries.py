"""Deliveries: the table of states, starting with a schedule, sealing against open appends."""

from __future__ import annotations

import asyncio
import datetime
import itertools

import asyncpg
import pytest

from mta.model.errors import BadInput
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.part import Part
from mta.queue.states import TRANSITIONS, Action, DeliveryState, next_state
from tests.support.content import content_json, new_delivery
from tests.support.postgres import Database

DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(("state", "action"), list(itertools.product(DeliveryState, Action)))
def test_each_state_allows_an_action_or_says_what_it_allows(state: DeliveryState, action: Action) -> None:
    if (state, action) in TRANSITIONS:
        assert next_state(7, state, action) is TRANSITIONS[state, action]
    else:
        with pytest.raises(
            BadInput, match=f"delivery 7: is {state}, so it cannot {action}; (possible now: |nothing can)"
        ):
            next_state(7, state, action)


def test_nothing_leaves_a_final_state() -> None:
    for (before, _), after in TRANSITIONS.items():
        if before in (DeliveryState.CANCELLED, DeliveryState.FINISHED):
            assert after is before


async def test_a_delivery_is_started_paused_resumed_cancelled(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, priority=0, weight=7, egress_pool="bulk", validity=2 * DAY, retry='"classic"')
    fresh = await deliveries.show(conn, made)
    assert (fresh.state, fresh.started_at, fresh.weight) == ("editing", None, 7)
    assert await deliveries.start(conn, made) == "running"
    running = await deliveries.show(conn, made)
    assert running.valid_until == running.started_at + 2 * DAY
    assert await deliveries.start(conn, made) == "running"
    assert (await deliveries.show(conn, made)).started_at == running.started_at
    assert await deliveries.pause(conn, made) == "paused"
    assert await deliveries.resume(conn, made) == "running"
    assert await deliveries.cancel(conn, made) == "cancelled"
    with pytest.raises(BadInput, match="is cancelled, so it cannot resume"):
        await deliveries.resume(conn, made)


async def test_a_scheduled_delivery_is_valid_from_its_start(conn: asyncpg.Connection) -> None:
    later = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + DAY
    made = await new_delivery(conn, starts_at=later)
    await deliveries.start(conn, made)
    shown = await deliveries.show(conn, made)
    assert (shown.started_at, shown.valid_until) == (later, later + 5 * DAY)


async def test_cancelled_before_its_start_it_has_an_end_all_the_same(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await deliveries.cancel(conn, made)
    assert (await deliveries.show(conn, made)).valid_until is not None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"egress_pool": ""}, "egress_pool"),
        ({"priority": 5}, "priority"),
        ({"weight": 0}, "weight"),
        ({"part_recipients": 10_001}, "part_recipients"),
        ({"validity": datetime.timedelta(0)}, "validity"),
        ({"starts_at": datetime.datetime(2030, 1, 1)}, "starts_at"),
        ({"retry": '"never"'}, "retry"),
        ({"content": b"{}"}, "content"),
        ({"content": content_json(subject="a\r\nBcc: x@example.com")}, "content.subject"),
    ],
)
async def test_a_bad_delivery_is_refused_by_field(conn: asyncpg.Connection, fields: dict, where: str) -> None:
    with pytest.raises(BadInput) as refused:
        await new_delivery(conn, **fields)
    assert refused.value.where == where
    assert await deliveries.list_deliveries(conn) == []


async def test_what_does_not_exist_is_said(conn: asyncpg.Connection) -> None:
    for ask in (deliveries.show, deliveries.start, deliveries.seal, deliveries.content):
        with pytest.raises(BadInput, match="delivery 99: does not exist"):
            await ask(conn, 99)


async def test_the_list_shows_the_newest_first_and_filters(conn: asyncpg.Connection) -> None:
    first, second = await new_delivery(conn), await new_delivery(conn)
    await deliveries.start(conn, first)
    assert [one.id for one in await deliveries.list_deliveries(conn)] == [second, first]
    running = await deliveries.list_deliveries(conn, state=DeliveryState.RUNNING)
    assert [one.id for one in running] == [first]


async def test_every_change_is_announced(database: Database, conn: asyncpg.Connection) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    async with database.pool.acquire() as listener:
        hear = lambda *news: heard.put_nowait(news[3])  # noqa: E731
        await listener.add_listener(deliveries.CHANNEL, hear)
        made = await new_delivery(conn)
        await append_parts(conn, made, [Part("a", (), [("ann@example.com", None, [])])])
        for change in (deliveries.start, deliveries.pause, deliveries.seal, deliveries.cancel):
            await change(conn, made)
        news = [await asyncio.wait_for(heard.get(), 5) for _ in range(6)]
        assert news == [f"{word} {made}" for word in ("delivery", "append", *["delivery"] * 4)]
        await listener.remove_listener(deliveries.CHANNEL, hear)


async def test_a_seal_waits_for_open_appends_and_a_pause_does_not(database: Database, conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await deliveries.start(conn, made)
    async with database.pool.acquire() as application:
        transaction = application.transaction()
        await transaction.start()
        await append_parts(application, made, [Part("a", (), [("ann@example.com", None, [])])])
        # An append that is open holds up no change of state.
        assert await asyncio.wait_for(deliveries.pause(conn, made), 5) == "paused"
        assert await asyncio.wait_for(deliveries.resume(conn, made), 5) == "running"
        with pytest.raises(BadInput, match=r"was still open after 0\.05 s"):
            await deliveries.seal(conn, made, timeout_ms=50)
        sealing = asyncio.create_task(deliveries.seal(conn, made))
        await transaction.commit()
        await asyncio.wait_for(sealing, 5)
    shown = await deliveries.show(conn, made)
    assert (shown.sealed, shown.appended) == (True, 1)
    with pytest.raises(BadInput, match="is sealed: nothing can be appended"):
        await append_parts(conn, made, [Part("b", (), [("bob@example.com", None, [])])])
