"""Shares of limits in the database: what several nodes get never adds up to more than there is."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Sequence

import pytest

from mta.queue import nodes, shares
from mta.queue.shares import Exchanged
from mta.traffic.holdings import Ask
from mta.traffic.ledger import LimitKind
from mta.traffic.limit import Held
from tests.support.postgres import Database

HOUR: LimitKind = ("r", "m3600")
OF_THREE: LimitKind = ("r|3", "m3600")


class Node:
    """A node as the database sees it: its exchanges, each with what it holds and wants of one limit."""

    def __init__(self, database: Database, name: str, egress_ids: Sequence[int]) -> None:
        self._pool = database.pool
        self._name = name
        self._egress_ids = egress_ids
        self.bound_ids: frozenset[int] | None = frozenset(egress_ids)
        self.share = self.target = 0

    async def begin(self) -> Node:
        async with self._pool.acquire() as conn:
            self.run = (await nodes.register(conn, self._name, "boot", 60)).id
        return self

    async def exchange(
        self, at: LimitKind = HOUR, *, most: int = 100, held: int = 0, wanted: int | None = None
    ) -> Exchanged:
        """As a node does: it goes by no more than it was granted, and learns with whom it shares."""
        wanted = most if wanted is None else wanted
        asks = [Ask(Held(*at, most, held, wanted), max(held, min(self.share, self.target, wanted)))]
        async with self._pool.acquire() as conn:
            found = await shares.exchange(
                conn, self._name, self.run, self._egress_ids, bound_ids=self.bound_ids, asks=asks
            )
        self.bound_ids = found.common
        self.share, self.target = found.granted.get(at, (0, 0))
        return found

    async def die(self, hours: float = 0.001) -> None:
        query = "UPDATE mta.node SET started_at = $2, alive_until = $2 WHERE id = $1"
        at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
        await self._pool.execute(query, self.run, at)

    async def used(self, key: str, amount: int) -> None:
        """As its settlements record it."""
        values = (self._name, key, int(time.time() // 10), amount)
        await self._pool.execute("INSERT INTO mta.quota_counter VALUES ($1, $2, $3, $4)", *values)


async def test_a_lone_node_is_told_so_and_shares_when_another_comes(database: Database) -> None:
    one, two = await Node(database, "one", [1]).begin(), await Node(database, "two", [1]).begin()
    assert (await one.exchange()).common is None
    # The other uses all of it as yet: nobody gets more until it knows.
    assert (await two.exchange()).granted[HOUR].share == 0
    assert (await one.exchange()).common == {1}
    one.bound_ids = frozenset([1])
    await one.exchange(held=30)
    await two.exchange()
    assert one.share + two.share <= 100
    assert one.share >= 30
    assert two.share > 0


@pytest.mark.parametrize("count", [2, 4])
async def test_nodes_that_ask_at_once_never_have_more_than_the_limit(database: Database, count: int) -> None:
    made = [await Node(database, f"n{number}", [1]).begin() for number in range(count)]
    for one in made:
        await one.exchange(wanted=0)
    for one in made:
        one.bound_ids = frozenset([1])
    for _ in range(6):
        await asyncio.gather(*(one.exchange() for one in made))
        recorded = await database.pool.fetchval(
            "SELECT sum(share) FROM mta.limit_share WHERE (key, kind) = ($1, $2)", *HOUR
        )
        assert recorded == sum(one.share for one in made) <= 100
    assert recorded == 100
    assert max(one.share for one in made) - min(one.share for one in made) <= 1


async def test_what_a_dead_node_has_used_is_nobodys_until_it_leaves_the_window(database: Database) -> None:
    one, two = await Node(database, "one", [1]).begin(), await Node(database, "two", [1]).begin()
    for node in (one, two):
        await node.exchange(wanted=0)
    one.bound_ids = two.bound_ids = frozenset([1])
    await one.exchange(held=40, wanted=40)
    await one.die()
    await two.exchange()
    assert two.share == 60
    # An hour and a margin after its death nothing of it is in a window of an hour: the other is alone.
    await one.die(hours=2)
    assert (await two.exchange()).common is None


async def test_what_a_dead_node_has_used_where_it_was_alone_counts_too(database: Database) -> None:
    """It shared one egress, and used another alone: there it had told of nothing."""
    one, two = await Node(database, "one", [2, 3]).begin(), await Node(database, "two", [2]).begin()
    await one.exchange()
    await two.exchange(wanted=0)
    await one.exchange(wanted=0)
    assert one.bound_ids == {2}
    await one.exchange(wanted=0)
    await one.used("r|3", 7)
    await one.die()
    three = await Node(database, "three", [3]).begin()
    await three.exchange(OF_THREE)
    assert three.share == 93


async def test_an_answer_that_is_lost_counts_and_a_second_try_gets_no_more(database: Database) -> None:
    one, two = await Node(database, "one", [1]).begin(), await Node(database, "two", [1]).begin()
    for node in (one, two):
        await node.exchange(wanted=0)
    one.bound_ids = two.bound_ids = frozenset([1])
    await one.exchange(wanted=80)
    one.share = 0  # it never heard of it
    await two.exchange(wanted=80)
    assert two.share == 20
    await one.exchange(wanted=80)
    assert one.share + two.share <= 100
