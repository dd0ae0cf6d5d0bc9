"""Who is not to be mailed has an outcome when the part is appended, by whatever way it comes."""

from __future__ import annotations

import json

import pytest

from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import deliveries, quarantine
from mta.queue.append import append_parts
from mta.queue.audit import audit
from mta.queue.deliveries import NewDelivery
from mta.queue.part import Part
from tests.support.content import content_json
from tests.support.postgres import Database

ROWS = [(f"{name}@d.test", f"ref {name}", ["Ann"]) for name in ("ann", "Bob", "cas", "dan")]
NEVER = {"bob@d.test": AddressStatus.QUARANTINED, "dan@d.test": AddressStatus.DENYLISTED}


async def quarantined(database: Database) -> None:
    for address, status in NEVER.items():
        await quarantine.put(database.pool, [address], status, "a test", "me")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["python", "sql"])
async def test_excluded_recipients_are_settled_with_their_reason(database: Database, way: str) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        delivery_id = await deliveries.create(conn, NewDelivery(name="t", content=content_json()))
        for _ in range(2):  # the same append again is the same append
            if way == "python":
                answers = await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
                assert [(one.recipients, one.excluded) for one in answers] == [(4, 2)]
            else:
                rows = json.dumps([list(row) for row in ROWS])
                await conn.execute("SELECT mta.append_part($1, 'k', '{first}', $2::jsonb)", delivery_id, rows)
        query = "SELECT address, reference, status, reason, attempt FROM mta.delivery_log ORDER BY number"
        lines = await conn.fetch(query)
        assert [tuple(line) for line in lines] == [
            ("Bob@d.test", "ref Bob", Status.EXCLUDED, Reason.QUARANTINED, 0),
            ("dan@d.test", "ref dan", Status.EXCLUDED, Reason.DENYLISTED, 0),
        ]
        shown = await deliveries.show(conn, delivery_id)
        assert (shown.appended, shown.excluded, shown.waiting) == (4, 2, 2)
        account = await audit(conn, delivery_id)
        assert account.is_clean
        assert (account.final, account.open) == (2, 2)


async def test_a_part_of_which_nobody_is_to_be_mailed_is_not_queued(database: Database) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        delivery_id = await deliveries.create(conn, NewDelivery(name="t", content=content_json()))
        parts = [Part("k", ("first",), [ROWS[1], ROWS[3]]), Part("l", ("first",), ROWS[:1])]
        await append_parts(conn, delivery_id, parts)
        assert await conn.fetchval("SELECT count(*) FROM mta.delivery_part") == 1
        assert await conn.fetchval("SELECT count(*) FROM mta.part_settled") == 0
        account = await audit(conn, delivery_id)
        assert account.is_clean
        assert (account.final, account.open) == (2, 1)


async def test_a_proof_excludes_nobody(database: Database) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        new = NewDelivery(name="proof", content=content_json(), keeps_quarantined=True)
        delivery_id = await deliveries.create(conn, new)
        await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
        assert (await deliveries.show(conn, delivery_id)).excluded == 0


async def test_waves_cut_a_part_and_send_nobody_twice(database: Database) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        new = NewDelivery(name="t", content=content_json(), waves='{"share": 2, "every_s": 3600}')
        delivery_id = await deliveries.create(conn, new)
        await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
        await deliveries.start(conn, delivery_id)
        account = await audit(conn, delivery_id)
        assert account.is_clean
        assert (account.final, account.open) == (2, 2)
        later = await conn.fetch("SELECT due_at > now() + interval '1 minute' AS later, count FROM mta.delivery_part")
        assert sorted(tuple(row) for row in later) == [(False, 2), (True, 1)]


async def test_an_address_that_is_lifted_is_mailed_by_the_next_append(database: Database) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        await quarantine.put(conn, ["bob@d.test"], AddressStatus.VALID, "", "me")
        delivery_id = await deliveries.create(conn, NewDelivery(name="t", content=content_json()))
        await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
        assert (await deliveries.show(conn, delivery_id)).excluded == 1


async def test_an_address_on_the_allowlist_is_mailed_though_its_domain_is_not(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await quarantine.put(conn, ["@d.test"], AddressStatus.DENYLISTED, "", "me")
        await quarantine.put(conn, ["ann@d.test"], AddressStatus.ALLOWLISTED, "", "me")
        delivery_id = await deliveries.create(conn, NewDelivery(name="t", content=content_json()))
        answers = await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
        assert [one.excluded for one in answers] == [3]
        assert {row["reason"] for row in await conn.fetch("SELECT reason FROM mta.delivery_log")} == {Reason.DENYLISTED}


async def test_what_is_rolled_back_excluded_nobody(database: Database) -> None:
    await quarantined(database)
    async with database.pool.acquire() as conn:
        delivery_id = await deliveries.create(conn, NewDelivery(name="t", content=content_json()))
        transaction = conn.transaction()
        await transaction.start()
        await append_parts(conn, delivery_id, [Part("k", ("first",), ROWS)])
        await transaction.rollback()
        assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log") == 0
        assert (await deliveries.show(conn, delivery_id)).excluded == 0
