"""A delivery's life under the daemon: paused, resumed, cancelled, scheduled, at the end of its validity."""

from __future__ import annotations

import datetime
from pathlib import Path

from mta.model.outcome import Status
from mta.queue import deliveries
from tests.support.node import TWO_CONNECTIONS, World, addresses
from tests.support.outcomes import accepted_for, all_back_in_the_queue, log_of, statuses, story, value
from tests.support.postgres import Database

# Every final dot takes 20 ms on two connections: a hundred messages a second at most.
SLOW_SCRIPT = """
[[rule]]
step = "dot"
local_part = "slow*"
delay_ms = 20
"""


def slow(count: int) -> list[str]:
    return [f"slow{address}" for address in addresses(count)]


async def test_a_pause_begins_nothing_more_and_resume_sends_exactly_the_rest(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        delivery = await world.deliver(slow(140))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 20)
        async with database.pool.acquire() as conn:
            await deliveries.pause(conn, delivery)
        await all_back_in_the_queue(world)
        paused_at = accepted_for(world, "slow")
        assert 20 <= paused_at < 130
        assert (await world.show(delivery)).delivered == paused_at
        # While it is paused others are sent, and nothing of it.
        await world.wait_for(await world.deliver(addresses(50)))
        assert accepted_for(world, "slow") == paused_at
        async with database.pool.acquire() as conn:
            await deliveries.resume(conn, delivery)
        assert (await world.wait_for(delivery)).delivered == 140
        assert world.record().recipients() == dict.fromkeys(slow(140) + addresses(50), 1)
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_a_cancelled_delivery_begins_nothing_more_and_accounts_for_the_rest(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        delivery = await world.deliver(slow(140))
        # Never started, or not due yet: they too have an account to close.
        never_started = await world.deliver(addresses(5), start=False)
        scheduled = await world.deliver(addresses(5), starts_at=in_seconds(3600))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 20)
        async with database.pool.acquire() as conn:
            for one in (delivery, never_started, scheduled):
                await deliveries.cancel(conn, one)
        shown = await world.wait_for(delivery, lambda shown: shown.ended_at is not None)
        assert shown.state == "cancelled"
        assert shown.delivered + shown.cancelled == 140
        assert shown.delivered == accepted_for(world, "slow") < 130
        assert await statuses(world, delivery) == {
            Status.DELIVERED: shown.delivered,
            Status.CANCELLED: shown.cancelled,
        }
        for one in (never_started, scheduled):
            ended = await world.wait_for(one, lambda shown: shown.ended_at is not None)
            assert (ended.state, ended.cancelled, ended.delivered) == ("cancelled", 5, 0)
            assert (await world.audit(one)).is_clean
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean
        assert world.record().duplicates() == {}


async def test_a_scheduled_delivery_waits_for_its_time(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        await node.start()
        starts_at = in_seconds(1.5)
        scheduled = await world.deliver([f"later{address}" for address in addresses(20)], starts_at=starts_at)
        assert (await world.show(scheduled)).state == "running"
        assert (await world.wait_for(await world.deliver(addresses(20)))).delivered == 20
        shown = await world.wait_for(scheduled)
        assert (shown.delivered, shown.started_at) == (20, starts_at)
        sent = [message for message in world.record().accepted if message.recipients[0].startswith("later")]
        assert min(message.unix_s for message in sent) >= starts_at.timestamp()


async def test_no_attempt_is_made_after_the_validity_and_the_delivery_ends_at_it(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        validity = datetime.timedelta(seconds=3)  # a busy machine may send nothing in the first
        retry = '{"first_count": 1, "first_period_s": 1, "then_period_s": 3600}'
        # More than can go in the time, some refused for now, some due only when it is over, some without a pool.
        crowd = await world.deliver(slow(400), validity=validity)
        deferred = await world.deliver([f"a+450@d{n}.test" for n in range(3)], validity=validity, retry=retry)
        not_due = await world.deliver(addresses(5), validity=validity, start=False)
        await value(world, "UPDATE mta.delivery_part SET due_at = now() + '1 hour' WHERE delivery_id = $1", not_due)
        homeless = await world.deliver(addresses(5), validity=validity, egress_pool="nowhere")
        async with database.pool.acquire() as conn:
            await deliveries.start(conn, not_due)
        for delivery, appended in ((crowd, 400), (deferred, 3), (not_due, 5), (homeless, 5)):
            shown = await world.wait_for(delivery)
            assert shown.ended_at == shown.valid_until is not None
            assert shown.delivered + shown.expired == appended
            assert (await world.audit(delivery)).is_clean
            attempts = [row for row in await log_of(world, delivery) if row["status"] != Status.EXPIRED]
            # What was on the wire at the limit was answered some milliseconds after it.
            assert all(row["at"] < shown.ended_at + datetime.timedelta(seconds=0.5) for row in attempts)
        assert 0 < (await world.show(crowd)).delivered == accepted_for(world, "slow") < 400
        told = await story(world, deferred)
        assert len(told) == 3
        for attempts in told.values():
            # One or two attempts, as the machine is quick, then the end.
            assert [status for _, status in attempts[:-1]] == [Status.DEFERRED] * (len(attempts) - 1)
            assert attempts[-1] == (len(attempts) - 1, Status.EXPIRED)
        assert node.said("delivery waits: its egress pool is not configured on this node")[0]["pool"] == "nowhere"


def in_seconds(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
