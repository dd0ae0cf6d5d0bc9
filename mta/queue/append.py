"""Appending parts: many in one transaction, each once for ever under its key.

What an append has answered is durable. The same key with the same content answers what it answered the first time;
with other content it is refused. A caller that never saw the answer simply asks again.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from mta.message.content import Content, check_content, load_content
from mta.model.errors import BadInput
from mta.queue.connection import Conn
from mta.queue.deliveries import no_such_delivery
from mta.queue.part import PackedPart, Part, pack_part
from mta.queue.states import APPENDABLE

# Shared by appends, exclusive for the seal and the start of waves; the same numbers stand in schema/0004_waves.sql.
_LOCK: Final = "SELECT pg_advisory_xact_lock_shared(20180, ($1::bigint & 2147483647)::int)"
# FOR KEY SHARE conflicts with sealing and the start of waves only (index delivery_seal): pause and cancel never wait
# for an append.
_DELIVERY: Final = """
SELECT state, sealed, content, duplicates = 'exclude' AS is_checked,
       CASE WHEN last_wave_at > now() THEN last_wave_at END AS wave_at, now() AS now
FROM mta.delivery WHERE id = $1 FOR KEY SHARE
"""
_FIND: Final = """
SELECT key, append_id, recipients, digest, excluded
FROM mta.delivery_append WHERE delivery_id = $1 AND key = ANY($2::text[])
"""
# Sorted, so that two appends of the same keys wait for one another instead of locking each other out.
_RESERVE: Final = """
INSERT INTO mta.delivery_append (delivery_id, key, recipients, digest)
SELECT $1, key, recipients, digest
FROM unnest($2::text[], $3::int[], $4::bytea[]) AS part (key, recipients, digest) ORDER BY key
ON CONFLICT DO NOTHING RETURNING key, append_id
"""
# Who is not to be mailed was settled as the parts came (mta.exclude_appended).
_EXCLUDED: Final = "SELECT append_id, excluded FROM mta.delivery_append WHERE append_id = ANY($1) AND excluded > 0"
_NOTIFY: Final = "SELECT pg_notify('mta', $1)"
# Of a part that waits to be looked at for duplicates; the same time stands in schema/0023_duplicates.sql.
NOT_BEFORE_CHECKED: Final = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)
_COLUMNS: Final = ("delivery_id", "append_id", "fields", "count", "recipients")


class AppendResult(msgspec.Struct, frozen=True):
    """The answer for one part. Its recipients' numbers are ``append_id << 16 | index``."""

    key: str
    append_id: int
    recipients: int
    is_new: bool
    excluded: int = 0  # of them: in quarantine or denylisted, so they have their outcome already


async def append_parts(
    conn: Conn, delivery_id: int, parts: Sequence[Part | PackedPart], *, due_at: datetime.datetime | None = None
) -> list[AppendResult]:
    """Append all of them or none, in one transaction; answers in the order of ``parts``.

    ``due_at`` (aware; None: now by the database's clock) applies to new parts; to a delivery that was started with
    waves they come into its last one. Raises BadInput for a bad row, a key
    used before with other content, an unknown delivery, or one to which nothing can be appended any more.
    """
    if due_at is not None and due_at.tzinfo is None:
        raise BadInput("due_at", "has no time zone")
    packed = [pack_part(part) if isinstance(part, Part) else part for part in parts]
    by_key = {part.key: part for part in packed}
    if len(by_key) != len(packed):
        raise BadInput(f"delivery {delivery_id}", "the same key stands twice in one append")
    if not packed:
        return []
    async with conn.transaction():
        await conn.execute(_LOCK, delivery_id)
        delivery = await conn.fetchrow(_DELIVERY, delivery_id)
        if delivery is None:
            raise no_such_delivery(delivery_id)
        # Before the state is looked at: the same append again has the same answer also after the seal.
        results = await _find(conn, delivery_id, by_key)
        fresh = [part for part in packed if part.key not in results]
        if fresh:
            if delivery["sealed"] or delivery["state"] not in APPENDABLE:
                state = delivery["state"] if delivery["state"] not in APPENDABLE else "sealed"
                raise BadInput(f"delivery {delivery_id}", f"is {state}: nothing can be appended")
            _check_fields_against_content(delivery_id, delivery["content"], fresh)
            results |= await _insert(conn, delivery_id, fresh, _times(delivery, due_at))
    return [results[part.key] for part in packed]


def _times(delivery: asyncpg.Record, due_at: datetime.datetime | None) -> dict[str, object]:
    """When new parts are due, by columns. What is not in it is as the table says: now, by the database's clock."""
    wave_at = delivery["wave_at"]
    times = [time for time in (due_at, wave_at) if time is not None]
    columns: dict[str, object] = {"due_at": max(times)} if times else {}
    if wave_at is not None:
        columns["appended_at"] = wave_at
    if delivery["is_checked"]:
        columns["due_when_checked"] = columns.get("due_at", delivery["now"])
        columns["due_at"] = NOT_BEFORE_CHECKED
    return columns


async def _insert(
    conn: Conn, delivery_id: int, fresh: Sequence[PackedPart], times: dict[str, object]
) -> dict[str, AppendResult]:
    rows = await conn.fetch(
        _RESERVE,
        delivery_id,
        [part.key for part in fresh],
        [part.count for part in fresh],
        [part.digest for part in fresh],
    )
    append_ids = {row["key"]: row["append_id"] for row in rows}
    new = [part for part in fresh if part.key in append_ids]
    more = tuple(times.values())
    records = [(delivery_id, append_ids[part.key], part.fields, part.count, part.recipients, *more) for part in new]
    columns = (*_COLUMNS, *times)
    await conn.copy_records_to_table("delivery_part", schema_name="mta", columns=columns, records=records)
    await conn.execute(_NOTIFY, f"append {delivery_id}")
    rows = await conn.fetch(_EXCLUDED, list(append_ids.values()))
    excluded = {row["append_id"]: row["excluded"] for row in rows}
    results = {}
    for part in new:
        append_id = append_ids[part.key]
        results[part.key] = AppendResult(part.key, append_id, part.count, True, excluded.get(append_id, 0))
    # The others were appended by somebody else between our look and our insert, and are committed by now.
    return results | await _find(conn, delivery_id, {part.key: part for part in fresh if part.key not in append_ids})


async def _find(conn: Conn, delivery_id: int, by_key: dict[str, PackedPart]) -> dict[str, AppendResult]:
    """Answers for those keys that were appended before; BadInput when one was with other content."""
    if not by_key:
        return {}
    found = {}
    for key, append_id, recipients, digest, excluded in await conn.fetch(_FIND, delivery_id, list(by_key)):
        if digest != by_key[key].digest:
            raise BadInput(f"part {key}", f"was appended to delivery {delivery_id} before with other content")
        found[key] = AppendResult(key, append_id, recipients, False, excluded)
    return found


def _check_fields_against_content(delivery_id: int, content: bytes, parts: Sequence[PackedPart]) -> None:
    """A message that cannot be rendered for a part's recipients is refused now, not found out a recipient at a time."""
    message, used = _loaded(content)
    for fields in {part.fields for part in parts}:
        if not used.issubset(fields):
            try:
                check_content(message, fields)
            except BadInput as fault:
                raise BadInput(f"delivery {delivery_id}, {fault.where}", fault.what) from None


@functools.lru_cache(maxsize=4)  # a template may have megabytes, and an application appends by the small part
def _loaded(content: bytes) -> tuple[Content, frozenset[str]]:
    message = load_content(content, "content")
    return message, check_content(message, None)
