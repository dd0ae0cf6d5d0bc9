"""Each text of a failure once: how often it came, what it is taken for, and what an operator makes of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import msgspec

from mta.failure.normalise import normalise, text_key
from mta.model.errors import BadInput
from mta.model.failure import Category, Evidence, FailureType, Verdict
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn
from mta.queue.qualified import CHANNEL

OCCURRENCES_MAX: Final = 100_000  # more is not counted (campaign-mta §4)
_FAILURES: Final = (Status.FAILED, Status.DEFERRED, Status.BOUNCED)
# An operator's word stays; the rules' is renewed.
_COUNT: Final = f"""
INSERT INTO mta.failure_text AS t (digest, text, sample, stage, provider, occurrences, first_at, last_at, status, type,
                                   reason, category, rule)
VALUES ($1, $2, $3, '', $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (digest) DO UPDATE SET
    occurrences = least({OCCURRENCES_MAX}, t.occurrences + excluded.occurrences),
    first_at = least(t.first_at, excluded.first_at), last_at = greatest(t.last_at, excluded.last_at),
    status = CASE WHEN t.qualified_by = '' THEN excluded.status ELSE t.status END,
    type = CASE WHEN t.qualified_by = '' THEN excluded.type ELSE t.type END,
    reason = CASE WHEN t.qualified_by = '' THEN excluded.reason ELSE t.reason END,
    category = CASE WHEN t.qualified_by = '' THEN excluded.category ELSE t.category END,
    rule = CASE WHEN t.qualified_by = '' THEN excluded.rule ELSE t.rule END
"""  # noqa: S608 - a number of the program
_LIST: Final = """
SELECT encode(digest, 'hex') AS key, text, sample, provider, occurrences, first_at, last_at, status, type, reason,
       category, rule, qualified_by
FROM mta.failure_text WHERE $1::text IS NULL OR status = $1 ORDER BY occurrences DESC, last_at DESC LIMIT $2
"""
_QUALIFY: Final = """
UPDATE mta.failure_text SET status = $2, type = $3, reason = $4, category = $5, rule = 'operator', qualified_by = $6,
       qualified_at = now()
WHERE encode(digest, 'hex') LIKE $1 || '%' RETURNING digest
"""


class FailureText(msgspec.Struct, frozen=True):
    """``key`` is the digest in hexadecimal; its beginning will do to name it."""

    key: str
    text: str
    sample: str
    provider: str
    occurrences: int
    first_at: datetime.datetime
    last_at: datetime.datetime
    status: str  # to-qualify, keep, ignore
    type: FailureType
    reason: Reason
    category: Category
    rule: str
    qualified_by: str


async def count(
    conn: Conn,
    lines: Sequence[asyncpg.Record],
    qualify: Callable[[Evidence], Verdict],
    is_qualified: Callable[[Verdict], bool],
) -> None:
    """Counts the failures among lines of the log. ``qualify`` says again what a text is taken for, by which rule."""
    found: dict[bytes, list[asyncpg.Record]] = {}
    keys: dict[str, bytes] = {}
    for line in lines:
        if line["type"] and line["status"] in _FAILURES and line["reply"]:
            reply = line["reply"]
            key = keys.get(reply)
            if key is None:
                key = keys[reply] = text_key(reply)
            found.setdefault(key, []).append(line)
    rows = []
    for key, of_text in sorted(found.items()):
        first = of_text[0]
        times = [line["at"] for line in of_text]
        verdict = qualify(Evidence(first["code"], first["enhanced"], first["reply"], "", first["mx_host"]))
        rows.append(
            (
                *(key, normalise(first["reply"]), first["reply"], first["mx_host"]),
                *(min(len(of_text), OCCURRENCES_MAX), min(times), max(times)),
                "keep" if is_qualified(verdict) else "to-qualify",
                *(verdict.type, verdict.reason, verdict.category, verdict.rule),
            )
        )
    await conn.executemany(_COUNT, rows)


async def texts(conn: Conn, status: str | None = None, limit: int = 100) -> list[FailureText]:
    """The most frequent first."""
    return [msgspec.convert(dict(row), FailureText) for row in await conn.fetch(_LIST, status, limit)]


async def qualify(conn: Conn, key: str, verdict: Verdict, by_whom: str, *, is_ignored: bool = False) -> None:
    """An operator's word on one text; it goes before all rules, on all nodes. BadInput: no such key, or several."""
    if len(key) < 4 or not all(digit in "0123456789abcdef" for digit in key):
        raise BadInput("key", f"{key!a}: expected 4 to 32 hexadecimal digits, as `mta bounce unqualified` shows them")
    status = "ignore" if is_ignored else "keep"
    async with conn.transaction():
        found = await conn.fetch(_QUALIFY, key, status, verdict.type, verdict.reason, verdict.category, by_whom)
        if len(found) != 1:
            raise BadInput(
                "key", f"{key}: {'no text has' if not found else f'{len(found)} texts have'} a key like this"
            )
        await conn.execute("SELECT pg_notify($1, '')", CHANNEL)
