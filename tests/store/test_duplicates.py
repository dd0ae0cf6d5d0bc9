"""An address that stands twice in a delivery is mailed once: the first one stays, the others have an outcome."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta.model.duplicates import DeliveryKind, Duplicates
from mta.model.errors import BadInput
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import claim, deliveries, duplicates, nodes, quarantine
from mta.queue.append import NOT_BEFORE_CHECKED, append_parts
from mta.queue.audit import audit
from mta.queue.deliveries import NewDelivery
from mta.queue.part import Part
from tests.support.content import content_json
from tests.support.postgres import Database

_EXCLUDED = """
SELECT number, address, reference, status, reason, attempt, reply FROM mta.delivery_log WHERE delivery_id = $1
ORDER BY number
"""


async def made(conn: asyncpg.Connection, **fields: object) -> int:
    return await deliveries.create(conn, NewDelivery(name="t", content=content_json(), **fields))  # type: ignore[arg-type]


async def appended(conn: asyncpg.Connection, delivery: int, key: str, addresses: Sequence[str]) -> int:
    """One part; its append number. Each recipient's reference is its place."""
    rows = [(address, f"{key}{at}", [f"value {at}"]) for at, address in enumerate(addresses)]
    return (await append_parts(conn, delivery, [Part(key, ("name",), rows)]))[0].append_id


async def appended_by_sql(conn: asyncpg.Connection, delivery: int, key: str, addresses: Sequence[str]) -> int:
    rows = json.dumps([[address, f"{key}{at}", [f"value {at}"]] for at, address in enumerate(addresses)])
    return await conn.fetchval("SELECT mta.append_part($1, $2, '{name}', $3::jsonb)", delivery, key, rows)


async def excluded(conn: asyncpg.Connection, delivery: int) -> list[str]:
    """References of the recipients that were excluded, each with its whole line looked at."""
    lines = await conn.fetch(_EXCLUDED, delivery)
    wanted = (Status.EXCLUDED, Reason.DOUBLE, 0, duplicates.REPLY)
    assert [tuple(line)[3:] for line in lines] == [wanted] * len(lines)
    return [line["reference"] for line in lines]


async def claimed(conn: asyncpg.Connection, delivery: int) -> list[str]:
    """Addresses of all that can be claimed now, in order."""
    run = await nodes.register(conn, "n", "boot", 60.0)
    found = []
    while parts := await claim.claim(conn, run.id, delivery, 100):
        for part in parts:
            rows = json.loads(part.recipients)
            found += [rows[at][0] for at in range(part.count) if at not in part.settled]
    await conn.execute("UPDATE mta.delivery_part SET owner = NULL")
    return found


async def assert_adds_up(conn: asyncpg.Connection, delivery: int, total: int, doubles: int) -> None:
    shown = await deliveries.show(conn, delivery)
    assert (shown.appended, shown.excluded, shown.excluded_duplicates) == (total, doubles, doubles)
    assert (shown.waiting, shown.unchecked) == (total - doubles, 0)
    account = await audit(conn, delivery)
    assert account.is_clean
    assert (account.final, account.open) == (doubles, total - doubles)


async def test_within_one_file_the_first_one_stays(conn: asyncpg.Connection) -> None:
    delivery = await made(conn)
    await appended(conn, delivery, "a", ["ann@x.example", "bob@x.example", "ann@x.example", "ann@x.example"])
    assert (await deliveries.show(conn, delivery)).unchecked == 4
    assert await deliveries.seal(conn, delivery) == 2
    assert await excluded(conn, delivery) == ["a2", "a3"]
    await assert_adds_up(conn, delivery, 4, 2)
    assert await deliveries.seal(conn, delivery) == 0


@pytest.mark.parametrize("append", [appended, appended_by_sql])
async def test_over_several_appends_by_whatever_way(conn: asyncpg.Connection, append: object) -> None:
    delivery = await made(conn)
    first = await append(conn, delivery, "a", ["ann@x.example", "bob@x.example"])  # type: ignore[operator]
    await appended(conn, delivery, "b", ["cas@x.example", "bob@x.example"])
    await append(conn, delivery, "c", ["ann@x.example", "cas@x.example"])  # type: ignore[operator]
    assert await deliveries.seal(conn, delivery) == 3
    assert await excluded(conn, delivery) == ["b1", "c0", "c1"]
    # All of the last part was excluded, so nothing of it is left in the queue.
    parts = await conn.fetch("SELECT append_id, due_at <= now() AS due, due_when_checked FROM mta.delivery_part")
    assert sorted(tuple(part) for part in parts) == [(first, True, None), (first + 1, True, None)]
    assert await conn.fetchval("SELECT count(*) FROM mta.part_settled") == 1
    await assert_adds_up(conn, delivery, 6, 3)


async def test_the_domain_is_compared_by_case_and_idna_and_the_local_part_as_it_is(conn: asyncpg.Connection) -> None:
    delivery = await made(conn)
    await appended(conn, delivery, "a", ["Ann@BÜCHER.example", "ann@bücher.example", "Bob@X.EXAMPLE"])
    await appended_by_sql(conn, delivery, "b", ["Ann@XN--BCHER-KVA.example", "bob@x.example", "Bob@x.example"])
    assert await deliveries.seal(conn, delivery) == 2
    assert await excluded(conn, delivery) == ["b0", "b2"]


async def test_the_local_part_is_compared_regardless_of_case_by_choice(conn: asyncpg.Connection) -> None:
    delivery = await made(conn, duplicates_ignore_case=True)
    await appended(conn, delivery, "a", ["Ann@x.example", "ANN@x.example", "Émile@x.example"])
    await deliveries.start(conn, delivery)
    assert await duplicates.check(conn, delivery) == 1
    await appended(conn, delivery, "b", ["aNN@x.example", "éMILE@x.example", "bob@x.example"])
    assert await duplicates.check(conn, delivery) == 2
    assert await excluded(conn, delivery) == ["a1", "b0", "b1"]
    # What is mailed, and what the log says, is the address as it was given.
    assert await claimed(conn, delivery) == ["Ann@x.example", "Émile@x.example", "bob@x.example"]
    with pytest.raises(BadInput, match="duplicates_ignore_case"):
        await made(conn, duplicates=Duplicates.KEEP, duplicates_ignore_case=True)


@pytest.mark.parametrize(
    ("fields", "is_kept"),
    [
        ({}, False),
        ({"duplicates": Duplicates.KEEP}, True),
        ({"kind": DeliveryKind.TRANSACTIONAL}, True),
        ({"kind": DeliveryKind.TRANSACTIONAL, "duplicates": Duplicates.EXCLUDE}, False),
    ],
)
async def test_what_is_kept_and_what_is_not(conn: asyncpg.Connection, fields: dict[str, object], is_kept: bool) -> None:
    of = await made(conn, **fields)
    for delivery in (of, await deliveries.duplicate(conn, of)):
        await appended(conn, delivery, "a", ["ann@x.example", "ann@x.example"])
        await appended_by_sql(conn, delivery, "b", ["ann@x.example"])
        due = [
            row[0] for row in await conn.fetch("SELECT due_at FROM mta.delivery_part WHERE delivery_id = $1", delivery)
        ]
        assert [at == NOT_BEFORE_CHECKED for at in due] == [not is_kept] * 2
        await deliveries.seal(conn, delivery)
        await assert_adds_up(conn, delivery, 3, 0 if is_kept else 2)


async def test_nothing_is_claimed_before_it_was_looked_at_and_a_later_part_is_compared_with_what_is_gone(
    conn: asyncpg.Connection,
) -> None:
    delivery = await made(conn)
    await appended(conn, delivery, "a", ["ann@x.example", "bob@x.example", "ann@x.example"])
    await deliveries.start(conn, delivery)
    assert await claimed(conn, delivery) == []
    (view,) = await claim.active_deliveries(conn)
    assert view.has_unchecked
    assert await duplicates.check(conn, delivery) == 1
    assert await claimed(conn, delivery) == ["ann@x.example", "bob@x.example"]
    # As if all of it had been sent: parts are gone, and nothing but what was kept tells of them.
    await conn.execute("DELETE FROM mta.delivery_part")
    await conn.execute("DELETE FROM mta.part_settled")
    await appended_by_sql(conn, delivery, "b", ["cas@x.example", "bob@x.example"])
    await appended(conn, delivery, "c", ["dan@x.example", "cas@x.example"])
    assert await duplicates.check(conn, delivery) == 2
    assert await claimed(conn, delivery) == ["cas@x.example", "dan@x.example"]
    await appended(conn, delivery, "d", ["dan@x.example", "eve@x.example"])
    assert await deliveries.seal(conn, delivery) == 1
    assert await excluded(conn, delivery) == ["a2", "b1", "c1", "d0"]
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_address") == 0


async def test_what_is_kept_of_a_delivery_goes_when_it_is_over(conn: asyncpg.Connection) -> None:
    delivery = await made(conn)
    await appended(conn, delivery, "a", ["ann@x.example"])
    await deliveries.start(conn, delivery)
    await duplicates.check(conn, delivery)
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_address") == 1
    await conn.execute("DELETE FROM mta.delivery_part")
    await deliveries.cancel(conn, delivery)
    assert await claim.finish_ended_deliveries(conn) == [delivery]
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_address") == 0


async def test_a_large_append_after_a_small_one_and_the_other_way_round(conn: asyncpg.Connection) -> None:
    delivery = await made(conn)
    many = [f"u{n}@d{n % 7}.example" for n in range(duplicates.FEW_RECIPIENTS + 1)]
    await appended(conn, delivery, "a", many[10:20])
    await deliveries.start(conn, delivery)
    assert await duplicates.check(conn, delivery) == 0
    await appended(conn, delivery, "b", many)
    assert await duplicates.check(conn, delivery) == 10
    await appended(conn, delivery, "c", [*many[:5], "new@x.example"])
    assert await duplicates.check(conn, delivery) == 5
    await assert_adds_up(conn, delivery, len(many) + 16, 15)


async def test_who_was_in_quarantine_is_no_first_one(conn: asyncpg.Connection) -> None:
    await quarantine.put(conn, ["ann@x.example"], AddressStatus.QUARANTINED, "a test", "me")
    delivery = await made(conn)
    await appended(conn, delivery, "a", ["ann@x.example", "bob@x.example"])
    await quarantine.put(conn, ["ann@x.example"], AddressStatus.VALID, "", "me")
    await appended(conn, delivery, "b", ["ann@x.example", "bob@x.example", "ann@x.example"])
    assert await deliveries.seal(conn, delivery) == 2
    shown = await deliveries.show(conn, delivery)
    assert (shown.excluded, shown.excluded_duplicates, shown.waiting) == (3, 2, 2)
    assert (await audit(conn, delivery)).is_clean


async def test_who_was_sent_to_in_a_time_that_the_database_forgot_is_the_first_one(conn: asyncpg.Connection) -> None:
    delivery = await made(conn)
    append_id = await appended(conn, delivery, "a", ["ann@x.example", "bob@x.example", "ann@x.example"])
    # A node has told that the second Ann has her mail: settled, with another line than that of an exclusion.
    await conn.execute("INSERT INTO mta.part_settled SELECT id, '{2}' FROM mta.delivery_part")
    await conn.execute(
        "INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,"
        " address, site, mx_host, peer, egress, reply) VALUES (now(), $1, $2, 1, 1, 1, 0, 250, '', 'ann@x.example', '',"
        " '', '', '', '')",
        delivery,
        append_id << 16 | 2,
    )
    assert await deliveries.seal(conn, delivery) == 1
    assert [line["number"] for line in await conn.fetch(_EXCLUDED, delivery) if line["status"] == 6] == [
        append_id << 16
    ]
    await deliveries.start(conn, delivery)
    assert await claimed(conn, delivery) == ["bob@x.example"]


async def test_appends_at_once_from_several_sides_while_looks_are_made(database: Database) -> None:
    people = [f"u{n}@d{n % 5}.example" for n in range(60)]
    async with database.pool.acquire() as conn:
        delivery = await made(conn)
        await deliveries.start(conn, delivery)

    async def one_side(side: int) -> None:
        append = appended_by_sql if side % 2 else appended
        for at in range(0, 60, 6):
            async with database.pool.acquire() as conn:
                await append(conn, delivery, f"{side}-{at}-", people[at : at + 6])

    async def look() -> None:
        for _ in range(10):
            async with database.pool.acquire() as conn:
                await duplicates.check(conn, delivery)

    await asyncio.gather(*(one_side(side) for side in range(3)), look(), look())
    async with database.pool.acquire() as conn:
        await deliveries.seal(conn, delivery)
        assert sorted(await claimed(conn, delivery)) == sorted(people)
        await assert_adds_up(conn, delivery, 180, 120)


async def test_a_look_that_is_cut_short_has_done_nothing(database: Database) -> None:
    async with database.pool.acquire() as conn, database.pool.acquire() as other:
        delivery = await made(conn)
        await appended(conn, delivery, "a", ["ann@x.example", "ann@x.example"])
        await deliveries.start(conn, delivery)
        # Somebody holds one of its parts, so the look stands in the middle of the transaction that excludes.
        async with other.transaction():
            await other.execute("SELECT FROM mta.delivery_part FOR UPDATE")
            look = asyncio.create_task(duplicates.check(conn, delivery))
            pid = conn.get_server_pid()
            waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
            while not await other.fetchval(waits, pid):
                await other.execute("SELECT pg_stat_clear_snapshot()")
                await asyncio.sleep(0.01)
            await other.execute("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await look
        assert (await deliveries.show(other, delivery)).unchecked == 2
        assert await duplicates.check(other, delivery) == 1
        await assert_adds_up(other, delivery, 2, 1)


async def test_what_was_claimed_between_search_and_exclusion_is_left_alone(database: Database) -> None:
    """A delivery that is cancelled: its parts are taken as they are, to be recorded as cancelled."""
    async with database.pool.acquire() as conn, database.pool.acquire() as other:
        delivery = await made(conn)
        append_id = await appended(conn, delivery, "a", ["ann@x.example", "ann@x.example"])
        await appended(conn, delivery, "b", ["bob@x.example", "bob@x.example"])
        await deliveries.start(conn, delivery)
        run = await nodes.register(conn, "n", "boot", 60.0)
        async with other.transaction():
            await other.execute("SELECT FROM mta.delivery_part WHERE delivery_id = $1 FOR UPDATE", delivery)
            look = asyncio.create_task(duplicates.check(conn, delivery))
            await asyncio.sleep(0.3)
            await other.execute("UPDATE mta.delivery_part SET owner = $1 WHERE append_id = $2", run.id, append_id)
        assert await look == 1
        assert await excluded(other, delivery) == ["b1"]
        assert await claim.claim(other, run.id, delivery, 10, also_not_due=True)
        assert (await audit(other, delivery)).is_clean


async def test_waves_are_of_what_is_mailed_once(conn: asyncpg.Connection) -> None:
    delivery = await made(conn, waves='{"share": 2, "every_s": 3600}')
    await appended(conn, delivery, "a", ["ann@x.example", "ann@x.example", "bob@x.example", "cas@x.example"])
    await deliveries.start(conn, delivery)
    await assert_adds_up(conn, delivery, 4, 1)
    assert await claimed(conn, delivery) == ["ann@x.example"]
    await appended(conn, delivery, "b", ["cas@x.example", "dan@x.example"])
    assert await duplicates.check(conn, delivery) == 1
    assert await claimed(conn, delivery) == ["ann@x.example"]  # what came later is of the last wave
    await assert_adds_up(conn, delivery, 6, 2)


@given(
    st.lists(
        st.lists(st.sampled_from(["a@x.example", "A@x.example", "b@x.example", "c@y.example"]), min_size=1), max_size=6
    ),
    st.sets(st.integers(0, 5)),
    st.booleans(),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_comes_and_whenever_it_is_looked_at(
    conn: asyncpg.Connection, parts: list[list[str]], looks: set[int], ignores_case: bool
) -> None:
    delivery = await made(conn, duplicates_ignore_case=ignores_case)
    await deliveries.start(conn, delivery)
    seen: set[str] = set()
    first: list[str] = []
    for at, addresses in enumerate(parts):
        await appended(conn, delivery, f"k{at}", addresses)
        if at in looks:
            await duplicates.check(conn, delivery)
        for address in addresses:
            folded = address.lower() if ignores_case else address
            first += [] if folded in seen else [address]
            seen.add(folded)
    await deliveries.seal(conn, delivery)
    assert sorted(await claimed(conn, delivery)) == sorted(first)
    total = sum(map(len, parts))
    await assert_adds_up(conn, delivery, total, total - len(first))
