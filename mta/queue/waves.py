"""Waves in the queue: at the start each waiting part gets the time of its wave, and is cut where a wave ends in it.

A part's wave is nothing but its ``due_at``, so claims, pauses, cancellations and the end of the validity know nothing
of waves. All of it is one transaction with the start: there is no delivery that is planned by half.
"""

from __future__ import annotations

import datetime
import itertools

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import PART_INDEX_BITS
from mta.queue.connection import Conn
from mta.traffic.waves import Wave, Waves

_TOTAL = """
SELECT coalesce(sum(count), 0)::bigint FROM mta.delivery_part WHERE delivery_id = $1 AND owner IS NULL AND NOT held
"""
_ORDERED = """
WITH ordered AS (
    SELECT id, count, sum(count) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - count AS before
    FROM mta.delivery_part WHERE delivery_id = $1 AND owner IS NULL AND NOT held
)
"""
# $2: how many recipients go before each wave, ascending from 0; $3: the time of each. Those of the first wave are due
# as they are.
_ASSIGN = (
    _ORDERED
    + """
UPDATE mta.delivery_part p SET due_at = greatest(p.due_at, w.at), appended_at = greatest(p.appended_at, w.at)
FROM ordered o, LATERAL (SELECT ($3::timestamptz[])[width_bucket(o.before::bigint, $2::bigint[])] AS at) w
WHERE p.id = o.id AND o.before >= ($2::bigint[])[2]
"""
)
_CUT = (
    _ORDERED
    + """
SELECT o.id, o.before::bigint AS before, array_agg(border ORDER BY border) AS borders
FROM unnest($2::bigint[]) border JOIN ordered o ON o.before < border AND border < o.before + o.count
GROUP BY o.id, o.before
"""
)
_PART = "SELECT append_id, numbers, recipients FROM mta.delivery_part WHERE id = $1"
_SETTLED = "DELETE FROM mta.part_settled WHERE part_id = $1 RETURNING positions"
_STILL_SETTLED = "INSERT INTO mta.part_settled (part_id, positions) VALUES ($1, $2)"
_SHORTEN = "UPDATE mta.delivery_part SET count = $2, numbers = $3, recipients = $4 WHERE id = $1"
_CUT_OFF = """
INSERT INTO mta.delivery_part
    (delivery_id, due_at, appended_at, dated_at, attempt, site, fields, numbers, count, recipients)
SELECT delivery_id, greatest(due_at, $2), greatest(appended_at, $2), dated_at, attempt, site, fields, $3::bigint[],
       cardinality($3::bigint[]), $4
FROM mta.delivery_part WHERE id = $1
"""
_RECORD = """
INSERT INTO mta.delivery_wave (delivery_id, wave, due_at, recipients)
SELECT $1, * FROM unnest($2::int[], $3::timestamptz[], $4::int[])
"""
_WAVES = "SELECT due_at, recipients FROM mta.delivery_wave WHERE delivery_id = $1 ORDER BY wave"

_rows = msgspec.json.Decoder(list[msgspec.Raw])
_pack = msgspec.json.Encoder().encode


async def assign(conn: Conn, delivery_id: int, waves: Waves, started_at: datetime.datetime) -> datetime.datetime:
    """Give each part of a delivery that is about to start its wave; answers when the last one is due.

    In the caller's transaction, which keeps appends out. BadInput when there is nothing yet to be portioned.
    """
    total: int = await conn.fetchval(_TOTAL, delivery_id)
    if not total:
        what = "has waves and no recipients yet: append them before the start, the shares are of what is there then"
        raise BadInput(f"delivery {delivery_id}", what)
    plan = waves.plan(total, started_at)
    if len(plan) > 1:
        before = [0, *itertools.accumulate(wave.recipients for wave in plan[:-1])]
        cuts = await conn.fetch(_CUT, delivery_id, before)
        await conn.execute(_ASSIGN, delivery_id, before, [wave.due_at for wave in plan])
        times = dict(zip(before, [wave.due_at for wave in plan], strict=True))
        for part_id, first, borders in cuts:
            await _cut(conn, part_id, [border - first for border in borders], [times[border] for border in borders])
    await conn.execute(
        _RECORD,
        delivery_id,
        list(range(1, len(plan) + 1)),
        [wave.due_at for wave in plan],
        [wave.recipients for wave in plan],
    )
    return plan[-1].due_at


async def _cut(conn: Conn, part_id: int, at: list[int], times: list[datetime.datetime]) -> None:
    """Cut a part before each of these positions; each piece that is cut off is due at the time given with it."""
    part = await conn.fetchrow(_PART, part_id)
    assert part is not None, "its delivery is locked"
    try:
        rows = _rows.decode(part["recipients"])
    except msgspec.DecodeError as error:
        raise BadInput(f"part {part_id}", f"cannot be read, so its wave cannot be told: {error}") from error
    numbers = part["numbers"]
    if numbers is None:
        base = part["append_id"] << PART_INDEX_BITS
        numbers = [base | position for position in range(len(rows))]
    # Who was excluded when the part was appended is settled, and comes into no piece.
    settled = {position for row in await conn.fetch(_SETTLED, part_id) for position in row["positions"]}
    for start, end, due_at in zip(at, [*at[1:], len(rows)], times, strict=True):
        piece = [position for position in range(start, end) if position not in settled]
        if piece:
            of_piece = [numbers[position] for position in piece]
            await conn.execute(_CUT_OFF, part_id, due_at, of_piece, _pack([rows[position] for position in piece]))
    if still := sorted(position for position in settled if position < at[0]):
        await conn.execute(_STILL_SETTLED, part_id, still)
    # What stays keeps its positions, and with them its numbers.
    kept = part["numbers"] and numbers[: at[0]]
    await conn.execute(_SHORTEN, part_id, at[0], kept, _pack(rows[: at[0]]))


async def planned(conn: Conn, delivery_id: int) -> list[Wave]:
    """The waves of a delivery as planned at its start; none before it, or without waves."""
    return [Wave(*row) for row in await conn.fetch(_WAVES, delivery_id)]
