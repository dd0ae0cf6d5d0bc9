"""A simulated delivery: the whole path up to RCPT, nothing is sent, and the books are as of any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.outcome import Status
from mta.queue import deliveries
from tests.support.node import TWO_CONNECTIONS, World, addresses
from tests.support.outcomes import all_back_in_the_queue, log_of, statuses, story, value
from tests.support.postgres import Database
from tests.support.strict_receiver import StrictReceiver

# Whoever says DATA is written down.
TELLTALE = """
[[rule]]
step = "data"
local_part = "probe*"
code = 554
[[rule]]
step = "rcpt"
local_part = "probe-gone*"
code = 550
"""
SLOW_RCPT = """
[[rule]]
step = "rcpt"
local_part = "probe*"
delay_ms = 20
"""
SHARED = """
[[rule]]
name = "shared"
mx = "*"
scope = "path"
connections_max = 2
recipients_per_transaction_max = 7
"""
EACH_SECOND = '{"first_count": 100, "first_period_s": 1, "then_period_s": 1, "greylist_s": 1}'


@pytest.mark.parametrize("hidden", [(), ("PIPELINING",)], ids=["pipelining", "lockstep"])
async def test_the_far_end_is_asked_for_each_recipient_and_never_gets_a_message(
    tmp_path: Path, database: Database, hidden: tuple[str, ...]
) -> None:
    async with World(tmp_path, database, script=TELLTALE, hide=hidden) as world:
        node = world.node(children=1, rules=TWO_CONNECTIONS)
        await node.start()
        to = [f"probe-{address}" for address in addresses(60)]
        gone = [f"probe-gone-{address}" for address in addresses(6)]
        # Beside one that is sent, over the same sessions.
        simulated = await world.deliver(to + gone, is_simulated=True)
        sent = await world.deliver(addresses(100))
        shown = await world.wait_for(simulated)
        assert (shown.simulated, shown.delivered, shown.failed, shown.in_doubt) == (60, 0, 6, 0)
        assert (await world.wait_for(sent)).delivered == 100
        assert await node.stop() == 0
        record = world.record()
        assert record.recipients() == dict.fromkeys(addresses(100), 1)
        assert {refused.step for refused in record.refused} == {"rcpt"}
        assert sorted(refused.recipients[0] for refused in record.refused) == sorted(gone)
        assert record.violations == []
        # The log tells who was asked, and what it said.
        assert await statuses(world, simulated) == {Status.SIMULATED: 60, Status.FAILED: 6}
        for row in await log_of(world, simulated):
            assert (row["mx_host"], row["attempt"], row["code"]) == (
                "mx.test",
                1,
                550 if "gone" in row["address"] else 250,
            )
        assert (await world.audit(simulated)).is_clean
        assert (await world.audit(sent)).is_clean


async def test_a_refusal_for_now_is_tried_again_by_the_schedule(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, provider="greylist_s = 0.5") as world:
        node = world.node(children=1)
        await node.start()
        to = [f"u{number}@d0.test" for number in range(10)]
        delivery = await world.deliver(to, retry=EACH_SECOND, is_simulated=True)
        shown = await world.wait_for(delivery)
        assert (shown.simulated, shown.deferrals, shown.delivered) == (10, 10, 0)
        assert await story(world, delivery) == {
            address: [(1, Status.DEFERRED), (2, Status.SIMULATED)] for address in to
        }
        assert world.record().accepted == []
        assert (await world.audit(delivery)).is_clean


async def test_a_node_that_is_killed_leaves_no_doubt_about_it(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_RCPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        to = [f"probe-{address}" for address in addresses(150)]
        delivery = await world.deliver(to, is_simulated=True)
        await world.wait_for(delivery, lambda shown: shown.simulated >= 10)
        await node.kill()
        await node.start()
        shown = await world.wait_for(delivery)
        assert (shown.simulated, shown.in_doubt) == (150, 0)
        assert await statuses(world, delivery) == {Status.SIMULATED: 150}
        assert (await world.audit(delivery)).is_clean
        assert await node.stop() == 0


async def test_a_child_that_is_killed_leaves_no_doubt_about_it(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_RCPT) as world:
        node = world.node(rules=TWO_CONNECTIONS, children=1)
        await node.start()
        delivery = await world.deliver([f"probe-{address}" for address in addresses(100)], is_simulated=True)
        await world.wait_for(delivery, lambda shown: shown.simulated >= 10)
        node.kill_child()
        shown = await world.wait_for(delivery)
        assert (shown.simulated, shown.in_doubt, shown.deferrals) == (100, 0, 0)
        assert (await world.audit(delivery)).is_clean


async def test_it_is_paused_and_cancelled_as_any_other(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_RCPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        delivery = await world.deliver([f"probe-{address}" for address in addresses(150)], is_simulated=True)
        await world.wait_for(delivery, lambda shown: shown.simulated >= 10)
        async with database.pool.acquire() as conn:
            await deliveries.pause(conn, delivery)
            await all_back_in_the_queue(world)
            await deliveries.cancel(conn, delivery)
        shown = await world.wait_for(delivery, lambda shown: shown.ended_at is not None)
        assert shown.simulated + shown.cancelled == 150
        assert 10 <= shown.simulated < 150
        assert await value(world, "SELECT count(*) FROM mta.delivery_part") == 0
        assert (await world.audit(delivery)).is_clean


@pytest.mark.parametrize("hidden", [(), ("PIPELINING",)], ids=["pipelining", "lockstep"])
async def test_recipients_share_a_transaction_as_many_as_the_rule_says(
    tmp_path: Path, database: Database, hidden: tuple[str, ...]
) -> None:
    """The sink tells who exceeds its own limit, which is the rule's."""
    provider = "recipients_per_message_max = 7"
    async with World(tmp_path, database, script=TELLTALE, provider=provider, hide=hidden) as world:
        node = world.node(rules=SHARED)
        await node.start()
        to = [f"probe-{address}" for address in addresses(120)]
        gone = [f"probe-gone-{address}" for address in addresses(60)]
        mixed = [address for three in zip(to[::2], gone, to[1::2], strict=True) for address in three]
        simulated = await world.deliver(mixed, is_simulated=True)
        sent = await world.deliver(addresses(50))
        shown = await world.wait_for(simulated)
        assert (shown.simulated, shown.delivered, shown.failed, shown.deferrals) == (120, 0, 60, 0)
        assert (await world.wait_for(sent)).delivered == 50
        assert await node.stop() == 0
        record = world.record()
        assert record.violations == []
        assert record.recipients() == dict.fromkeys(addresses(50), 1)
        assert {refused.step for refused in record.refused} == {"rcpt"}
        assert sorted(refused.recipients[0] for refused in record.refused) == sorted(gone)
        # Each return path is one transaction's.
        assert len({refused.mail_from for refused in record.refused}) < 60
        assert await story(world, simulated) == {
            **{address: [(1, Status.SIMULATED)] for address in to},
            **{address: [(1, Status.FAILED)] for address in gone},
        }
        assert (await world.audit(simulated)).is_clean


async def test_a_server_that_takes_fewer_of_them_loses_nobody(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, provider="recipients_per_message_max = 3") as world:
        node = world.node(rules=SHARED)
        await node.start()
        to = [f"probe-{address}" for address in addresses(100)]
        delivery = await world.deliver(to, is_simulated=True)
        await world.wait_for(delivery)
        assert await story(world, delivery) == {address: [(1, Status.SIMULATED)] for address in to}
        assert {violated.what for violated in world.record().violations} == {"recipients-per-message"}
        assert world.record().accepted == []
        assert (await world.audit(delivery)).is_clean
        assert await node.stop() == 0


async def test_a_session_names_one_domain_where_the_server_says_so(tmp_path: Path, database: Database) -> None:
    """All these domains are of one site: their recipients would share sessions."""
    offer = ("PIPELINING", "LIMITS RCPTDOMAINMAX=1")
    async with World(tmp_path, database) as world, StrictReceiver(*offer) as receiver:
        node = world.node(rules=f"{SHARED}port = {receiver.port}\n")
        await node.start()
        to = addresses(60, domains=3)
        delivery = await world.deliver(to, is_simulated=True)
        await world.wait_for(delivery)
        assert await story(world, delivery) == {address: [(1, Status.SIMULATED)] for address in to}
        assert await node.stop() == 0
        assert receiver.violations == []
        domains: dict[int, set[str]] = {}
        for one in receiver.transactions:
            domains.setdefault(one.session, set()).update(one.domains)
            assert len(one.asked) <= 7
        assert {len(of_session) for of_session in domains.values()} == {1}
        assert len(receiver.transactions) < 60
