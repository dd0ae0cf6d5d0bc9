"""Who became one that is not mailed after the append has an outcome when the part is claimed, and no mail."""

from __future__ import annotations

import json
from pathlib import Path

from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import quarantine
from tests.support.node import World, addresses
from tests.support.postgres import Database

_DUE_NOW = "UPDATE mta.delivery_part SET due_at = now() WHERE due_at > now() RETURNING appended_at - now()"


async def quarantined(database: Database, address: str, status: AddressStatus) -> None:
    async with database.pool.acquire() as conn:
        await quarantine.put(conn, [address], status, "a test", "me")


async def excluded(database: Database) -> dict[str, Reason]:
    rows = await database.pool.fetch("SELECT * FROM mta.delivery_log WHERE status = $1", Status.EXCLUDED)
    assert {row["attempt"] for row in rows} <= {0}
    return {row["address"]: Reason(row["reason"]) for row in rows}


async def test_who_is_quarantined_between_append_and_start_gets_no_mail(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        delivery = await world.deliver(addresses(10))
        proof = await world.deliver(addresses(3), keeps_quarantined=True)
        await quarantined(database, "u1@d1.test", AddressStatus.QUARANTINED)
        await quarantined(database, "@d2.test", AddressStatus.DENYLISTED)
        node = world.node(children=1)
        await node.start()
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.excluded, shown.appended) == (8, 2, 10)
        assert await excluded(database) == {"u1@d1.test": Reason.QUARANTINED, "u2@d2.test": Reason.DENYLISTED}
        assert (await world.wait_for(proof)).delivered == 3
        assert world.record().recipients() == {
            address: 1 + (address in addresses(3)) - (address in ("u1@d1.test", "u2@d2.test"))
            for address in addresses(10)
        }
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_who_is_quarantined_before_a_later_wave_gets_no_mail_in_it(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(addresses(10), waves=json.dumps({"share": 5, "every_s": 3600}))
        await world.wait_for(delivery, lambda shown: shown.delivered == 5)
        await quarantined(database, "u7@d7.test", AddressStatus.QUARANTINED)
        # The wave's time comes, though its part is dated an hour from now.
        (ahead,) = await database.pool.fetch(_DUE_NOW)
        assert ahead[0].total_seconds() > 3_000
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.excluded) == (9, 1)
        assert await excluded(database) == {"u7@d7.test": Reason.QUARANTINED}
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean
