"""Nodes add up what they count of a domain: the real exchange, and what the adaptation makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mta.queue import nodes
from mta.queue.connection import Conn
from mta.queue.error_rates import exchange
from mta.traffic.adaptation import ANSWER_S, ERROR_BLOCK, Adaptation
from mta.traffic.error_rates import DomainFigures, OthersFigures
from mta.traffic.events import TrafficEvent
from mta.traffic.rules import RuleSet
from tests.support.postgres import Database

START_S = 1_800_000_000.0


class Node:
    """One node's counting, and its exchange with the others over a database."""

    def __init__(self, name: str, conn: Conn) -> None:
        self.name = name
        self._conn = conn
        self.adaptation = Adaptation(RuleSet(()), lambda key: None)

    async def look(self, now_s: float) -> list[TrafficEvent]:
        told = self.adaptation.figures(now_s)
        found = await exchange(self._conn, self.name, told)
        return self.adaptation.exchanged(told, found.others, found.nodes, now_s)


@pytest.fixture
async def two(database: Database) -> AsyncIterator[tuple[Node, Node]]:
    async with database.pool.acquire() as conn:
        for name in ("one", "two"):
            await nodes.register(conn, name, "boot", 60.0)
        yield Node("one", conn), Node("two", conn)


async def test_a_node_that_sees_errors_only_does_not_suspend_what_the_other_delivers(two: tuple[Node, Node]) -> None:
    one, other = two
    await one.look(START_S)
    assert one.adaptation.counted("a.test", 307, 307, START_S) is None
    assert other.adaptation.counted("a.test", 100, 0, START_S) is None
    for step in range(8):
        now_s = START_S + 15.0 * step
        assert await one.look(now_s) == []
        assert await other.look(now_s) == []
        assert one.adaptation.counted("a.test", 1, 1, now_s) is None


async def test_what_fails_on_both_is_suspended_and_the_block_names_its_figures(two: tuple[Node, Node]) -> None:
    one, other = two
    await one.look(START_S)
    await other.look(START_S)
    # Neither has the 300 that a block needs.
    assert one.adaptation.counted("a.test", 170, 155, START_S) is None
    assert other.adaptation.counted("a.test", 170, 152, START_S) is None
    found: list[TrafficEvent] = []
    now_s = START_S
    while not found and now_s < START_S + 3 * ANSWER_S:
        found = [*await one.look(now_s), *await other.look(now_s)]
        now_s += 15.0
    assert found[0].on == "a.test"
    assert found[0].detail == "307 of 340 messages failed or were deferred in 60 min, over 2 nodes"


async def test_what_one_node_has_told_is_replaced_and_what_is_over_goes(two: tuple[Node, Node]) -> None:
    one, _ = two
    await exchange(one._conn, "one", [DomainFigures("a.test", 60, 20, 15), DomainFigures("b.test", 60, 9, 9)])
    await exchange(one._conn, "one", [DomainFigures("a.test", 60, 30, 25)])
    seen = await exchange(one._conn, "two", [])
    assert (seen.others, seen.nodes) == ({"a.test": OthersFigures(30, 25, 1)}, 2)
    await one._conn.execute("UPDATE mta.error_rate SET told_at = now() - interval '2 minutes'")
    assert (await exchange(one._conn, "two", [])).others == {}
    await one._conn.execute("UPDATE mta.error_rate SET told_at = now() - interval '1 hour'")
    await exchange(one._conn, "two", [])
    assert await one._conn.fetchval("SELECT count(*) FROM mta.error_rate") == 0


def test_a_node_alone_decides_at_once() -> None:
    alone = Adaptation(RuleSet(()), lambda key: None)
    event = alone.counted("a.test", 300, 290, START_S)
    assert event is not None
    assert event.detail == "290 of 300 messages failed or were deferred in 60 min"
    assert ERROR_BLOCK.within_s == 3_600
