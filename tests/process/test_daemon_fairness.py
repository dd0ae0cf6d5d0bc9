"""Who goes first where all want to go: priorities and shares at one slow site."""

from __future__ import annotations

from pathlib import Path

from mta.queue import deliveries
from mta.sink.record import Accepted
from tests.support.node import World
from tests.support.postgres import Database

# Four connections, ten milliseconds a message: four hundred a second at the very most.
SLOW_SITE = '[[rule]]\nstep = "dot"\ndelay_ms = 10\n'
FOUR_CONNECTIONS = '[[rule]]\nname = "slow"\nmx = "*"\nscope = "path"\nconnections_max = 4\n'


def named(name: str, count: int) -> list[str]:
    return [f"{name}{number}@d{number % 3}.test" for number in range(count)]


async def test_an_urgent_delivery_passes_a_large_one_at_the_same_site_and_bulk_still_moves(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SITE) as world:
        node = world.node(children=1, rules=FOUR_CONNECTIONS)
        await node.start()
        bulk = await world.deliver(named("bulk", 1_500))
        await world.wait_for(bulk, lambda shown: shown.delivered >= 50)
        urgent = await world.deliver(named("urgent", 20), priority=4)
        await world.wait_for(urgent)
        assert (await world.show(bulk)).delivered < 750
        # A stream of urgent parts, each appended before the one ahead of it is through.
        before = (await world.show(bulk)).delivered
        for _ in range(3):
            await world.wait_for(await world.deliver(named("stream", 100), priority=4), lambda shown: shown.delivered)
        during = (await world.show(bulk)).delivered
        assert before < during < 1_250
        async with database.pool.acquire() as conn:
            await deliveries.cancel(conn, bulk)


async def test_two_large_deliveries_of_one_priority_share_a_site(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_SITE) as world:
        node = world.node(children=1, rules=FOUR_CONNECTIONS)
        await node.start()
        first = await world.deliver(named("first", 250), start=False)
        second = await world.deliver(named("second", 250), start=False)
        await start_together(database)
        await world.wait_for(first)
        await world.wait_for(second)
        accepted = world.record().accepted
        # When the first of them was through, the other was nearly.
        assert min(last_of("first", accepted), last_of("second", accepted)) > 440


async def test_weights_hold_also_when_memory_has_room_for_only_a_part_of_each(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=SLOW_SITE.replace("10", "2")) as world:
        node = world.node(
            children=1, rules=FOUR_CONNECTIONS, ready_recipients_max=400, ready_per_site_max=400, claim_parts_max=1
        )
        await node.start()
        light = await world.deliver(named("light", 800), start=False, weight=1, part_recipients=64)
        heavy = await world.deliver(named("heavy", 600), start=False, weight=3, part_recipients=64)
        await start_together(database)
        await world.wait_for(heavy)
        await world.wait_for(light)
        accepted = world.record().accepted
        until_heavy_ended = last_of("heavy", accepted) + 1
        # Three to one: 200, give or take what one claim of parts brings in; without weights: 600.
        assert 64 < until_heavy_ended - 600 < 400


async def start_together(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await conn.execute(
            "UPDATE mta.delivery SET state = 'running', started_at = now(), valid_until = now() + validity"
        )
        await conn.execute("SELECT pg_notify('mta', 'delivery')")


def last_of(name: str, accepted: list[Accepted]) -> int:
    """The place of a delivery's last message among all that the sink took."""
    return max(at for at, one in enumerate(accepted) if one.recipients[0].startswith(name))
