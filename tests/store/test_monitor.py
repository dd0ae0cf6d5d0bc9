"""Figures for people: right to the last message, fast on a long log, and each alert raised once."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import asyncpg
import msgspec
import pytest

from mta.model.outcome import Status
from mta.outcomes.line import COLUMNS
from mta.queue import deliveries, monitor, nodes
from mta.queue.append import append_parts
from mta.queue.monitor import AlertBounds, AlertKind, Judged, alerts_for
from mta.queue.part import Part
from mta.queue.settle import TRAFFIC_AT, Settlement, commit
from tests.support.content import new_delivery
from tests.support.postgres import Database

LINES = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply, bytes)
SELECT now() - make_interval(secs => $1 + n * $2), $3, n, 1, 1, $4, 3, $5, '', 'u' || n || '@' || $6, $6, 'mx.' || $6,
       '192.0.2.1', $7, $8 || n, 1000
FROM generate_series(1, $9::int) n
"""


async def lines(
    conn: asyncpg.Connection,
    count: int,
    *,
    status: Status,
    code: int = 250,
    domain: str = "d.test",
    egress: str = "e1",
    reply: str = "reply ",
    since_s: float = 0.0,
    step_s: float = 0.001,
    delivery: int = 1,
) -> None:
    await conn.execute(LINES, since_s, step_s, delivery, int(status), code, domain, egress, reply, count)


async def test_minutes_move_with_the_settlement_and_are_added_up_in_buckets(conn: asyncpg.Connection) -> None:
    one = await nodes.register(conn, "one", "boot", 60.0)
    two = await nodes.register(conn, "two", "boot", 60.0)
    now_s = datetime.datetime.now(datetime.UTC).timestamp()
    for sequence in (1, 2, 3):
        for run in (one, two):
            settlement = Settlement()
            for at_s, egress in ((now_s, "e1"), (now_s, "e2"), (now_s - 3_000, "e1"), (now_s - 90_000, "e1")):
                figures = settlement.traffic_of(at_s, egress)
                figures[TRAFFIC_AT[Status.DELIVERED]] += 10
                figures[TRAFFIC_AT[Status.DEFERRED]] += 1
                figures[TRAFFIC_AT["bytes_delivered"]] += 10_000
                figures[TRAFFIC_AT["bytes_other"]] += 7
            await commit(conn, run, settlement, sequence, COLUMNS)
            await commit(conn, run, settlement, sequence, COLUMNS)  # a retry of what is recorded changes nothing
    for hours, expected in ((1, 180), (3, 180), (24, 180)):
        width_s, buckets = await monitor.throughput(conn, hours)
        assert len(buckets) * width_s == hours * 3_600
        assert sum(bucket.delivered for bucket in buckets) == expected
        assert sum(bucket.bytes_delivered for bucket in buckets) == 1_000 * expected
        assert sum(bucket.errors for bucket in buckets) == expected // 10
        assert buckets[-1].begins_at <= datetime.datetime.now(datetime.UTC)
    _, buckets = await monitor.throughput(conn, 1, egress="e2", node="two")
    assert [bucket.delivered for bucket in buckets if bucket.delivered] == [30]
    await conn.execute("UPDATE mta.traffic_minute SET minute = minute - interval '50 days' WHERE egress = 'e2'")
    await monitor.forget_traffic(conn)
    assert await conn.fetchval("SELECT array_agg(DISTINCT egress) FROM mta.traffic_minute") == ["e1"]


async def test_a_path_is_listed_from_fifty_errors_an_hour_with_its_last_reply(conn: asyncpg.Connection) -> None:
    await lines(conn, 1000, status=Status.DELIVERED, domain="bad.test")
    await lines(conn, 30, status=Status.FAILED, code=550, domain="bad.test", reply="5.1.1 unknown ", since_s=60)
    await lines(conn, 20, status=Status.DEFERRED, code=451, domain="bad.test", reply="4.7.1 later ", since_s=10)
    await lines(conn, 49, status=Status.DEFERRED, code=451, domain="fair.test")
    await lines(conn, 500, status=Status.DEFERRED, code=451, domain="old.test", since_s=3_700)
    await lines(conn, 60, status=Status.DEFERRED, code=0, domain="gone.test", egress="")
    await lines(conn, 70, status=Status.CANCELLED, code=0, domain="cancelled.test", egress="")
    found = await monitor.errors(conn)
    assert [(one.domain, one.egress, one.errors) for one in found] == [("gone.test", "", 60), ("bad.test", "e1", 50)]
    worst = found[1]
    assert (worst.failed, worst.deferred, worst.in_doubt, worst.refused) == (30, 20, 0, 50)
    assert (worst.code, worst.reply, worst.mx_host) == (451, "4.7.1 later 1", "mx.bad.test")
    assert len(await monitor.errors(conn, minimum=49)) == 3
    assert len(await monitor.errors(conn, hours=3)) == 3


async def test_an_egress_is_drilled_into_by_domain_and_reply(conn: asyncpg.Connection) -> None:
    await lines(conn, 100, status=Status.DELIVERED, domain="a.test")
    await lines(conn, 7, status=Status.FAILED, code=550, domain="a.test")
    await lines(conn, 5, status=Status.DEFERRED, code=0, domain="a.test")
    await lines(conn, 3, status=Status.EXPIRED, code=0, domain="a.test")
    await lines(conn, 4, status=Status.IN_DOUBT, code=0, domain="b.test")
    await lines(conn, 9, status=Status.DELIVERED, domain="a.test", egress="e2")
    figures, replies = await monitor.paths(conn, egress="e1")
    assert [(one.domain, one.attempted, one.delivered, one.refused, one.unreachable) for one in figures] == [
        ("a.test", 115, 100, 7, 5),
        ("b.test", 4, 0, 0, 0),
    ]
    assert (figures[0].expired, figures[1].in_doubt) == (3, 4)
    assert sum(one.times for one in replies) == 19
    figures, _ = await monitor.paths(conn, domain="a.test")
    assert {one.egress: one.attempted for one in figures} == {"e1": 115, "e2": 9}


async def _plan(conn: asyncpg.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    explained = json.loads(await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *values))
    found, ahead = [], [explained[0]["Plan"]]
    while ahead:
        node = ahead.pop()
        found.append(node)
        ahead += node.get("Plans", [])
    return found


async def test_an_hours_errors_are_found_without_a_look_at_what_went_well(conn: asyncpg.Connection) -> None:
    await lines(conn, 100_000, status=Status.DELIVERED, step_s=0.1)
    await lines(conn, 300, status=Status.DEFERRED, code=451, step_s=1.0)
    await lines(conn, 20_000, status=Status.DEFERRED, code=451, since_s=4_000, step_s=0.1)
    await conn.execute("VACUUM ANALYZE mta.delivery_log")
    plan = await _plan(conn, monitor.ERRORS, 3_600, 50, 200)
    used = {node["Index Name"] for node in plan if "Index Name" in node and node["Actual Rows"]}
    assert used
    partial = "SELECT indexname FROM pg_indexes WHERE schemaname = 'mta' AND indexdef LIKE '%WHERE%'"
    of_trouble = await conn.fetch(partial)
    assert used <= {row["indexname"] for row in of_trouble}
    assert not [node for node in plan if node["Node Type"] == "Seq Scan" and node["Actual Rows"] > 1_000]
    assert plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"] < 400


async def test_an_hour_of_a_path_is_read_without_the_rest_of_the_day(conn: asyncpg.Connection) -> None:
    # In the order of their times, as a log is written.
    await conn.execute(
        """
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                      address, site, mx_host, peer, egress, reply)
        SELECT now() - make_interval(secs => (200000 - n) * 0.1), 1, n, 1, 1, 1, 0, 250, '', 'u' || n || '@d.test', '',
               '', '', 'e1', '' FROM generate_series(1, 200000) n
        """
    )
    await conn.execute("VACUUM ANALYZE mta.delivery_log")
    plan = await _plan(conn, monitor.PATHS, 3_600, "e1", None, 200)
    blocks = plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]
    whole = await conn.fetchval(
        "SELECT sum(pg_relation_size(inhrelid)) / 8192 FROM pg_inherits WHERE inhparent = 'mta.delivery_log'::regclass"
    )
    assert blocks < whole / 3, (blocks, whole)


async def test_minutes_of_a_day_are_found_by_their_key(conn: asyncpg.Connection) -> None:
    await conn.execute(
        """
        INSERT INTO mta.traffic_minute (minute, node, egress, delivered)
        SELECT date_trunc('minute', now()) - make_interval(mins => m), 'one', 'e' || e, 5
        FROM generate_series(0, 20000) m, generate_series(1, 4) e
        """
    )
    await conn.execute("ANALYZE mta.traffic_minute")
    plan = await _plan(conn, monitor.THROUGHPUT, 12, 300, None, None)
    read = sum(n["Actual Rows"] * n["Actual Loops"] for n in plan if n.get("Relation Name") == "traffic_minute")
    assert read <= 4 * 65
    assert not [n for n in plan if n["Node Type"] == "Seq Scan"]


# --- alerts --------------------------------------------------------------------------------------

GOOD = Judged(7, "News", "running", False, 3_600.0, 432_000.0, good=900, failed=10, expired=0, deferrals=5, due=1_000)


def kinds(**changes: object) -> list[AlertKind]:
    return [alert.kind for alert in alerts_for(msgspec.structs.replace(GOOD, **changes), AlertBounds())]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"has_ended": True, "good": 0, "failed": 1_000}, [AlertKind.FAILED]),
        ({"has_ended": True, "good": 0, "failed": 0, "due": 0}, []),
        ({"good": 79, "failed": 21, "due": 100}, [AlertKind.LOW_SUCCESS]),
        ({"good": 80, "failed": 20, "due": 100}, []),
        ({"good": 0, "failed": 49, "due": 49}, []),
        ({"good": 0, "failed": 50, "due": 50}, [AlertKind.LOW_SUCCESS]),
        ({"good": 10, "failed": 0}, [AlertKind.SLOW]),
        ({"good": 0, "failed": 0}, [AlertKind.SLOW]),
        ({"good": 0, "failed": 0, "ran_s": 599.0}, []),
        ({"good": 50, "failed": 0, "valid_s": 7_200.0}, [AlertKind.SLOW]),
        ({"good": 10, "failed": 40, "valid_s": 7_200.0}, [AlertKind.LOW_SUCCESS, AlertKind.SLOW]),
    ],
)
def test_what_an_alert_is_raised_for(changes: dict[str, object], expected: list[AlertKind]) -> None:
    assert kinds(**changes) == expected


async def test_each_alert_is_raised_once_however_many_look(database: Database, conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, name="Spring")
    await append_parts(conn, made, [Part("p", (), [(f"u{n}@d.test", None, []) for n in range(1_000)])])
    await deliveries.start(conn, made)
    await conn.execute("UPDATE mta.delivery SET started_at = now() - interval '2 hours' WHERE id = $1", made)
    await conn.execute("UPDATE mta.delivery_stats SET delivered = 10, failed = 45 WHERE delivery_id = $1", made)

    async def look() -> list[monitor.Alert]:
        async with database.pool.acquire() as other:
            return await monitor.check_alerts(other)

    raised = [alert for found in await asyncio.gather(*(look() for _ in range(6))) for alert in found]
    assert sorted(alert.key for alert in raised) == [f"low-success {made}", f"slow {made}"]
    assert await look() == []
    told = await monitor.alerts(conn)
    assert {alert.kind for alert in told} == {AlertKind.LOW_SUCCESS, AlertKind.SLOW}
    assert any("945 of 1,000 wait after 120 minutes" in alert.detail for alert in told)
