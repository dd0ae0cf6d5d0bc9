"""A forecast of what waits in the database, with the traffic events that are in force there; no node runs."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mta.queue import events
from mta.queue.events import NewEvent
from mta.traffic.effects import EffectKind, Target
from mta.traffic.limits import Limits
from tests.process.test_forecast import RATE as BY_SECOND
from tests.process.test_forecast import say
from tests.support.node import Node, World, addresses
from tests.support.postgres import Database

RATE = BY_SECOND.replace("messages_per_second_max = 100", "messages_per_minute_max = 600")
COUNT = 2_400
SENDER = "shop.example"  # of the content that tests send
HOLD = datetime.timedelta(hours=2)


class Asked:
    """A delivery that waits; events that operators make, and the forecast as the command tells it."""

    def __init__(self, world: World, node: Node, delivery: int) -> None:
        self.world = world
        self.node = node
        self.delivery = delivery

    async def suspend(self, target: Target, on: str, name: str = "pause") -> int:
        return await self.put(NewEvent(name=name, kind=EffectKind.SUSPEND, target=target, on_what=on, lasts=HOLD))

    async def put(self, new: NewEvent) -> int:
        async with self.world.database.pool.acquire() as conn:
            return (await events.put_in_force(conn, new, "ann")).id

    async def cancel(self, event_id: int) -> None:
        async with self.world.database.pool.acquire() as conn:
            await events.cancel(conn, event_id, "ann")

    async def forecast(self) -> dict[str, Any]:
        found: dict[str, Any] = await say(self.node, "forecast", str(self.delivery))
        return found


@pytest.fixture
async def asked(tmp_path: Path, database: Database) -> AsyncIterator[Asked]:
    async with World(tmp_path, database) as world:
        node = world.node(rules=RATE)
        yield Asked(world, node, await world.deliver(addresses(COUNT)))


def said(told: dict[str, Any]) -> list[str]:
    return [one for one in told["assumptions"] if one.startswith("traffic events")]


async def test_a_suspension_and_a_lowered_limit_hold_until_they_end_and_are_named(asked: Asked) -> None:
    free = await asked.forecast()
    assert 150 < free["seconds"] < 300
    assert (free["bottlenecks"][0]["event"], said(free)) == ("", [])
    site = free["sites"][0]["site"]

    made = await asked.suspend(Target.SITE, site)
    held = await asked.forecast()
    assert HOLD.total_seconds() - 60 < held["seconds"] - free["seconds"] < HOLD.total_seconds() + 1_000
    assert held["bottlenecks"][0]["event"] == f"pause site {site}"
    assert held["bottlenecks"][0]["origin"] == ""
    assert held["bottlenecks"][0]["gain_s"] > 6_000
    assert said(held) == [f"traffic events in force besides the rules, 1: suspend site {site} (pause)"]
    await asked.cancel(made)
    assert (await asked.forecast())["seconds"] == pytest.approx(free["seconds"], rel=0.01)

    limits = Limits(messages_per_minute_max=300)
    lower = NewEvent(name="calm", kind=EffectKind.LOWER, target=Target.RULE, on_what="steady", limits=limits)
    await asked.put(lower)
    slow = await asked.forecast()
    # So many at once, and then so many a minute.
    ratio = (COUNT / 300 - 1) / (COUNT / 600 - 1)
    assert slow["seconds"] / free["seconds"] == pytest.approx(ratio, rel=0.25)
    first = slow["bottlenecks"][0]
    assert (first["rule"], first["limit"], first["value"]) == ("steady", "messages_per_minute_max", 300)
    assert (first["event"], first["origin"]) == ("calm rule steady", "")


async def test_what_is_over_or_of_another_changes_nothing(asked: Asked, database: Database) -> None:
    free = await asked.forecast()
    site = free["sites"][0]["site"]
    await asked.suspend(Target.SITE, "mx.elsewhere.test")
    await asked.suspend(Target.DOMAIN, "elsewhere.test")
    over = await asked.suspend(Target.SITE, site, name="over")
    # No node was there to say so.
    async with database.pool.acquire() as conn:
        await conn.execute("UPDATE mta.traffic_event SET until_at = now() - interval '1 s' WHERE id = $1", over)
    beside = await asked.forecast()
    assert beside["seconds"] == pytest.approx(free["seconds"], rel=0.01)
    assert beside["bottlenecks"][0]["event"] == ""
    assert said(beside) == ["traffic events in force that concern nothing of this, 2 (mta traffic events)"]


async def test_a_delivery_a_tenant_and_a_domain_that_are_held_back_go_on_when_that_is_over(asked: Asked) -> None:
    free = await asked.forecast()
    for target, on in ((Target.DELIVERY, str(asked.delivery)), (Target.TENANT, SENDER), (Target.DOMAIN, "d3.test")):
        made = await asked.suspend(target, on)
        held = await asked.forecast()
        assert held["recipients"] == COUNT
        least_s = HOLD.total_seconds() - 60 + (0 if target is Target.DOMAIN else free["seconds"])
        assert least_s < held["seconds"] < HOLD.total_seconds() + 60 + free["seconds"], target
        assert held["bottlenecks"][0]["event"] == f"pause {target} {on}"
        await asked.cancel(made)
