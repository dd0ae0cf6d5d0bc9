"""The books of a delivery, proved from queue and log; and what an operator decides of messages in doubt.

Every recipient that was appended has exactly one final line in the log, or stands at exactly one open position of one
part. A position that ``mta.part_settled`` lists is not open: that recipient was settled elsewhere.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import AsyncIterator, Iterable
from typing import Final

import asyncpg
import msgspec

from mta.model.limits import PART_INDEX_BITS
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn
from mta.queue.deliveries import announce, no_such_delivery

EXAMPLES_MAX: Final = 100
_FETCH_ROWS: Final = 10_000
_INDEX_MASK: Final = (1 << PART_INDEX_BITS) - 1
# Two small counters in a recipient's byte; each stops at 3.
_FINAL_ONE: Final = 0x01
_FINAL_MASK: Final = 0x03
_OPEN_ONE: Final = 0x04
_OPEN_MASK: Final = 0x0C

_EXISTS = "SELECT id FROM mta.delivery WHERE id = $1"
_APPENDS = "SELECT append_id, recipients FROM mta.delivery_append WHERE delivery_id = $1"
_KEYS = "SELECT append_id, key FROM mta.delivery_append WHERE delivery_id = $1 AND append_id = ANY($2::bigint[])"
_FINALS = "SELECT number FROM mta.delivery_log WHERE delivery_id = $1 AND status < $2"
_LOG_COUNTS = "SELECT status, count(*) FROM mta.delivery_log WHERE delivery_id = $1 GROUP BY status"
_STATS = """
SELECT delivered, failed, expired, cancelled, simulated, deferrals, in_doubt, bounced, complaints, unsubscribed,
       excluded + (SELECT coalesce(sum(a.excluded + a.duplicates), 0)::bigint FROM mta.delivery_append a
                   WHERE a.delivery_id = $1) AS excluded
FROM mta.delivery_stats WHERE delivery_id = $1
"""
_PARTS = """
SELECT p.append_id, p.numbers, p.count, p.held, p.owner IS NOT NULL AS leased,
       coalesce((SELECT array_agg(x) FROM mta.part_settled s, unnest(s.positions) x WHERE s.part_id = p.id),
                '{}')::int4[] AS settled
FROM mta.delivery_part p WHERE p.delivery_id = $1
"""
_IN_DOUBT = """
WITH held AS (
    SELECT coalesce(p.numbers[i], p.append_id << 16 | i - 1) AS number
    FROM mta.delivery_part p, generate_series(1, p.count) i WHERE p.delivery_id = $1 AND p.held
)
SELECT d.at, d.number, d.part_id, d.attempt, d.address, d.mx_host, d.peer, d.policy, d.cause,
       d.number IN (SELECT number FROM held) AS held
FROM mta.in_doubt d WHERE d.delivery_id = $1 ORDER BY d.at, d.number LIMIT $2
"""
_RESEND = """
WITH released AS (
    UPDATE mta.delivery_part SET held = false, due_at = now() WHERE delivery_id = $1 AND held RETURNING count
)
SELECT coalesce(sum(count), 0)::bigint FROM released
"""
_DROP = """
WITH dropped AS (
    DELETE FROM mta.delivery_part WHERE delivery_id = $1 AND held
    RETURNING id, append_id, numbers, site, recipients
), settled AS (
    DELETE FROM mta.part_settled s USING dropped d WHERE s.part_id = d.id RETURNING s.part_id, s.positions
), logged AS (
    INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                  address, reference, site, mx_host, peer, egress, reply)
    SELECT now(), $1, coalesce(d.numbers[i], d.append_id << 16 | i - 1), d.id, 0, $2, $3, 0, '',
           r ->> 0, r ->> 1, coalesce(d.site, ''), '', '', '', $4
    FROM dropped d, jsonb_array_elements(convert_from(d.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS one (r, i)
    WHERE NOT EXISTS (SELECT FROM settled s WHERE s.part_id = d.id AND (i - 1)::smallint = ANY (s.positions))
    RETURNING 1
), counted AS (
    INSERT INTO mta.delivery_stats AS s (delivery_id, failed) SELECT $1, count(*) FROM logged
    ON CONFLICT (delivery_id) DO UPDATE SET failed = s.failed + excluded.failed
)
SELECT count(*) FROM logged
"""
DROPPED_REPLY: Final = "in doubt, dropped by operator"


class Action(enum.StrEnum):
    """What to do with messages that are held because they are in doubt."""

    RESEND = "resend"  # again, with the same Message-ID; the recipient may get it twice
    DROP = "drop"  # record them as failed; the recipient may have it all the same


class Finding(msgspec.Struct, frozen=True):
    """One recipient with a wrong account: number ``append_id << 16 | index``; ``key`` None: no such append."""

    number: int
    append_id: int
    index: int
    key: str | None


class Findings(msgspec.Struct, frozen=True):
    """How many, and the first of them."""

    count: int
    examples: list[Finding]


class Counter(msgspec.Struct, frozen=True):
    """One counter of ``mta.delivery_stats`` beside what the log says."""

    name: str
    counted: int
    logged: int


class Audit(msgspec.Struct, frozen=True):
    """A delivery's account at one instant. ``is_clean``: nothing lost, repeated or invented, counters true."""

    delivery_id: int
    appended: int
    final: int  # recipients with a final line
    open: int  # recipients at an open position of a part: ``leased`` and ``held`` ones among them
    leased: int
    held: int
    lost: Findings  # appended, and nowhere now
    duplicates: Findings  # more than one final line
    both: Findings  # a final line, and still an open position
    open_twice: Findings  # two open positions
    invented: Findings  # a final line or position of a recipient that was never appended
    counters: list[Counter]

    @property
    def wrong_counters(self) -> list[Counter]:
        return [counter for counter in self.counters if counter.counted != counter.logged]

    @property
    def is_clean(self) -> bool:
        faults = (self.lost, self.duplicates, self.both, self.open_twice, self.invented)
        return not any(findings.count for findings in faults) and not self.wrong_counters


class Doubt(msgspec.Struct, frozen=True):
    """A message that was in doubt; ``held``: it waits for an operator's word."""

    at: datetime.datetime
    number: int
    part_id: int
    attempt: int
    address: str
    mx_host: str
    peer: str
    policy: str
    cause: str
    held: bool


async def audit(conn: Conn, delivery_id: int) -> Audit:
    """Check every recipient of a delivery, at one snapshot, also while it runs.

    Memory: one byte a recipient. ``conn`` must not be in a transaction.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        if await conn.fetchval(_EXISTS, delivery_id) is None:
            raise no_such_delivery(delivery_id)
        book = _Book()
        async for rows in _pages(conn, _APPENDS, delivery_id):
            for append_id, recipients in rows:
                book.add_append(append_id, recipients)
        async for rows in _pages(conn, _FINALS, delivery_id, Status.DEFERRED.value):
            book.add([row[0] for row in rows], _FINAL_ONE, _FINAL_MASK)
        async for rows in _pages(conn, _PARTS, delivery_id):
            for row in rows:
                book.add_part(row)
        counters = await _counters(conn, delivery_id)
        faults = book.faults()
        keys = await _keys(conn, delivery_id, faults)
    lost, duplicates, both, open_twice, invented = (_findings(fault, keys) for fault in faults)
    return Audit(
        delivery_id=delivery_id,
        appended=book.appended,
        final=book.final,
        open=book.open,
        leased=book.leased,
        held=book.held,
        lost=lost,
        duplicates=duplicates,
        both=both,
        open_twice=open_twice,
        invented=invented,
        counters=counters,
    )


async def in_doubt(conn: Conn, delivery_id: int, *, limit: int = 10_000) -> list[Doubt]:
    """Every message of a delivery that was ever in doubt, the oldest first."""
    if await conn.fetchval(_EXISTS, delivery_id) is None:
        raise no_such_delivery(delivery_id)
    return [Doubt(*row.values()) for row in await conn.fetch(_IN_DOUBT, delivery_id, limit)]


async def settle_in_doubt(conn: Conn, delivery_id: int, action: Action) -> int:
    """Settle all held messages of a delivery, in one transaction; answers how many recipients it were."""
    async with conn.transaction():
        if await conn.fetchval(_EXISTS, delivery_id) is None:
            raise no_such_delivery(delivery_id)
        if action is Action.RESEND:
            settled: int = await conn.fetchval(_RESEND, delivery_id)
        else:
            settled = await conn.fetchval(
                _DROP, delivery_id, Status.FAILED.value, Reason.NOT_DEFINED.value, DROPPED_REPLY
            )
        await announce(conn, delivery_id)
    return settled


class _Faults:
    """Numbers with one kind of fault: all counted, the first kept."""

    def __init__(self) -> None:
        self.count = 0
        self.numbers: list[int] = []

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.numbers) < EXAMPLES_MAX:
            self.numbers.append(number)


class _Book:
    """One byte for each recipient, by append."""

    def __init__(self) -> None:
        self.appended = self.final = self.open = self.leased = self.held = 0
        self._bytes: dict[int, bytearray] = {}
        self._invented = _Faults()

    def add_append(self, append_id: int, recipients: int) -> None:
        self._bytes[append_id] = bytearray(recipients)
        self.appended += recipients

    def add(self, numbers: Iterable[int], one: int, mask: int) -> None:
        for number in numbers:
            page = self._bytes.get(number >> PART_INDEX_BITS)
            index = number & _INDEX_MASK
            if page is None or index >= len(page):
                self._invented.add(number)
            elif page[index] & mask != mask:
                page[index] += one

    def add_part(self, row: asyncpg.Record) -> None:
        first = 0 if row["append_id"] is None else row["append_id"] << PART_INDEX_BITS
        numbers = row["numbers"] or range(first, first + row["count"])
        settled = frozenset(row["settled"])
        still_open = [number for position, number in enumerate(numbers) if position not in settled]
        self.open += len(still_open)
        self.leased += len(still_open) if row["leased"] else 0
        self.held += len(still_open) if row["held"] else 0
        self.add(still_open, _OPEN_ONE, _OPEN_MASK)

    def faults(self) -> tuple[_Faults, _Faults, _Faults, _Faults, _Faults]:
        """Lost, duplicates, both, open twice, invented."""
        lost, duplicates, both, open_twice = _Faults(), _Faults(), _Faults(), _Faults()
        for append_id, page in self._bytes.items():
            # Nearly every append is all final or all open; counting bytes is a hundred times a loop's speed.
            settled = page.count(_FINAL_ONE)
            self.final += settled
            if settled + page.count(_OPEN_ONE) == len(page):
                continue
            for index, account in enumerate(page):
                if account in (_FINAL_ONE, _OPEN_ONE):
                    continue
                number = append_id << PART_INDEX_BITS | index
                finals, opens = account & _FINAL_MASK, (account & _OPEN_MASK) // _OPEN_ONE
                self.final += finals > 0
                for is_so, fault in (
                    (account == 0, lost),
                    (finals > 1, duplicates),
                    (finals > 0 and opens > 0, both),
                    (opens > 1, open_twice),
                ):
                    if is_so:
                        fault.add(number)
        return lost, duplicates, both, open_twice, self._invented


async def _pages(conn: Conn, query: str, *values: object) -> AsyncIterator[list[asyncpg.Record]]:
    cursor = await conn.cursor(query, *values)
    while rows := await cursor.fetch(_FETCH_ROWS):
        yield rows


async def _counters(conn: Conn, delivery_id: int) -> list[Counter]:
    logged = {row[0]: row[1] for row in await conn.fetch(_LOG_COUNTS, delivery_id)}
    counted = await conn.fetchrow(_STATS, delivery_id)
    by_name = {
        "delivered": Status.DELIVERED,
        "failed": Status.FAILED,
        "expired": Status.EXPIRED,
        "cancelled": Status.CANCELLED,
        "simulated": Status.SIMULATED,
        "deferrals": Status.DEFERRED,
        "in_doubt": Status.IN_DOUBT,
        "excluded": Status.EXCLUDED,
        "bounced": Status.BOUNCED,
        "complaints": Status.COMPLAINED,
        "unsubscribed": Status.UNSUBSCRIBED,
    }
    return [
        Counter(name, counted[name] if counted else 0, logged.get(status.value, 0)) for name, status in by_name.items()
    ]


async def _keys(conn: Conn, delivery_id: int, faults: Iterable[_Faults]) -> dict[int, str]:
    append_ids = {number >> PART_INDEX_BITS for fault in faults for number in fault.numbers}
    return {row[0]: row[1] for row in await conn.fetch(_KEYS, delivery_id, sorted(append_ids))}


def _findings(fault: _Faults, keys: dict[int, str]) -> Findings:
    examples = [
        Finding(number, number >> PART_INDEX_BITS, number & _INDEX_MASK, keys.get(number >> PART_INDEX_BITS))
        for number in fault.numbers
    ]
    return Findings(fault.count, examples)
