"""Waves in the queue: every recipient in one part, each part at the time of its wave, and nothing lost at a border."""

from __future__ import annotations

import asyncio
import datetime
import json
import random

import asyncpg
import pytest

from mta.model.errors import BadInput
from mta.queue import claim, deliveries, nodes, waves
from mta.queue.append import append_parts
from mta.queue.audit import audit
from mta.queue.part import Part
from tests.support.content import new_delivery
from tests.support.postgres import Database

THIRTY_PERCENT_HOURLY = '{"share": "30%", "every_s": 3600}'
HOUR = datetime.timedelta(hours=1)
BY_DUE = """
SELECT due_at, numbers, append_id, count, appended_at, recipients FROM mta.delivery_part WHERE delivery_id = $1
ORDER BY due_at, id
"""


def part(key: str, recipients: int) -> Part:
    return Part(key, ("first",), [(f"{key}{n}@example.com", f"ref {n}", [f"Ann {n}"]) for n in range(recipients)])


async def in_waves(conn: asyncpg.Connection, delivery_id: int) -> dict[float, list[str]]:
    """Hours after the start -> addresses, as the parts say; fails where a number is not its address's."""
    started_at = (await deliveries.show(conn, delivery_id)).started_at
    assert started_at is not None
    keys = dict(await conn.fetch("SELECT append_id, key FROM mta.delivery_append WHERE delivery_id = $1", delivery_id))
    found: dict[float, list[str]] = {}
    for row in await conn.fetch(BY_DUE, delivery_id):
        rows = json.loads(row["recipients"])
        assert len(rows) == row["count"]
        numbers = row["numbers"] or [row["append_id"] << 16 | n for n in range(row["count"])]
        for number, (address, reference, values) in zip(numbers, rows, strict=True):
            index = number & 0xFFFF
            assert (address, reference, values) == (
                f"{keys[number >> 16]}{index}@example.com",
                f"ref {index}",
                [f"Ann {index}"],
            )
        after = max(0.0, (row["due_at"] - started_at) / HOUR)
        assert after == 0 or row["appended_at"] == row["due_at"]
        found.setdefault(after, []).extend(row[0] for row in rows)
    return found


@pytest.mark.parametrize("shape", [(10,), (1,) * 10, (4, 6), (3, 3, 3, 1), (2, 8)])
async def test_thirty_percent_of_ten_are_three_three_three_and_one(
    conn: asyncpg.Connection, shape: tuple[int, ...]
) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    parts = [part(chr(97 + n), count) for n, count in enumerate(shape)]
    await append_parts(conn, made, parts)
    assert await deliveries.start(conn, made) == "running"
    found = await in_waves(conn, made)
    assert {after: len(addresses) for after, addresses in found.items()} == {0: 3, 1: 3, 2: 3, 3: 1}
    # Those who came first go first.
    came = [row[0] for one in parts for row in one.rows]
    assert [set(addresses) for addresses in found.values()] == [set(came[at : at + 3]) for at in (0, 3, 6, 9)]
    audited = await audit(conn, made)
    assert audited.is_clean
    assert audited.open == 10
    shown = await deliveries.show(conn, made)
    assert shown.started_at is not None
    assert shown.last_wave_at == shown.started_at + 3 * HOUR
    assert [wave.recipients for wave in await waves.planned(conn, made)] == [3, 3, 3, 1]


async def test_a_part_with_many_borders_is_cut_at_each(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, waves='{"share": 2, "every_s": 3600}')
    await append_parts(conn, made, [part("a", 1), part("b", 9), part("c", 1)])
    await deliveries.start(conn, made)
    assert [len(addresses) for addresses in (await in_waves(conn, made)).values()] == [2, 2, 2, 2, 2, 1]
    assert (await audit(conn, made)).is_clean
    # The same append again is still the same append.
    assert [one.is_new for one in await append_parts(conn, made, [part("b", 9)])] == [False]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_parts_and_the_waves_each_recipient_is_in_one_part_at_the_time_of_its_wave(
    conn: asyncpg.Connection, seed: int
) -> None:
    dice = random.Random(seed)
    shape = [dice.randint(1, 40) for _ in range(dice.randint(1, 30))]
    steps = [
        {"after_s": 3600 * n, "share": dice.choice([dice.randint(1, 60), f"{dice.randint(1, 10)}%"])} for n in range(9)
    ]
    made = await new_delivery(conn, waves=json.dumps({"calendar": steps}))
    await append_parts(conn, made, [part(f"p{n}-", count) for n, count in enumerate(shape)])
    await deliveries.start(conn, made)
    planned = await waves.planned(conn, made)
    found = await in_waves(conn, made)
    assert [len(addresses) for addresses in found.values()] == [wave.recipients for wave in planned]
    assert sum(wave.recipients for wave in planned) == sum(shape)
    audited = await audit(conn, made)
    assert audited.is_clean
    assert audited.open == sum(shape)


async def test_waves_count_from_a_start_that_lies_ahead_and_a_second_start_changes_nothing(
    database: Database, conn: asyncpg.Connection
) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 10)])
    at = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + 24 * HOUR
    await deliveries.start(conn, made, at=at)
    before = await conn.fetch(BY_DUE, made)
    assert [row["due_at"] for row in before[1:]] == [at + n * HOUR for n in (1, 2, 3)]
    await deliveries.start(conn, made)
    assert await conn.fetch(BY_DUE, made) == before
    with pytest.raises(BadInput, match="was started before"):
        await deliveries.start(conn, made, at=at)
    # Nor does it wait for anybody.
    async with database.pool.acquire() as application, application.transaction():
        await append_parts(application, made, [part("b", 1)])
        assert await deliveries.start(conn, made, timeout_ms=50) == "running"


async def test_only_what_is_due_can_be_claimed_and_an_end_of_it_all_takes_the_rest(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 10)])
    await deliveries.start(conn, made)
    run = await nodes.register(conn, "one", "boot", 60)
    assert [claimed.count for claimed in await claim.claim(conn, run.id, made, 10)] == [3]
    assert await claim.claim(conn, run.id, made, 10) == []
    (view,) = await claim.active_deliveries(conn)
    assert view.due_in_s is not None
    assert 3500 < view.due_in_s <= 3600
    assert [one.count for one in await claim.claim(conn, run.id, made, 10, also_not_due=True)] == [3, 3, 1]


async def test_what_is_appended_after_the_start_joins_the_last_wave(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 10)])
    await deliveries.start(conn, made)
    started_at = (await deliveries.show(conn, made)).started_at
    assert started_at is not None
    await append_parts(conn, made, [part("b", 2)])
    await append_parts(conn, made, [part("c", 2)], due_at=started_at + HOUR)
    rows = '[["d0@example.com", "ref 0", ["Ann 0"]]]'
    await conn.execute("SELECT mta.append_part($1, 'd', ARRAY['first'], $2::text::jsonb)", made, rows)
    found = await in_waves(conn, made)
    assert {after: len(addresses) for after, addresses in found.items()} == {0: 3, 1: 3, 2: 3, 3: 6}
    # Later than the last wave is later.
    await append_parts(conn, made, [part("e", 1)], due_at=started_at + 5 * HOUR)
    assert await conn.fetchval("SELECT max(due_at) FROM mta.delivery_part") == started_at + 5 * HOUR
    assert (await audit(conn, made)).is_clean
    # Once the last wave is out, an append goes at once.
    await conn.execute("UPDATE mta.delivery SET last_wave_at = now() - interval '1 hour'")
    await append_parts(conn, made, [part("f", 1)])
    assert await conn.fetchval("SELECT due_at <= now() FROM mta.delivery_part ORDER BY id DESC LIMIT 1")


async def test_a_start_with_waves_waits_for_open_appends_and_counts_them(
    database: Database, conn: asyncpg.Connection
) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 5)])
    async with database.pool.acquire() as application:
        transaction = application.transaction()
        await transaction.start()
        await append_parts(application, made, [part("b", 5)])
        with pytest.raises(BadInput, match=r"cannot be started now: .* still open after 0\.05 s"):
            await deliveries.start(conn, made, timeout_ms=50)
        assert (await deliveries.show(conn, made)).state == "editing"
        starting = asyncio.create_task(deliveries.start(conn, made))
        await transaction.commit()
        await asyncio.wait_for(starting, 5)
    assert [len(addresses) for addresses in (await in_waves(conn, made)).values()] == [3, 3, 3, 1]


async def test_an_append_with_an_older_snapshot_than_the_start_fails_and_is_not_early(
    database: Database, conn: asyncpg.Connection
) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 10)])
    async with database.pool.acquire() as application:
        transaction = application.transaction(isolation="repeatable_read")
        await transaction.start()
        await application.fetchval("SELECT count(*) FROM mta.delivery")
        await deliveries.start(conn, made)
        with pytest.raises(asyncpg.SerializationError):
            await append_parts(application, made, [part("b", 1)])
        await transaction.rollback()


async def test_waves_of_nobody_are_refused(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    with pytest.raises(BadInput, match="has waves and no recipients yet"):
        await deliveries.start(conn, made)
    assert (await deliveries.show(conn, made)).state == "editing"


async def test_a_last_wave_after_the_validity_is_known(conn: asyncpg.Connection) -> None:
    for validity, is_too_late in ((3 * HOUR, True), (3.5 * HOUR, False)):
        made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY, validity=validity)
        await append_parts(conn, made, [part("a", 10)])
        assert not (await deliveries.show(conn, made)).has_wave_too_late
        await deliveries.start(conn, made)
        assert (await deliveries.show(conn, made)).has_wave_too_late is is_too_late


async def test_a_part_that_cannot_be_read_stops_the_start_by_name(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, waves=THIRTY_PERCENT_HOURLY)
    await append_parts(conn, made, [part("a", 10)])
    await conn.execute("UPDATE mta.delivery_part SET recipients = 'no JSON'")
    with pytest.raises(BadInput, match="cannot be read"):
        await deliveries.start(conn, made)
    assert (await deliveries.show(conn, made)).state == "editing"


async def test_a_duplicate_has_all_but_recipients_time_state_and_part_size(conn: asyncpg.Connection) -> None:
    later = datetime.datetime.now(datetime.UTC) + HOUR
    made = await new_delivery(
        conn,
        name="first",
        part_recipients=500,
        starts_at=later,
        waves=THIRTY_PERCENT_HOURLY,
        weight=7,
        is_simulated=True,
    )
    await append_parts(conn, made, [part("a", 10)])
    await deliveries.start(conn, made)
    same = await deliveries.show(conn, await deliveries.duplicate(conn, made))
    assert (same.name, same.weight, same.is_simulated, same.part_recipients) == ("first", 7, True, 0)
    assert (same.state, same.appended, same.starts_at, same.last_wave_at) == ("editing", 0, None, None)
    assert same.waves == (await deliveries.show(conn, made)).waves
    real = await deliveries.show(conn, await deliveries.duplicate(conn, made, name="real", is_simulated=False))
    assert (real.name, real.is_simulated) == ("real", False)
    with pytest.raises(BadInput, match="does not exist"):
        await deliveries.duplicate(conn, 99)
