"""Indicators by domain: sums of the log, and marked exactly where the bounds say."""

from __future__ import annotations

import datetime
import json
import random
from typing import Any

import asyncpg
import pytest

from mta.model.errors import BadInput
from mta.model.outcome import Reason, Status
from mta.queue import indicators as queries
from mta.queue.indicators import HARD, SOFT, Indicators, Mark, indicators

DAY = datetime.timedelta(days=1)
LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
SELECT now() - make_interval(secs => g.ago_s), g.delivery, g.number, 1, 1, g.status, g.reason, 0, '', g.address, g.site,
       '', '', 'e1', ''
FROM unnest($1::float8[], $2::bigint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::text[], $7::text[])
     AS g (ago_s, delivery, number, status, reason, address, site)
"""
Line = tuple[float, int, int, Status, Reason, str, str]


async def put(conn: asyncpg.Connection, lines: list[Line]) -> None:
    await conn.execute(LINE, *map(list, zip(*lines, strict=True)))


def of(domain: str, counts: dict[tuple[Status, Reason], int], *, delivery: int = 1, ago_s: float = 60.0) -> list[Line]:
    """So many lines of each kind, each of a recipient of its own."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    return [
        (ago_s, delivery, number, status, reason, f"u{number}@{domain}", f"mx.{domain}")
        for number, (status, reason) in enumerate(kinds, 1)
    ]


DELIVERED = (Status.DELIVERED, Reason.NOT_DEFINED)
UNKNOWN = (Status.FAILED, Reason.USER_UNKNOWN)
FULL = (Status.FAILED, Reason.MAILBOX_FULL)
COMPLAINED = (Status.COMPLAINED, Reason.DENYLISTED)


async def one(conn: asyncpg.Connection, counts: dict[tuple[Status, Reason], int]) -> Indicators:
    await put(conn, of("d.test", counts))
    table = await indicators(conn, since=DAY, sent_min=0)
    (found,) = table.listed
    assert table.others is None
    return found


@pytest.mark.parametrize(
    ("counts", "marks"),
    [
        ({DELIVERED: 98, UNKNOWN: 2}, []),  # exactly 2 %
        ({DELIVERED: 979, UNKNOWN: 21}, [Mark.HARD]),  # 2.1 %
        ({DELIVERED: 49_999, UNKNOWN: 1_020}, []),  # 1.9992 %
        ({DELIVERED: 49_979, UNKNOWN: 1_021}, [Mark.HARD]),  # 2.00196 %
        ({DELIVERED: 90, FULL: 10}, []),  # exactly 10 %
        ({DELIVERED: 899, FULL: 101}, [Mark.SOFT]),  # 10.1 %
        ({DELIVERED: 880, UNKNOWN: 19, FULL: 101}, [Mark.SOFT]),
        ({DELIVERED: 800, UNKNOWN: 50, FULL: 150}, [Mark.HARD, Mark.SOFT]),
        ({DELIVERED: 1_000, COMPLAINED: 1}, []),  # exactly 0.1 %
        ({DELIVERED: 999, COMPLAINED: 1}, [Mark.COMPLAINTS]),
        ({DELIVERED: 1_000, COMPLAINED: 3}, [Mark.COMPLAINTS]),  # exactly 0.3 %
        ({DELIVERED: 1_000, COMPLAINED: 4}, [Mark.COMPLAINTS_BAD]),
        # Neither counts as an error of a kind, and a deferral is none at all.
        ({DELIVERED: 500, (Status.FAILED, Reason.NOT_DEFINED): 500}, []),
        ({DELIVERED: 10, (Status.DEFERRED, Reason.USER_UNKNOWN): 90}, []),
        ({DELIVERED: 10, (Status.EXCLUDED, Reason.QUARANTINED): 90}, []),
        ({(Status.BOUNCED, Reason.USER_UNKNOWN): 1}, [Mark.HARD]),
    ],
)
async def test_bounds_are_crossed_above_them_and_not_at_them(
    conn: asyncpg.Connection, counts: dict[tuple[Status, Reason], int], marks: list[Mark]
) -> None:
    assert (await one(conn, counts)).marks == marks


async def test_hard_is_user_unknown_only_and_soft_has_the_six_reasons(conn: asyncpg.Connection) -> None:
    failed = {(Status.FAILED, reason): 1 for reason in Reason}
    found = await one(conn, {DELIVERED: 100, **failed})
    assert (found.sent, found.failed, found.hard, found.soft) == (100 + len(Reason), len(Reason), 1, 6)
    assert {*HARD, *SOFT} == {Reason(number) for number in (1, 2, 3, 4, 5, 6, 20)}


async def test_a_bounce_that_came_later_counts_once_as_what_it_was(conn: asyncpg.Connection) -> None:
    found = await one(
        conn,
        {DELIVERED: 100, (Status.BOUNCED, Reason.USER_UNKNOWN): 3, (Status.BOUNCED, Reason.MAILBOX_FULL): 4},
    )
    assert (found.sent, found.delivered, found.bounced, found.hard, found.soft) == (100, 100, 7, 3, 4)
    assert found.hard_percent == 3.0


async def test_what_expired_is_soft_by_its_last_deferral(conn: asyncpg.Connection) -> None:
    expired = (Status.EXPIRED, Reason.NOT_DEFINED)
    await put(conn, of("d.test", {expired: 3}, ago_s=10))
    later: list[Line] = [
        (900, 1, 1, Status.DEFERRED, Reason.MAILBOX_FULL, "u1@d.test", "s"),
        (90_000, 1, 2, Status.DEFERRED, Reason.MAILBOX_FULL, "u2@d.test", "s"),  # before the window: still its cause
        (800, 1, 2, Status.DEFERRED, Reason.USER_UNKNOWN, "u2@d.test", "s"),
        (800, 2, 3, Status.DEFERRED, Reason.MAILBOX_FULL, "u3@d.test", "s"),  # another delivery's
    ]
    await put(conn, later)
    table = await indicators(conn, since=DAY, sent_min=0)
    assert [(row.expired, row.hard, row.soft, row.deferrals) for row in table.listed] == [(3, 1, 1, 3)]


def _reckoned(lines: list[Line], window_s: float, delivery: int | None) -> dict[str, dict[str, int]]:
    """The same from the lines, one by one."""
    found: dict[str, dict[str, int]] = {}
    for ago_s, of_delivery, number, status, reason, address, _ in lines:
        if ago_s >= window_s or delivery not in (None, of_delivery):
            continue
        sums = found.setdefault(address.rpartition("@")[2].lower(), dict.fromkeys(Indicators.__struct_fields__[1:], 0))
        column = {
            Status.DELIVERED: "delivered",
            Status.FAILED: "failed",
            Status.EXPIRED: "expired",
            Status.DEFERRED: "deferrals",
            Status.BOUNCED: "bounced",
            Status.COMPLAINED: "complaints",
            Status.UNSUBSCRIBED: "unsubscribed",
        }.get(status)
        if column is None:
            continue
        sums[column] += 1
        sums["sent"] += column in ("delivered", "failed", "expired")
        why = reason
        if status is Status.EXPIRED:
            before = [line for line in lines if line[1:3] == (of_delivery, number) and line[3] is Status.DEFERRED]
            why = min(before)[4] if before else Reason.NOT_DEFINED
        if column in ("failed", "expired", "bounced"):
            sums["hard"] += why in HARD
            sums["soft"] += why in SOFT
    return {domain: sums for domain, sums in found.items() if any(sums.values())}


@pytest.mark.parametrize("delivery", [None, 2])
async def test_figures_equal_the_log(conn: asyncpg.Connection, delivery: int | None) -> None:
    dice = random.Random(5)
    domains = ["a.test", "A.test", "b.test", "c.example", "d.example"]
    statuses, reasons = list(Status), list(Reason)
    lines: list[Line] = []
    for number in range(1, 3_001):
        domain, of_delivery = dice.choice(domains), dice.choice((1, 2))
        address = f"u{number}@{domain}"
        if dice.random() < 0.3:
            deferred = (dice.uniform(5_000, 9_000), of_delivery, number, Status.DEFERRED, dice.choice(reasons))
            lines.append((*deferred, address, f"mx.{domain.lower()}+sts"))
        lines.append(
            (
                *(dice.uniform(10, 4_900), of_delivery, number, dice.choice(statuses), dice.choice(reasons)),
                *(address, f"mx.{domain.lower()}"),
            )
        )
    await put(conn, lines)
    window = datetime.timedelta(seconds=7_000)
    table = await indicators(conn, since=window, delivery_id=delivery, sent_min=0)
    found = {row.name: {f: getattr(row, f) for f in Indicators.__struct_fields__[1:]} for row in table.listed}
    expected = _reckoned(lines, 7_000, delivery)
    assert found == expected
    assert table.total.sent == sum(sums["sent"] for sums in expected.values())
    by_site = await indicators(conn, since=window, delivery_id=delivery, by="site", sent_min=0)
    assert {row.name: row.sent for row in by_site.listed} == {
        f"mx.{domain}": sums["sent"] for domain, sums in expected.items()
    }

    def provider_of(site: str) -> str:
        return "large" if site.endswith(".test") else ""

    by_provider = await indicators(
        conn, since=window, delivery_id=delivery, by="provider", provider_of=provider_of, sent_min=0
    )
    assert {row.name: row.sent for row in by_provider.listed} == {
        "large": expected["a.test"]["sent"] + expected["b.test"]["sent"],
        "": expected["c.example"]["sent"] + expected["d.example"]["sent"],
    }


async def test_small_ones_are_summed_up_and_marked_ones_come_first(conn: asyncpg.Connection) -> None:
    await put(conn, of("large.test", {DELIVERED: 500}))
    await put(conn, of("bad.test", {DELIVERED: 50, UNKNOWN: 10}))
    for number in range(5):
        await put(conn, of(f"small{number}.test", {DELIVERED: 9, UNKNOWN: 1}))
    await put(conn, of("storm.test", {(Status.BOUNCED, Reason.USER_UNKNOWN): 70}))
    table = await indicators(conn, since=DAY)
    assert [row.name for row in table.listed] == ["bad.test", "storm.test", "large.test"]
    assert table.others is not None
    assert (table.others.sent, table.others.hard, table.total.sent) == (50, 5, 610)
    cut = await indicators(conn, since=DAY, limit=1)
    assert [row.name for row in cut.listed] == ["bad.test"]
    assert cut.others is not None
    assert cut.others.sent == 550


async def test_a_question_about_everything_for_ever_is_refused(conn: asyncpg.Connection) -> None:
    with pytest.raises(BadInput, match="a window"):
        await indicators(conn)
    with pytest.raises(BadInput, match="31 days"):
        await indicators(conn, since=datetime.timedelta(days=32))


async def test_an_hour_is_read_without_the_rest_of_the_log(conn: asyncpg.Connection) -> None:
    await conn.execute(
        """
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                      address, site, mx_host, peer, egress, reply)
        SELECT now() - make_interval(secs => (200000 - n) * 0.3), 1, n, 1, 1, CASE WHEN n % 50 = 0 THEN 3 ELSE 1 END, 0,
               250, '', 'u' || n || '@d.test', 'mx.d.test', '', '', 'e1', '' FROM generate_series(1, 200000) n
        """
    )
    await conn.execute("VACUUM ANALYZE mta.delivery_log")
    query = queries._FIGURES.format(by=queries._BY["domain"], which=queries._OF_WINDOW)
    explained: Any = json.loads(
        await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", datetime.timedelta(hours=1))
    )
    plan = explained[0]["Plan"]
    ahead, blocks_of_log = [plan], 0
    while ahead:
        node = ahead.pop()
        ahead += node.get("Plans", [])
        if node["Node Type"] in ("Seq Scan", "Bitmap Heap Scan") and str(node.get("Alias", "")).startswith("l"):
            blocks_of_log += node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    pages = await conn.fetchval("SELECT sum(pg_relation_size(i.inhrelid)) / 8192 FROM pg_inherits i")
    assert 0 < blocks_of_log < pages / 4
