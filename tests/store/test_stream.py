"""Lines of the log as a stream's slices and events, its place, and what an operator does to it."""

from __future__ import annotations

import datetime
import json

import asyncpg

from mta.model.outcome import Status
from mta.queue import streams
from mta.queue.streams import Place, Reader, Wanted
from mta.stream.sink import batches
from tests.support.postgres import Database
from tests.support.streams import add_lines


async def numbers(
    conn: asyncpg.Connection, after: Place, lines_max: int = 1_000, wanted: Wanted | None = None
) -> tuple[list[int], Place]:
    """All that can be read after a place, and where it is then."""
    reader = Reader(wanted or Wanted())
    found: list[int] = []
    while True:
        part = await reader.read(conn, after, lines_max)
        assert len(part.lines) <= lines_max
        found += [line["number"] for line in part.lines]
        after = part.upto
        if part.is_last:
            return found, after


async def test_what_is_committed_later_is_read_later_and_nothing_is_missed(database: Database) -> None:
    async with database.pool.acquire() as reader, database.pool.acquire() as early, database.pool.acquire() as late:
        place = (await streams.begin(reader, "s", from_the_beginning=True)).place
        slow = early.transaction()
        await slow.start()
        await add_lines(early, 1)
        await add_lines(late, 2)  # its transaction is younger, and is over first
        found, place = await numbers(reader, place)
        assert found == []
        await slow.commit()
        found, place = await numbers(reader, place)
        assert found == [1, 2]
        await add_lines(late, 3)
        assert (await numbers(reader, place))[0] == [3]


async def test_a_large_transaction_comes_in_parts_and_in_order(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 50)
    await add_lines(conn, 50, 3)
    await add_lines(conn, 53)
    for lines_max in (1, 7, 10, 50, 51, 1_000):
        assert (await numbers(conn, streams.after_tx(0), lines_max))[0] == list(range(54)), lines_max


async def test_reading_goes_on_within_a_transaction(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 10)
    row = await streams.begin(conn, "s", from_the_beginning=True)
    first = await Reader(Wanted()).read(conn, row.place, 4)
    assert await streams.move(conn, row, first.upto, 4)
    again = await streams.begin(conn, "s")
    assert (again.events, again.state) == (4, "running")
    assert (await numbers(conn, again.place))[0] == list(range(4, 10))


async def test_filters(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 3, delivery=1)
    await add_lines(conn, 10, 3, delivery=2)
    await add_lines(conn, 20, 3, delivery=2, status=Status.BOUNCED)
    begin = streams.after_tx(0)
    assert (await numbers(conn, begin, wanted=Wanted(deliveries=[2])))[0] == [10, 11, 12, 20, 21, 22]
    assert (await numbers(conn, begin, wanted=Wanted(statuses=[Status.BOUNCED])))[0] == [20, 21, 22]
    found, place = await numbers(conn, begin, wanted=Wanted([Status.DELIVERED], [7]))
    assert found == []
    assert await numbers(conn, place) == ([], place)  # it was looked at all the same


async def test_events_have_what_the_log_has(conn: asyncpg.Connection) -> None:
    delivery = await conn.fetchval(
        "INSERT INTO mta.delivery (name, content) VALUES ('Spring', '{}'::text::bytea) RETURNING id"
    )
    await add_lines(conn, 65_536, 2, delivery=delivery)
    await add_lines(conn, 7, delivery=delivery + 1)  # of a delivery that is gone
    found = await Reader(Wanted()).read(conn, streams.after_tx(0), 100)
    names = await streams.delivery_names(conn, {line["delivery_id"] for line in found.lines})
    (batch,) = batches(found, names, 100, 1_000_000)
    assert batch.upto == found.upto
    first, _, last = [json.loads(line) for line in batch.lines]
    at = found.lines[0]["at"]
    assert first["at"] == at.isoformat().replace("+00:00", "Z")
    micros = (at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    assert first["id"] == f"{delivery}-65536-1-1-{micros}"
    assert (first["kind"], first["delivery_name"], first["number"], first["bytes"]) == (
        "delivered",
        "Spring",
        65_536,
        1234,
    )
    assert (first["address"], first["domain"], first["reference"]) == (
        "u65536@Example.com",
        "example.com",
        "ref-65536",
    )
    assert last["delivery_name"] is None


async def test_batches_keep_both_bounds_and_lose_nothing(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 25)
    found = await Reader(Wanted()).read(conn, streams.after_tx(0), 100)
    cut = list(batches(found, {}, 10, 1_000_000))
    assert [len(batch.lines) for batch in cut] == [10, 10, 5]
    assert len({batch.id for batch in cut}) == 3
    assert cut[0].id == next(batches(found, {}, 10, 1_000_000)).id  # the same events are the same batch
    size = len(cut[0].lines[0])
    small = list(batches(found, {}, 1_000, 3 * size + 10))
    assert all(sum(len(line) + 1 for line in batch.lines) <= 3 * size + 10 for batch in small)
    assert [event.number for batch in small for event in batch.events] == list(range(25))
    alone = list(batches(found, {}, 1_000, 10))  # each is larger than that
    assert [len(batch.lines) for batch in alone] == [1] * 25
    # Whoever goes on behind a batch reads on with the next one.
    rest, _ = await numbers(conn, cut[1].upto)
    assert rest == list(range(20, 25))


async def test_a_place_that_an_operator_sets_wins_over_an_acknowledgement(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 5)
    row = await streams.begin(conn, "s", from_the_beginning=True)
    found = await Reader(Wanted()).read(conn, row.place, 100)
    assert await streams.failing(conn, row, "retrying", "away", "b1") is False
    assert await streams.skip(conn, "s") == "b1"
    assert await streams.failing(conn, row, "retrying", "away", "b2") is False  # another batch was given up
    assert await streams.failing(conn, row, "retrying", "away", "b1") is True
    assert await streams.put(conn, "s", row.place)
    assert not await streams.move(conn, row, found.upto, 5)
    assert await streams.failing(conn, row, "retrying", "away", "b1") is None
    fresh = await streams.begin(conn, "s")
    assert (fresh.place, fresh.events, fresh.state, fresh.batch) == (row.place, 0, "running", "")
    assert await streams.move(conn, fresh, found.upto, 5)
    assert await streams.skip(conn, "s") is None


async def test_since_when_it_failed_is_the_first_failure(conn: asyncpg.Connection) -> None:
    row = await streams.begin(conn, "s")
    await streams.failing(conn, row, "retrying", "away", "b")
    first = await streams.begin(conn, "s")
    await streams.failing(conn, row, "stopped", "refused", "b")
    second = await streams.begin(conn, "s")
    assert (second.state, second.error) == ("stopped", "refused")
    assert second.failing_since == first.failing_since is not None
    await streams.move(conn, row, row.place, 0)
    assert (await streams.begin(conn, "s")).failing_since is None


async def test_a_time_is_a_place_before_every_line_since(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 3)
    await add_lines(conn, 10, 3)
    # Committed late: its time is long before its transaction.
    await conn.execute("UPDATE mta.delivery_log SET at = at - interval '2 days' WHERE number = 0")
    since = await conn.fetchval("SELECT min(at) FROM mta.delivery_log WHERE number = 10")
    place = await streams.place_at(conn, since)
    assert place is not None
    assert (await numbers(conn, place))[0] == [10, 11, 12]
    long_ago = await streams.place_at(conn, since - datetime.timedelta(days=3))
    assert long_ago is not None
    assert sorted((await numbers(conn, long_ago))[0]) == [0, 1, 2, 10, 11, 12]
    assert await streams.place_at(conn, since + datetime.timedelta(days=3)) is None


async def test_how_far_behind(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0, 30)
    await add_lines(conn, 30, 5, status=Status.BOUNCED)
    row = await streams.begin(conn, "s", from_the_beginning=True)
    behind = await streams.behind(conn, row.place, Wanted())
    assert behind.events == 35
    assert behind.oldest_at == await conn.fetchval("SELECT min(at) FROM mta.delivery_log")
    part = await Reader(Wanted()).read(conn, row.place, 10)
    assert (await streams.behind(conn, part.upto, Wanted())).events == 25
    assert (await streams.behind(conn, part.upto, Wanted([Status.BOUNCED]))).events == 5
    assert (await streams.behind(conn, await streams.place_now(conn), Wanted())) == (0, None)


async def test_one_connection_has_a_stream_at_a_time(database: Database) -> None:
    async with database.pool.acquire() as one, database.pool.acquire() as other:
        assert await streams.own(one, "s")
        assert not await streams.own(other, "s")
        assert await streams.own(other, "t")
        await one.execute("SELECT pg_advisory_unlock_all()")
        assert await streams.own(other, "s")


async def test_streams_that_ever_ran(conn: asyncpg.Connection) -> None:
    assert await streams.all_streams(conn) == []
    await streams.begin(conn, "b")
    await streams.begin(conn, "a")
    assert [row.name for row in await streams.all_streams(conn)] == ["a", "b"]
    assert await streams.forget(conn, "a")
    assert not await streams.forget(conn, "a")
    assert not await streams.put(conn, "a", streams.after_tx(0))


async def test_a_new_stream_begins_now(conn: asyncpg.Connection) -> None:
    await add_lines(conn, 0)
    row = await streams.begin(conn, "s")
    assert (await numbers(conn, row.place))[0] == []
    assert not await streams.is_of_another_server(conn, row.place)
    assert await streams.is_of_another_server(conn, streams.after_tx(row.place.tx + 1_000_000))
    await add_lines(conn, 1)
    assert (await numbers(conn, row.place))[0] == [1]
