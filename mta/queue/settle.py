"""The outcome transaction: log lines, what is settled, what comes back later, counters and credits, all or none.

A settlement is idempotent by construction at a higher level: whoever builds one knows (from `part_settled` and
from the part's existence) which positions are still open, and its transaction holds the fencing token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from mta.model.outcome import InDoubtPolicy, Status
from mta.queue import nodes
from mta.queue.connection import Conn

Row = tuple[str, str | None, msgspec.Raw]
# Figures of a minute of traffic, in order: attempts by their status, then bytes of content that was accepted, or not.
TRAFFIC: Final = (
    Status.DELIVERED,
    Status.FAILED,
    Status.EXPIRED,
    Status.CANCELLED,
    Status.SIMULATED,
    Status.DEFERRED,
    Status.IN_DOUBT,
    "bytes_delivered",
    "bytes_other",
)
IN_DOUBT_MAX: Final = 2  # by default: a recipient that was in doubt so often is held
TRAFFIC_AT: Final = {what: at for at, what in enumerate(TRAFFIC)}
_pack = msgspec.json.Encoder().encode


class NewPart(msgspec.Struct, frozen=True):
    """Recipients that leave a leased part for a part of their own: deferrals, surplus, held ones.

    ``due_in_s`` counts from the database's now at commit.
    """

    delivery_id: int
    site: str | None
    attempt: int  # attempts made so far
    held: bool
    appended_at: datetime
    fields: tuple[str, ...]
    numbers: list[int]
    rows: list[Row]
    due_in_s: float
    egress: str | None = None  # that they are to leave from: they were greylisted there
    in_doubt: bool = False  # they were, and go again: but those held who were so too often
    dated_unix_s: int = 0  # of their first hand-out: what their Date says; 0: there was none yet


class Doubt(msgspec.Struct, frozen=True):
    """A message in doubt, as it is listed for good. ``policy`` is the delivery's; listed is what it came to."""

    delivery_id: int
    number: int
    part_id: int
    attempt: int
    address: str
    mx_host: str
    peer: str
    policy: str
    cause: str


@dataclass(eq=False)
class Settlement:
    """What one transaction will record. Filled by the collector, consumed by `commit`."""

    lines: list[bytes] = field(default_factory=list)
    settled: dict[int, list[int]] = field(default_factory=dict)  # part -> positions, of parts that go on
    finished: list[int] = field(default_factory=list)  # parts of which every position is settled now
    released: list[int] = field(default_factory=list)  # parts given back with what is left in them
    set_aside: list[int] = field(default_factory=list)  # parts that cannot be read: held for an operator
    new_parts: list[NewPart] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    counts: dict[int, dict[Status, int]] = field(default_factory=dict)  # delivery -> status -> recipients
    credits: dict[tuple[str, int], int] = field(default_factory=dict)  # (quota key, bucket) -> used
    traffic: dict[tuple[int, str], list[int]] = field(default_factory=dict)  # (minute in Unix s, egress) -> TRAFFIC
    recipients: int = 0  # how many are settled by it; they are in memory until it is recorded
    in_doubt_max: int = IN_DOUBT_MAX

    @property
    def is_empty(self) -> bool:
        return not (
            self.lines
            or self.settled
            or self.finished
            or self.released
            or self.set_aside
            or self.new_parts
            or self.doubts
            or self.credits
        )

    def count(self, delivery_id: int, status: Status, recipients: int) -> None:
        """Moves a delivery's counter."""
        of_delivery = self.counts.setdefault(delivery_id, {})
        of_delivery[status] = of_delivery.get(status, 0) + recipients

    def traffic_of(self, unix_s: float, egress: str) -> list[int]:
        """The figures of a minute and egress, to be added to: in the order of ``TRAFFIC``."""
        key = (int(unix_s) // 60 * 60, egress)
        figures = self.traffic.get(key)
        if figures is None:
            figures = self.traffic[key] = [0] * len(TRAFFIC)
        return figures


_SETTLED = """
INSERT INTO mta.part_settled (part_id, positions)
SELECT u.part_id, u.positions::smallint[] FROM unnest($1::bigint[], $2::text[]) AS u (part_id, positions)
"""
_FINISHED = """
WITH gone AS (DELETE FROM mta.part_settled WHERE part_id = ANY($1::bigint[]))
DELETE FROM mta.delivery_part WHERE id = ANY($1::bigint[])
"""
_RELEASED = "UPDATE mta.delivery_part SET owner = NULL WHERE owner = $1 AND id = ANY($2::bigint[])"
_SET_ASIDE = "UPDATE mta.delivery_part SET owner = NULL, held = true WHERE owner = $1 AND id = ANY($2::bigint[])"
_NEW_PARTS = """
INSERT INTO mta.delivery_part
    (delivery_id, site, attempt, held, appended_at, fields, numbers, count, recipients, due_at, egress, dated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10), $11, to_timestamp(nullif($12::int8, 0)))
"""
# How often a recipient was in doubt is asked of the list itself, which is short. Answers who is held by that.
_DOUBTS = """
INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)
SELECT u.delivery_id, u.number, u.part_id, u.attempt, u.address, u.mx_host, u.peer,
       CASE WHEN 1 + (SELECT count(*) FROM mta.in_doubt d WHERE d.delivery_id = u.delivery_id AND d.number = u.number)
                 >= $10 THEN 'hold' ELSE u.policy END,
       u.cause
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::smallint[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[]) AS u (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)
RETURNING delivery_id, number, policy
"""
# Deliveries in the order of their ids, so that two nodes never wait for each other.
_COUNTS = """
INSERT INTO mta.delivery_stats AS s
    (delivery_id, delivered, failed, expired, cancelled, simulated, excluded, deferrals, in_doubt)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::bigint[])
ON CONFLICT (delivery_id) DO UPDATE SET
    delivered = s.delivered + excluded.delivered, failed = s.failed + excluded.failed,
    expired = s.expired + excluded.expired, cancelled = s.cancelled + excluded.cancelled,
    simulated = s.simulated + excluded.simulated, excluded = s.excluded + excluded.excluded,
    deferrals = s.deferrals + excluded.deferrals, in_doubt = s.in_doubt + excluded.in_doubt
"""
_CREDITS = """
INSERT INTO mta.quota_counter AS q (node, key, bucket, used)
SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::int[])
ON CONFLICT (node, key, bucket) DO UPDATE SET used = q.used + excluded.used
"""
# Rows of one node only, so that no two nodes wait for each other; one statement for all of them.
_TRAFFIC = """
INSERT INTO mta.traffic_minute AS t
    (minute, node, egress, delivered, failed, expired, cancelled, simulated, deferred, in_doubt, bytes_delivered,
     bytes_other)
SELECT to_timestamp(u.minute), $1, u.egress, u.delivered, u.failed, u.expired, u.cancelled, u.simulated, u.deferred,
       u.in_doubt, u.bytes_delivered, u.bytes_other
FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
            $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])
     AS u (minute, egress, delivered, failed, expired, cancelled, simulated, deferred, in_doubt, bytes_delivered,
           bytes_other)
ON CONFLICT (minute, node, egress) DO UPDATE SET
    delivered = t.delivered + excluded.delivered, failed = t.failed + excluded.failed,
    expired = t.expired + excluded.expired, cancelled = t.cancelled + excluded.cancelled,
    simulated = t.simulated + excluded.simulated, deferred = t.deferred + excluded.deferred,
    in_doubt = t.in_doubt + excluded.in_doubt, bytes_delivered = t.bytes_delivered + excluded.bytes_delivered,
    bytes_other = t.bytes_other + excluded.bytes_other
"""
_COUNTED = (
    Status.DELIVERED,
    Status.FAILED,
    Status.EXPIRED,
    Status.CANCELLED,
    Status.SIMULATED,
    Status.EXCLUDED,
    Status.DEFERRED,
    Status.IN_DOUBT,
)


async def commit(conn: Conn, run: nodes.NodeRun, settlement: Settlement, sequence: int, columns: Iterable[str]) -> None:
    """Records all of it in one transaction. Raises nodes.Fenced, with nothing recorded, when the run is dead.

    ``sequence`` counts the settlements of a run. The same number again is a retry after a lost connection: when
    the first try was committed after all, nothing is done. ``columns`` are those of the log lines, in their order.
    """
    async with conn.transaction():
        if not await nodes.advance(conn, run.id, sequence):
            return
        if settlement.lines:
            await conn.copy_to_table(
                "delivery_log",
                schema_name="mta",
                columns=list(columns),
                source=_chunks(settlement.lines),
                format="text",
            )
        held = await _list_doubts(conn, settlement) if settlement.doubts else frozenset()
        await _settle_parts(conn, run.id, settlement, held)
        await _move_counters(conn, run.name, settlement)


async def _chunks(lines: list[bytes]) -> AsyncIterator[bytes]:
    # asyncpg reads a file in a thread, block by block; what is in memory goes at once.
    yield b"".join(lines)


async def _list_doubts(conn: Conn, settlement: Settlement) -> frozenset[tuple[int, int]]:
    """The messages in doubt are listed; delivery and number of those that are held."""
    columns = zip(*map(msgspec.structs.astuple, settlement.doubts), strict=True)
    rows = await conn.fetch(_DOUBTS, *map(list, columns), settlement.in_doubt_max)
    return frozenset((row["delivery_id"], row["number"]) for row in rows if row["policy"] == InDoubtPolicy.HOLD)


def _without_held(part: NewPart, held: frozenset[tuple[int, int]]) -> list[NewPart]:
    """The part, or two: those of its recipients that are held are in one of their own."""
    stays = [at for at, number in enumerate(part.numbers) if (part.delivery_id, number) in held]
    if not part.in_doubt or not stays:
        return [part]
    goes = sorted(set(range(len(part.numbers))) - set(stays))
    parts = [_of(part, stays, held=True, site=None, egress=None, due_in_s=0.0)]
    return [*parts, _of(part, goes)] if goes else parts


def _of(part: NewPart, places: list[int], **changes: object) -> NewPart:
    rows, numbers = [part.rows[at] for at in places], [part.numbers[at] for at in places]
    return msgspec.structs.replace(part, rows=rows, numbers=numbers, **changes)


async def _settle_parts(conn: Conn, node_id: int, settlement: Settlement, held: frozenset[tuple[int, int]]) -> None:
    if settlement.new_parts:
        parts = [one for part in settlement.new_parts for one in (_without_held(part, held) if held else [part])]
        await conn.executemany(_NEW_PARTS, [_stored(part) for part in parts])
    if settlement.settled:
        positions = [f"{{{','.join(map(str, open_))}}}" for open_ in settlement.settled.values()]
        await conn.execute(_SETTLED, list(settlement.settled), positions)
    if settlement.finished:
        await conn.execute(_FINISHED, settlement.finished)
    if settlement.released:
        await conn.execute(_RELEASED, node_id, settlement.released)
    if settlement.set_aside:
        await conn.execute(_SET_ASIDE, node_id, settlement.set_aside)


def _stored(part: NewPart) -> tuple[object, ...]:
    return (
        part.delivery_id,
        part.site,
        part.attempt,
        part.held,
        part.appended_at,
        list(part.fields),
        part.numbers,
        len(part.rows),
        _pack(part.rows),
        part.due_in_s,
        part.egress,
        part.dated_unix_s,
    )


async def _move_counters(conn: Conn, node_name: str, settlement: Settlement) -> None:
    if settlement.counts:
        ids = sorted(settlement.counts)
        moved = [[settlement.counts[i].get(status, 0) for i in ids] for status in _COUNTED]
        await conn.execute(_COUNTS, ids, *moved)
    if settlement.traffic:
        moved_figures = sorted(settlement.traffic.items())
        columns = [[figures[at] for _, figures in moved_figures] for at in range(len(TRAFFIC))]
        minutes = [minute for (minute, _), _ in moved_figures]
        await conn.execute(_TRAFFIC, node_name, minutes, [egress for (_, egress), _ in moved_figures], *columns)
    if settlement.credits:
        used = sorted(settlement.credits.items())
        await conn.execute(
            _CREDITS,
            node_name,
            [key for (key, _), _ in used],
            [bucket for (_, bucket), _ in used],
            [count for _, count in used],
        )


async def load_credits(conn: Conn, node_name: str, since_bucket: int) -> list[tuple[str, int, int]]:
    """(key, bucket, used) since a bucket: what limits must remember across a restart."""
    rows = await conn.fetch(
        "SELECT key, bucket, used FROM mta.quota_counter WHERE node = $1 AND bucket >= $2", node_name, since_bucket
    )
    return [(row["key"], row["bucket"], row["used"]) for row in rows]


# Of what is older than two hours only limits of a day want to know, and they are coarse: half an hour becomes one row,
# dated by its end, since later is safer.
_COMPACT = """
WITH gone AS (
    DELETE FROM mta.quota_counter WHERE node = $1 AND bucket < $2 AND bucket % $3 <> $3 - 1 RETURNING key, bucket, used
)
INSERT INTO mta.quota_counter AS q (node, key, bucket, used)
SELECT $1, key, bucket / $3 * $3 + $3 - 1, sum(used) FROM gone GROUP BY 2, 3
ON CONFLICT (node, key, bucket) DO UPDATE SET used = q.used + excluded.used
"""
_COARSE_BUCKETS = 180


async def forget_credits(conn: Conn, node_name: str, old_bucket: int, before_bucket: int) -> None:
    """Drops counters before ``before_bucket``, which no window reaches any more, and puts those together that are older
    than ``old_bucket``."""
    async with conn.transaction():
        await conn.execute("DELETE FROM mta.quota_counter WHERE node = $1 AND bucket < $2", node_name, before_bucket)
        await conn.execute(_COMPACT, node_name, old_bucket // _COARSE_BUCKETS * _COARSE_BUCKETS, _COARSE_BUCKETS)
