"""Sets of rules in the database: the newest that was applied is in force on every node.

Texts are stored, not what was made of them: each program reads them by its own lights, and an operator gets back what
was written. Rows are never changed, so a rollback is a row too.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
from collections.abc import Mapping
from typing import Final

import asyncpg
import msgspec

from mta.model.errors import BadInput
from mta.queue.connection import Conn

CHANNEL: Final = "mta_rules"
NOTE_CHARS_MAX: Final = 500
BUNDLE_BYTES_MAX: Final = 10 << 20  # of all texts together

_SUMMARY = "id, applied_at, how, applied_by, node, encode(digest, 'hex') AS digest, root, note, restores"
# One at a time: which is the newest is decided by who commits first, and ids follow that order.
_LOCK = "LOCK TABLE mta.rule_set IN SHARE ROW EXCLUSIVE MODE"
_NEWEST = "SELECT <columns> FROM mta.rule_set ORDER BY id DESC LIMIT 1"
_NEWEST_ID = "SELECT max(id) FROM mta.rule_set"
_ONE = "SELECT <columns> FROM mta.rule_set WHERE id = $1"
_IS_KNOWN = "SELECT EXISTS (SELECT FROM mta.rule_set WHERE digest = $1)"
_HISTORY = "SELECT <columns> FROM mta.rule_set ORDER BY id DESC LIMIT $1"
# Rolled back from a rollback, it goes on backwards from what that one restored: so one can walk back step by step.
_BEFORE = """
SELECT <columns> FROM mta.rule_set
WHERE id < (SELECT coalesce(restores, id) FROM mta.rule_set WHERE id = $1)
  AND digest <> (SELECT digest FROM mta.rule_set WHERE id = $1)
ORDER BY id DESC LIMIT 1
"""
_ADD = """
INSERT INTO mta.rule_set (how, applied_by, node, digest, root, texts, note, restores)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8) RETURNING <columns>
"""
_texts = msgspec.json.Decoder(dict[str, str])


class How(enum.StrEnum):
    """What brought a set into force."""

    START = "start"  # a node started with a file that was never seen before
    SIGHUP = "sighup"  # a node was told to read its file anew
    APPLY = "apply"  # mta rules apply
    ROLLBACK = "rollback"  # mta rules rollback


class Bundle(msgspec.Struct, frozen=True):
    """The text of a rules file and of all that it includes. ``root``: its name among ``texts``."""

    root: str
    texts: dict[str, str]
    digest: bytes  # SHA-256 of both


def make_bundle(root: str, texts: Mapping[str, str]) -> Bundle:
    """Raises BadInput for what cannot be stored.

    Names are relative to the root's directory, so the same files in another place are the same set.
    """
    if root not in texts:
        raise BadInput(root, "is not among the texts of its set")
    if any("\0" in name or "\0" in text for name, text in texts.items()):
        raise BadInput(root, "holds a NUL character, which no TOML file may")
    size = sum(len(name.encode()) + len(text.encode()) for name, text in texts.items())
    if size > BUNDLE_BYTES_MAX:
        raise BadInput(root, f"with all that it includes has {size:,} bytes; at most {BUNDLE_BYTES_MAX:,}")
    listed = msgspec.json.encode([root, sorted(texts.items())])
    return Bundle(root, dict(texts), hashlib.sha256(listed).digest())


class Applied(msgspec.Struct, frozen=True):
    """One row of the history. ``digest`` is hexadecimal."""

    id: int
    applied_at: datetime.datetime
    how: How
    applied_by: str
    node: str
    digest: str
    root: str
    note: str
    restores: int | None

    @property
    def who(self) -> str:
        """A user on a host, or the node."""
        return self.applied_by or f"node {self.node}"


async def newest_id(conn: Conn) -> int:
    """Of the set in force; 0 when none was ever applied."""
    found: int | None = await conn.fetchval(_NEWEST_ID)
    return found or 0


async def in_force(conn: Conn) -> tuple[Applied, Bundle] | None:
    """The newest set; None when none was ever applied."""
    row = await conn.fetchrow(_NEWEST.replace("<columns>", f"{_SUMMARY}, texts::text AS texts"))
    return None if row is None else (_applied(row), _bundle(row))


async def get(conn: Conn, set_id: int) -> tuple[Applied, Bundle]:
    """Raises BadInput when there is no such set."""
    row = await conn.fetchrow(_ONE.replace("<columns>", f"{_SUMMARY}, texts::text AS texts"), set_id)
    if row is None:
        raise BadInput(f"rule set {set_id}", "does not exist; they are listed by mta rules history")
    return _applied(row), _bundle(row)


async def history(conn: Conn, limit: int) -> list[Applied]:
    """The newest first."""
    return [_applied(row) for row in await conn.fetch(_HISTORY.replace("<columns>", _SUMMARY), limit)]


async def before(conn: Conn, set_id: int) -> tuple[Applied, Bundle]:
    """The set before a set, that differs from it. Raises BadInput when there is none."""
    row = await conn.fetchrow(_BEFORE.replace("<columns>", f"{_SUMMARY}, texts::text AS texts"), set_id)
    if row is None:
        raise BadInput(f"rule set {set_id}", "is the first; there is none before it to go back to")
    return _applied(row), _bundle(row)


async def apply(
    conn: Conn,
    bundle: Bundle,
    how: How,
    *,
    applied_by: str = "",
    node: str = "",
    note: str = "",
    restores: int | None = None,
) -> tuple[Applied, bool]:
    """Puts a set into force, in one transaction; True with it when it is new, False when it was in force already.

    Who calls has made sure that the texts are good. All nodes hear of it when the transaction commits.
    """
    _check_note(note)
    async with conn.transaction():
        await conn.execute(_LOCK)
        current = await conn.fetchrow(_NEWEST.replace("<columns>", _SUMMARY))
        if current is not None and current["digest"] == bundle.digest.hex():
            return _applied(current), False
        return await _add(conn, bundle, how, applied_by, node, note, restores), True


async def begin_with(conn: Conn, bundle: Bundle, node: str) -> tuple[Applied, Bundle]:
    """What holds when a node starts with this file: it, if it was never applied before; else the set in force."""
    async with conn.transaction():
        await conn.execute(_LOCK)
        if not await conn.fetchval(_IS_KNOWN, bundle.digest):
            return await _add(conn, bundle, How.START, "", node, "", None), bundle
        current = await in_force(conn)
        assert current is not None, "its digest is there"
        return current


async def _add(
    conn: Conn, bundle: Bundle, how: How, applied_by: str, node: str, note: str, restores: int | None
) -> Applied:
    texts = msgspec.json.encode(bundle.texts).decode()
    values = (how.value, applied_by, node, bundle.digest, bundle.root, texts, note, restores)
    row = await conn.fetchrow(_ADD.replace("<columns>", _SUMMARY), *values)
    assert row is not None, "an insert returns its row"
    return _applied(row)


def _check_note(note: str) -> None:
    if len(note) > NOTE_CHARS_MAX or not note.isprintable():
        raise BadInput("note", f"must be at most {NOTE_CHARS_MAX} printable characters")


def _applied(row: asyncpg.Record) -> Applied:
    return Applied(
        row["id"],
        row["applied_at"],
        How(row["how"]),
        row["applied_by"],
        row["node"],
        row["digest"],
        row["root"],
        row["note"],
        row["restores"],
    )


def _bundle(row: asyncpg.Record) -> Bundle:
    return Bundle(row["root"], _texts.decode(row["texts"]), bytes.fromhex(row["digest"]))
