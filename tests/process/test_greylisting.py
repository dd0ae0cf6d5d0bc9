"""Hosts that greylist and do not say so: the same egress comes again within minutes, and nobody's fault is told of."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from mta.model.outcome import Status
from mta.queue import faults
from tests.support.node import TWO_CONNECTIONS, World, addresses
from tests.support.outcomes import log_of, story, value
from tests.support.postgres import Database

# Each in a network of its own: a host that knows the network of the first attempt does not know the next egress.
EIGHT = "".join(
    f'[[egress]]\nname = "out-{n}"\nid = {n}\nhelo = "out-{n}.example"\nsource_ipv4 = "127.0.{n}.1"\n'
    for n in range(1, 9)
)
NAMES = [f"out-{n}" for n in range(1, 9)]
POOL = f"{EIGHT}\n[pools]\ndefault = {json.dumps(NAMES)}\n"
SILENT_ABOUT_IT = """
greylist_s = 0.5
greylist_bits = 24
greylist_reply = "451 4.3.2 Please try again later"
"""
# The first retry comes after a second, the others would come after an hour.
ONCE_SOON = '{"first_count": 1, "first_period_s": 3600, "then_period_s": 3600, "greylist_s": 1, "jitter": 0}'


async def test_a_pool_of_eight_is_through_at_the_second_attempt(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, provider=SILENT_ABOUT_IT) as world:
        node = world.node(children=1, settings=POOL)
        await node.start()
        to = addresses(100)
        delivery = await world.deliver(to, retry=ONCE_SOON)
        assert (await world.wait_for(delivery)).delivered == 100
        assert await story(world, delivery) == {
            address: [(1, Status.DEFERRED), (2, Status.DELIVERED)] for address in to
        }
        by_address = defaultdict(set)
        for row in await log_of(world, delivery):
            by_address[row["address"]].add(row["egress"])
        assert all(len(egresses) == 1 for egresses in by_address.values()), "each from the egress of its first attempt"
        assert len(set.union(*by_address.values())) >= 4, "the pool was in use"
        assert (await world.audit(delivery)).is_clean


async def test_after_so_many_attempts_another_egress_may_be_chosen(tmp_path: Path, database: Database) -> None:
    # It never lets anybody in.
    script = '[[rule]]\nstep = "rcpt"\ncode = 450\ntext = "4.2.0 later"\n'
    each_second = '{"first_count": 100, "first_period_s": 1, "jitter": 0, "greylist_s": 1, "same_egress_attempts": 2}'
    async with World(tmp_path, database, script=script) as world:
        node = world.node(children=1, settings=POOL)
        await node.start()
        delivery = await world.deliver(addresses(40), retry=each_second)
        await world.wait_for(delivery, lambda shown: shown.deferrals >= 160)
        chosen: dict[str, list[str]] = defaultdict(list)
        for row in await log_of(world, delivery):
            chosen[row["address"]].append(row["egress"])
        told = [egresses for egresses in chosen.values() if len(egresses) >= 4]
        assert told
        assert all(len(set(egresses[:3])) == 1 for egresses in told)
        assert any(egresses[3] != egresses[2] for egresses in told)


async def test_a_suspended_egress_holds_nobody_who_was_put_off_there(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, provider=SILENT_ABOUT_IT.replace("24", "8")) as world:
        node = world.node(children=1, settings=POOL)
        await node.start()
        retry = ONCE_SOON.replace('"greylist_s": 1', '"greylist_s": 4')
        delivery = await world.deliver(addresses(40), retry=retry)
        await world.wait_for(delivery, lambda shown: shown.deferrals == 40)
        async with database.pool.acquire() as conn:
            await conn.execute(
                "INSERT INTO mta.traffic_event (key, name, kind, target, on_what, until_at) SELECT 'k' || n, 'test', "
                "'suspend', 'egress', 'out-' || n, now() + interval '1 hour' FROM generate_series(1, 7) n"
            )
        assert (await world.wait_for(delivery)).delivered == 40
        second = {row["egress"] for row in await log_of(world, delivery) if row["attempt"] == 2}
        assert second == {"out-8"}


async def test_it_suspends_nothing_and_is_nobodys_fault_on_two_nodes_by_the_built_in_rules(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, provider=SILENT_ABOUT_IT) as world:
        for name in ("one", "two"):
            await world.node(
                name, children=1, rules=TWO_CONNECTIONS, ready_recipients_max=200, ready_per_site_max=100
            ).start()
        delivery = await world.deliver(addresses(1_200, domains=1), retry=ONCE_SOON, part_recipients=50)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.deferrals) == (1_200, 1_200)
        assert (
            await value(
                world,
                "SELECT count(DISTINCT owner_node) FROM (SELECT node AS owner_node FROM "
                "mta.traffic_minute WHERE deferred > 0) m",
            )
            == 2
        )
        assert await value(world, "SELECT count(*) FROM mta.traffic_event") == 0
        async with database.pool.acquire() as conn:
            assert await faults.look(conn, is_turn_taken=True) == []
