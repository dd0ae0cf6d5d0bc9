"""Processes that stop for a while and come back: what was taken from them is not theirs any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.model.outcome import InDoubtPolicy
from tests.support.formula import hold_formula
from tests.support.node import Node, World, addresses, until
from tests.support.postgres import Database
from tests.support.server import own_server

LEASE_S = 2.0
RECIPIENTS = 2_000
SLOW_SINK = """
[[rule]]
step = "dot"
delay_ms = 20
"""
FEW_CONNECTIONS = """
[[rule]]
name = "everything"
mx = "*"
scope = "shared"
connections_max = 20
"""
QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'


def _pair(world: World, **keys: object) -> tuple[Node, Node]:
    """Two nodes; the second takes over what the first leaves half a second after the end of its lease."""
    keys = {"lease_s": LEASE_S, "take_over_after_s": 0.5, **keys}
    return world.node("one", rules=FEW_CONNECTIONS, **keys), world.node("two", rules=FEW_CONNECTIONS, **keys)


def _family(node: Node) -> list[int]:
    """All processes of a node that runs."""
    assert node.process is not None
    return [node.process.pid, *node.child_pids()]


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP for the length of a block; also after a failure none of them stays behind, stopped for ever."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _ends_well(world: World, one: Node, two: Node, delivery: int, everyone: list[str]) -> None:
    """The node that was stopped ends by itself, and the other one brings everybody to an end."""
    assert one.process is not None
    assert await asyncio.wait_for(one.process.wait(), 20) == 3
    await world.wait_for(delivery)
    await hold_formula(world, delivery, everyone)
    assert await two.stop() == 0


@pytest.mark.parametrize("policy", InDoubtPolicy)
async def test_a_node_that_was_stopped_beyond_its_lease_sends_nothing_that_was_taken_over(
    tmp_path: Path, database: Database, policy: InDoubtPolicy
) -> None:
    async with World(tmp_path, database, script=SLOW_SINK) as world:
        one, two = _pair(world, ready_per_site_max=RECIPIENTS)
        await one.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone, in_doubt_policy=policy, retry=QUICK_RETRY)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        assert one.process is not None
        family = _family(one)
        with _stopped(family):
            await two.start()
            await until("node one is taken over", lambda: two.said("a dead node was taken over"))
            (said,) = two.said("a dead node was taken over")
            assert (await world.show(delivery)).in_doubt == said["in_doubt"] > 0
        assert await asyncio.wait_for(one.process.wait(), 20) == 3
        assert one.said("this run was declared dead by another node")
        shown = await world.wait_for(delivery, lambda d: d.waiting == d.held)
        seen = await hold_formula(world, delivery, everyone)
        if policy is InDoubtPolicy.HOLD:
            assert not seen.twice
            assert shown.held == said["in_doubt"]
        else:
            assert shown.delivered == RECIPIENTS
        await one.start()  # it may come back, and has nothing to tell
        assert await one.stop() == 0
        assert not list((one.directory / "journal").glob("*.journal"))
        assert await two.stop() == 0


_WAITS_IN_A_SETTLEMENT = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'mta one' AND wait_event_type = 'Lock'
"""


async def test_a_node_that_was_stopped_within_a_settlement_does_not_keep_its_locks(
    tmp_path: Path, database: Database
) -> None:
    """Stopped there, it holds the row that whoever takes over must have."""
    async with World(tmp_path, database, script=SLOW_SINK) as world, database.pool.acquire() as conn:
        one, two = _pair(world)
        await one.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone, retry=QUICK_RETRY)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        async with conn.transaction():
            await conn.execute("SELECT FROM mta.delivery_stats WHERE delivery_id = $1 FOR UPDATE", delivery)
            async with asyncio.timeout(20):
                while True:
                    if await conn.fetchval(_WAITS_IN_A_SETTLEMENT):
                        break
                    await asyncio.sleep(0.01)
            stopping = contextlib.ExitStack()
            stopping.enter_context(_stopped(_family(one)))
        with stopping:
            await two.start()
            await until("node one is taken over", lambda: two.said("a dead node was taken over"))
        await _ends_well(world, one, two, delivery, everyone)


_IS_BEING_ANSWERED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'mta one' AND wait_event = 'ClientWrite'
"""


async def test_a_node_that_was_stopped_within_a_long_answer_does_not_keep_its_locks(
    tmp_path: Path, database: Database
) -> None:
    """The server cannot cancel a claim whose answer it is sending: nobody takes the rest of it."""
    async with World(tmp_path, database, script=SLOW_SINK) as world, database.pool.acquire() as conn:
        one, two = _pair(world)
        await one.start()
        everyone = addresses(300)
        delivery = await world.deliver(everyone, part_recipients=30, value="x" * 30_000, retry=QUICK_RETRY)
        family = _family(one)
        async with asyncio.timeout(30):
            while True:  # it runs a little and is stopped, until it is stopped in the middle of an answer
                with _stopped(family):
                    await asyncio.sleep(0.02)
                    if await conn.fetchval(_IS_BEING_ANSWERED):
                        await two.start()
                        await until("node one is taken over", lambda: two.said("a dead node was taken over"), 20)
                        break
                await asyncio.sleep(0.001)
        await _ends_well(world, one, two, delivery, everyone)


async def test_a_child_that_is_silent_for_too_long_is_killed_and_its_work_goes_on(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SINK) as world:
        node = world.node(rules=FEW_CONNECTIONS, settings="silence_s = 4.0")
        await node.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone, retry=QUICK_RETRY)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        stopped = node.child_pids()[0]
        with _stopped([stopped]):
            await until(
                "the silent child is killed",  # and not another, that had to wait for a processor
                lambda: any(entry["pid"] == stopped for entry in node.said("child is silent and is killed")),
            )
        shown = await world.wait_for(delivery)
        seen = await hold_formula(world, delivery, everyone)
        assert shown.delivered == RECIPIENTS
        assert seen.doubts.total() <= 20
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)
        assert await node.stop() == 0


async def test_a_master_that_was_stopped_does_not_take_its_children_for_silent(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SINK) as world:
        node = world.node(rules=FEW_CONNECTIONS, settings="silence_s = 2.0", lease_s=60.0)
        await node.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        assert node.process is not None
        with _stopped([node.process.pid]):
            await asyncio.sleep(2.5)  # longer than a child may be silent
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.in_doubt) == (RECIPIENTS, 0)
        assert not node.said("child is silent and is killed")


async def test_while_the_database_is_away_the_daemon_waits_says_so_and_goes_on(tmp_path: Path) -> None:
    async with own_server() as (server, database), World(tmp_path, database, script=SLOW_SINK) as world:
        node = world.node(rules=FEW_CONNECTIONS, lease_s=LEASE_S)
        await node.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        await asyncio.to_thread(server.stop)
        await until("it says so", lambda: node.said("database is away"))
        await until("its lease ends", lambda: any(e["held_by"] == "lease" for e in node.said("sending")))
        at_lease_end = world.record().recipients().total()
        await asyncio.sleep(1.0)
        # What was begun before may still arrive; nothing is begun.
        assert world.record().recipients().total() <= at_lease_end + 20
        await asyncio.to_thread(server.start)
        shown = await world.wait_for(delivery)
        seen = await hold_formula(world, delivery, everyone)
        assert (shown.delivered, shown.in_doubt) == (RECIPIENTS, 0)
        assert not seen.twice
        assert node.said("database is back")
        assert await node.stop() == 0
