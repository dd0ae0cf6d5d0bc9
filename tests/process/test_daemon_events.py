"""Traffic events in real daemons: an operator's word reaches every node, outlives a kill, holds back what it names."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from mta.queue import deliveries
from tests.support.content import content_json
from tests.support.launch import launch
from tests.support.node import WAIT_S, Node, World, addresses, one_host_zones, until
from tests.support.outcomes import accepted_for, log_of, queue_says, value
from tests.support.postgres import Database

SOON_S = 3.0  # a word of an operator is obeyed within two seconds; one more on a busy machine
TWO_EGRESSES = """
[[egress]]
name = "first"
id = 1
helo = "first.example"
source_ipv4 = "127.0.0.2"

[[egress]]
name = "second"
id = 2
helo = "second.example"
source_ipv4 = "127.0.0.3"

[pools]
default = ["first"]
other = ["second"]
"""


async def traffic(database: Database, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "MTA_DATABASE_URL": database.dsn}
    process = await launch("traffic", *arguments, "--json", env=environment)
    printed, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0
    answer: dict[str, Any] = msgspec.json.decode(printed)
    return answer


def own_sites(domains: int) -> dict[str, object]:
    """``d0.test`` ... with an MX host each, all at one address."""
    zones: dict[str, object] = {}
    for number in range(domains):
        zones[f"mx{number}.test"] = {"A": ["127.0.0.1"]}
        zones[f"d{number}.test"] = {"MX": [(10, f"mx{number}.test")]}
    return zones


def told(node: Node, on: str, event: str = "traffic event") -> bool:
    return any(entry["on"] == on for entry in node.said(event))


async def test_a_word_reaches_both_nodes_outlives_a_kill_and_ends_on_both(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        nodes = [world.node(name, children=1) for name in ("one", "two")]
        await asyncio.gather(*(node.start() for node in nodes))
        await traffic(database, "suspend", "--domain", "d0.test", "--for", "1h", "--why", "they asked")
        for node in nodes:
            await until("each node heard of it", lambda node=node: told(node, "d0.test"), SOON_S)
        said = nodes[0].said("traffic event")[0]
        assert (said["kind"], said["for_s"], said["reply"]) == ("suspend", 3600, "they asked")
        delivery = await world.deliver(addresses(200, 2), part_recipients=20)
        await world.wait_for(delivery, lambda shown: shown.delivered == 100)
        await nodes[0].kill()
        await nodes[0].start()
        # Known again before it claimed anything.
        events = [entry["event"] for entry in nodes[0].log]
        assert events.index("traffic event") < events.index("running")
        held = "SELECT coalesce(sum(count), 0) FROM mta.delivery_part WHERE owner IS NULL AND due_at > now()"

        async def all_wait() -> bool:
            return bool(await value(world, held) == 100)

        await queue_says("what is held waits in the queue, not in memory", all_wait)
        assert accepted_for(world, "d0.test") == 0
        await traffic(database, "resume", "--domain", "d0.test")
        await world.wait_for(delivery, wait_s=40)
        for node in nodes:
            await until("each node heard of its end", lambda node=node: told(node, "d0.test", "traffic event is over"))
        assert world.record().recipients() == dict.fromkeys(addresses(200, 2), 1)
        assert {row["attempt"] for row in await log_of(world, delivery)} == {1}
        assert (await world.audit(delivery)).is_clean
        assert await asyncio.gather(*(node.stop() for node in nodes)) == [0, 0]


async def test_recipients_in_memory_go_back_to_the_queue_and_others_go_on(tmp_path: Path, database: Database) -> None:
    script = '[[rule]]\nstep = "dot"\ndelay_ms = 30\n'
    rules = '[[rule]]\nname = "one"\nmx = "*"\nscope = "path"\nconnections_max = 1\n'
    async with World(tmp_path, database, script=script, zones=one_host_zones(2)) as world:
        node = world.node(children=1, rules=rules)
        await node.start()
        delivery = await world.deliver(addresses(300, 2))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 10)
        await traffic(database, "suspend", "--domain", "d0.test", "--for", "1h")
        await until("it is heard of", lambda: told(node, "d0.test"), SOON_S)
        put_off = "SELECT coalesce(sum(count), 0) FROM mta.delivery_part WHERE site = '@d0.test' AND due_at > now()"

        async def is_put_off() -> bool:
            return bool(await value(world, put_off) > 80)

        await queue_says("it goes back at once", is_put_off, 5)
        await world.wait_for(delivery, lambda shown: accepted_for(world, "d1.test") == 150)
        # What the child had in hand went; the rest did not.
        assert accepted_for(world, "d0.test") < 75
        await traffic(database, "resume", "--domain", "d0.test")
        await world.wait_for(delivery)
        assert world.record().recipients() == dict.fromkeys(addresses(300, 2), 1)
        assert {row["attempt"] for row in await log_of(world, delivery)} == {1}
        assert (await world.audit(delivery)).is_clean


async def test_a_delivery_and_a_tenant_are_held_while_others_go(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        held = await world.deliver(addresses(50), start=False)
        await traffic(database, "suspend", "--delivery", str(held), "--for", "1h")
        await traffic(database, "suspend", "--tenant", "shop.example", "--for", "1h")
        await until("both are heard of", lambda: len(node.said("traffic event")) == 2, SOON_S)
        async with database.pool.acquire() as conn:
            await deliveries.start(conn, held)
        other = await world.deliver(addresses(40), content=content_json(sender="news@other.example"))
        await world.wait_for(other)
        await traffic(database, "resume", "--tenant", "shop.example")
        await until("the first is over", lambda: told(node, "shop.example", "traffic event is over"))
        await world.wait_for(other)
        assert (await world.show(held)).delivered == 0
        await traffic(database, "resume", "--delivery", str(held))
        assert (await world.wait_for(held)).delivered == 50
        assert (await world.audit(held)).is_clean


async def test_a_delivery_that_is_under_way_is_held_from_then_on(tmp_path: Path, database: Database) -> None:
    script = '[[rule]]\nstep = "dot"\ndelay_ms = 10\n'
    rules = '[[rule]]\nname = "one"\nmx = "*"\nscope = "path"\nconnections_max = 1\n'
    async with World(tmp_path, database, script=script) as world:
        node = world.node(children=1, rules=rules)
        await node.start()
        delivery = await world.deliver(addresses(200))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 10)
        await traffic(database, "suspend", "--tenant", "shop.example", "--for", "1h")

        async def nothing_is_leased() -> bool:
            return not await value(world, "SELECT count(*) FROM mta.delivery_part WHERE owner IS NOT NULL")

        await queue_says("all of it goes back", nothing_is_leased, 10)
        assert (await world.show(delivery)).delivered < 200
        await traffic(database, "resume", "--tenant", "shop.example")
        assert (await world.wait_for(delivery)).delivered == 200
        assert world.record().recipients() == dict.fromkeys(addresses(200), 1)


async def test_sites_egresses_and_rules_are_suspended_and_an_end_by_itself_is_recorded(
    tmp_path: Path, database: Database
) -> None:
    rules = """
[[rule]]
name = "two"
mx = "mx2.test"
connections_max = 5
[[rule]]
name = "rest"
mx = "*"
scope = "path"
connections_max = 5
"""
    async with World(tmp_path, database, zones=own_sites(4)) as world:
        node = world.node(children=1, rules=rules, settings=TWO_EGRESSES)
        ids = [
            (await traffic(database, "suspend", *target, "--for", "ever"))["id"]
            for target in (("--site", "mx0.test"), ("--path", "1,127.0.0.9"), ("--rule", "two"))
        ]
        await node.start()
        delivery = await world.deliver(addresses(40, 4))
        await world.wait_for(delivery, lambda shown: shown.delivered == 20)
        assert Counter(message.recipients[0].partition("@")[2] for message in world.record().accepted) == {
            "d1.test": 10,
            "d3.test": 10,
        }
        await traffic(database, "change", str(ids[0]), "--for", "1s")
        await traffic(database, "cancel", str(ids[2]))
        await world.wait_for(delivery)
        history = {one["id"]: one["ended_why"] for one in (await traffic(database, "events", "--all"))["events"]}
        assert history == {ids[0]: "over", ids[1]: "", ids[2]: "cancelled"}


async def test_what_an_event_sends_to_another_pool_leaves_from_there_until_its_end(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, zones=own_sites(2)) as world:
        node = world.node(children=1, settings=TWO_EGRESSES)
        async with database.pool.acquire() as conn:
            await conn.executemany(
                "INSERT INTO mta.traffic_event (key, name, kind, target, on_what, until_at, pool)"
                " VALUES ($1, 'by hand', 'pool', 'site', $1, 'infinity', $2)",
                [("mx0.test", "other"), ("mx1.test", "unknown")],
            )
        await node.start()
        assert len(node.said("another pool is asked for that is not configured on this node")) == 1
        await world.wait_for(await world.deliver(addresses(30, 2)))
        clients = {(one.recipients[0].partition("@")[2], one.client) for one in world.record().accepted}
        assert clients == {("d0.test", "127.0.0.3"), ("d1.test", "127.0.0.2")}
        async with database.pool.acquire() as conn:
            await conn.execute("UPDATE mta.traffic_event SET ended_at = now(), ended_why = 'cancelled'")
        await until("its end is heard of", lambda: told(node, "mx0.test", "traffic event is over"), SOON_S)
        await world.wait_for(await world.deliver(["v@d0.test"]))
        assert {one.client for one in world.record().accepted if "v@" in one.recipients[0]} == {"127.0.0.2"}
