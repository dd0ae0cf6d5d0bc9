"""After a death: what the dead had in hand is settled before anything is claimed.

Four cases, one book-keeping:

=====================================  ==========================  ========================================
who died                               what is known               recipients without a known outcome
=====================================  ==========================  ========================================
an earlier run of this node            its journals, complete      intent: in doubt; none: back to the queue
the same, and the machine restarted,   its journals, maybe torn    all in doubt
or a journal is damaged
the same, and its mark is not in our   nothing                     all in doubt, once its lease has ended
journal directory
another node, whose lease has ended    nothing                     all in doubt
=====================================  ==========================  ========================================

Of a simulated delivery nothing was sent, so nothing of it is in doubt: what has no known outcome is queued again.

All but the first name more recipients than were sent, never fewer: a repeat that nobody named is the one thing
that must not happen.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec
import structlog

from mta.master.books import DeliveryBook, LeasedPart
from mta.master.collector import Collector
from mta.model.egress import EgressPool
from mta.model.errors import LocalFault
from mta.model.outcome import Status
from mta.outcomes.kept import marked_runs, remove_run, runs_in
from mta.outcomes.line import COLUMNS, log_line, session_columns, timestamp
from mta.outcomes.replay import Journals, Told
from mta.queue import claim as claims
from mta.queue import nodes
from mta.queue.claim import ClaimedPart
from mta.queue.connection import acquire
from mta.queue.nodes import Fenced, NodeRun
from mta.queue.settle import IN_DOUBT_MAX, commit
from mta.traffic.egress import EgressChooser
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import RuleSet
from mta.traffic.schedule import Bounds, Schedule

PARTS_PER_SETTLEMENT = 50
_NO_EGRESS = -1  # an egress that no rule names
_CAUSE_NO_REPLY = "the process died before the reply came"
_CAUSE_INCOMPLETE = "the node died and its journal is not complete"
_CAUSE_NO_JOURNAL = "the node died and its journal is not here"
log = structlog.get_logger()


class DoubtTerms(NamedTuple):
    """What becomes of recipients in doubt, besides their deliveries' policies."""

    most: int = IN_DOUBT_MAX  # so often; then they are held
    rules: RuleSet = RuleSet()  # whose retry schedules hold

    def retry(self, part: LeasedPart, position: int, mx_host: str) -> RetrySchedule | None:
        """Of the rule for the host, through any egress; None where the host is not known."""
        if not mx_host:
            return None
        address = part.rows[position][0]
        return self.rules.match(mx_host, _NO_EGRESS, "", self.rules.domain_class(address.rpartition("@")[2])).retry


DEFAULT_TERMS = DoubtTerms()


async def wait_for_writers(directory: Path, node_id: int) -> None:
    """Until every child of a dead run has let go of its lock. They end by themselves when their master is gone."""
    for path in _locks(directory, node_id):
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


def _locks(directory: Path, node_id: int) -> list[Path]:
    return sorted(directory.glob(f"{node_id}-*.lock"))


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def recover_earlier_runs(
    pool: asyncpg.Pool,
    own: NodeRun,
    lease_s: float,
    directory: Path,
    terms: DoubtTerms = DEFAULT_TERMS,
    *,
    keeps: bool = True,
) -> None:
    """Settles what earlier runs of this node left, and puts their files away. Before anything is claimed.

    ``keeps``: their journals are kept for a time, as those of a living run are.
    """
    marked = marked_runs(directory)
    async with acquire(pool) as conn:
        earlier = await nodes.earlier_runs(conn, own, marked)
    for dead in earlier:
        journals = None
        if dead.id in marked:
            await wait_for_writers(directory, dead.id)
            journals = Journals(directory, dead.id)
        else:
            await _until_lease_is_over(pool, dead, own, lease_s)
        same_boot = dead.boot_id == own.boot_id
        is_complete = same_boot and journals is not None and not journals.is_damaged
        doubts = await recover_run(pool, dead, journals, is_complete=is_complete, terms=terms)
        log.warning("an earlier run was recovered", run=dead.id, in_doubt=doubts, journal_complete=is_complete)
    async with acquire(pool) as conn:
        for run_id, state in (await nodes.states(conn, runs_in(directory))).items():
            if state.is_ended:
                remove_run(directory, run_id, state.settled if keeps else 0)


async def _until_lease_is_over(pool: asyncpg.Pool, dead: NodeRun, own: NodeRun, lease_s: float) -> None:
    """A run of our name whose journal is not here may be alive elsewhere: nobody but its lease can tell."""
    is_said = False
    while True:
        async with acquire(pool) as conn:
            if await nodes.is_lease_over(conn, dead.id):
                return
            await nodes.renew(conn, own.id, lease_s)
        if not is_said:
            is_said = True
            log.warning("an earlier run keeps its journal elsewhere, waiting for the end of its lease", run=dead.id)
        await asyncio.sleep(0.5)


async def take_over_dead_nodes(
    pool: asyncpg.Pool, own: NodeRun, grace_s: float, terms: DoubtTerms = DEFAULT_TERMS
) -> None:
    """Settles what other nodes left whose lease ended more than ``grace_s`` ago."""
    async with acquire(pool) as conn:
        dead_runs = await nodes.dead_runs(conn, own.name, grace_s)
    for dead in dead_runs:
        try:
            doubts = await recover_run(pool, dead, None, is_complete=False, gives_way=True, terms=terms)
        except Fenced:
            continue  # its own node is back, or another was quicker
        log.warning("a dead node was taken over", node=dead.name, run=dead.id, in_doubt=doubts)


async def recover_run(
    pool: asyncpg.Pool,
    dead: NodeRun,
    journals: Journals | None,
    *,
    is_complete: bool,
    gives_way: bool = False,
    terms: DoubtTerms = DEFAULT_TERMS,
) -> int:
    """Settles all that a dead run had leased and ends it; the number of recipients found in doubt.

    ``journals`` None: they are not here. ``is_complete``: a recipient that they do not tell of was never begun.
    ``gives_way``: not while somebody else recovers it. Raises Fenced when another has done it, or does.

    It may be cut short anywhere and be begun anew: what is settled is not owned by the dead run any more.
    """
    doubts = 0
    books: dict[int, DeliveryBook] = {}
    collector = Collector(no_schedule(), lambda _: None, in_doubt_max=terms.most)
    async with acquire(pool) as conn:
        if not await nodes.begin_recovery(conn, dead.id) and gives_way:
            raise Fenced(f"node run {dead.id} is being recovered by another")
        if ended := await nodes.end_sessions(conn, dead.id):
            log.warning("sessions of a dead run were ended in the database", run=dead.id, sessions=ended)
        sequence = await nodes.declare_dead(conn, dead.id)
        after_id = 0
        while parts := await claims.owned_parts(conn, dead.id, after_id, PARTS_PER_SETTLEMENT):
            after_id = parts[-1].id
            for claimed in parts:
                book = books.get(claimed.delivery_id)
                if book is None:
                    view = await claims.delivery_view(conn, claimed.delivery_id)
                    book = books[claimed.delivery_id] = DeliveryBook(view, no_chooser())
                    book.is_leaving = True
                doubts += _recover_claimed(claimed, book, journals, collector, terms, is_complete=is_complete)
            settlement, _ = collector.take()
            sequence += 1
            await commit(conn, dead, settlement, sequence, COLUMNS)
        await nodes.end(conn, dead.id, sequence)
    return doubts


def _recover_claimed(
    claimed: ClaimedPart,
    book: DeliveryBook,
    journals: Journals | None,
    collector: Collector,
    terms: DoubtTerms,
    *,
    is_complete: bool,
) -> int:
    try:
        part = LeasedPart(claimed, book)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        log.error("part cannot be read and is held", part=claimed.id, delivery=book.id, error=str(error))
        collector.set_aside(claimed.id)
        return 0
    return _recover_part(part, journals, collector, terms, is_complete=is_complete)


def _recover_part(
    part: LeasedPart, journals: Journals | None, collector: Collector, terms: DoubtTerms, *, is_complete: bool
) -> int:
    collector.hold(part)
    if not part.left:
        collector.settle(part, [])
        return 0
    doubts = 0
    for position in part.open_positions():
        told = journals.told(part.id, position) if journals else None
        if told is None:
            if is_complete or part.delivery.view.is_simulated:
                continue
            told = Told(None, "", "", _CAUSE_INCOMPLETE if journals else _CAUSE_NO_JOURNAL, "")
        if told.status is None:
            told = told._replace(status=Status.IN_DOUBT, cause=told.cause or _CAUSE_NO_REPLY)
            line = doubt_line(part, position, told)
            doubts += 1
        else:
            known = journals.line(part.id, part.number(position)) if journals else None
            if known is None:
                raise LocalFault(f"part {part.id}: position {position} has an outcome in the journal and no line")
            line = known
            doubts += told.status is Status.IN_DOUBT
        collector.recovered(part, position, told, line, terms.retry(part, position, told.mx_host))
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


def no_chooser() -> EgressChooser:
    return EgressChooser(EgressPool("none", ()))


def no_schedule() -> Schedule[LeasedPart]:
    """Nothing is sent by a recovery; credits that were used are recorded all the same."""
    return Schedule(RuleSet(), Bounds(), unix_offset_s=0.0, shuffle=lambda _: None)


def boot_id() -> str:
    """Changes with every start of the machine (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
