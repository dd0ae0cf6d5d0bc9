"""Refusals for our own fault: an alert on the egress or the sender domain, once, with what is needed to act on it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.model.outcome import Reason, Status
from mta.queue import deliveries, faults, monitor
from mta.queue.faults import OF_SENDER, Bound, Fault, FaultBounds
from mta.queue.monitor import AlertKind
from tests.support.content import content_json, new_delivery
from tests.support.postgres import Database

LINES = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply, type, category)
SELECT now() - make_interval(secs => $1 + n * 0.01), $2, n, 1, $9, $3, 20, 554, '5.7.1', 'u' || n || '@d.test', $4, $4,
       '192.0.2.1', $5, 'blocked using list.example.org ' || n, $6, $7
FROM generate_series(1, $8::int) n
"""
MINUTE = """
INSERT INTO mta.traffic_minute (minute, node, egress, delivered, failed)
SELECT date_trunc('minute', now()) - interval '2 minutes', 'n', egress, count(*) FILTER (WHERE status = 1),
       count(*) FILTER (WHERE status <> 1)
FROM mta.delivery_log GROUP BY egress
"""
EDGE = FaultBounds(Bound(20, 5.0), {})


async def lines(
    conn: asyncpg.Connection,
    count: int,
    category: Category = Category.NONE,
    *,
    status: Status = Status.FAILED,
    site: str = "mx.big.example",
    egress: str = "out-1",
    delivery: int = 1,
    ago_s: float = 60.0,
    attempt: int = 1,
) -> None:
    status = Status.DELIVERED if category is Category.NONE else status
    kind = FailureType.IGNORED if category else FailureType.NOT_DEFINED
    await conn.execute(LINES, ago_s, delivery, int(status), site, egress, int(kind), int(category), count, attempt)


async def look(conn: asyncpg.Connection, bounds: FaultBounds = EDGE) -> list[Fault]:
    return await faults.look(conn, bounds, is_turn_taken=True)


@pytest.mark.parametrize(
    ("refused", "delivered", "is_raised"),
    [(19, 0, False), (20, 0, True), (20, 380, True), (20, 381, False), (100, 1_900, True), (100, 1_901, False)],
)
async def test_an_alert_needs_the_number_and_the_share(
    conn: asyncpg.Connection, refused: int, delivered: int, is_raised: bool
) -> None:
    await lines(conn, refused, Category.IP_BLOCKED)
    await lines(conn, delivered)
    assert bool(await look(conn)) is is_raised


async def test_an_alert_says_who_is_refused_where_for_what_and_since_when(conn: asyncpg.Connection) -> None:
    await lines(conn, 15, Category.IP_BLOCKED, ago_s=1_800)
    await lines(conn, 25, Category.IP_BLOCKED, status=Status.DEFERRED)
    await lines(conn, 60)
    await lines(conn, 500, site="mx.other.example")
    (found,) = await look(conn)
    assert (found.egress, found.sender, found.site) == ("out-1", "", "mx.big.example")
    assert (found.category, found.minutes, found.refused, found.attempted) == (Category.IP_BLOCKED, 15, 25, 85)
    assert found.reply == "554 5.7.1 blocked using list.example.org 1"
    (told,) = await monitor.alerts(conn)
    assert (told.kind, told.delivery_id, told.egress, told.category) == (
        *(AlertKind.OUR_FAULT, None, "out-1"),
        Category.IP_BLOCKED,
    )
    assert told.since == found.since
    oldest = await conn.fetchval("SELECT min(at) FROM mta.delivery_log WHERE category = 12")
    assert (told.since, told.ended_at, told.reply) == (oldest, None, found.reply)
    assert (
        told.detail == "egress out-1 at mx.big.example: 25 of 85 attempts in 15 minutes (29.4 %) refused as ip_blocked"
    )


async def test_what_is_spread_over_an_hour_counts_as_an_hour(conn: asyncpg.Connection) -> None:
    await lines(conn, 12, Category.IP_BLOCKED, ago_s=3_000)
    await lines(conn, 12, Category.IP_BLOCKED)
    await lines(conn, 50, Category.IP_BLOCKED, ago_s=3_700)  # long ago
    (found,) = await look(conn)
    assert (found.minutes, found.refused) == (60, 24)


@pytest.mark.parametrize("category", sorted(set(Category) - OUR_FAULT))
async def test_what_is_the_addresses_fault_is_none_of_ours(conn: asyncpg.Connection, category: Category) -> None:
    await lines(conn, 500, category)
    assert await look(conn) == []


@pytest.mark.parametrize("category", sorted(OUR_FAULT))
async def test_each_fault_of_ours_is_told_of_egress_or_sender(conn: asyncpg.Connection, category: Category) -> None:
    made = await new_delivery(conn)
    await lines(conn, 100, category, delivery=made)
    (found,) = await look(conn)
    assert found.category is category
    if category in OF_SENDER:
        assert (found.egress, found.sender) == ("", "shop.example")
    else:
        assert (found.egress, found.sender) == ("out-1", "")


async def test_a_sender_domain_is_counted_over_all_egresses_and_deliveries(conn: asyncpg.Connection) -> None:
    first, second = await new_delivery(conn), await new_delivery(conn)
    other = await deliveries.create(
        conn, deliveries.NewDelivery(name="x", content=content_json(sender="Bank <a@bank.example>"))
    )
    for delivery, egress in ((first, "out-1"), (second, "out-2")):
        await lines(conn, 15, Category.AUTH_FAILURE, delivery=delivery, egress=egress)
        await lines(conn, 85, delivery=delivery, egress=egress)
    await lines(conn, 15, Category.AUTH_FAILURE, delivery=other)
    (found,) = await look(conn)
    assert (found.egress, found.sender, found.refused, found.attempted) == ("", "shop.example", 30, 200)
    # Of a delivery that nobody knows any more the egress is all there is.
    await lines(conn, 30, Category.AUTH_FAILURE, delivery=999, egress="out-3")
    assert [(one.egress, one.sender) for one in await look(conn)] == [("out-3", "")]


async def test_a_listing_is_noticed_at_many_small_sites(conn: asyncpg.Connection) -> None:
    for number in range(30):
        await lines(conn, 2, Category.IP_BLOCKED, site=f"mx.small{number}.example")
    await lines(conn, 500)
    await conn.execute(MINUTE)
    (found,) = await look(conn)
    assert (found.egress, found.site, found.refused, found.attempted) == ("out-1", "", 60, 560)
    assert "at many sites" in found.detail
    await lines(conn, 5_000, site="mx.big.example")
    await conn.execute("TRUNCATE mta.traffic_minute")
    await conn.execute(MINUTE)
    assert await faults.faults(conn, EDGE) == []


async def test_sites_with_an_alert_of_their_own_are_not_counted_twice(conn: asyncpg.Connection) -> None:
    await lines(conn, 500, Category.IP_BLOCKED)
    await lines(conn, 5, Category.IP_BLOCKED, site="mx.small.example")
    await lines(conn, 6, Category.IP_BLOCKED, site="mx.little.example")
    await conn.execute(MINUTE)
    assert [one.site for one in await look(conn)] == ["mx.big.example"]


async def test_later_is_everyday(conn: asyncpg.Connection) -> None:
    await lines(conn, 199, Category.RATE_LIMITED, status=Status.DEFERRED, attempt=2)
    assert await look(conn, FaultBounds()) == []
    await lines(conn, 1, Category.RATE_LIMITED, status=Status.DEFERRED, attempt=2)
    assert len(await look(conn, FaultBounds())) == 1


@pytest.mark.parametrize("category", [Category.RATE_LIMITED, Category.POLICY])
async def test_greylisting_raises_none_whatever_it_says_of_itself(conn: asyncpg.Connection, category: Category) -> None:
    await lines(conn, 1_000, category, status=Status.DEFERRED)
    assert await look(conn, FaultBounds()) == []
    # A listing that is only told as "for now" is no greylisting.
    await lines(conn, 100, Category.IP_BLOCKED, status=Status.DEFERRED)
    assert [one.category for one in await look(conn, FaultBounds())] == [Category.IP_BLOCKED]


async def test_it_is_raised_once_and_again_only_after_an_hour_of_quiet(
    database: Database, conn: asyncpg.Connection
) -> None:
    await lines(conn, 50, Category.IP_BLOCKED)

    async def one_node() -> list[Fault]:
        async with database.pool.acquire() as other:
            return await faults.look(other, EDGE)

    raised = await asyncio.gather(*(one_node() for _ in range(6)))
    assert sum(map(len, raised)) == 1
    assert await one_node() == []  # whoever comes within the same minute does not even look
    assert await look(conn) == []
    await conn.execute("UPDATE mta.delivery_log SET at = at - interval '2 hours'")
    await conn.execute("UPDATE mta.alert SET seen_at = now() - interval '59 minutes'")
    await look(conn)
    assert (await monitor.alerts(conn))[0].ended_at is None
    await conn.execute("UPDATE mta.alert SET seen_at = now() - interval '61 minutes'")
    await look(conn)
    assert (await monitor.alerts(conn))[0].ended_at is not None
    await lines(conn, 50, Category.IP_BLOCKED)
    assert len(await look(conn)) == 1
    assert [one.ended_at is None for one in await monitor.alerts(conn)] == [True, False]


async def test_a_reason_is_not_what_counts_but_the_category(conn: asyncpg.Connection) -> None:
    await conn.execute(LINES, 60.0, 1, int(Status.FAILED), "mx.big.example", "out-1", 3, int(Category.POLICY), 30, 1)
    await conn.execute("UPDATE mta.delivery_log SET reason = $1", int(Reason.UNREACHABLE))
    assert len(await look(conn)) == 1
