"""Past failures looked at again: by today's rules, and by what operators have said of texts since.

The one place where lines of the log are changed. What only codes decide stays as it was: the log does not tell at which
command it was said, and a greeting's 554 is not a recipient's. Failures without a reply stay too, unless an operator
has spoken of their text: some were decided before any server was asked.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg
import msgspec

from mta.failure.qualify import is_by_rule
from mta.failure.scope import BY_OPERATOR
from mta.failure.standing import Correction, QuarantineRules, Standing, corrected
from mta.model.failure import Evidence, Verdict
from mta.model.outcome import Status
from mta.queue import feed, quarantine
from mta.queue.connection import Conn

BATCH_LINES: Final = 5_000
_PAST: Final = f"""
SELECT tx, at, delivery_id, number, attempt, status, code, enhanced, reply, mx_host, type, reason, category, address,
       lower(address) AS folded
FROM mta.delivery_log
WHERE at >= $1 AND at < $2 AND status NOT IN (1, 5)
  AND status IN ({Status.FAILED:d}, {Status.DEFERRED:d}, {Status.BOUNCED:d})
ORDER BY at
"""  # noqa: S608 - numbers of the program
_CORRECT: Final = """
UPDATE mta.delivery_log SET type = $6, reason = $7, category = $8
WHERE at = $1 AND delivery_id = $2 AND number = $3 AND attempt = $4 AND status = $5
"""
_DELIVERED_LAST: Final = f"""
SELECT lower(address) AS folded, max(at) AS at FROM mta.delivery_log
WHERE address = ANY($1::text[]) AND at >= $2 AND status = {Status.DELIVERED:d} GROUP BY 1
"""  # noqa: S608 - a number of the program


class Requalified(msgspec.Struct, frozen=True):
    """How many lines mean something else, and how many addresses stand otherwise."""

    lines: int
    addresses: int


async def requalify(
    conn: Conn,
    since: datetime.datetime,
    until: datetime.datetime,
    qualify: Callable[[Evidence], Verdict],
    rules: QuarantineRules,
) -> Requalified:
    """Corrects the failures of a time, and what came of them for their addresses; all of it or nothing."""
    lines = addresses = 0
    async with conn.transaction():
        # Nobody applies lines meanwhile; what is not applied yet is applied as it is corrected here.
        applied = await feed.pointer(conn, quarantine.POINTER, is_locked=True)
        past = await conn.cursor(_PAST, since, until)
        while rows := await past.fetch(BATCH_LINES):
            changed = [(row, verdict) for row in rows if (verdict := _verdict(row, qualify)) is not None]
            await conn.executemany(
                _CORRECT,
                [
                    (
                        *(row["at"], row["delivery_id"], row["number"], row["attempt"], row["status"]),
                        *(verdict.type, verdict.reason, verdict.category),
                    )
                    for row, verdict in changed
                ],
            )
            lines += len(changed)
            addresses += await _correct(conn, [one for one in changed if (one[0]["tx"] or 0) <= applied], rules)
    return Requalified(lines, addresses)


def _verdict(row: asyncpg.Record, qualify: Callable[[Evidence], Verdict]) -> Verdict | None:
    """What a line means now; None where that is what it says already, or nobody can tell."""
    verdict = qualify(Evidence(row["code"], row["enhanced"], row["reply"], "", row["mx_host"]))
    if verdict.rule != BY_OPERATOR and not (is_by_rule(verdict) and row["code"]):
        return None
    is_same = (verdict.type, verdict.reason, verdict.category) == (row["type"], row["reason"], row["category"])
    return None if is_same else verdict


async def _correct(conn: Conn, changed: Sequence[tuple[asyncpg.Record, Verdict]], rules: QuarantineRules) -> int:
    by_address: dict[str, list[Correction]] = {}
    forms: set[str] = set()
    for row, verdict in changed:
        was = quarantine.heard(row)
        now = was._replace(type=verdict.type, reason=verdict.reason, category=verdict.category)
        correction = Correction(was, now)
        by_address.setdefault(row["folded"], []).append(correction)
        if correction.weighs_more:
            forms.add(row["address"])
    if not by_address:
        return 0
    now_: datetime.datetime = await conn.fetchval("SELECT now()")
    known = await quarantine.locked(conn, by_address)
    standing = {
        address: corrected(msgspec.structs.replace(one), by_address[address], rules, now_)
        for address, one in known.items()
    }
    await quarantine.store(conn, known, standing)
    # Whoever took mail after a failure is not to be counted out for it now.
    first = min(row["at"] for row, _ in changed)
    delivered = {row["folded"]: row["at"] for row in await conn.fetch(_DELIVERED_LAST, list(forms), first)}
    more = {
        address: [one.now for one in of_address if one.weighs_more and one.now.at >= delivered.get(address, one.now.at)]
        for address, of_address in by_address.items()
    }
    more = {address: heard for address, heard in more.items() if heard}
    await quarantine.hear(conn, more, rules)
    return sum(_differ(known.get(address), now) for address, now in (await quarantine.locked(conn, by_address)).items())


def _differ(was: Standing | None, now: Standing) -> bool:
    return was is None or was.status is not now.status
