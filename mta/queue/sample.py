"""One recipient of a delivery as a sample, to show the message that it would get."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import PART_INDEX_BITS
from mta.queue.connection import Conn
from mta.queue.part import Row

MADE_UP_ADDRESS = "ann@example.com"

# The one that would go first, by the index of claims; dated as if it were handed out as soon as it is due.
_FIRST = """
SELECT p.fields, p.recipients, p.append_id, p.numbers,
       coalesce(p.dated_at, greatest(now(), coalesce(p.due_when_checked, p.due_at), d.starts_at)) AS dated
FROM mta.delivery_part p JOIN mta.delivery d ON d.id = p.delivery_id
WHERE p.delivery_id = $1 AND p.owner IS NULL AND NOT p.held ORDER BY p.due_at, p.id LIMIT 1
"""
_NOW = "SELECT extract(epoch FROM now())::bigint"
_rows = msgspec.json.Decoder(list[Row])


class Sample(msgspec.Struct, frozen=True):
    """A recipient as the renderer wants it; ``is_made_up``: nobody waits, so it is nobody's message."""

    address: str
    reference: str | None
    fields: tuple[str, ...]
    values: list[str]
    number: int
    dated_unix_s: int
    is_made_up: bool


async def sample(conn: Conn, delivery_id: int, content_fields: Collection[str]) -> Sample:
    """The first recipient that waits; without one, a made-up one whose values are the names of the fields."""
    row = await conn.fetchrow(_FIRST, delivery_id)
    if row is None:
        fields = tuple(sorted(content_fields))
        now_unix_s: int = await conn.fetchval(_NOW)
        return Sample(MADE_UP_ADDRESS, None, fields, list(fields), 1 << PART_INDEX_BITS, now_unix_s, True)
    try:
        address, reference, values = _rows.decode(row["recipients"])[0]
    except (msgspec.DecodeError, IndexError) as error:
        raise BadInput(f"delivery {delivery_id}", f"has a part that cannot be read: {error}") from error
    number = row["numbers"][0] if row["numbers"] else row["append_id"] << PART_INDEX_BITS
    dated_unix_s = int(row["dated"].timestamp())
    return Sample(address, reference, tuple(row["fields"]), values, number, dated_unix_s, False)
