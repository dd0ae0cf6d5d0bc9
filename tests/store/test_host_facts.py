"""What was learnt of hosts on a real server: told by several nodes, merged, forgotten, and heard of."""

from __future__ import annotations

import asyncio

import pytest

from mta.model.host import HostFact
from mta.queue import host_facts
from mta.queue.connection import Conn
from mta.traffic.host_facts import Learnt
from tests.support.postgres import Database

NOW_S = 1_900_000_000.0  # of a node's clock, whatever it shows
MESSAGES = HostFact.MESSAGES_PER_SESSION


def fact(
    value: int = 10, *, version: int = 0, host: str = "192.0.2.1", for_s: float = 3_600.0, **more: object
) -> Learnt:
    given: dict[str, object] = {
        "host": host,
        "fact": MESSAGES,
        "value": value,
        "cause": "452 4.4.5 no more",
        "mx_host": "mx.a.test",
        "learnt_unix_s": NOW_S - 5,
        "changed_unix_s": NOW_S - 5,
        "until_unix_s": NOW_S + for_s,
        "version": version,
        **more,
    }
    return Learnt(**given)  # type: ignore[arg-type]


async def only(conn: Conn) -> host_facts.StoredFact:
    [found] = await host_facts.known(conn)
    return found


async def test_a_node_reads_what_another_told_by_its_own_clock(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(cause="a\0b\udc80")], NOW_S)
        look = await host_facts.look(conn, None)
        learnt = look.facts[0].learnt(50.0)
        assert (learnt.host, learnt.fact, learnt.value, learnt.version) == ("192.0.2.1", MESSAGES, 10, 1)
        assert learnt.learnt_unix_s == pytest.approx(45, abs=2)
        assert learnt.until_unix_s == pytest.approx(3_650, abs=2)
        assert learnt.cause == "a\\0b\\udc80"
        assert (await host_facts.look(conn, look.looked_at)).facts == []


async def test_of_two_nodes_that_know_nothing_of_each_other_the_stricter_counts(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(10, for_s=9_000)], NOW_S)
        await host_facts.tell(conn, "two", [fact(20, for_s=100)], NOW_S)
        found = await only(conn)
        assert (found.value, found.version) == (10, 2)
        assert found.until_in_s > 8_000
        await host_facts.tell(conn, "two", [fact(5, for_s=100)], NOW_S)
        assert (await only(conn)).value == 5


async def test_who_knows_the_row_says_how_it_goes_on(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(2)], NOW_S)
        await host_facts.tell(conn, "one", [fact(4, version=1, for_s=50)], NOW_S)
        found = await only(conn)
        assert (found.value, found.version) == (4, 2)
        assert found.until_in_s < 60


async def test_a_number_grows_only_where_nobody_has_lowered_it_since(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(2)], NOW_S)
        await host_facts.grow(conn, [fact(3, version=1)])
        assert (await only(conn)).value == 3
        await host_facts.grow(conn, [fact(4, version=1)])  # another node grew it at the same time
        assert (await only(conn)).value == 3


async def test_what_is_forgotten_is_heard_of_and_may_be_learnt_anew(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(), fact(0, fact=HostFact.NO_TLS), fact(host="192.0.2.2")], NOW_S)
        looked_at = (await host_facts.look(conn, None)).looked_at
        gone = await host_facts.forget(conn, "192.0.2.1", MESSAGES, "ann")
        assert [one.fact for one in gone] == [MESSAGES]
        assert len(await host_facts.forget(conn, "mx.a.test", None, "ann")) == 2  # by name: all that is left
        assert await host_facts.known(conn) == []
        heard = (await host_facts.look(conn, looked_at)).facts
        assert len([one for one in heard if one.gone_at is not None]) == 3
        assert {one.gone_why for one in heard} == {"by ann"}
        await host_facts.tell(conn, "one", [fact(12)], NOW_S)
        assert (await only(conn)).value == 12


async def test_a_stale_word_that_it_is_over_changes_nothing(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(10)], NOW_S)
        await host_facts.tell(conn, "two", [fact(5)], NOW_S)
        await host_facts.tell_gone(conn, [fact(10, version=1)], "over")
        assert (await only(conn)).value == 5
        await host_facts.tell_gone(conn, [fact(5, version=2)], "over")
        assert await host_facts.known(conn) == []


async def test_every_change_is_told_to_who_listens(database: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with database.pool.acquire() as listening, database.pool.acquire() as conn:

        def hear(*_: object) -> None:
            heard.put_nowait("news")

        await listening.add_listener(host_facts.CHANNEL, hear)
        await host_facts.tell(conn, "one", [fact()], NOW_S)
        assert await asyncio.wait_for(heard.get(), 10)
        await host_facts.forget(conn, "192.0.2.1", None, "ann")
        assert await asyncio.wait_for(heard.get(), 10)
        await listening.remove_listener(host_facts.CHANNEL, hear)


async def test_a_fact_of_a_newer_program_is_passed_over(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact()], NOW_S)
        await conn.execute("UPDATE mta.host_fact SET fact = 'no_such_fact'")
        assert (await host_facts.look(conn, None)).facts == []
        assert await host_facts.known(conn) == []


async def test_what_is_gone_or_long_over_is_purged(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await host_facts.tell(conn, "one", [fact(), fact(host="192.0.2.2"), fact(host="192.0.2.3")], NOW_S)
        await conn.execute("UPDATE mta.host_fact SET until_at = now() - interval '40 days' WHERE host = '192.0.2.2'")
        await conn.execute("UPDATE mta.host_fact SET gone_at = now() - interval '2 days' WHERE host = '192.0.2.3'")
        await host_facts.purge(conn)
        assert await conn.fetchval("SELECT count(*) FROM mta.host_fact") == 1
