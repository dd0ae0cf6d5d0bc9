"""The daemon as a whole: from a part in the queue to a line in the log, counted at the far end."""

from __future__ import annotations

from pathlib import Path

from tests.support.node import World, addresses
from tests.support.postgres import Database


async def test_every_recipient_of_a_delivery_is_sent_once_and_logged(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        await node.start()
        delivery = await world.deliver(addresses(1_000))
        shown = await world.wait_for(delivery)
        assert shown.delivered == 1_000
        assert await node.stop() == 0
        audited = await world.audit(delivery)
        assert audited.is_clean
        assert world.record().recipients() == dict.fromkeys(addresses(1_000), 1)
