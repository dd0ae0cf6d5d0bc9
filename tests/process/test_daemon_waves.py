"""Waves under the daemon: each at its time, the later ones pending; pauses, ends and validity as without them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from mta.model.outcome import Status
from mta.queue import deliveries
from tests.support.node import World, addresses
from tests.support.outcomes import statuses, value
from tests.support.postgres import Database


def equal(share: str | int, every_s: int) -> str:
    return json.dumps({"share": share, "every_s": every_s})


async def test_thirty_percent_of_ten_are_sent_three_three_three_one_at_their_times(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(addresses(10), waves=equal("30%", 1))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 3)
        # What is for later is in the queue, and nobody has it.
        assert await value(world, "SELECT count(owner) FROM mta.delivery_part WHERE due_at > now()") == 0
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.state) == (10, "finished")
        assert shown.started_at is not None
        after_s = sorted(message.unix_s - shown.started_at.timestamp() for message in world.record().accepted)
        for wave, (first, end) in enumerate([(0, 3), (3, 6), (6, 9), (9, 10)]):
            assert all(wave <= sent < wave + 5 for sent in after_s[first:end]), after_s
        assert world.record().recipients() == dict.fromkeys(addresses(10), 1)
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_a_calendar_begins_at_a_scheduled_start(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        starts_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1.5)
        waves = {
            "calendar": [
                {"after_s": 0, "share": 4},
                {"at": str(starts_at + datetime.timedelta(seconds=1)), "share": "1%"},
            ]
        }
        delivery = await world.deliver(addresses(10), waves=json.dumps(waves), starts_at=starts_at)
        await world.wait_for(delivery)
        after_s = sorted(message.unix_s - starts_at.timestamp() for message in world.record().accepted)
        assert [sum(0 <= sent < 0.9 for sent in after_s), sum(1 <= sent < 1.9 for sent in after_s)] == [4, 6], after_s
        assert (await world.audit(delivery)).is_clean


async def test_a_wave_whose_time_passes_in_a_pause_goes_at_the_resume(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(addresses(10), waves=equal(5, 4))
        await world.wait_for(delivery, lambda shown: shown.delivered == 5)
        async with database.pool.acquire() as conn:
            await deliveries.pause(conn, delivery)
            shown = await deliveries.show(conn, delivery)
            assert shown.last_wave_at is not None
            await world.wait_for(delivery, lambda _: datetime.datetime.now(datetime.UTC) > shown.last_wave_at)
            assert (await deliveries.show(conn, delivery)).delivered == 5
            await deliveries.resume(conn, delivery)
        assert (await world.wait_for(delivery)).delivered == 10
        assert (await world.audit(delivery)).is_clean


async def test_waves_to_come_are_cancelled_or_expire_with_their_delivery(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        cancelled = await world.deliver(addresses(10), waves=equal(4, 3600))
        expiring = await world.deliver(addresses(10), waves=equal(4, 3600), validity=datetime.timedelta(seconds=2))
        assert (await world.show(expiring)).has_wave_too_late
        await world.wait_for(cancelled, lambda shown: shown.delivered == 4)
        async with database.pool.acquire() as conn:
            await deliveries.cancel(conn, cancelled)
        await world.wait_for(cancelled, lambda shown: shown.ended_at is not None)
        assert await statuses(world, cancelled) == {Status.DELIVERED: 4, Status.CANCELLED: 6}
        await world.wait_for(expiring)
        assert await statuses(world, expiring) == {Status.DELIVERED: 4, Status.EXPIRED: 6}
        for delivery in (cancelled, expiring):
            assert (await world.audit(delivery)).is_clean
        assert await node.stop() == 0
