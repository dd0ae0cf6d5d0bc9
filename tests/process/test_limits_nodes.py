"""Limits that several nodes share, proved in the record of a far end that counts all of them as one client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.node import Node, World, addresses, until
from tests.support.postgres import Database

CONNECTIONS = 8  # each node may always have one, so that it can go on at once
A_SECOND = 50
PROVIDER = f'scope = "client"\nconnections_max = {CONNECTIONS}\nmessages_per_period_max = {A_SECOND}\nperiod_s = 1.0\n'
SLOW_DOT = '[[rule]]\nstep = "dot"\ndelay_ms = 10\n'  # so that connections are in use at the same time
RULES = f"""
[[rule]]
name = "held"
mx = "*"
scope = "shared"
connections_max = {CONNECTIONS}
messages_per_second_max = {A_SECOND}
"""
LEASE_S = 3
QUICK_RETRY = '{"first_period_s": 1}'  # of who is in doubt
RECIPIENTS = 160  # three seconds and more of it
IN_HAND = 60  # recipients of a node, about, so that none takes the whole delivery before the others have begun


def world_of(tmp_path: Path, database: Database) -> World:
    return World(tmp_path, database, provider=PROVIDER, script=SLOW_DOT)


async def started(world: World, count: int) -> list[Node]:
    nodes = [
        world.node(
            f"n{number}", rules=RULES, children=1, lease_s=LEASE_S, ready_per_site_max=IN_HAND, claim_parts_max=2
        )
        for number in range(count)
    ]
    await asyncio.gather(*(node.start() for node in nodes))
    return nodes


def is_held(world: World) -> None:
    record = world.record()
    assert record.violations == []
    assert record.connections_max_seen("all") <= CONNECTIONS
    assert record.max_in_window(1.0, "all") <= A_SECOND


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_the_limits_hold_for_all_nodes_together(tmp_path: Path, database: Database, count: int) -> None:
    async with world_of(tmp_path, database) as world:
        nodes = await started(world, count)
        delivery = await world.deliver(addresses(RECIPIENTS), part_recipients=10)
        assert (await world.wait_for(delivery)).delivered == RECIPIENTS
        is_held(world)
        # It was the limit that held it, and not that they all crawl.
        assert world.record().max_in_window(1.0, "all") > A_SECOND // 2
        assert (await world.audit(delivery)).is_clean
        assert not any(node.has_ended for node in nodes)


async def test_the_limits_hold_when_a_node_is_killed_in_the_middle(tmp_path: Path, database: Database) -> None:
    async with world_of(tmp_path, database) as world:
        nodes = await started(world, 4)
        delivery = await world.deliver(addresses(300), part_recipients=10, retry=QUICK_RETRY)
        await until("some are at the sink", lambda: len(world.record().accepted) >= 100)
        await nodes[0].kill()
        accepted = len(world.record().accepted)
        await until("the others go on", lambda: len(world.record().accepted) >= accepted + 30)
        await nodes[0].start()  # it recovers what it had in hand
        shown = await world.wait_for(delivery)
        assert shown.delivered == 300
        is_held(world)
        assert (await world.audit(delivery)).is_clean
        # What was sent twice was in doubt, and is known by name.
        doubtful = {row["address"] for row in await world.database.pool.fetch("SELECT address FROM mta.in_doubt")}
        repeated = {address for address, times in world.record().recipients().items() if times > 1}
        assert repeated <= doubtful
