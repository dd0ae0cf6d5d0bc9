"""The node's set of events in step with the database: two nodes, an operator, and a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import asyncpg
import msgspec
import structlog

from mta.master.events import EventBook
from mta.queue import events as store
from mta.queue.connection import connection
from mta.queue.embedded import EmbeddedPostgres
from mta.traffic.effects import Effect, EffectKind, Target, effect_key
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits
from tests.support.postgres import Database

WAIT_S = 10.0


class Node:
    """A book with its task. ``clock_error_s``: how wrong the clock of the machine is."""

    def __init__(self, name: str, pool: asyncpg.Pool, clock_error_s: float = 0.0) -> None:
        self.effects: Sequence[Effect] = ()
        self.clock_error_s = clock_error_s
        offset_s = time.time() - asyncio.get_running_loop().time() + clock_error_s
        self.book = EventBook(pool, name, self._obey, self._flushed, offset_s)

    def _obey(self, effects: Sequence[Effect]) -> Collection[str]:
        self.effects = effects
        return ()

    async def _flushed(self) -> None:
        return

    @contextlib.asynccontextmanager
    async def running(self, listener: asyncpg.Connection | None = None) -> AsyncIterator[Node]:
        def on_news(*_: object) -> None:
            self.book.notify()

        task = asyncio.create_task(self.book.run())
        if listener is not None:
            await listener.add_listener(store.CHANNEL, on_news)
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if listener is not None:
                await listener.remove_listener(store.CHANNEL, on_news)

    def lowered(self, on: str = "google|1", *, for_s: float = 600.0, connections: int = 5, **more: Any) -> TrafficEvent:
        now_s = self.book.now_unix_s()
        given: dict[str, Any] = {
            "key": effect_key("slows", Target.RULE, on),
            "name": "slows",
            "kind": EffectKind.LOWER,
            "target": Target.RULE,
            "on": on,
            "began_unix_s": now_s,
            "until_unix_s": now_s + for_s,
            "limits": Limits(connections_max=connections),
            "base": Limits(connections_max=10),
            "pool": "",
            "step": 0,
            "replies": 1,
            "detail": "421 slow down",
            "automation": "slows",
            "rule": "google",
        }
        return TrafficEvent(**{**given, **more})

    def left_s(self) -> list[float]:
        return [effect.until_unix_s - self.book.now_unix_s() for effect in self.effects]


async def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_what_one_node_brings_about_the_other_obeys_whatever_their_clocks_say(
    database: Database, conn: asyncpg.Connection
) -> None:
    one, two = Node("one", database.pool), Node("two", database.pool, clock_error_s=-7_200.0)
    async with one.running(conn), two.running(conn):
        one.book.put([one.lowered(for_s=300)])
        assert len(one.effects) == 1
        await until(lambda: two.effects)
        assert abs(two.left_s()[0] - 300) < 5
        # Both see more of it: the tighter and the later count on both, and replies add up.
        two.book.put([two.lowered(for_s=900, connections=3, replies=two.book.in_force()[0].replies + 4)])
        await until(lambda: one.effects[0].limits.connections_max == 3 and one.left_s()[0] > 800)
        assert one.book.in_force()[0].replies == 5
        async with database.pool.acquire() as other:
            (row,) = await store.in_force(other)
            assert (row.node, row.automation, row.detail) == ("one", "slows", "421 slow down")
            await store.change(other, row.id, "ann", lasts=datetime.timedelta(seconds=60))
            await until(lambda: all(abs(node.left_s()[0] - 60) < 5 for node in (one, two)))
            await store.cancel(other, row.id, "ann")
        await until(lambda: not one.effects and not two.effects)


async def test_an_end_is_kept_by_each_and_recorded_once(database: Database, conn: asyncpg.Connection) -> None:
    one, two = Node("one", database.pool), Node("two", database.pool, clock_error_s=7_200.0)
    with structlog.testing.capture_logs() as said:
        async with one.running(conn), two.running(conn):
            one.book.put([one.lowered(for_s=1.0)])
            await until(lambda: two.effects)
            await until(lambda: not one.effects and not two.effects)
            await until(lambda: not one.book._over and not two.book._over)
    assert [line["why"] for line in said if line["event"] == "traffic event is over"] == ["over", "over"]
    assert len([line for line in said if line["event"] == "traffic event"]) == 2
    (row,) = await store.history(conn)
    assert (row.ended_why, row.version) == ("over", 2)


async def test_replies_without_end_are_one_line_in_the_log_and_few_round_trips(database: Database) -> None:
    one = Node("one", database.pool)
    with structlog.testing.capture_logs() as said:
        async with one.running():
            first = one.lowered()
            for number in range(1, 1_001):
                one.book.put([msgspec.structs.replace(first, replies=number, detail=f"421 no. {number}")])
            await until(lambda: one.book._held[first.key].told_replies == 1_000)
    assert len([line for line in said if line["event"] == "traffic event"]) == 1
    async with database.pool.acquire() as conn:
        (row,) = await store.in_force(conn)
    assert (row.replies, row.detail) == (1_000, "421 no. 1000")
    assert row.version <= 3


async def test_whatever_a_server_says_can_be_kept(database: Database) -> None:
    one = Node("one", database.pool)
    async with one.running():
        one.book.put([one.lowered(detail="421 \0 \udcff \x1b[2J ü" + "x" * 1_000)])
        await until(lambda: one.book._held[one.lowered().key].id)
    async with database.pool.acquire() as conn:
        (row,) = await store.in_force(conn)
    assert row.detail == "421 \\0 \\udcff \x1b[2J ü" + "x" * (500 - len(r"421 \0 \udcff .[2J ü"))


async def test_a_new_run_knows_what_is_in_force_and_ends_what_was_over_meanwhile(database: Database) -> None:
    first = Node("one", database.pool)
    async with first.running():
        first.book.put([first.lowered("a|1"), first.lowered("b|1", for_s=0.5)])
        await until(lambda: all(held.id for held in first.book._held.values()))
    await asyncio.sleep(max(0.0, min(first.left_s()) + 0.01))
    again = Node("one", database.pool)
    async with database.pool.acquire() as conn:
        await again.book.restore(conn)
        assert [effect.on for effect in again.effects] == ["a|1"]
        async with again.running():
            await until(lambda: not again.book._over)
        assert {row.on_what: row.ended_why for row in await store.history(conn)} == {"a|1": "", "b|1": "over"}


async def test_without_the_database_it_holds_at_once_and_is_told_of_later(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    name = database.dsn.partition("?")[0].rpartition("/")[2]
    one, two = Node("one", database.pool), Node("two", database.pool)
    async with connection(postgres.dsn) as admin:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        with structlog.testing.capture_logs() as said:
            async with one.running(), two.running():
                await until(lambda: [line["event"] for line in said] == ["database is away"])
                one.book.put([one.lowered("a|1"), one.lowered("b|1", for_s=0.2)])
                assert [effect.on for effect in one.effects] == ["a|1", "b|1"]
                await until(lambda: len(one.effects) == 1)
                assert not two.effects
                await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
                await until(lambda: two.effects)
                assert [effect.on for effect in two.effects] == ["a|1"]
    events = [line["event"] for line in said]
    assert (events.count("database is away"), events.count("database is back")) == (1, 1)
    async with database.pool.acquire() as conn:
        assert {row.on_what: row.ended_why for row in await store.history(conn)} == {"a|1": "", "b|1": "over"}
