"""A primary is killed while mail is sent, and its standby promoted: nothing is lost, and each repeat is named.

Two real servers with streaming replication. What the standby lacks is made definite: the primary sends it nothing more
from a moment on, and goes on acknowledging settlements to the nodes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mta.model.outcome import InDoubtPolicy
from tests.support.formula import Account, hold_formula
from tests.support.launch import launch
from tests.support.node import WAIT_S, Node, World, addresses, until
from tests.support.replication import Pair, replicated_database, server_pair

RECIPIENTS = 2_400
DOMAINS = 10
RULES = """
[[rule]]
name = "everything"
mx = "*"
scope = "shared"
connections_max = 20
"""
SLOW_SINK = """
[[rule]]
step = "dot"
odds = 0.6
delay_ms = 10
"""
QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'
_WAITS = "nothing is sent before other nodes have told what the database forgot"
SMALL_SEGMENTS = "journal_segment_kbytes = 16"  # some fifty messages: many are recorded, and put away, in a second


@asynccontextmanager
async def _pair_and_world(tmp_path: Path, *, is_synchronous: bool) -> AsyncIterator[tuple[Pair, World]]:
    async with (
        server_pair(is_synchronous=is_synchronous) as pair,
        replicated_database(pair) as database,
        World(tmp_path, database, script=SLOW_SINK) as world,
    ):
        yield pair, world


def _node(world: World, name: str = "one", **keys: object) -> Node:
    # Of another node nothing is in memory but what it sends: then claims, too, are lost with the primary.
    keys = {"lease_s": 3.0, "ready_recipients_max": 600, "ready_per_site_max": 600, "claim_parts_max": 2, **keys}
    return world.node(name, rules=RULES, settings=SMALL_SEGMENTS, **keys)


async def _begun(world: World, everyone: list[str], policy: InDoubtPolicy = InDoubtPolicy.RESEND) -> int:
    delivery = await world.deliver(everyone, in_doubt_policy=policy, retry=QUICK_RETRY, part_recipients=50)
    await world.wait_for(delivery, lambda d: d.delivered > 200)
    return delivery


async def _lose(pair: Pair, world: World, delivery: int, recipients: int = 500) -> int:
    """So many are recorded by the primary, and not by the standby; how many were delivered when that began."""
    await pair.stall()
    kept = (await world.show(delivery)).delivered
    await world.wait_for(delivery, lambda d: d.delivered > kept + recipients)
    return kept


def _told(node: Node) -> dict[str, object]:
    (said,) = node.said("the journals of this node were told to the database once more")
    return said


async def _ends_clean(world: World, delivery: int, everyone: list[str]) -> Account:
    shown = await world.wait_for(delivery, lambda d: d.state == "finished" or d.waiting == d.held)
    seen = await hold_formula(world, delivery, everyone)
    print(f"in doubt {shown.in_doubt}, twice {len(seen.twice)}, held {len(seen.held)}")
    return seen


@pytest.mark.parametrize("policy", InDoubtPolicy)
async def test_what_an_asynchronous_standby_lacks_is_told_from_the_journal(
    tmp_path: Path, policy: InDoubtPolicy
) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=False) as (pair, world):
        node = _node(world)
        await node.start()
        delivery = await _begun(world, everyone, policy)
        await _lose(pair, world, delivery)
        await pair.fail_over()
        seen = await _ends_clean(world, delivery, everyone)
        told = _told(node)
        print(told)
        assert int(str(told["settled"])) >= 500
        assert not seen.twice, "the node lived through it: it knew the outcome of each message"
        assert len(node.said("the database went back in time, nothing more is begun")) == 1
        assert await node.stop() == 0


async def test_a_synchronous_standby_lacks_nothing(tmp_path: Path) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=True) as (pair, world):
        node = _node(world)
        await node.start()
        delivery = await _begun(world, everyone)
        await pair.fail_over()
        seen = await _ends_clean(world, delivery, everyone)
        assert not seen.twice
        (said,) = node.said("the database may have forgotten what it had acknowledged")
        assert said["missing"] == "nothing that this node knows of"
        assert await node.stop() == 0


@pytest.mark.parametrize("policy", InDoubtPolicy)
async def test_a_node_that_dies_with_the_primary_tells_it_when_it_is_back(
    tmp_path: Path, policy: InDoubtPolicy
) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=False) as (pair, world):
        node = _node(world)
        await node.start()
        delivery = await _begun(world, everyone, policy)
        await _lose(pair, world, delivery)
        await asyncio.gather(node.kill(), pair.kill_primary())
        await pair.promote()
        await node.start()
        seen = await _ends_clean(world, delivery, everyone)
        told = _told(node)
        assert int(str(told["settled"])) >= 500
        assert seen.twice <= seen.doubts.keys()
        assert seen.doubts.total() <= 20, "no more than were on the wire"
        if policy is InDoubtPolicy.HOLD:
            assert not seen.twice
        assert await node.stop() == 0


async def test_two_nodes_wait_for_one_another_before_either_sends(tmp_path: Path) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=False) as (pair, world):
        one, two = _node(world, "one"), _node(world, "two")
        await asyncio.gather(one.start(), two.start())
        delivery = await _begun(world, everyone)
        await _lose(pair, world, delivery)
        # One of them is not there when the other comes back: what it sent is in nobody else's journal.
        await asyncio.gather(one.kill(), pair.kill_primary())
        await pair.promote()
        await until("node two waits for node one", lambda: two.said(_WAITS))
        assert two.said(_WAITS)[0]["nodes"] == ["one"]
        await one.start()
        seen = await _ends_clean(world, delivery, everyone)
        print(_told(one), _told(two))
        assert seen.twice <= seen.doubts.keys()
        assert await asyncio.gather(one.stop(), two.stop()) == [0, 0]


async def test_a_node_that_is_gone_is_given_up_by_name_and_all_that_it_may_have_sent_is_in_doubt(
    tmp_path: Path,
) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=False) as (pair, world):
        one, two = _node(world, "one"), _node(world, "two", take_over_after_s=0.5)
        await asyncio.gather(one.start(), two.start())
        delivery = await _begun(world, everyone, InDoubtPolicy.HOLD)
        await _lose(pair, world, delivery)
        await asyncio.gather(one.kill(), pair.kill_primary())
        await pair.promote()
        await until("node two waits for node one", lambda: two.said(_WAITS))
        code, shown = await _failover(pair)
        assert (code, [node["node"] for node in shown["nodes"] if not node["confirmed_at"]]) == (1, ["one"])
        code, shown = await _failover(pair, "--without", "one")
        assert (code, shown["epoch"]["is_open"]) == (0, True)
        await until("node two sends", lambda: two.said("running") and two.said("a dead node was taken over"))
        seen = await _ends_clean(world, delivery, everyone)
        assert not seen.twice
        assert len(seen.doubts) >= shown["in_doubt"] > 0
        # It comes back after all, too late to settle anything: what it sent stays listed.
        await one.start()
        seen = await _ends_clean(world, delivery, everyone)
        assert await asyncio.gather(one.stop(), two.stop()) == [0, 0]


async def _failover(pair: Pair, *options: str) -> tuple[int, dict[str, Any]]:
    process = await launch("db", "failover", *options, "--json", "--dsn", pair.standby_dsn)
    printed, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode is not None
    return process.returncode, json.loads(printed)


async def test_a_database_that_is_behind_by_more_than_is_kept_is_not_sent_from(tmp_path: Path) -> None:
    everyone = addresses(RECIPIENTS, DOMAINS)
    async with _pair_and_world(tmp_path, is_synchronous=False) as (pair, world):
        node = world.node(rules=RULES, settings=f"{SMALL_SEGMENTS}\n[journal]\nkeep_mbytes = 0", lease_s=3.0)
        await node.start()
        delivery = await _begun(world, everyone)
        await pair.stall()
        dropped = node.directory / "journal" / "kept" / "1.dropped"
        recorded = dropped.read_text() if dropped.exists() else ""
        await until("more is dropped", lambda: dropped.exists() and dropped.read_text() != recorded)
        await pair.fail_over()
        refused = "journals do not tell all that the database may have forgotten"
        await until("it refuses", lambda: node.said(refused))
        assert "are not kept any more" in str(node.said(refused)[0]["why"])
        before = len(world.record().accepted)
        await until("it waits for its operator", lambda: len(node.said(_WAITS)) >= 1)
        assert len(world.record().accepted) == before
        code, shown = await _failover(pair, "--without", "one")
        assert (code, shown["in_doubt"] > 0) == (0, True)
        seen = await _ends_clean(world, delivery, everyone)
        assert seen.twice <= seen.doubts.keys()
        assert await node.stop() == 0
