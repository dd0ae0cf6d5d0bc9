"""What a host takes is learnt from what it does; what it refuses meanwhile costs no recipient an attempt."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mta.queue import host_facts
from mta.sink.record import Record
from tests.support.launch import launch
from tests.support.node import GENEROUS_RULES, WAIT_S, Node, World, addresses, until
from tests.support.outcomes import log_of
from tests.support.postgres import Database

TEN_A_SESSION = 'messages_per_connection_max = 10\nmessages_reply = "{}"\n'
TWO_CONNECTIONS = 'connections_max = 2\nconnections_reply = "{}"\n'
SLOW = '[[rule]]\nstep = "dot"\ndelay_ms = {}\n'


def messages_of_sessions(record: Record) -> list[int]:
    """How many messages each session delivered, in the order in which they began."""
    counted = Counter(one.connection for one in record.accepted)
    return [counted[one.connection] for one in record.connections if one.is_open]


async def learnt(world: World) -> dict[str, int]:
    async with world.database.pool.acquire() as conn:
        return {one.fact.value: one.value for one in await host_facts.known(conn)}


async def nothing_was_charged(world: World, delivery: int, count: int) -> None:
    shown = await world.show(delivery)
    assert (shown.delivered, shown.failed, shown.deferrals) == (count, 0, 0)
    assert {row["attempt"] for row in await log_of(world, delivery)} == {1}
    assert set(world.record().recipients().values()) == {1}
    assert (await world.audit(delivery)).is_clean


@pytest.mark.parametrize(
    "reply",
    [
        "452 4.4.5 too many messages in this session",
        "452 4.4.5 congestion",
        "450 4.7.1 no",
        "550 5.7.1 message limit per connection reached",
    ],
)
async def test_a_host_that_takes_ten_messages_a_session_gets_sessions_of_ten(
    tmp_path: Path, database: Database, reply: str
) -> None:
    async with World(tmp_path, database, provider=TEN_A_SESSION.format(reply)) as world:
        node = world.node()
        await node.start()
        first = await world.deliver(addresses(500))
        await world.wait_for(first)
        await nothing_was_charged(world, first, 500)
        assert await learnt(world) == {"messages_per_session": 10}
        said = node.said("host fact learnt")[0]
        assert (said["host"], said["fact"], said["value"]) == ("127.0.0.1", "messages_per_session", 10)
        assert reply in str(said["cause"])
        refused = len(world.record().refused)
        began = len(messages_of_sessions(world.record()))
        second = await world.deliver(addresses(300))
        await world.wait_for(second)
        assert len(world.record().refused) == refused  # it is known now
        assert max(messages_of_sessions(world.record())[began:]) == 10
        assert await node.stop() == 0


@pytest.mark.parametrize(
    "reply", ["451 too many concurrent connections", "550 5.7.0 Too many connections from your host"]
)
async def test_connections_that_are_too_many_end_and_the_rest_goes_on(
    tmp_path: Path, database: Database, reply: str
) -> None:
    provider = TWO_CONNECTIONS.format(reply)
    async with World(tmp_path, database, provider=provider, script=SLOW.format(20)) as world:
        node = world.node()
        await node.start()
        delivery = await world.deliver(addresses(200))
        await world.wait_for(delivery)
        await nothing_was_charged(world, delivery, 200)
        assert await learnt(world) in ({"connections": 2}, {"connections": 1})  # 1: the other was not known to be open
        refused = len(world.record().refused)
        again = await world.deliver(addresses(200))
        await world.wait_for(again)
        assert len(world.record().refused) - refused <= 2  # where the far end has not noticed that one has ended
        assert await learnt(world) in ({"connections": 2}, {"connections": 1})
        assert await node.stop() == 0


async def test_a_host_that_is_known_at_the_start_is_obeyed_from_the_first_session(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, provider=TEN_A_SESSION.format("452 4.4.5 no")) as world:
        node = world.node()
        await node.start()
        await world.wait_for(await world.deliver(addresses(100)))
        assert await learnt(world) == {"messages_per_session": 10}
        assert await node.stop() == 0
        refused = len(world.record().refused)
        await node.start()
        await world.wait_for(await world.deliver(addresses(200)))
        assert len(world.record().refused) == refused
        assert not node.said("host fact learnt")


async def ask(database: Database, *arguments: str) -> dict[str, Any]:
    process = await launch(*arguments, "--json", env={**os.environ, "MTA_DATABASE_URL": database.dsn})
    printed, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0
    answer: dict[str, Any] = msgspec.json.decode(printed)
    return answer


async def explained(database: Database, node: Node, what: str) -> dict[str, Any]:
    return await ask(database, "explain", what, "--config", str(node.config))


async def test_what_is_learnt_is_shown_reaches_the_other_node_and_is_forgotten_on_both(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, provider=TEN_A_SESSION.format("452 4.4.5 no")) as world:
        nodes = [world.node(name) for name in ("one", "two")]
        await nodes[0].start()
        await world.wait_for(await world.deliver(addresses(100)))
        await until("it is learnt", lambda: nodes[0].said("host fact learnt"))
        await nodes[1].start()
        for node in nodes:
            told = await explained(database, node, "mx.test")
            assert [(one["fact"], one["value"], one["host"]) for one in told["facts"]] == [
                ("messages_per_session", 10, "127.0.0.1")
            ]
        told = await explained(database, nodes[1], "u1@d1.test")
        assert [one["fact"] for one in told["facts"]] == ["messages_per_session"]
        gone = await ask(database, "traffic", "hosts", "--forget", "127.0.0.1")
        assert [one["fact"] for one in gone["forgotten"]] == ["messages_per_session"]
        for node in nodes:
            await until("each node hears of it", lambda node=node: node.said("host fact forgotten"), 10)
        assert (await ask(database, "traffic", "hosts"))["hosts"] == []


async def test_a_rule_may_keep_what_is_learnt_from_being_obeyed(tmp_path: Path, database: Database) -> None:
    rules = GENEROUS_RULES + "learn_hosts = false\n"
    async with World(tmp_path, database, provider=TEN_A_SESSION.format("452 4.4.5 no")) as world:
        node = world.node(rules=rules)
        await node.start()
        delivery = await world.deliver(addresses(200))
        await world.wait_for(delivery)
        await nothing_was_charged(world, delivery, 200)  # the recipients go back all the same
        assert await learnt(world) == {}
        assert not node.said("host fact learnt")


async def test_a_session_whose_first_message_is_refused_has_a_refusal_like_any_other(
    tmp_path: Path, database: Database
) -> None:
    script = '[[rule]]\nstep = "mail"\ncode = 452\ntext = "4.4.5 no more in this session"\n'
    async with World(tmp_path, database, script=script) as world:
        node = world.node()
        await node.start()
        delivery = await world.deliver(addresses(20))
        await world.wait_for(delivery, lambda shown: shown.deferrals >= 20)
        assert await learnt(world) == {}
