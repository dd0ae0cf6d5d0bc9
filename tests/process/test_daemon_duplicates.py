"""A delivery that is sent while it is appended to: nobody gets it twice, whenever and wherever the double comes."""

from __future__ import annotations

from pathlib import Path

from mta.model.duplicates import DeliveryKind
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.part import Part
from tests.support.node import World, addresses
from tests.support.postgres import Database


async def _append(database: Database, delivery: int, key: str, people: list[str]) -> None:
    async with database.pool.acquire() as conn:
        rows = [(address, None, ["Ann"]) for address in people]
        await append_parts(conn, delivery, [Part(key, ("first",), rows)])


async def test_a_later_part_is_compared_with_what_was_sent_already(tmp_path: Path, database: Database) -> None:
    everyone = addresses(60)
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver([*everyone[:30], *everyone[:10]], seal=False, part_recipients=7)
        await world.wait_for(delivery, lambda shown: shown.delivered == 30 and shown.excluded == 10)
        await _append(database, delivery, "later", everyone[20:50])
        await world.wait_for(delivery, lambda shown: shown.delivered == 50 and shown.excluded == 20)
        await _append(database, delivery, "last", [*everyone[50:], "u7@D7.test"])
        async with database.pool.acquire() as conn:
            await deliveries.seal(conn, delivery)
        shown = await world.wait_for(delivery)
        assert (shown.appended, shown.delivered, shown.excluded, shown.excluded_duplicates) == (81, 60, 21, 21)
        assert world.record().recipients() == dict.fromkeys(everyone, 1)
        assert sum(len(entries) for entries in [node.said("looked for duplicates")]) >= 2
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_two_nodes_look_at_one_delivery(tmp_path: Path, database: Database) -> None:
    everyone = addresses(300)
    async with World(tmp_path, database) as world:
        nodes = [world.node(name, children=1) for name in ("one", "two")]
        for node in nodes:
            await node.start()
        delivery = await world.deliver([], seal=False)
        for at in range(0, 300, 25):
            await _append(database, delivery, f"k{at}", [*everyone[at : at + 25], *everyone[: at + 25]])
        async with database.pool.acquire() as conn:
            await deliveries.seal(conn, delivery)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.waiting) == (300, 0)
        assert world.record().recipients() == dict.fromkeys(everyone, 1)
        for node in nodes:
            assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_transactional_mail_goes_to_one_address_as_often_as_it_is_appended(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(["u1@d1.test", "u1@d1.test"], part_recipients=1, kind=DeliveryKind.TRANSACTIONAL)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.excluded) == (2, 0)
        assert not node.said("looked for duplicates")
        assert await node.stop() == 0


async def test_what_was_not_looked_at_yet_is_cancelled_and_expires_like_the_rest(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        cancelled = await world.deliver(["u1@d1.test", "u1@d1.test"], seal=False)
        async with database.pool.acquire() as conn:
            await deliveries.cancel(conn, cancelled)
        expired = await world.deliver(["u2@d2.test", "u2@d2.test"], seal=False)
        await database.pool.execute(
            "UPDATE mta.delivery SET valid_until = now() - interval '1 second' WHERE id = $1", expired
        )
        node = world.node(children=1)
        await node.start()
        shown = await world.wait_for(cancelled, lambda one: one.ended_at is not None)
        assert (shown.cancelled, shown.excluded, shown.unchecked) == (2, 0, 0)
        shown = await world.wait_for(expired, lambda one: one.ended_at is not None)
        assert (shown.expired, shown.excluded, shown.unchecked) == (2, 0, 0)
        assert await node.stop() == 0
        for delivery in (cancelled, expired):
            assert (await world.audit(delivery)).is_clean
