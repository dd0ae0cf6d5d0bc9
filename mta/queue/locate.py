"""Where a recipient is, as far as the database knows: in which part of the queue, and what the log has of it."""

from __future__ import annotations

import datetime
from typing import Final

import asyncpg
import msgspec

from mta.model.address import parse_mailbox
from mta.model.limits import PART_INDEX_BITS
from mta.queue.connection import Conn
from mta.queue.overview import LogLine

PARTS_MAX: Final = 100  # an address is in few deliveries at a time

# Recipients are packed, so this reads the queue's parts from one end to the other: seconds for ten million recipients,
# for a person who asks. The text is at the beginning of a row; what else may look like it is sorted out afterwards.
_COLUMNS: Final = """
SELECT p.id, p.delivery_id, d.name, d.state, d.egress_pool, d.starts_at, d.valid_until, p.site, p.attempt,
       coalesce(p.due_when_checked, p.due_at) AS due_at, p.held, p.due_when_checked IS NOT NULL AS is_unchecked,
       extract(epoch FROM coalesce(p.due_when_checked, p.due_at) - clock_timestamp())::float8 AS due_in_s,
       p.owner, n.name AS node, coalesce(n.ended_at IS NULL AND n.alive_until > now(), false) AS node_lives,
       p.append_id, p.numbers, p.recipients,
       coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x
                 WHERE s.part_id = p.id), '{}')::int4[] AS settled
FROM mta.delivery_part p JOIN mta.delivery d ON d.id = p.delivery_id LEFT JOIN mta.node n ON n.id = p.owner
"""
_HOLDING: Final = _COLUMNS + (
    "WHERE position($1::bytea IN p.recipients) > 0 AND ($2::bigint IS NULL OR p.delivery_id = $2)"
    " ORDER BY p.delivery_id, p.id LIMIT $3"
)
_OF_NUMBER: Final = _COLUMNS + (
    "WHERE p.delivery_id = $1 AND (p.append_id = $2::bigint >> 16 OR $2 = ANY (p.numbers)) ORDER BY p.id"
)
_LINES: Final = """
SELECT at, delivery_id, number, attempt, status, reason, code, enhanced, address, reference, site, mx_host, peer,
       egress, reply
FROM mta.delivery_log WHERE delivery_id = $1 AND {} ORDER BY at DESC, attempt DESC LIMIT $3
"""
_rows: Final = msgspec.json.Decoder(list[tuple[str, str | None, msgspec.Raw]])


class Queued(msgspec.Struct, frozen=True):
    """A recipient that waits. ``owner``: the run that has leased its part, of ``node``; None: nobody has."""

    delivery_id: int
    name: str
    state: str
    pool: str
    starts_at: datetime.datetime | None
    valid_until: datetime.datetime | None
    part_id: int
    position: int
    number: int
    address: str
    reference: str | None
    site: str | None
    attempts: int  # made so far
    due_at: datetime.datetime
    due_in_s: float  # by the database's clock
    held: bool
    owner: int | None
    node: str | None
    node_lives: bool
    is_unchecked: bool = False  # waits to be looked at for duplicates


async def by_address(conn: Conn, address: str, delivery_id: int | None = None) -> list[Queued]:
    """Everywhere in the queue where an address waits, in any of its forms; ``PARTS_MAX`` at most."""
    canonical = parse_mailbox(address, "address").text
    begins = b"[" + msgspec.json.encode(canonical) + b","
    rows = await conn.fetch(_HOLDING, begins, delivery_id, PARTS_MAX)
    return [one for row in rows for one in _queued(row) if one.address == canonical]


async def by_number(conn: Conn, delivery_id: int, number: int) -> list[Queued]:
    """The recipient of this number, where it waits."""
    rows = await conn.fetch(_OF_NUMBER, delivery_id, number)
    return [one for row in rows for one in _queued(row) if one.number == number]


async def by_reference(conn: Conn, delivery_id: int, reference: str) -> list[Queued]:
    """Recipients of a delivery by the reference that the application gave them."""
    rows = await conn.fetch(_HOLDING, msgspec.json.encode(reference), delivery_id, PARTS_MAX)
    return [one for row in rows for one in _queued(row) if one.reference == reference]


async def lines_of_number(conn: Conn, delivery_id: int, number: int, *, limit: int = 20) -> list[LogLine]:
    """Every attempt for a recipient, the newest first."""
    rows = await conn.fetch(_LINES.format("number = $2"), delivery_id, number, limit)
    return [msgspec.convert(dict(row), LogLine) for row in rows]


async def lines_of_reference(conn: Conn, delivery_id: int, reference: str, *, limit: int = 20) -> list[LogLine]:
    """The same by reference; reads all lines of the delivery."""
    rows = await conn.fetch(_LINES.format("reference = $2"), delivery_id, reference, limit)
    return [msgspec.convert(dict(row), LogLine) for row in rows]


def _queued(row: asyncpg.Record) -> list[Queued]:
    """The open recipients of a part."""
    settled = set(row["settled"])
    found = []
    for position, (address, reference, _) in enumerate(_rows.decode(row["recipients"])):
        if position in settled:
            continue
        base, numbers = row["append_id"], row["numbers"]
        number = numbers[position] if numbers is not None else base << PART_INDEX_BITS | position
        found.append(
            Queued(
                delivery_id=row["delivery_id"],
                name=row["name"],
                state=row["state"],
                pool=row["egress_pool"],
                starts_at=row["starts_at"],
                valid_until=row["valid_until"],
                part_id=row["id"],
                position=position,
                number=number,
                address=address,
                reference=reference,
                site=row["site"],
                attempts=row["attempt"],
                due_at=row["due_at"],
                due_in_s=row["due_in_s"],
                held=row["held"],
                owner=row["owner"],
                node=row["node"],
                node_lives=row["node_lives"],
                is_unchecked=row["is_unchecked"],
            )
        )
    return found
