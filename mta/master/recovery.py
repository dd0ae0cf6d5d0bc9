"""After a death: what the dead had in hand is settled before anything is claimed.

Three cases, one book-keeping:

=====================================  ==========================  ========================================
who died                               what is known               recipients without a known outcome
=====================================  ==========================  ========================================
an earlier run of this node            its journals, complete      intent: in doubt; none: back to the queue
the same, and the machine restarted    its journals, maybe torn    all in doubt
another node, whose lease has ended    nothing                     all in doubt
=====================================  ==========================  ========================================

The last two name more recipients than were sent, never fewer: a repeat that nobody named is the one thing that
must not happen.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

import asyncpg
import structlog

from mta.master.books import DeliveryBook, LeasedPart
from mta.master.collector import Collector
from mta.model.egress import EgressPool
from mta.model.outcome import Status
from mta.outcomes.line import COLUMNS, log_line, session_columns, timestamp
from mta.outcomes.replay import Journals, Told
from mta.queue import claim as claims
from mta.queue import nodes
from mta.queue.nodes import NodeRun
from mta.queue.settle import commit
from mta.traffic.egress import EgressChooser

PARTS_PER_SETTLEMENT = 50
log = structlog.get_logger()


async def wait_for_writers(directory: Path, node_id: int) -> None:
    """Until every child of a dead run has let go of its lock. They end by themselves when their master is gone."""
    for path in sorted(directory.glob(f"{node_id}-*.lock")):
        fd = os.open(path, os.O_RDWR)
        try:
            waited_s = 0.0
            while not _try_lock(fd):
                if waited_s == 0.0:
                    log.warning("waiting for a child of the last run to end", lock=path.name)
                await asyncio.sleep(0.1)
                waited_s += 0.1
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def recover_run(
    pool: asyncpg.Pool, dead: NodeRun, journals: Journals | None, collector: Collector, *, is_complete: bool
) -> int:
    """Settles all that a dead run had leased and ends it; the number of recipients found in doubt.

    ``journals`` None: they are not here. ``is_complete``: a recipient that they do not tell of was never begun.
    """
    doubts = 0
    books: dict[int, DeliveryBook] = {}
    async with pool.acquire() as conn:
        sequence = await nodes.settled_sequence(conn, dead.id)
        after_id = 0
        while parts := await claims.owned_parts(conn, dead.id, after_id, PARTS_PER_SETTLEMENT):
            after_id = parts[-1].id
            for claimed in parts:
                book = books.get(claimed.delivery_id)
                if book is None:
                    view = await claims.delivery_view(conn, claimed.delivery_id)
                    book = books[claimed.delivery_id] = DeliveryBook(view, _no_chooser())
                    book.is_leaving = True
                doubts += _recover_part(LeasedPart(claimed, book), journals, collector, is_complete=is_complete)
            settlement, _ = collector.take()
            sequence += 1
            await commit(conn, dead, settlement, sequence, COLUMNS)
        await nodes.end(conn, dead.id)
    if journals is not None:
        journals.remove()
    return doubts


def _recover_part(part: LeasedPart, journals: Journals | None, collector: Collector, *, is_complete: bool) -> int:
    collector.parts[part.id] = part
    part.delivery.held_recipients += part.left
    doubts = 0
    cause = "the node died and its journal is not complete" if journals else "the node died and its journal is not here"
    for position in part.open_positions():
        told = journals.told(part.id, position) if journals else None
        if told is None:
            if is_complete:
                continue
            told = Told(None, "", "", cause, "")
        if told.status is None:
            told = told._replace(status=Status.IN_DOUBT, cause=told.cause or "the process died before the reply came")
        line = journals.line(part.id, part.number(position)) if journals else None
        if line is None or told.status is Status.IN_DOUBT:
            line = doubt_line(part, position, told)
        collector.recovered(part, position, told, line)
        doubts += told.status is Status.IN_DOUBT
    collector.release_if_free(part)
    return doubts


def doubt_line(part: LeasedPart, position: int, told: Told) -> bytes:
    """The log's line for a recipient that a crash left in doubt."""
    address, reference, _ = part.rows[position]
    return log_line(
        timestamp(time.time()),
        part.delivery.id,
        part.number(position),
        part.id,
        part.attempt,
        f"{Status.IN_DOUBT:d}\t3\t0\t",
        address,
        reference,
        session_columns("", told.mx_host, told.peer, ""),
        f"in doubt: {told.cause}",
    ).encode()


def _no_chooser() -> EgressChooser:
    return EgressChooser(EgressPool("none", ()))


def boot_id() -> str:
    """Changes with every start of the machine (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def remove_locks(directory: Path, node_id: int) -> None:
    for path in directory.glob(f"{node_id}-*.lock"):
        path.unlink(missing_ok=True)
