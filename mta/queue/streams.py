"""Event streams in the database: what comes next in each, where it stands, how it fares.

A stream reads the log as `mta.queue.feed` does, by transactions that are over; but a part of a transaction at a time,
so that none is too large for it. Its place moves when its sink has acknowledged what came before.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import asyncpg
import msgspec

from mta.queue import feed
from mta.queue.connection import Conn

LOCK_SPACE: Final = 0x6D746153  # "mtaS"
COUNTED_MAX: Final = 100_000  # events behind are counted up to here
# As in `mta.queue.feed`: how many transactions one statement looks at.
_SPAN_MIN: Final = 1
_SPAN_FIRST: Final = 32
_SPAN_MAX: Final = 2_048
_STATEMENTS_MAX: Final = 256
_LONG_AGO: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_NEXT: Final = """
SELECT tx, at, delivery_id, number, attempt, status, reason, type, category, code, enhanced, address, reference, site,
       mx_host, egress, reply, bytes
FROM mta.delivery_log
WHERE tx >= $1 AND tx <= $6 AND (tx, at, number, attempt, status) > ($1, $2, $3, $4, $5)
  AND (cardinality($8::smallint[]) = 0 OR status = ANY($8)) AND (cardinality($9::bigint[]) = 0 OR delivery_id = ANY($9))
ORDER BY tx, at, number, attempt, status LIMIT $7
"""
_BEHIND: Final = """
SELECT count(*) AS events, min(at) AS oldest_at FROM (
    SELECT at FROM mta.delivery_log
    WHERE tx >= $1 AND (tx, at, number, attempt, status) > ($1, $2, $3, $4, $5)
      AND (cardinality($7::smallint[]) = 0 OR status = ANY($7))
      AND (cardinality($8::bigint[]) = 0 OR delivery_id = ANY($8))
    LIMIT $6
) AS next
"""
_NAMES: Final = "SELECT id, name FROM mta.delivery WHERE id = ANY($1)"
_OWN: Final = "SELECT pg_try_advisory_lock($1, hashtext($2))"
_BEGIN: Final = """
INSERT INTO mta.event_stream (name, tx, at, number, attempt, status) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO NOTHING
"""
_STATE: Final = """
SELECT name, tx, at, number, attempt, status, turn, events, state, error, failing_since, batch, skip, moved_at
FROM mta.event_stream
"""
_MOVE: Final = """
UPDATE mta.event_stream SET tx = $3, at = $4, number = $5, attempt = $6, status = $7, events = events + $8,
       state = 'running', error = '', failing_since = NULL, batch = '', skip = '', moved_at = now()
WHERE name = $1 AND turn = $2 RETURNING true
"""
_FAILING: Final = """
UPDATE mta.event_stream SET state = $3, error = $4, failing_since = coalesce(failing_since, now()), batch = $5
WHERE name = $1 AND turn = $2 RETURNING skip = $5
"""
_PLACE: Final = """
UPDATE mta.event_stream SET tx = $2, at = $3, number = $4, attempt = $5, status = $6, turn = turn + 1,
       state = 'running', error = '', failing_since = NULL, batch = '', skip = '', moved_at = now()
WHERE name = $1 RETURNING true
"""
_SKIP: Final = "UPDATE mta.event_stream SET skip = batch WHERE name = $1 AND batch <> '' RETURNING batch"
_FIRST_SINCE: Final = "SELECT min(tx) FROM mta.delivery_log WHERE at >= $1"
_FORGET: Final = "DELETE FROM mta.event_stream WHERE name = $1 RETURNING true"


class Place(NamedTuple):
    """A line of the log, by the order in which streams tell them."""

    tx: int
    at: datetime.datetime
    number: int
    attempt: int
    status: int


class Wanted(NamedTuple):
    """Which lines a stream tells; empty: all."""

    statuses: Sequence[int] = ()
    deliveries: Sequence[int] = ()


class Slice(NamedTuple):
    """Lines in their order. All up to ``upto`` was looked at, whatever was wanted of it."""

    lines: list[asyncpg.Record]
    upto: Place
    is_last: bool  # nothing more is committed for now


class StreamRow(msgspec.Struct, frozen=True):
    """A stream as the database knows it. ``turn`` changes when an operator sets its place."""

    name: str
    place: Place
    turn: int
    events: int
    state: str
    error: str
    failing_since: datetime.datetime | None
    batch: str
    skip: str
    moved_at: datetime.datetime


class Behind(NamedTuple):
    """What a stream has still to tell; ``events`` up to ``COUNTED_MAX``, ``oldest_at`` of those."""

    events: int
    oldest_at: datetime.datetime | None


def after_tx(tx: int) -> Place:
    """Where all of a transaction and of those before it was told."""
    return Place(tx + 1, _LONG_AGO, -1, -1, -1)


class Reader:
    """Looks at the log, a slice at a time; learns how many transactions to look at."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._span = _SPAN_FIRST

    async def read(self, conn: Conn, after: Place, lines_max: int) -> Slice:
        """The next ``lines_max`` lines at most. A slice may have none and not be the last."""
        end = await feed.horizon(conn) - 1
        for _ in range(_STATEMENTS_MAX):
            if after.tx > end:
                return Slice([], after, True)
            upto = min(end, after.tx + self._span - 1)
            lines = await conn.fetch(_NEXT, *after, upto, lines_max, *self._wanted)
            if len(lines) >= lines_max:
                self._span = max(self._span // 2, _SPAN_MIN)
                return Slice(lines, place_of(lines[-1]), False)
            if len(lines) < lines_max // 4:
                self._span = min(2 * self._span, _SPAN_MAX)
            if lines or upto == end:
                return Slice(lines, after_tx(upto), upto == end)
            after = after_tx(upto)
        return Slice([], after, False)


def place_of(line: asyncpg.Record) -> Place:
    return Place(line["tx"], line["at"], line["number"], line["attempt"], line["status"])


async def delivery_names(conn: Conn, ids: Iterable[int]) -> dict[int, str]:
    """Of those that are there."""
    return {row["id"]: row["name"] for row in await conn.fetch(_NAMES, list(ids))}


async def own(conn: Conn, name: str) -> bool:
    """Whether this connection has the stream, for as long as it lives; else another has it."""
    is_owner: bool = await conn.fetchval(_OWN, LOCK_SPACE, name)
    return is_owner


async def begin(conn: Conn, name: str, *, from_the_beginning: bool = False) -> StreamRow:
    """A stream as it stands. A new one begins now, or with the first line that there is."""
    found = await find(conn, name)
    if found is None:
        at = after_tx(0 if from_the_beginning else await feed.horizon(conn) - 1)
        await conn.execute(_BEGIN, name, *at)
        found = await find(conn, name)
    assert found is not None, "it was there or was made"
    return found


async def find(conn: Conn, name: str) -> StreamRow | None:
    row = await conn.fetchrow(f"{_STATE} WHERE name = $1", name)
    return None if row is None else _row(row)


async def all_streams(conn: Conn) -> list[StreamRow]:
    """Those that ever ran, by name."""
    return [_row(row) for row in await conn.fetch(f"{_STATE} ORDER BY name")]


def _row(row: asyncpg.Record) -> StreamRow:
    rest = {key: value for key, value in row.items() if key not in Place._fields}
    return StreamRow(place=place_of(row), **rest)


async def move(conn: Conn, stream: StreamRow, upto: Place, events: int) -> bool:
    """All up to there is acknowledged. False, and nothing moved, when an operator set the place meanwhile."""
    return bool(await conn.fetchval(_MOVE, stream.name, stream.turn, *upto, events))


async def failing(conn: Conn, stream: StreamRow, state: str, error: str, batch: str) -> bool | None:
    """Notes that the sink does not take a batch. True: an operator gave that batch up; None: the place was set anew."""
    is_given_up: bool | None = await conn.fetchval(_FAILING, stream.name, stream.turn, state, error, batch)
    return is_given_up


async def put(conn: Conn, name: str, place: Place) -> bool:
    """An operator sets the place; whoever runs the stream goes on from there. False: there is no such stream."""
    return bool(await conn.fetchval(_PLACE, name, *place))


async def place_now(conn: Conn) -> Place:
    """After all that is over."""
    return after_tx(await feed.horizon(conn) - 1)


async def place_at(conn: Conn, since: datetime.datetime) -> Place | None:
    """From where on every line of that time or later comes, with some older ones; None when there is no such line."""
    first: int | None = await conn.fetchval(_FIRST_SINCE, since)
    return None if first is None else after_tx(first - 1)


async def skip(conn: Conn, name: str) -> str | None:
    """Gives up the batch that the sink does not take; its id. None: there is none."""
    given_up: str | None = await conn.fetchval(_SKIP, name)
    return given_up


async def forget(conn: Conn, name: str) -> bool:
    """Of a stream that is configured no more."""
    return bool(await conn.fetchval(_FORGET, name))


async def behind(conn: Conn, place: Place, wanted: Wanted) -> Behind:
    """What is committed and wanted after a place."""
    row = await conn.fetchrow(_BEHIND, *place, COUNTED_MAX, *wanted)
    assert row is not None, "an aggregate has one row"
    return Behind(row["events"], row["oldest_at"])


async def is_of_another_server(conn: Conn, place: Place) -> bool:
    """True for a place that has not been: the database was dumped there and restored here."""
    return await feed.is_of_another_server(conn, place.tx - 1)
