"""The outcome transaction: all of it or nothing, once, and only for a run that lives."""

from __future__ import annotations

import time
from typing import Any

import asyncpg
import msgspec
import pytest

from mta.model.outcome import Status
from mta.outcomes.line import COLUMNS, log_line, session_columns, timestamp
from mta.queue import claim, deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.nodes import Fenced, NodeRun
from mta.queue.part import Part
from mta.queue.settle import Doubt, NewPart, Settlement, commit, forget_credits, load_credits
from tests.support.content import new_delivery

NO_VALUES = msgspec.Raw(b"[]")
TABLES = ("delivery_log", "delivery_part", "part_settled", "in_doubt", "delivery_stats", "quota_counter", "node")


class Leased:
    """A run with three parts of three recipients each in hand."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn

    async def open(self) -> Leased:
        self.delivery = await new_delivery(self.conn)
        parts = [Part(f"p{p}", (), [(f"u{p}{n}@example.com", None, []) for n in range(3)]) for p in range(3)]
        await append_parts(self.conn, self.delivery, parts)
        await deliveries.start(self.conn, self.delivery)
        self.run: NodeRun = await nodes.register(self.conn, "one", "boot", 15.0)
        self.parts = sorted(await claim.claim(self.conn, self.run.id, self.delivery, 3), key=lambda part: part.id)
        return self

    def line(self, part: int, position: int, status: Status = Status.DELIVERED) -> bytes:
        claimed = self.parts[part]
        verdict = f"{status:d}\t0\t250\t2.0.0"
        session = session_columns("mx.example.com", "mx.example.com", "192.0.2.1", "default")
        at = timestamp(time.time())
        number = claimed.number(position)
        address = f"u{part}{position}@example.com"
        return log_line(at, self.delivery, number, claimed.id, 1, verdict, address, None, session, "ok").encode()

    def settlement(self) -> Settlement:
        """Something of everything: a part that ends, one that goes on and one that is given back."""
        ends, goes_on, back = self.parts
        settlement = Settlement(
            lines=[self.line(0, n) for n in range(3)]
            + [self.line(1, 0, Status.DEFERRED), self.line(1, 1, Status.IN_DOUBT)],
            settled={goes_on.id: [0, 1]},
            finished=[ends.id],
            released=[back.id],
            new_parts=[
                self.later(goes_on, 0, due_in_s=600.0),
                msgspec.structs.replace(self.later(goes_on, 1, due_in_s=0.0), held=True, site=None),
            ],
            doubts=[
                Doubt(
                    self.delivery, goes_on.number(1), goes_on.id, 1, "u11@example.com", "mx", "192.0.2.1", "hold", "cut"
                )
            ],
            credits={("rule|1", 100): 4, ("rule|2", 100): 1},
        )
        settlement.count(self.delivery, Status.DELIVERED, 3)
        settlement.count(self.delivery, Status.DEFERRED, 1)
        settlement.count(self.delivery, Status.IN_DOUBT, 1)
        return settlement

    def later(self, part: claim.ClaimedPart, position: int, *, due_in_s: float) -> NewPart:
        row = (f"u1{position}@example.com", None, NO_VALUES)
        number = part.number(position)
        return NewPart(
            self.delivery, "mx.example.com", 1, False, part.appended_at, (), [number], [row], due_in_s=due_in_s
        )

    async def books(self) -> dict[str, list[dict[str, Any]]]:
        """All that a settlement can change."""
        found = {}
        for table in TABLES:
            rows = await self.conn.fetch(f"SELECT * FROM mta.{table} ORDER BY {table}::text")
            found[table] = [dict(row) for row in rows]
        return found


@pytest.fixture
async def leased(conn: asyncpg.Connection) -> Leased:
    return await Leased(conn).open()


async def test_a_settlement_records_lines_parts_counters_doubts_and_credits_together(leased: Leased) -> None:
    await commit(leased.conn, leased.run, leased.settlement(), 1, COLUMNS)
    books = await leased.books()
    assert len(books["delivery_log"]) == 5
    ends, goes_on, back = leased.parts
    owners = {row["id"]: row["owner"] for row in books["delivery_part"]}
    assert ends.id not in owners
    assert (owners[goes_on.id], owners[back.id]) == (leased.run.id, None)
    assert [(row["part_id"], row["positions"]) for row in books["part_settled"]] == [(goes_on.id, [0, 1])]
    new = [row for row in books["delivery_part"] if row["append_id"] is None]
    assert sorted((row["held"], row["site"], row["attempt"], row["numbers"]) for row in new) == [
        (False, "mx.example.com", 1, [goes_on.number(0)]),
        (True, None, 1, [goes_on.number(1)]),
    ]
    due = await leased.conn.fetchval(
        "SELECT due_at - now() FROM mta.delivery_part WHERE numbers IS NOT NULL AND NOT held"
    )
    assert 590 < due.total_seconds() <= 600
    assert [(row["number"], row["cause"]) for row in books["in_doubt"]] == [(goes_on.number(1), "cut")]
    shown = await deliveries.show(leased.conn, leased.delivery)
    assert (shown.delivered, shown.deferrals, shown.in_doubt, shown.held) == (3, 1, 1, 1)
    assert sorted(await load_credits(leased.conn, "one", 0)) == [("rule|1", 100, 4), ("rule|2", 100, 1)]


async def test_a_settlement_that_fails_anywhere_records_nothing_and_its_number_stays_free(leased: Leased) -> None:
    before = await leased.books()
    bad_line = leased.settlement()
    bad_line.lines.append(leased.line(2, 0).replace(b"\t250\t", b"\tmany\t"))
    with pytest.raises(asyncpg.DataError):
        await commit(leased.conn, leased.run, bad_line, 1, COLUMNS)
    assert await leased.books() == before
    # Behind the lines too: a counter of a delivery that is not there, the very last of the transaction.
    bad_credit = leased.settlement()
    bad_credit.credits[("rule|3", 2**62)] = 2**31 - 1
    bad_credit.credits[("\0", 1)] = 1
    with pytest.raises(asyncpg.DataError):
        await commit(leased.conn, leased.run, bad_credit, 1, COLUMNS)
    assert await leased.books() == before
    await commit(leased.conn, leased.run, leased.settlement(), 1, COLUMNS)
    assert len((await leased.books())["delivery_log"]) == 5


async def test_the_same_settlement_again_is_not_recorded_twice(leased: Leased) -> None:
    settlement = leased.settlement()
    await commit(leased.conn, leased.run, settlement, 1, COLUMNS)
    after = await leased.books()
    await commit(leased.conn, leased.run, settlement, 1, COLUMNS)
    assert await leased.books() == after
    following = Settlement(lines=[leased.line(1, 2)], finished=[leased.parts[1].id])
    following.count(leased.delivery, Status.DELIVERED, 1)
    await commit(leased.conn, leased.run, following, 2, COLUMNS)
    books = await leased.books()
    assert (len(books["delivery_log"]), books["part_settled"]) == (6, [])
    assert (await deliveries.show(leased.conn, leased.delivery)).delivered == 4


async def test_a_run_that_has_ended_settles_nothing(leased: Leased) -> None:
    await nodes.end(leased.conn, leased.run.id)
    before = await leased.books()
    with pytest.raises(Fenced):
        await commit(leased.conn, leased.run, leased.settlement(), 1, COLUMNS)
    assert await leased.books() == before


async def test_a_run_gives_back_only_what_is_its_own(leased: Leased) -> None:
    other = await nodes.register(leased.conn, "two", "boot", 15.0)
    await commit(leased.conn, other, Settlement(released=[part.id for part in leased.parts]), 1, COLUMNS)
    assert {row["owner"] for row in (await leased.books())["delivery_part"]} == {leased.run.id}


async def test_credits_add_up_over_settlements_and_old_ones_are_forgotten(leased: Leased) -> None:
    for sequence in (1, 2):
        await commit(leased.conn, leased.run, Settlement(credits={("rule", 7): 3, ("rule", 9): 1}), sequence, COLUMNS)
    assert sorted(await load_credits(leased.conn, "one", 0)) == [("rule", 7, 6), ("rule", 9, 2)]
    assert await load_credits(leased.conn, "one", 8) == [("rule", 9, 2)]
    assert await load_credits(leased.conn, "two", 0) == []
    await forget_credits(leased.conn, "one", 0, 8)
    assert await load_credits(leased.conn, "one", 0) == [("rule", 9, 2)]


async def test_who_was_in_doubt_as_often_as_is_allowed_is_held_whatever_the_delivery_says(leased: Leased) -> None:
    part = leased.parts[1]

    def settled(sequence: int, positions: list[int]) -> Settlement:
        doubts = [
            Doubt(leased.delivery, part.number(n), part.id, sequence, f"u1{n}@example.com", "mx", "", "resend", "cut")
            for n in positions
        ]
        later = NewPart(
            *(leased.delivery, "mx", 1, False, part.appended_at, ()),
            [part.number(n) for n in positions],
            [(f"u1{n}@example.com", None, NO_VALUES) for n in positions],
            due_in_s=60.0,
            in_doubt=True,
        )
        return Settlement(doubts=doubts, new_parts=[later])

    await commit(leased.conn, leased.run, settled(1, [0, 1]), 1, COLUMNS)
    await commit(leased.conn, leased.run, settled(2, [1, 2]), 2, COLUMNS)
    new = [row for row in (await leased.books())["delivery_part"] if row["append_id"] is None]
    assert sorted((row["held"], row["numbers"], row["count"], row["site"]) for row in new) == [
        (False, [part.number(0), part.number(1)], 2, "mx"),
        (False, [part.number(2)], 1, "mx"),
        (True, [part.number(1)], 1, None),
    ]
    listed = [(row["number"], row["policy"]) for row in (await leased.books())["in_doubt"]]
    assert sorted(listed) == sorted(
        [
            (part.number(0), "resend"),
            (part.number(1), "resend"),
            (part.number(1), "hold"),
            (part.number(2), "resend"),
        ]
    )
    once = settled(3, [0])
    once.in_doubt_max = 5
    await commit(leased.conn, leased.run, once, 3, COLUMNS)
    new = [row for row in (await leased.books())["delivery_part"] if row["append_id"] is None]
    assert sum(row["held"] for row in new) == 1
