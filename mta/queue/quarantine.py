"""Addresses that are not mailed any more: how they come there, how they are looked up, and how operators set them.

==================================  =========================================================================
what happened                       what becomes of the address
==================================  =========================================================================
hard failure                        in quarantine, at once
soft failure                        counted, once a day at most; in quarantine at the fifth
failure of our own fault, ignored   nothing
more than 10 days without one       counted from one again
delivered                           nothing is counted any more
complaint, unsubscription           denylisted
mailbox full, 30 days ago           released, whether counted or in quarantine
on the allowlist                    nothing, whatever happens
==================================  =========================================================================

All times are those of the log, so that it makes no difference when somebody gets round to reading it. Nothing but a
full mailbox leaves quarantine by itself, and nothing the denylist (campaign-mta §5).
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

import asyncpg
import msgspec

from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus, folded
from mta.queue.connection import Conn

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
_FAILED: Final = "SELECT mta.address_failed($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_DELIVERED: Final = """
UPDATE mta.quarantine SET status = 2, errors = 0, counted_at = NULL, changed_at = $2, known_at = now(), changed_by = ''
WHERE address = $1 AND status = 1 AND counted_at <= $2
"""
_DENY: Final = """
INSERT INTO mta.quarantine AS q (address, status, reason, text, delivery_id, number, created_at, changed_at)
VALUES ($1, 3, $2, $3, $4, $5, $6, $6)
ON CONFLICT (address) DO UPDATE SET status = 3, reason = excluded.reason, text = excluded.text,
    delivery_id = excluded.delivery_id, number = excluded.number, changed_at = excluded.changed_at, known_at = now(),
    changed_by = ''
WHERE q.status NOT IN (3, 5)
"""
_RELEASE_FULL: Final = """
UPDATE mta.quarantine SET status = 2, errors = 0, counted_at = NULL, changed_at = $1, known_at = now(), changed_by = ''
WHERE status IN (1, 4) AND reason = 5 AND changed_by = ''
  AND coalesce(counted_at, changed_at) <= $1::timestamptz - $2::interval
"""
_RELEASE_QUIET: Final = """
UPDATE mta.quarantine SET status = 2, errors = 0, counted_at = NULL, changed_at = $1, known_at = now(), changed_by = ''
WHERE status = 1 AND counted_at < $1::timestamptz - $2::interval
"""
_FORGET: Final = "DELETE FROM mta.quarantine WHERE status = 2 AND changed_at < $1::timestamptz - interval '1 day'"
_NOT_MAILED: Final = "SELECT address, status FROM mta.not_mailed($1)"
_LATEST: Final = "SELECT max(known_at) FROM mta.quarantine WHERE status IN (3, 4)"
_COLUMNS: Final = """
SELECT address, status, errors, counted_at, reason, category, text, delivery_id, created_at, changed_at, changed_by
FROM mta.quarantine
"""
_SEARCH: Final = (
    _COLUMNS
    + """
WHERE ($1::smallint IS NULL OR status = $1) AND ($2::text IS NULL OR address LIKE $2)
  AND ($3::text IS NULL OR strpos(lower(text), lower($3)) > 0)
  AND ($4::timestamptz IS NULL OR changed_at >= $4) AND ($5::timestamptz IS NULL OR changed_at < $5)
ORDER BY changed_at DESC, address
"""
)
_SET: Final = """
INSERT INTO mta.quarantine AS q (address, status, reason, text, changed_by)
SELECT address, $2, $3, $4, $5 FROM unnest($1::text[]) AS given (address)
ON CONFLICT (address) DO UPDATE SET status = excluded.status, reason = excluded.reason, text = excluded.text,
    errors = 0, counted_at = NULL, changed_at = now(), known_at = now(), changed_by = excluded.changed_by
WHERE q.status <> excluded.status
"""
_OUTAGE: Final = """
UPDATE mta.quarantine
SET status = 2, errors = 0, counted_at = NULL, changed_at = now(), known_at = now(), changed_by = $5
WHERE status IN (1, 4) AND strpos(address, '@') > 1
  AND ($1::text IS NULL OR strpos(lower(text), lower($1)) > 0) AND ($2::text IS NULL OR address LIKE '%@' || $2)
  AND coalesce(counted_at, changed_at) >= $3 AND coalesce(counted_at, changed_at) < $4
"""
_REASON_OF: Final[Mapping[AddressStatus, Reason]] = {
    AddressStatus.DENYLISTED: Reason.DENYLISTED,
    AddressStatus.QUARANTINED: Reason.QUARANTINED,
    AddressStatus.ALLOWLISTED: Reason.ERROR_IGNORED,
}


class QuarantineRules(msgspec.Struct, frozen=True):
    """``[quarantine]`` of the settings: what is counted, and for how long."""

    errors_max: int = 5  # of so many counted soft errors an address is quarantined
    count_every_s: int = 86_400  # an error counts when the last counted one is at least so much older
    quiet_s: int = 10 * 86_400  # after so long without one, counting begins anew
    mailbox_full_s: int = 30 * 86_400  # a full mailbox is released after it


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


def counts(line: Mapping[str, object] | asyncpg.Record) -> bool:
    """Whether a line of the log is a failure that counts against its address."""
    return line["type"] in (FailureType.SOFT, FailureType.HARD) and line["category"] not in OUR_FAULT


async def apply(conn: Conn, lines: Sequence[asyncpg.Record], rules: QuarantineRules) -> None:
    """What lines of the log (`FOLLOWED`, in the order of the feed) mean for their addresses."""
    every, quiet = datetime.timedelta(seconds=rules.count_every_s), datetime.timedelta(seconds=rules.quiet_s)
    failed: list[tuple[object, ...]] = []
    for line in sorted(lines, key=lambda line: line["at"]):
        status, address = line["status"], line["address"]
        if status in (Status.COMPLAINED, Status.UNSUBSCRIBED):
            denied = (
                folded(address),
                Reason.DENYLISTED,
                line["reply"],
                line["delivery_id"],
                line["number"],
                line["at"],
            )
            await conn.execute(_DENY, *denied)
        elif status == Status.DELIVERED:
            # In their order, so that an error after a success begins anew.
            await conn.executemany(_FAILED, failed)
            failed.clear()
            await conn.execute(_DELIVERED, folded(address), line["at"])
        elif counts(line):
            is_hard = line["type"] == FailureType.HARD and status != Status.DEFERRED
            said = f"{line['code'] or ''} {line['enhanced']} {line['reply']}".strip()[:_TEXT_CHARS_MAX]
            failed.append(
                (
                    *(address, is_hard, line["reason"], line["category"], said, line["delivery_id"], line["number"]),
                    *(line["at"], rules.errors_max, every, quiet),
                )
            )
    await conn.executemany(_FAILED, failed)


async def release(conn: Conn, now: datetime.datetime, rules: QuarantineRules) -> int:
    """What time heals, and rows of which nothing is to be known any more; how many addresses are released."""
    full = await conn.execute(_RELEASE_FULL, now, datetime.timedelta(seconds=rules.mailbox_full_s))
    quiet = await conn.execute(_RELEASE_QUIET, now, datetime.timedelta(seconds=rules.quiet_s))
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


# --- operators -----------------------------------------------------------------------------------


def checked(address: str, where: str) -> str:
    """An address, or ``@domain``, in the form in which it is kept. Raises BadInput."""
    text = address.strip()
    if text.startswith("@"):
        return "@" + parse_mailbox(f"any{text}", where).text.rpartition("@")[2].lower()
    return folded(parse_mailbox(text, where).text)


async def find(conn: Conn, address: str) -> Entry | None:
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
    like = None if domain is None else f"%@{_plain(domain)}"
    rows = await conn.fetch(_SEARCH + "LIMIT $6", status, like, text, since, until, limit)
    return [msgspec.convert(dict(row), Entry) for row in rows]


async def export(conn: Conn, status: AddressStatus | None = None) -> AsyncIterator[Entry]:
    """All of them, however many; memory is bounded."""
    async with conn.transaction(readonly=True):
        async for row in conn.cursor(_SEARCH, status, None, None, None, None, prefetch=IMPORT_ROWS):
            yield msgspec.convert(dict(row), Entry)


async def put(conn: Conn, addresses: Iterable[str], status: AddressStatus, text: str, by_whom: str) -> int:
    """Sets addresses (as `checked` gives them) to a status by hand; how many were another."""
    changed = 0
    batch: set[str] = set()
    reason = _REASON_OF.get(status, Reason.NOT_DEFINED)
    for address in addresses:
        batch.add(address)
        if len(batch) >= IMPORT_ROWS:
            changed += _affected(await conn.execute(_SET, sorted(batch), status, reason, text, by_whom))
            batch.clear()
    if batch:
        changed += _affected(await conn.execute(_SET, sorted(batch), status, reason, text, by_whom))
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
    found = await conn.execute(_OUTAGE, text, None if domain is None else _plain(domain), since, until, by_whom)
    return _affected(found)


def _plain(domain: str) -> str:
    return checked(f"@{domain.removeprefix('@')}", "domain").removeprefix("@").replace("_", r"\_").replace("%", r"\%")


def _affected(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
