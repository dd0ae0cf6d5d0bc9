"""What waits, added up by one of its properties, with its age: the `qshape` of this queue.

Ages count from the first append (of a wave: from its time). All but domains come from the parts' own columns; for
domains each part is read, which takes some four seconds for a million recipients, so it is for people only.
"""

from __future__ import annotations

import bisect
import enum
from collections import defaultdict
from typing import Final

import msgspec

from mta.model.address import domain_of
from mta.model.outcome import Reason
from mta.queue.connection import Conn

# Upper bounds of the ages, in seconds; what is older is in a last column. Each is twice the one before, from 5 minutes.
AGES_S: Final = tuple(300 << step for step in range(9))
_PAGE_PARTS: Final = 500
_OPEN: Final = """
SELECT p.*, p.count - (SELECT coalesce(sum(cardinality(s.positions)), 0)::int FROM mta.part_settled s
                       WHERE s.part_id = p.id) AS open,
       greatest(extract(epoch FROM now() - p.appended_at), 0)::float8 AS age_s
FROM mta.delivery_part p
"""
_KEYS: Final = {
    "site": "coalesce(p.site, '')",
    "egress": "coalesce(p.egress, 'pool ' || d.egress_pool)",
    # What the queue itself knows; why a node sends nothing of what it has in memory, that node tells (`mta explain`).
    "reason": """CASE
        WHEN d.state = 'editing' THEN 'delivery is not started'
        WHEN d.state <> 'running' THEN 'delivery is ' || d.state
        WHEN p.held THEN 'held: in doubt'
        WHEN p.owner IS NOT NULL THEN 'in memory of ' || (SELECT name FROM mta.node WHERE id = p.owner)
        WHEN d.starts_at > now() THEN 'delivery starts later'
        WHEN p.due_at <= now() THEN 'due'
        WHEN p.site LIKE '@%' THEN 'domain is held back'
        WHEN p.attempt > 0 THEN 'deferred: ' || coalesce((
            SELECT l.reason FROM mta.delivery_log l
            WHERE l.delivery_id = p.delivery_id AND l.number = coalesce(p.numbers[1], p.append_id << 16)
            ORDER BY l.at DESC LIMIT 1), 0)
        WHEN p.site IS NOT NULL THEN 'came back from memory'
        ELSE 'wave to come' END""",
    "age": "''",
}
_SPREAD: Final = """
SELECT {} AS key, width_bucket(p.age_s, $1::float8[]) AS bucket, sum(p.open)::bigint AS recipients
FROM ({}) p JOIN mta.delivery d ON d.id = p.delivery_id
WHERE ($2::bigint IS NULL OR p.delivery_id = $2) GROUP BY 1, 2
"""
_PACKED: Final = """
SELECT p.recipients, greatest(extract(epoch FROM now() - p.appended_at), 0)::float8 AS age_s,
       coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x WHERE s.part_id = p.id),
                '{}')::int4[] AS settled
FROM mta.delivery_part p WHERE $1::bigint IS NULL OR p.delivery_id = $1
"""
_rows: Final = msgspec.json.Decoder(list[tuple[str, msgspec.Raw, msgspec.Raw]])


class By(enum.StrEnum):
    """What recipients that wait are added up by."""

    DOMAIN = "domain"
    SITE = "site"
    EGRESS = "egress"
    REASON = "reason"
    AGE = "age"


class Spread(msgspec.Struct, frozen=True):
    """Recipients that wait under one ``key`` (empty: not known yet), by age: under each of ``AGES_S``, then older."""

    key: str
    recipients: int
    by_age: list[int]


async def spread(conn: Conn, by: By, delivery_id: int | None = None) -> list[Spread]:
    """The fullest first; by age there is one, of all. Positions that are settled do not count."""
    found: dict[str, list[int]] = defaultdict(lambda: [0] * (len(AGES_S) + 1))
    if by is By.DOMAIN:
        await _count_domains(conn, delivery_id, found)
    else:
        query = _SPREAD.format(_KEYS[by.value], _OPEN)
        for row in await conn.fetch(query, [float(one) for one in AGES_S], delivery_id):
            found[_named(by, row["key"])][row["bucket"]] += row["recipients"]
    return sorted(
        (Spread(key, sum(ages), ages) for key, ages in found.items()), key=lambda one: (-one.recipients, one.key)
    )


def _named(by: By, key: str) -> str:
    """The log has numbers for reasons."""
    words, colon, number = key.rpartition(": ")
    if by is By.REASON and colon and number.isdecimal():
        return f"{words}: {Reason(int(number)).name.lower().replace('_', ' ')}"
    return key


async def _count_domains(conn: Conn, delivery_id: int | None, found: dict[str, list[int]]) -> None:
    async with conn.transaction(readonly=True):
        cursor = await conn.cursor(_PACKED, delivery_id)
        while rows := await cursor.fetch(_PAGE_PARTS):
            for row in rows:
                bucket, settled = bisect.bisect_right(AGES_S, row["age_s"]), set(row["settled"])
                for position, (address, _, _) in enumerate(_rows.decode(row["recipients"])):
                    if position not in settled:
                        found[domain_of(address)][bucket] += 1
