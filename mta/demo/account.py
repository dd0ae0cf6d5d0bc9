"""The end of a demo: what was appended, what the log says and what the sink received, held against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from mta.demo.back import Back
from mta.demo.scene import (
    NOWHERE_DOMAIN,
    STRICT_CONNECTIONS_MAX,
    STRICT_MESSAGES_PER_CONNECTION_MAX,
    Scene,
)
from mta.model.failure import Category
from mta.model.outcome import Status
from mta.queue import deliveries
from mta.queue.audit import audit, in_doubt
from mta.queue.connection import Conn
from mta.sink.record import Record

_FINALS: Final = "SELECT address, status FROM mta.delivery_log WHERE delivery_id = $1 AND status < $2"
_REFUSED: Final = """
SELECT code, category, count(*) FROM mta.delivery_log WHERE delivery_id = $1 AND status IN (2, 10) AND code > 0
GROUP BY code, category
"""
_BY_STATUS: Final = "SELECT status, count(*) FROM mta.delivery_log WHERE delivery_id = $1 GROUP BY status"
_NOT_MAILED: Final = "SELECT count(*) FROM mta.quarantine WHERE status IN (3, 4)"
_FETCH_ROWS: Final = 10_000


class Account(msgspec.Struct, frozen=True):
    """Counts are recipients. ``lost``, ``duplicates`` and all of the second half come from the sink's record."""

    recipients: int
    delivered: int
    failed: int
    pending: int
    lost: int  # should be at the sink by our books, and are not there
    duplicates: int  # copies beyond the first
    seconds: float
    messages_per_second: float
    in_doubt: int  # messages whose final dot was never answered; only after a kill
    unexplained: int  # copies that our books cannot explain: received though failed, or repeated and not in doubt
    wrongly_failed: int  # failed by our books, though the far end never refused them
    is_audit_clean: bool
    deferrals: int
    gone: int  # refused by their server
    nowhere: int  # of a domain that does not exist
    received: int  # messages at the sink
    messages_per_second_max: int
    strict_connections: int  # most open at a time at the strict provider, and most messages on one of them
    strict_messages_per_connection: int
    full: int  # refusals for a full mailbox
    bounced: int  # by our books; as are the next two
    complaints: int
    not_mailed: int  # addresses in quarantine or denylisted
    differences: list[str]  # figures of the dashboard that are not what the far end did

    @property
    def are_limits_held(self) -> bool:
        return (
            self.strict_connections <= STRICT_CONNECTIONS_MAX
            and self.strict_messages_per_connection <= STRICT_MESSAGES_PER_CONNECTION_MAX
        )

    @property
    def is_accounted(self) -> bool:
        """Nothing lost, open or unexplained; the audit is clean, the sink agrees, no limit was exceeded."""
        wrong = self.pending or self.lost or self.unexplained or self.wrongly_failed
        return not wrong and self.is_audit_clean and self.are_limits_held and not self.differences

    def contract(self) -> dict[str, int | float]:
        """The line of ``mta demo --json``."""
        return {
            "recipients": self.recipients,
            "delivered": self.delivered,
            "failed": self.failed,
            "pending": self.pending,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "seconds": round(self.seconds, 3),
            "messages_per_second": round(self.messages_per_second, 1),
        }


async def settle(conn: Conn, delivery_id: int, scene: Scene, record: Record, back: Back) -> Account:
    """The account of a delivery. ``record`` is complete: the sink was stopped. ``back``: what it sent back."""
    shown = await deliveries.show(conn, delivery_id)
    audited = await audit(conn, delivery_id)
    doubtful = {doubt.address for doubt in await in_doubt(conn, delivery_id)}
    delivered: set[str] = set()
    failed: set[str] = set()
    async for address, status in _finals(conn, delivery_id):
        (delivered if status == Status.DELIVERED else failed).add(address)
    received = record.recipients()
    refused = {address for event in record.refused if event.code >= 500 for address in event.recipients}
    nowhere = {address for address in failed if address.endswith("@" + NOWHERE_DOMAIN)}
    repeated = {address: count - 1 for address, count in received.items() if count > 1}
    strict_connections, strict_messages = _strict(scene, record)
    statistics = record.statistics()
    figures = await _figures(conn, delivery_id, shown, record, back)
    seconds = 0.0
    if shown.started_at is not None and shown.ended_at is not None:
        seconds = (shown.ended_at - shown.started_at).total_seconds()
    return Account(
        recipients=shown.appended,
        delivered=shown.delivered,
        failed=shown.failed + shown.expired + shown.cancelled,
        pending=shown.waiting,
        lost=len(delivered - received.keys()) + audited.lost.count,
        duplicates=sum(repeated.values()),
        seconds=seconds,
        messages_per_second=shown.delivered / seconds if seconds else 0.0,
        in_doubt=len(doubtful),
        unexplained=len(received.keys() - delivered - doubtful) + len(repeated.keys() - doubtful),
        wrongly_failed=len(failed - refused - nowhere),
        is_audit_clean=audited.is_clean,
        deferrals=shown.deferrals,
        gone=len(failed & refused),
        nowhere=len(nowhere),
        received=len(record.accepted),
        messages_per_second_max=statistics.messages_per_second_max,
        strict_connections=strict_connections,
        strict_messages_per_connection=strict_messages,
        full=figures["refused for a full mailbox"][1],
        bounced=shown.bounced,
        complaints=shown.complaints,
        not_mailed=figures["addresses not mailed any more"][0],
        differences=[
            f"{name}: {ours:,} by our books, {theirs:,} at the far end"
            for name, (ours, theirs) in figures.items()
            # After a kill the far end has said things that nobody lived to record.
            if (ours > theirs if scene.options.kill and name.startswith("refused") else ours != theirs)
        ],
    )


async def _figures(
    conn: Conn, delivery_id: int, shown: deliveries.Delivery, record: Record, back: Back
) -> dict[str, tuple[int, int]]:
    """What operators are shown of failures, each beside what the far end did."""
    told = {(row["code"], row["category"]): row["count"] for row in await conn.fetch(_REFUSED, delivery_id)}
    said = Counter(event.code for event in record.refused)
    unknown, full = Category.USER_UNKNOWN, Category.MAILBOX_FULL
    not_mailed: int = await conn.fetchval(_NOT_MAILED)
    by_status = {row["status"]: row["count"] for row in await conn.fetch(_BY_STATUS, delivery_id)}
    return {
        "refused as unknown": (told.get((550, unknown), 0), said[550]),
        "refused for a full mailbox": (told.get((552, full), 0), said[552]),
        "refused for now": (sum(count for (code, _), count in told.items() if code == 450), said[450]),
        "bounced": (shown.bounced, len(back.bounced)),
        "complaints": (shown.complaints, len(back.complained)),
        "lines of bounces": (by_status.get(Status.BOUNCED, 0), len(back.bounced)),
        "addresses not mailed any more": (not_mailed, len(back.gone | back.bounced.keys()) + len(back.complained)),
    }


async def _finals(conn: Conn, delivery_id: int) -> AsyncIterator[tuple[str, int]]:
    async with conn.transaction(readonly=True):
        cursor = await conn.cursor(_FINALS, delivery_id, Status.DEFERRED.value)
        while rows := await cursor.fetch(_FETCH_ROWS):
            for address, status in rows:
                yield address, status


def _strict(scene: Scene, record: Record) -> tuple[int, int]:
    if scene.strict is None:
        return 0, 0
    address = scene.strict.address
    ids = {event.connection for event in record.connections if event.local == address}
    counts = record.messages_per_connection()
    connections = record.connections_max_by("local").get(address, 0)
    return connections, max((counts[connection] for connection in ids), default=0)
