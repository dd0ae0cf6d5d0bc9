"""Addresses that are not mailed any more: kept by what the log says, looked up, and set by operators.

What an outcome does to its address is said by `mta.failure.standing`; here it is applied, each line once. Time releases
a full mailbox, and forgets errors after a quiet while; nothing else leaves quarantine by itself, and nothing the
denylist (campaign-mta §5).
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

import asyncpg
import msgspec

from mta.failure.standing import Heard, QuarantineRules, Standing, after
from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus, folded
from mta.queue.connection import Conn
from mta.queue.feed import Page

POINTER: Final = "failures"  # the name of who reads the log for it (mta.queue.feed)
IMPORT_ROWS: Final = 10_000
SHOWN_MAX: Final = 1_000
_TEXT_CHARS_MAX: Final = 500
# The lines that matter here; of what was delivered only addresses with counted errors.
FOLLOWED: Final = f"""
AND (status IN ({Status.FAILED:d}, {Status.DEFERRED:d}, {Status.BOUNCED:d}, {Status.COMPLAINED:d},
                {Status.UNSUBSCRIBED:d})
     OR (status = {Status.DELIVERED:d}
         AND EXISTS (SELECT FROM mta.quarantine q WHERE q.address = lower(delivery_log.address) AND q.status = 1)))
"""
_LOWER: Final = "SELECT a, lower(a) FROM unnest($1::text[]) AS a"
_STORED: Final = (
    *("status", "errors", "counted_at", "reason", "category", "text", "delivery_id", "number"),
    *("created_at", "changed_at", "changed_by"),
)
# Locked in one order, as everybody here does.
_KNOWN: Final = """
SELECT address, status, errors, counted_at, reason, category, text, delivery_id, number, created_at, changed_at,
       changed_by
FROM mta.quarantine WHERE address = ANY($1::text[]) ORDER BY address FOR UPDATE
"""
# Of those who failed in the same lines: they had no counted errors yet when the lines were read.
_DELIVERED: Final = f"""
SELECT at, delivery_id, number, status, reason, type, category, code, enhanced, address, reply
FROM mta.delivery_log JOIN unnest($3::text[]) AS f (failed) ON f.failed = lower(address)
WHERE tx > $1 AND tx <= $2 AND status = {Status.DELIVERED:d}
"""  # noqa: S608 - a number of the program
_GIVEN: Final = """
unnest($1::text[], $2::smallint[], $3::int[], $4::timestamptz[], $5::smallint[], $6::smallint[], $7::text[],
       $8::bigint[], $9::bigint[], $10::timestamptz[], $11::timestamptz[], $12::text[])
AS g (address, status, errors, counted_at, reason, category, text, delivery_id, number, created_at, changed_at,
      changed_by)
"""
_INSERT: Final = f"""
INSERT INTO mta.quarantine (address, status, errors, counted_at, reason, category, text, delivery_id, number,
                            created_at, changed_at, changed_by)
SELECT * FROM {_GIVEN} ON CONFLICT (address) DO NOTHING RETURNING address
"""  # noqa: S608 - put together from constants
_UPDATE: Final = f"""
UPDATE mta.quarantine q SET
    status = g.status, errors = g.errors, counted_at = g.counted_at, reason = g.reason, category = g.category,
    text = g.text, delivery_id = g.delivery_id, number = g.number, changed_at = g.changed_at, changed_by = g.changed_by,
    known_at = CASE WHEN q.status <> g.status THEN now() ELSE q.known_at END
FROM {_GIVEN} WHERE q.address = g.address
"""  # noqa: S608 - put together from constants
_RELEASE: Final = """
WITH due AS (
    SELECT address FROM mta.quarantine WHERE {which} ORDER BY address FOR UPDATE
)
UPDATE mta.quarantine q
SET status = 2, errors = 0, counted_at = NULL, changed_at = $1, known_at = now(), changed_by = ''
FROM due WHERE q.address = due.address
"""
_RELEASE_FULL: Final = _RELEASE.format(
    which="""status IN (1, 4) AND reason = 5 AND changed_by = ''
      AND CASE status WHEN 4 THEN changed_at ELSE counted_at END <= $1::timestamptz - $2::interval"""
)
_RELEASE_QUIET: Final = _RELEASE.format(which="status = 1 AND counted_at < $1::timestamptz - $2::interval")
# What operators said stays for a while: errors of before are covered by it, and somebody may ask who it was.
_FORGET: Final = """
DELETE FROM mta.quarantine
WHERE status = 2
  AND changed_at < $1::timestamptz - CASE changed_by WHEN '' THEN interval '1 day' ELSE interval '90 days' END
"""
_COUNTS: Final = "SELECT status, count(*) FROM mta.quarantine GROUP BY status ORDER BY status"
_NOT_MAILED: Final = "SELECT address, status FROM mta.not_mailed($1)"
_LATEST: Final = "SELECT max(known_at) FROM mta.quarantine WHERE status IN (3, 4)"
_COLUMNS: Final = """
SELECT address, status, errors, counted_at, reason, category, text, delivery_id, created_at, changed_at, changed_by
FROM mta.quarantine
"""
_SEARCH: Final = (
    _COLUMNS
    + """
WHERE ($1::smallint IS NULL OR status = $1) AND ($2::text IS NULL OR substring(address FROM '[^@]*$') = $2)
  AND ($3::text IS NULL OR strpos(lower(text), lower($3)) > 0)
  AND ($4::timestamptz IS NULL OR changed_at >= $4) AND ($5::timestamptz IS NULL OR changed_at < $5)
"""
)
_NEWEST: Final = _SEARCH + "ORDER BY changed_at DESC, address LIMIT $6"
_SET: Final = "SELECT mta.quarantine_set($1, $2, $3, $4)"
_OUTAGE: Final = "SELECT mta.quarantine_outage($1, $2, $3, $4, $5)"
_REASON_OF: Final = {AddressStatus.DENYLISTED: Reason.DENYLISTED, AddressStatus.QUARANTINED: Reason.QUARANTINED}


class Entry(msgspec.Struct, frozen=True):
    """What is known of an address, or of a domain (``@example.com``)."""

    address: str
    status: AddressStatus
    errors: int
    counted_at: datetime.datetime | None
    reason: Reason
    category: Category
    text: str
    delivery_id: int | None
    created_at: datetime.datetime
    changed_at: datetime.datetime
    changed_by: str


async def apply(conn: Conn, page: Page, after_tx: int, rules: QuarantineRules) -> None:
    """What a page of the log (`FOLLOWED`, read after ``after_tx``) means for addresses; in the caller's transaction."""
    lines = list(page.lines)
    lower = await _lower(conn, lines)
    failed = {lower[line["address"]] for line in lines if heard(line).counts}
    if failed:
        more = await conn.fetch(_DELIVERED, after_tx, page.upto, list(failed))
        lower |= await _lower(conn, more)
        lines += more
    by_address: dict[str, list[Heard]] = {}
    for line in sorted(lines, key=lambda line: line["at"]):
        by_address.setdefault(lower[line["address"]], []).append(heard(line))
    await hear(conn, by_address, rules)


async def hear(conn: Conn, by_address: Mapping[str, Sequence[Heard]], rules: QuarantineRules) -> None:
    """What was heard of addresses (in the database's lower case), each in its order; in the caller's transaction."""
    left = dict(by_address)
    while left:
        known = await locked(conn, left)
        changed: dict[str, Standing] = {}
        for address, of_address in left.items():
            standing = copy.copy(known.get(address))
            for one in of_address:
                standing = after(standing, one, rules)
            if standing is not None:
                changed[address] = standing
        # Whom an operator has set since we looked is looked at again.
        left = {address: left[address] for address in await store(conn, known, changed)}


async def locked(conn: Conn, addresses: Iterable[str]) -> dict[str, Standing]:
    """What is known of these addresses; it stays so until the end of the transaction."""
    rows = await conn.fetch(_KNOWN, list(addresses))
    return {row["address"]: _standing(row) for row in rows}


async def store(conn: Conn, known: Mapping[str, Standing], changed: Mapping[str, Standing]) -> list[str]:
    """Stores what is another than it was (`locked`). Answers those that somebody else has made meanwhile."""
    fresh = {address: one for address, one in changed.items() if address not in known}
    await _write(conn, _UPDATE, {a: one for a, one in changed.items() if a in known and one != known[a]})
    inserted = {row["address"] for row in await _write(conn, _INSERT, fresh)}
    return [address for address in fresh if address not in inserted]


async def _lower(conn: Conn, lines: Iterable[asyncpg.Record]) -> dict[str, str]:
    """Their addresses as the database folds them."""
    return {row[0]: row[1] for row in await conn.fetch(_LOWER, list({line["address"] for line in lines}))}


def heard(line: asyncpg.Record) -> Heard:
    """A line of the log, as far as it matters here."""
    text = f"{line['code'] or ''} {line['enhanced']} {line['reply']}"
    return Heard(
        line["at"],
        Status(line["status"]),
        FailureType(line["type"]),
        Reason(line["reason"]),
        Category(line["category"]),
        " ".join(text.split())[:_TEXT_CHARS_MAX],
        line["delivery_id"],
        line["number"],
    )


def _standing(row: asyncpg.Record) -> Standing:
    return msgspec.convert({name: row[name] for name in Standing.__struct_fields__}, Standing)


async def _write(conn: Conn, query: str, standings: Mapping[str, Standing]) -> list[asyncpg.Record]:
    of_all = sorted(standings.items())
    columns = [[getattr(standing, name) for _, standing in of_all] for name in _STORED]
    return await conn.fetch(query, [address for address, _ in of_all], *columns) if of_all else []


async def release(conn: Conn, now: datetime.datetime, rules: QuarantineRules) -> int:
    """What time heals, and rows of which nothing is to be known any more; how many addresses are released."""
    full = await conn.execute(_RELEASE_FULL, now, rules.mailbox_full)
    quiet = await conn.execute(_RELEASE_QUIET, now, rules.quiet)
    await conn.execute(_FORGET, now)
    return _affected(full) + _affected(quiet)


async def not_mailed(conn: Conn, addresses: Sequence[str]) -> dict[str, Reason]:
    """Of these addresses those that are not to be mailed, and why."""
    return {
        row["address"]: _REASON_OF[AddressStatus(row["status"])] for row in await conn.fetch(_NOT_MAILED, addresses)
    }


async def latest(conn: Conn) -> datetime.datetime | None:
    """When the last address became one that is not mailed; None: there is none."""
    found: datetime.datetime | None = await conn.fetchval(_LATEST)
    return found


async def counts(conn: Conn) -> dict[AddressStatus, int]:
    """How many addresses, and domains, there are of each status."""
    return {AddressStatus(status): count for status, count in await conn.fetch(_COUNTS)}


# --- operators -----------------------------------------------------------------------------------


def checked(address: str, where: str) -> str:
    """An address, or ``@domain``, in the form in which it is kept. Raises BadInput."""
    text = address.strip()
    if text.startswith("@"):
        return "@" + parse_mailbox(f"any{text}", where).text.rpartition("@")[2].lower()
    return folded(parse_mailbox(text, where).text)


async def find(conn: Conn, address: str) -> Entry | None:
    """Of an address itself, or of ``@domain``."""
    row = await conn.fetchrow(_COLUMNS + "WHERE address = $1", checked(address, "address"))
    return None if row is None else msgspec.convert(dict(row), Entry)


async def search(
    conn: Conn,
    *,
    status: AddressStatus | None = None,
    domain: str | None = None,
    text: str | None = None,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
    limit: int = SHOWN_MAX,
) -> list[Entry]:
    """The newest changes first."""
    rows = await conn.fetch(_NEWEST, status, None if domain is None else _domain(domain), text, since, until, limit)
    return [msgspec.convert(dict(row), Entry) for row in rows]


async def export(conn: Conn, status: AddressStatus | None = None) -> AsyncIterator[Entry]:
    """All of them, however many; memory is bounded."""
    async with conn.transaction(readonly=True):
        # asyncpg's own cursor prepares a statement under a name, whatever it is told, and leaves it behind: where a
        # pooler shares sessions, the next one to come finds that name taken.
        await conn.fetch(f"DECLARE exported NO SCROLL CURSOR FOR {_SEARCH}", status, None, None, None, None)
        while rows := await conn.fetch(f"FETCH {IMPORT_ROWS} FROM exported"):
            for row in rows:
                yield msgspec.convert(dict(row), Entry)


async def put(conn: Conn, addresses: Iterable[str], status: AddressStatus, text: str, by_whom: str) -> int:
    """Sets addresses (as `checked` gives them) to a status by hand; how many were another, or were set by the rules.

    Of somebody who is VALID and unknown nothing is to be known.
    """
    changed = 0
    batch: list[str] = []
    for address in addresses:
        batch.append(address)
        if len(batch) >= IMPORT_ROWS:
            changed += await conn.fetchval(_SET, batch, status, text, by_whom)
            batch.clear()
    if batch:
        changed += await conn.fetchval(_SET, batch, status, text, by_whom)
    return changed


async def outage(
    conn: Conn,
    by_whom: str,
    since: datetime.datetime,
    until: datetime.datetime,
    *,
    text: str | None = None,
    domain: str | None = None,
) -> int:
    """After a provider's outage: what its errors of that time put here is valid again; how many addresses.

    Errors are chosen by a part of their text, by domain, or both; by neither would be everybody's.
    """
    if not (text or domain):
        raise BadInput("outage", "name a text, a domain, or both")
    if since >= until:
        raise BadInput("outage", "begins when it is over, or later")
    found: int = await conn.fetchval(_OUTAGE, since, until, text, None if domain is None else _domain(domain), by_whom)
    return found


def _domain(domain: str) -> str:
    return checked(f"@{domain.removeprefix('@')}", "domain").removeprefix("@")


def _affected(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
