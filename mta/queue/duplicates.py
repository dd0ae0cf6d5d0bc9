"""Duplicates: an address that stands twice in a delivery is mailed once. The first one stays, later ones are excluded.

An append does nothing for it: parts of such a delivery come without a time to be due (`due_when_checked`). A *check*
looks at all parts that wait for one. It sorts their addresses on the server, which spills to its disk, and gives the
parts their times in the transaction that excludes the duplicates. A seal checks, so does a start with waves, and a
daemon whatever it finds of a delivery that runs. While more may be appended the addresses are kept, and later ones
compared with them. Addresses are compared and not their hashes, so nobody is taken for another.

A check is two transactions. The search is long and only reads, so readers of the log are not held up by it
(`mta.queue.feed`), and nobody waits for its locks; the one that excludes is short. What comes in between is seen: parts
that another check, a cancellation or an end of the validity took are gone, and the search is made again.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

# For a sort on the server; what is larger goes to its temporary files.
WORK_MEM: Final = "64MB"
# Nothing waits for it but the delivery itself, so it may take what it takes; a server that is gone is found out by TCP.
TIMEOUT_S: Final = 24 * 3600.0
# Of an append that is not larger only those buckets are read that its addresses are in.
FEW_RECIPIENTS: Final = 5_000
REPLY: Final = "duplicate"

# An aggregate by hash keeps its groups in memory, however large they become. What is kept is joined by
# hash, whatever the planner thinks of it: others sort all of it, or go through it again and again.
_SETTINGS: Final = f"""
SELECT set_config('work_mem', '{WORK_MEM}', true), set_config('enable_hashagg', 'off', true),
       set_config('enable_mergejoin', 'off', true), set_config('enable_nestloop', 'off', true),
       set_config('statement_timeout', '0', true)
"""
_LOCK: Final = "SELECT pg_advisory_xact_lock(20181, ($1::bigint & 2147483647)::int)"
_DELIVERY: Final = """
SELECT duplicates = 'exclude' AS excludes, duplicates_ignore_case, sealed, created_at FROM mta.delivery WHERE id = $1
"""
_WAITING: Final = """
SELECT id, count FROM mta.delivery_part
WHERE delivery_id = $1 AND due_when_checked IS NOT NULL AND owner IS NULL ORDER BY id
"""
# Recipients of the parts $2, with their addresses as they are compared ($3: regardless of case). Who is settled was
# excluded, and is no occurrence; or has an outcome that the database had forgotten, and is the first one. The status is
# no condition of the look into the log: it would be made by the index of times, through all that went wrong lately.
_OCCURRENCES: Final = f"""
SELECT p.append_id << 16 | (r.ord - 1) AS number, o.is_open, c.address COLLATE "C" AS address
FROM mta.delivery_part p
CROSS JOIN LATERAL (SELECT array_agg(x) AS settled FROM mta.part_settled s, unnest(s.positions) x
                    WHERE s.part_id = p.id) q
CROSS JOIN jsonb_array_elements(convert_from(p.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS r (recipient, ord)
CROSS JOIN LATERAL (SELECT (r.ord - 1)::smallint = ANY (q.settled) IS NOT TRUE AS is_open) o
CROSS JOIN LATERAL (SELECT CASE WHEN $3 THEN lower(r.recipient ->> 0) ELSE r.recipient ->> 0 END AS address) c
WHERE p.delivery_id = $1 AND p.id = ANY ($2::bigint[])
  AND CASE WHEN o.is_open THEN true ELSE (
      SELECT bool_or(l.status = {Status.EXCLUDED.value}) FROM mta.delivery_log l
      WHERE l.delivery_id = $1 AND l.number = p.append_id << 16 | (r.ord - 1) AND l.at >= $4) IS NOT TRUE END
"""  # noqa: S608 - a text of this file
# The hash of hash-partitioned tables, so an upgrade of the server keeps it. It only says where to look.
_BUCKET: Final = "(hashtextextended(address, 0) & 4095)"
_BUCKETS: Final = f"SELECT DISTINCT {_BUCKET}::smallint FROM ({_OCCURRENCES}) occurrence"  # noqa: S608
_LATER: Final = """
SELECT number >> 16 AS append_id, array_agg((number & 65535)::smallint)::text AS positions
FROM (
    SELECT number, is_open, row_number() OVER (PARTITION BY address ORDER BY is_open, number) AS nth
    FROM ({}) occurrence
) numbered
WHERE nth > 1 AND is_open GROUP BY 1
"""
_SEARCH: Final = _LATER.format(_OCCURRENCES)
# $5: the buckets to compare with; null: all of them. Of what was kept only those are sorted that come again.
_SEARCH_WITH_KEPT: Final = f"WITH one AS MATERIALIZED ({_OCCURRENCES})" + _LATER.format("""
    SELECT number, is_open, address FROM one
    UNION ALL
    SELECT -1, false, kept.address COLLATE "C"
    FROM mta.delivery_address k, unnest(k.addresses) AS kept (address)
    WHERE k.delivery_id = $1 AND ($5::smallint[] IS NULL OR k.bucket = ANY ($5))
      AND kept.address COLLATE "C" IN (SELECT address FROM one)
""")  # noqa: S608 - a text of this file
_HAS_KEPT: Final = "SELECT EXISTS (SELECT FROM mta.delivery_address WHERE delivery_id = $1)"
_STILL_WAITING: Final = """
SELECT count(*) FROM (
    SELECT id FROM mta.delivery_part
    WHERE id = ANY ($1::bigint[]) AND due_when_checked IS NOT NULL AND owner IS NULL ORDER BY id FOR UPDATE
) locked
"""
_EXCLUDE: Final = f"""
WITH doubled AS MATERIALIZED (
    SELECT p.id, p.append_id, u.positions::smallint[] AS positions
    FROM unnest($2::bigint[], $3::text[]) AS u (append_id, positions)
    JOIN mta.delivery_part p ON p.append_id = u.append_id
    WHERE p.delivery_id = $1 AND p.id = ANY ($4::bigint[])
), logged AS (
    INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                                  reference, site, mx_host, peer, egress, reply, type)
    SELECT now(), $1, d.append_id << 16 | position, d.id, 0, {Status.EXCLUDED.value}, {Reason.DOUBLE.value}, 0, '',
           one.recipients -> position::int ->> 0, one.recipients -> position::int ->> 1, '', '', '', '', '{REPLY}', 3
    FROM doubled d JOIN mta.delivery_part p ON p.id = d.id
    CROSS JOIN LATERAL (SELECT convert_from(p.recipients, 'UTF8')::jsonb AS recipients OFFSET 0) one
    CROSS JOIN unnest(d.positions) AS position
), counted AS (
    UPDATE mta.delivery_append a SET duplicates = a.duplicates + cardinality(d.positions)
    FROM doubled d WHERE a.append_id = d.append_id
), settled AS (
    INSERT INTO mta.part_settled (part_id, positions) SELECT id, positions FROM doubled
)
SELECT coalesce(sum(cardinality(positions)), 0)::bigint FROM doubled
"""  # noqa: S608 - a text of this file
_MORE_WAIT: Final = """
SELECT EXISTS (SELECT FROM mta.delivery_part
               WHERE delivery_id = $1 AND due_when_checked IS NOT NULL AND id <> ALL ($2::bigint[]))
"""
# Whoever was just excluded is no occurrence any more. Without OFFSET whole recipients are sorted, not their addresses.
_KEEP: Final = f"""
INSERT INTO mta.delivery_address (delivery_id, bucket, addresses)
SELECT $1, bucket, array_agg(address)
FROM (SELECT address, {_BUCKET} AS bucket FROM ({_OCCURRENCES}) occurrence OFFSET 0) placed GROUP BY bucket
"""  # noqa: S608 - a text of this file
_FORGET: Final = "DELETE FROM mta.delivery_address WHERE delivery_id = $1"
_EMPTIED: Final = """
WITH emptied AS (
    DELETE FROM mta.delivery_part p
    USING (SELECT s.part_id, sum(cardinality(s.positions)) AS settled FROM mta.part_settled s
           WHERE s.part_id = ANY ($1::bigint[]) GROUP BY s.part_id) q
    WHERE p.id = q.part_id AND q.settled = p.count RETURNING p.id
)
DELETE FROM mta.part_settled s USING emptied e WHERE s.part_id = e.id
"""
_RELEASE: Final = """
UPDATE mta.delivery_part SET due_at = due_when_checked, due_when_checked = NULL WHERE id = ANY ($1::bigint[])
"""
_NOTIFY: Final = "SELECT pg_notify('mta', $1)"


class _Found(msgspec.Struct, frozen=True):
    """What a search looked at, and what it found: positions of duplicates, as PostgreSQL writes an array, by append."""

    part_ids: list[int]
    append_ids: list[int]
    positions: list[str]
    ignores_case: bool
    created_at: datetime.datetime


async def check(conn: Conn, delivery_id: int) -> int:
    """Look at all parts of a delivery that wait for it; answers how many recipients were excluded.

    Where nothing waits, or the delivery keeps duplicates, it costs a look. Memory is bounded on either side but for the
    positions of duplicates, some five bytes each. Time: two seconds for a million recipients.
    """
    excluded = 0
    while (found := await _search(conn, delivery_id)) is not None:
        excluded += await _exclude(conn, delivery_id, found) or 0
    return excluded


async def forget(conn: Conn, delivery_id: int) -> None:
    """Nothing will be compared any more: it is over."""
    await conn.execute(_FORGET, delivery_id)


async def _search(conn: Conn, delivery_id: int) -> _Found | None:
    """The duplicates among what waits and was looked at before; None: nothing waits."""
    async with conn.transaction():
        delivery = await conn.fetchrow(_DELIVERY, delivery_id)
        if delivery is None or not delivery["excludes"]:
            return None
        await conn.execute(_SETTINGS)
        await conn.execute(_LOCK, delivery_id, timeout=TIMEOUT_S)  # two searches at once would find the same
        waiting = await conn.fetch(_WAITING, delivery_id)
        if not waiting:
            if delivery["sealed"]:
                await conn.execute(_FORGET, delivery_id)
            return None
        part_ids = [row["id"] for row in waiting]
        of_parts = (delivery_id, part_ids, delivery["duplicates_ignore_case"], delivery["created_at"])
        if await conn.fetchval(_HAS_KEPT, delivery_id):
            buckets = None
            if sum(row["count"] for row in waiting) <= FEW_RECIPIENTS:
                buckets = [row[0] for row in await conn.fetch(_BUCKETS, *of_parts)]
            rows = await conn.fetch(_SEARCH_WITH_KEPT, *of_parts, buckets, timeout=TIMEOUT_S)
        else:
            rows = await conn.fetch(_SEARCH, *of_parts, timeout=TIMEOUT_S)
    return _Found(part_ids, [row["append_id"] for row in rows], [row["positions"] for row in rows], *of_parts[2:])


async def _exclude(conn: Conn, delivery_id: int, found: _Found) -> int | None:
    """Exclude what was found, and let the parts go. None: nothing was done, as what was looked at is gone."""
    part_ids = found.part_ids
    async with conn.transaction():
        await conn.execute(_SETTINGS)
        await conn.execute(_LOCK, delivery_id, timeout=TIMEOUT_S)
        if await conn.fetchval(_STILL_WAITING, part_ids, timeout=TIMEOUT_S) != len(part_ids):
            return None
        excluded: int = await conn.fetchval(
            _EXCLUDE, delivery_id, found.append_ids, found.positions, part_ids, timeout=TIMEOUT_S
        )
        # A delivery that is seen to be sealed has all of its parts, so none is missed by the look behind it.
        delivery = await conn.fetchrow(_DELIVERY, delivery_id)
        assert delivery is not None, "its parts are there"
        if delivery["sealed"] and not await conn.fetchval(_MORE_WAIT, delivery_id, part_ids):
            await conn.execute(_FORGET, delivery_id)
        else:
            of_parts = (delivery_id, part_ids, found.ignores_case, found.created_at)
            await conn.execute(_KEEP, *of_parts, timeout=TIMEOUT_S)
        await conn.execute(_EMPTIED, part_ids, timeout=TIMEOUT_S)
        await conn.execute(_RELEASE, part_ids, timeout=TIMEOUT_S)
        await conn.execute(_NOTIFY, f"append {delivery_id}")
    return excluded
