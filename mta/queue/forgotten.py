"""What a database that went back in time has forgotten of recipients: found by who they are.

A recipient is its delivery, its number and its address. Numbers of parts do not count: a database that lost some gives
them out again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mta.model.outcome import Status
from mta.queue.claim import ClaimedPart
from mta.queue.connection import Conn

# Each looked up by its index: what a planner thinks of many values must not make it read a day of the log.
_RECORDED = """
SELECT u.ord FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY AS u (delivery_id, number, at, ord),
LATERAL (SELECT 1 FROM mta.delivery_log l
         WHERE l.delivery_id = u.delivery_id AND l.number = u.number AND l.at = u.at::timestamptz LIMIT 1) found
"""
_DOUBTED = """
SELECT u.ord FROM unnest($1::bigint[], $2::bigint[], $3::smallint[])
    WITH ORDINALITY AS u (delivery_id, number, attempt, ord),
LATERAL (SELECT 1 FROM mta.delivery_log l
         WHERE l.delivery_id = u.delivery_id AND l.number = u.number AND l.attempt = u.attempt AND l.status = $4
         LIMIT 1) found
"""
_APPENDED = """
SELECT u.ord FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS u (delivery_id, append_id, ord)
JOIN mta.delivery_append a ON a.append_id = u.append_id AND a.delivery_id = u.delivery_id
"""
_COLUMNS = """
p.id, p.delivery_id, p.site, p.attempt, p.appended_at, p.append_id, p.numbers, p.fields, p.count, p.recipients,
coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x WHERE s.part_id = p.id),
         '{}')::int4[] AS settled, p.egress, p.dated_at,
coalesce((SELECT n.epoch FROM mta.node n WHERE n.id = p.owner), 0) AS owner_epoch
"""
_PARTS = f"""
SELECT {_COLUMNS} FROM mta.delivery_part p WHERE p.id = ANY($1::bigint[]) ORDER BY p.id FOR UPDATE OF p
"""  # noqa: S608 - put together from constants
# Deferrals and what was given back stand in parts of their own, by number. No index leads there; it is read through.
_ELSEWHERE = f"""
SELECT {_COLUMNS} FROM mta.delivery_part p
WHERE p.delivery_id = ANY($1::bigint[]) AND (p.append_id = ANY($2::bigint[]) OR p.numbers && $3::bigint[])
  AND p.id <> ALL ($4::bigint[])
ORDER BY p.id FOR UPDATE OF p
"""  # noqa: S608 - put together from constants

OwnedPart = tuple[ClaimedPart, int]  # and the epoch of the run that leases it; 0: it is free


async def recorded(conn: Conn, asked: Sequence[tuple[int, int, str]]) -> set[int]:
    """Which of these outcomes (delivery, number, time) the log has, by their place."""
    columns = [list(column) for column in zip(*asked, strict=True)] if asked else [[], [], []]
    return {row["ord"] - 1 for row in await conn.fetch(_RECORDED, *columns)}


async def doubted(conn: Conn, asked: Sequence[tuple[int, int, int]]) -> set[int]:
    """Which of these attempts (delivery, number, attempt) the log has as in doubt, by their place."""
    columns = [list(column) for column in zip(*asked, strict=True)] if asked else [[], [], []]
    return {row["ord"] - 1 for row in await conn.fetch(_DOUBTED, *columns, Status.IN_DOUBT.value)}


async def appended(conn: Conn, asked: Sequence[tuple[int, int]]) -> set[int]:
    """Which of these appends (delivery, append) there are, by their place."""
    columns = [list(column) for column in zip(*asked, strict=True)] if asked else [[], []]
    return {row["ord"] - 1 for row in await conn.fetch(_APPENDED, *columns)}


async def parts(conn: Conn, part_ids: Collection[int]) -> list[OwnedPart]:
    """These parts, as far as they are there, locked until the transaction ends."""
    return [_owned(row) for row in await conn.fetch(_PARTS, list(part_ids))]


async def parts_of(
    conn: Conn, deliveries: Collection[int], appends: Collection[int], numbers: Collection[int], but: Collection[int]
) -> list[OwnedPart]:
    """All other parts in which a recipient of these appends, or with one of these numbers, may stand; locked."""
    given = (list(deliveries), list(appends), list(numbers), list(but))
    return [_owned(row) for row in await conn.fetch(_ELSEWHERE, *given)]


def _owned(row: object) -> OwnedPart:
    *values, owner_epoch = list(row)  # type: ignore[call-overload]
    values[7] = tuple(values[7])
    return ClaimedPart(*values), owner_epoch
