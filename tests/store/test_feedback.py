"""What comes back is recorded once, of whom it may be believed, and only where it is news."""

from __future__ import annotations

import asyncio
import datetime

import asyncpg
import pytest

from mta.message.leaving import leaving_token
from mta.message.verp import ReturnPathSigner, base36
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.queue import deliveries, feedback
from mta.queue.deliveries import NewDelivery
from mta.queue.feedback import Feedback, Recorded, record, record_unsubscribe
from mta.queue.installation import verp_key
from tests.support.content import content_json
from tests.support.postgres import Database

NOW = datetime.datetime(2027, 1, 31, 12, 0, tzinfo=datetime.UTC)
LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                              reference, site, mx_host, peer, egress, reply)
VALUES ($1, $2, $3, 7, $4, $5, 0, 250, '2.0.0', $6, 'ref', 'example.com', 'mx.example.com', '192.0.2.1', 'e1', 'ok')
"""


class Sent:
    """A delivery whose recipients have lines of the log as the test wants them."""

    def __init__(self, conn: asyncpg.Connection, delivery: int, append: int) -> None:
        self._conn = conn
        self.delivery = delivery
        self._append = append
        self._count = 0

    @classmethod
    async def create(cls, conn: asyncpg.Connection) -> Sent:
        delivery = await deliveries.create(conn, NewDelivery(name="d", content=content_json()))
        append = await conn.fetchval(
            "INSERT INTO mta.delivery_append (delivery_id, key, recipients, digest) VALUES ($1, 'k', 100, '')"
            " RETURNING append_id",
            delivery,
        )
        return cls(conn, delivery, append)

    async def one(self, *statuses: Status) -> int:
        """The number of a new recipient."""
        number = self._append << 16 | self._count
        self._count += 1
        await self.more(number, *statuses)
        return number

    async def more(self, number: int, *statuses: Status) -> None:
        for attempt, status in enumerate(statuses, 1):
            at = NOW - datetime.timedelta(hours=len(statuses) - attempt)
            address = f"Rita{number & 0xFFFF}@example.com"
            await self._conn.execute(LINE, at, self.delivery, number, attempt, status, address)

    async def lines(self, number: int) -> list[int]:
        rows = await self._conn.fetch("SELECT status FROM mta.delivery_log WHERE number = $1 AND status >= 20", number)
        return sorted(row["status"] for row in rows)

    async def counters(self) -> tuple[int, int, int]:
        shown = await deliveries.show(self._conn, self.delivery)
        return shown.bounced, shown.complaints, shown.unsubscribed


@pytest.fixture
async def sent(conn: asyncpg.Connection) -> Sent:
    return await Sent.create(conn)


def bounce(number: int) -> Feedback:
    return Feedback(
        *(number, Status.BOUNCED, NOW, FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN),
        *(550, "5.1.1", "no such user"),
    )


def complaint(number: int) -> Feedback:
    return Feedback(number, Status.COMPLAINED, NOW, reply="complaint: abuse")


async def test_a_bounce_is_one_more_line_like_that_of_the_delivery(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DEFERRED, Status.DELIVERED)
    assert await record(conn, [bounce(number)]) == Recorded(1, 0, frozenset())
    row = await conn.fetchrow("SELECT * FROM mta.delivery_log WHERE number = $1 AND status = 20", number)
    assert row is not None
    assert (row["at"], row["delivery_id"], row["part_id"], row["attempt"]) == (NOW, sent.delivery, 7, 2)
    assert (row["address"], row["reference"], row["site"]) == (
        f"Rita{number & 0xFFFF}@example.com",
        "ref",
        "example.com",
    )
    assert (row["mx_host"], row["egress"], row["peer"]) == ("mx.example.com", "e1", "")
    assert (row["code"], row["enhanced"], row["reply"]) == (550, "5.1.1", "no such user")
    assert (row["type"], row["reason"], row["category"]) == (2, 1, 1)
    assert row["tx"] is not None  # so that those who follow the log see it
    assert await sent.counters() == (1, 0, 0)


async def test_each_kind_counts_once_whatever_is_sent_again(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DELIVERED)
    assert (await record(conn, [bounce(number), bounce(number), complaint(number)])).fresh == 2
    for _ in range(3):
        assert await record(conn, [bounce(number), complaint(number)]) == Recorded(0, 2, frozenset())
    assert await sent.lines(number) == [20, 21]
    assert await sent.counters() == (1, 1, 0)


async def test_of_two_in_a_batch_the_earlier_holds(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DELIVERED)
    later = Feedback(number, Status.BOUNCED, NOW + datetime.timedelta(seconds=1), reply="later")
    await record(conn, [later, bounce(number)])
    assert await conn.fetchval("SELECT reply FROM mta.delivery_log WHERE status = 20") == "no such user"


@pytest.mark.parametrize(
    ("statuses", "is_news", "is_heard"),
    [
        ((Status.DELIVERED,), True, True),
        ((Status.IN_DOUBT,), True, True),
        ((Status.IN_DOUBT, Status.DEFERRED, Status.FAILED), False, True),  # its last word is that it failed
        ((Status.FAILED,), False, True),
        ((Status.EXPIRED,), False, True),
        ((Status.CANCELLED,), False, True),
        ((Status.EXCLUDED,), False, False),
        ((Status.SIMULATED,), False, False),
    ],
)
async def test_a_bounce_changes_what_was_delivered_and_a_complaint_is_heard(
    conn: asyncpg.Connection, sent: Sent, statuses: tuple[Status, ...], is_news: bool, is_heard: bool
) -> None:
    number = await sent.one(*statuses)
    assert await record(conn, [bounce(number), complaint(number)]) == Recorded(2, 0, frozenset())
    assert await sent.lines(number) == [20] * is_news + [21] * is_heard
    assert await sent.counters() == (is_news, is_heard, 0)
    assert (await record(conn, [bounce(number)])).repeated == 1  # seen, in any case


async def test_a_bounce_before_its_outcome_is_unknown_until_that_is_there(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DEFERRED)
    assert await record(conn, [bounce(number)]) == Recorded(0, 0, frozenset({(number, Status.BOUNCED)}))
    assert await sent.lines(number) == []
    await sent.more(number, Status.DELIVERED)
    assert (await record(conn, [bounce(number)])).fresh == 1
    assert await sent.counters() == (1, 0, 0)


async def test_whom_nobody_mailed_changes_nothing(conn: asyncpg.Connection, sent: Sent) -> None:
    known = await sent.one(Status.DELIVERED)
    nobody = [known + 1, known + (1 << 40), 0, (1 << 63) - 1]
    recorded = await record(conn, [bounce(number) for number in nobody])
    assert recorded == Recorded(0, 0, frozenset((number, Status.BOUNCED) for number in nobody))
    assert await conn.fetchval("SELECT count(*) FROM mta.feedback") == 0
    assert await sent.counters() == (0, 0, 0)


async def test_delivery_and_address_must_fit_where_they_are_given(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DELIVERED)
    for delivery, address in ((sent.delivery + 1, ""), (0, "eve@example.com"), (sent.delivery, "eve@example.com")):
        item = Feedback(number, Status.UNSUBSCRIBED, NOW, delivery=delivery, address=address)
        assert (await record(conn, [item])).unknown
    right = Feedback(
        number, Status.UNSUBSCRIBED, NOW, delivery=sent.delivery, address=f"rita{number & 0xFFFF}@EXAMPLE.com"
    )
    assert (await record(conn, [right])).fresh == 1
    assert await sent.counters() == (0, 0, 1)


async def test_a_click_unsubscribes_whose_token_it_is_and_nobody_else(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DELIVERED)
    key = await verp_key(conn)
    token = leaving_token(number, key)
    return_path = ReturnPathSigner(key).local_part(base36(number))
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    for one in ("", "u-", wrong, return_path, f"{token}x", f"x {token}", leaving_token(number + 1, key)):
        assert not await record_unsubscribe(conn, one, key), one
    assert await sent.counters() == (0, 0, 0)
    assert await record_unsubscribe(conn, token, key)
    assert await record_unsubscribe(conn, token.upper(), key)  # clicked twice: the answer is the same
    assert await sent.lines(number) == [22]
    assert await sent.counters() == (0, 0, 1)


async def test_services_side_by_side_count_once(database: Database, conn: asyncpg.Connection, sent: Sent) -> None:
    numbers = [await sent.one(Status.DELIVERED) for _ in range(60)]

    async def some(is_reversed: bool) -> int:
        async with database.pool.acquire() as own:
            return (await record(own, [bounce(n) for n in (reversed(numbers) if is_reversed else numbers)])).fresh

    assert sum(await asyncio.gather(*(some(turn % 2 == 1) for turn in range(8)))) == 60
    assert await sent.counters() == (60, 0, 0)


async def test_the_latest_number_of_an_address(conn: asyncpg.Connection, sent: Sent) -> None:
    number = await sent.one(Status.DELIVERED)
    failed = await sent.one(Status.FAILED)
    address, refused = (f"Rita{n & 0xFFFF}@example.com" for n in (number, failed))
    assert await feedback.latest_numbers(conn, [address, refused, "eve@example.com"]) == {address: number}


async def test_counts_add_up_by_day(conn: asyncpg.Connection) -> None:
    await feedback.count(conn, {"autoreply": 2, "delayed": 1})
    await feedback.count(conn, {"autoreply": 3})
    today = datetime.datetime.now(datetime.UTC).date()
    assert await feedback.counted(conn, 1) == [(today, "autoreply", 5), (today, "delayed", 1)]
