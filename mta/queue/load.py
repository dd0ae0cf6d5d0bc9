"""A whole source into a delivery: its parts appended by the batch, what happened counted.

Cut short at any point it is simply run again: parts that are there already answer as they did, the rest follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from mta.queue.append import append_parts
from mta.queue.connection import Conn
from mta.queue.part import PackedPart
from mta.queue.source import BadRow, SourcePart

# One transaction for so much: its commit costs a disk flush, and a crash repeats at most this.
BATCH_RECIPIENTS_MAX: Final = 20_000
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
BAD_ROWS_KEPT_MAX: Final = 1000


class LoadSummary(msgspec.Struct):
    """What became of a source, in rows but for ``parts``. ``bad_rows`` holds the first of them."""

    rows_read: int = 0
    parts: int = 0
    appended: int = 0  # by this run
    already_there: int = 0  # by an earlier run with the same keys
    excluded: int = 0  # of both: in quarantine or denylisted, not to be mailed
    duplicates: int = 0  # excluded by the seal, of all that was appended since the last look
    bad: int = 0
    refused: int = 0  # good rows that were refused with a bad one of their part
    queue_bytes: int = 0  # what was appended takes in the queue, as stored
    refused_parts: list[str] = []
    bad_rows: list[BadRow] = []

    @property
    def is_complete(self) -> bool:
        """Every row is in the queue."""
        return not self.refused_parts and not self.bad


async def append_source(
    conn: Conn, delivery_id: int, parts: Iterator[SourcePart], on_progress: Callable[[LoadSummary], None]
) -> LoadSummary:
    """Append all parts, a batch a transaction; ``on_progress`` is called after each. Raises as ``append_parts``."""
    summary = LoadSummary()
    batch: list[PackedPart] = []
    recipients = size_bytes = 0
    for source_part in parts:
        _count(summary, source_part)
        if source_part.part is not None:
            batch.append(source_part.part)
            recipients += source_part.part.count
            size_bytes += len(source_part.part.recipients)
        if recipients >= BATCH_RECIPIENTS_MAX or size_bytes >= BATCH_BYTES_MAX:
            await _append(conn, delivery_id, batch, summary)
            batch, recipients, size_bytes = [], 0, 0
            on_progress(summary)
    await _append(conn, delivery_id, batch, summary)
    on_progress(summary)
    return summary


def _count(summary: LoadSummary, source_part: SourcePart) -> None:
    bad = len(source_part.bad_rows)
    summary.rows_read += source_part.rows_read
    summary.bad += bad
    summary.bad_rows += source_part.bad_rows[: max(0, BAD_ROWS_KEPT_MAX - len(summary.bad_rows))]
    if source_part.part is None and bad < source_part.rows_read:
        summary.refused += source_part.rows_read - bad
        summary.refused_parts.append(source_part.key)


async def _append(conn: Conn, delivery_id: int, batch: list[PackedPart], summary: LoadSummary) -> None:
    for part, result in zip(batch, await append_parts(conn, delivery_id, batch), strict=True):
        summary.parts += 1
        summary.excluded += result.excluded
        if result.is_new:
            summary.appended += result.recipients
            summary.queue_bytes += len(part.recipients)
        else:
            summary.already_there += result.recipients
