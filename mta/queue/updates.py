"""Updates of what is shipped, in the database: the newest that was applied is in force on every node.

Texts are stored by the names of the shipped files that they stand for; what is an operator's own is not among them.
Version 0 stands for none: each program goes by the files that it came with. Each attempt leaves a row, whatever came
of it.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping
from typing import Final

import asyncpg
import msgspec

from mta.model.errors import BadInput
from mta.queue.connection import Conn

NO_VERSION: Final = 0
_DETAIL_CHARS_MAX: Final = 2_000
_SUMMARY: Final = "id, applied_at, version, created_at, digest, signed_by, note, source, applied_by, restores"
_LOCK: Final = "LOCK TABLE mta.deliverability_update IN SHARE ROW EXCLUSIVE MODE"
_NEWEST_ID: Final = "SELECT max(id) FROM mta.deliverability_update"
_ALL: Final = f"SELECT {_SUMMARY}, texts::text AS texts FROM mta.deliverability_update"  # noqa: S608 - constants
_NEWEST: Final = f"{_ALL} ORDER BY id DESC LIMIT 1"
_ONE: Final = f"{_ALL} WHERE id = $1"
# Rolled back from a rollback, it goes on backwards from what that one restored.
_BEFORE: Final = f"""
SELECT {_SUMMARY}, texts::text AS texts FROM mta.deliverability_update
WHERE id < (SELECT coalesce(restores, id) FROM mta.deliverability_update WHERE id = $1)
  AND version <> (SELECT version FROM mta.deliverability_update WHERE id = $1)
ORDER BY id DESC LIMIT 1
"""  # noqa: S608 - put together from constants
_VERSIONS: Final = "SELECT DISTINCT version, digest FROM mta.deliverability_update WHERE version > 0"
_ADD: Final = f"""
INSERT INTO mta.deliverability_update
    (version, created_at, digest, signed_by, note, source, applied_by, texts, restores)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9) RETURNING {_SUMMARY}, texts::text AS texts
"""  # noqa: S608
_RECORD: Final = """
INSERT INTO mta.deliverability_attempt (by_whom, source, version, result, detail, update_id)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_ATTEMPTS: Final = """
SELECT id, at, by_whom, source, version, result, detail, update_id
FROM mta.deliverability_attempt ORDER BY id DESC LIMIT $1
"""
_LAST_SCHEDULED: Final = """
SELECT id, at, by_whom, source, version, result, detail, update_id
FROM mta.deliverability_attempt WHERE by_whom = '' ORDER BY id DESC LIMIT 1
"""
_texts = msgspec.json.Decoder(dict[str, str])


class InForce(BadInput):
    """There is nothing to do: that very bundle holds."""


class Result(enum.StrEnum):
    """What came of an attempt."""

    APPLIED = "applied"
    CURRENT = "current"  # that version is in force already
    TRIED = "tried"  # it could be applied, and was not to be
    REFUSED = "refused"  # forged, damaged, older, or not to be read by the loaders
    FAILED = "failed"  # it was not to be had
    ROLLED_BACK = "rolled-back"


class Update(msgspec.Struct, frozen=True):
    """One that was put into force. ``texts``: by the names of the shipped files."""

    id: int
    applied_at: datetime.datetime
    version: int
    created_at: datetime.datetime | None
    digest: str
    signed_by: str
    note: str
    source: str
    applied_by: str
    restores: int | None
    texts: dict[str, str]

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"bundle {self.version}"


class Attempt(msgspec.Struct, frozen=True):
    """One row of the history. ``by_whom`` is empty for the schedule."""

    id: int
    at: datetime.datetime
    by_whom: str
    source: str
    version: int | None
    result: Result
    detail: str
    update_id: int | None


class Candidate(msgspec.Struct, frozen=True):
    """What is to be put into force: read, checked, and signed by somebody whom the operator trusts."""

    version: int
    created_at: datetime.datetime
    digest: str
    signed_by: str
    note: str
    texts: dict[str, str]


async def newer_than(conn: Conn, seen: Update | None) -> Update | None:
    """The update in force, where it is another than the one that was ``seen``. A look costs one number."""
    newest: int | None = await conn.fetchval(_NEWEST_ID)
    return None if newest == (None if seen is None else seen.id) else await in_force(conn)


async def in_force(conn: Conn) -> Update | None:
    """The newest; None when none was ever applied. One of version 0 has no texts."""
    row = await conn.fetchrow(_NEWEST)
    return None if row is None else _update(row)


async def texts_in_force(conn: Conn) -> dict[str, str]:
    """What stands in the place of shipped files now."""
    found = await in_force(conn)
    return {} if found is None else found.texts


async def get(conn: Conn, update_id: int) -> Update:
    """Raises BadInput when there is no such update."""
    row = await conn.fetchrow(_ONE, update_id)
    if row is None:
        raise BadInput(f"update {update_id}", "does not exist; they are listed by mta deliverability history")
    return _update(row)


async def before(conn: Conn, update_id: int) -> Update | None:
    """The update before one, of another version; None: there was none."""
    row = await conn.fetchrow(_BEFORE, update_id)
    return None if row is None else _update(row)


async def apply(conn: Conn, candidate: Candidate, source: str, by_whom: str, *, allow_older: bool = False) -> Update:
    """Puts it into force, in one transaction with its row in the history; nodes hear of it when that commits.

    Raises BadInput, and changes nothing, when its version is none that may follow (`check_newer`): somebody else was
    faster, or an old bundle is offered again.
    """
    async with conn.transaction():
        await conn.execute(_LOCK)
        await check_newer(conn, candidate.version, candidate.digest, allow_older=allow_older)
        update = await _add(conn, candidate, source, by_whom, None)
        await record(conn, by_whom, source, Result.APPLIED, version=update.version, update_id=update.id)
    return update


async def check_newer(conn: Conn, version: int, digest: str, *, allow_older: bool = False) -> None:
    """Raises BadInput when this version is not to be put into force.

    It must be above all that ever were, not only above the one in force: else the next morning would bring back what
    an operator rolled back.
    """
    where = f"bundle {version}"
    current = await in_force(conn)
    if current is not None and (current.version, current.digest) == (version, digest):
        raise InForce(where, "is in force already")
    known = {row["version"]: row["digest"] for row in await conn.fetch(_VERSIONS)}
    if known.get(version, digest) != digest:
        raise BadInput(where, "is not the bundle of this version that was applied before; no version is used twice")
    newest = max(known, default=NO_VERSION)
    if version <= newest and not allow_older:
        what = "was rolled back" if version in known else f"is older than version {newest}, which was applied"
        raise BadInput(where, f"{what}; --allow-older takes it all the same")


async def roll_back(conn: Conn, to: Update | None, by_whom: str) -> Update:
    """Puts an earlier update back into force; None: the files that each program came with."""
    async with conn.transaction():
        await conn.execute(_LOCK)
        if to is None:
            none = Candidate(NO_VERSION, datetime.datetime.now(datetime.UTC), "", "", "", {})
            update = await _add(conn, none, "", by_whom, None)
        else:
            assert to.created_at is not None, "each that has texts was made at some time"
            earlier = Candidate(to.version, to.created_at, to.digest, to.signed_by, to.note, to.texts)
            update = await _add(conn, earlier, to.source, by_whom, to.restores or to.id)
        await record(conn, by_whom, update.source, Result.ROLLED_BACK, version=update.version, update_id=update.id)
    return update


async def record(
    conn: Conn,
    by_whom: str,
    source: str,
    result: Result,
    *,
    version: int | None = None,
    detail: str = "",
    update_id: int | None = None,
) -> None:
    """One attempt, for the history."""
    text = detail.replace("\0", "")[:_DETAIL_CHARS_MAX]
    await conn.execute(_RECORD, by_whom, source, version, result.value, text, update_id)


async def history(conn: Conn, limit: int) -> list[Attempt]:
    """Attempts, the newest first."""
    return [msgspec.convert(dict(row), Attempt) for row in await conn.fetch(_ATTEMPTS, limit)]


async def last_scheduled(conn: Conn) -> Attempt | None:
    """The last attempt of the schedule."""
    row = await conn.fetchrow(_LAST_SCHEDULED)
    return None if row is None else msgspec.convert(dict(row), Attempt)


async def _add(conn: Conn, one: Candidate, source: str, by_whom: str, restores: int | None) -> Update:
    texts = msgspec.json.encode(one.texts).decode()
    values = (one.version, one.created_at, one.digest, one.signed_by, one.note, source, by_whom, texts, restores)
    row = await conn.fetchrow(_ADD, *values)
    assert row is not None, "an insert returns its row"
    return _update(row)


def _update(row: asyncpg.Record) -> Update:
    values: Mapping[str, object] = {**dict(row), "texts": _texts.decode(row["texts"])}
    return msgspec.convert(values, Update)
