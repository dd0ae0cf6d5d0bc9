"""What a claim costs with few recipients waiting and with many, by the function that the daemon calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import msgspec

from bench.content import FIELDS, content_of, row_of
from bench.world import PREFIX, SUFFIX, BenchFailed, database
from mta.demo.stage import own_directory
from mta.model.duplicates import Duplicates
from mta.queue import claim as taking
from mta.queue import deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.connection import Conn
from mta.queue.deliveries import NewDelivery
from mta.queue.part import PackedPart, Part, pack_part
from mta.settings.config import MasterSettings

PART_RECIPIENTS: Final = 100  # the same for both queues: a claim of larger parts would cost more
LEASE_S: Final = 3_600.0
WARM_UP_CLAIMS: Final = 10
APPENDED_TOGETHER: Final = 200


class ClaimOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``waiting``: recipients in the queue, for each measurement; ``claims``: how many are timed."""

    waiting: tuple[int, ...]
    claims: int


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of single claims, milliseconds."""

    waiting: int
    parts: int
    median_ms: float
    p99_ms: float


class ClaimFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``. The ratio is of the medians of the longest and the shortest queue."""

    claims: int
    parts_a_claim: int
    queues: list[Claims]
    median_ratio: float


async def claim(options: ClaimOptions, on_step: Callable[[str], None]) -> ClaimFigures:
    """A new database for each queue. BenchFailed when a claim comes back with less than it could."""
    parts_max = MasterSettings().claim_parts_max
    queues = []
    for waiting in sorted(options.waiting):
        on_step(f"filling the queue with {waiting:,} recipients")
        with own_directory(PREFIX) as directory:
            async with database(directory) as (_, conn, _):
                delivery_id, parts = await _fill(conn, waiting)
                on_step(f"{options.claims:,} claims")
                queues.append(await _measure(conn, delivery_id, options.claims, waiting, parts, parts_max))
    return ClaimFigures(
        claims=options.claims,
        parts_a_claim=parts_max,
        queues=queues,
        median_ratio=round(queues[-1].median_ms / queues[0].median_ms, 3),
    )


async def _fill(conn: Conn, waiting: int) -> tuple[int, int]:
    """A started delivery, and how many parts it has. All parts hold the same people: a claim does not look at them."""
    delivery_id = await deliveries.create(
        conn, NewDelivery(name="bench", content=content_of(1_000), duplicates=Duplicates.KEEP)
    )
    rows = [row_of(f"user{number}@d{number % 10}.{SUFFIX}", number) for number in range(PART_RECIPIENTS)]
    packed = pack_part(Part("0", FIELDS, rows))
    parts = max(1, waiting // PART_RECIPIENTS)
    left: Iterator[PackedPart] = (msgspec.structs.replace(packed, key=str(number)) for number in range(parts))
    while some := list(islice(left, APPENDED_TOGETHER)):
        await append_parts(conn, delivery_id, some)
    await deliveries.start(conn, delivery_id)
    # What autovacuum would have come round to by the time that a queue has grown so long.
    await conn.execute("VACUUM ANALYZE mta.delivery_part")
    await conn.execute("CHECKPOINT")
    return delivery_id, parts


async def _measure(conn: Conn, delivery_id: int, claims: int, waiting: int, parts: int, parts_max: int) -> Claims:
    node = await nodes.register(conn, "bench", "bench", LEASE_S)
    taken_ms = []
    for _ in range(WARM_UP_CLAIMS + claims):
        began_s = time.perf_counter()
        claimed = await taking.claim(conn, node.id, delivery_id, parts_max)
        taken_ms.append((time.perf_counter() - began_s) * 1e3)
        if len(claimed) != min(parts, parts_max):
            raise BenchFailed(f"a claim of {parts_max} parts came back with {len(claimed)}")
        # Given back, so that the queue is as long for each of them; the dead rows are those of a busy queue.
        await taking.release(conn, node.id, [part.id for part in claimed])
    taken_ms = taken_ms[WARM_UP_CLAIMS:]
    p99 = statistics.quantiles(taken_ms, n=100)[98]
    return Claims(waiting=waiting, parts=parts, median_ms=round(statistics.median(taken_ms), 3), p99_ms=round(p99, 3))
