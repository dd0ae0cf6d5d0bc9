"""After the database went back in time: what this node recorded there is told once more, before anybody claims.

The journals of the node, with what is kept of them, say what became of each recipient. For each outcome one line holds:

=======================================  ========================================================================
the log has it                           nothing to do
the recipient is open, not tried since   settled as the journal says; an intent without an outcome is in doubt
it is open, but tried again or leased    in doubt: named, for it may be sent twice (only where a node is late)
it is settled in another way             the same, if the journal says that it was delivered or in doubt
its append is not there                  the database lost it, nobody can say for whom; listed in ``orphans.log``
=======================================  ========================================================================

Nodes do this one after the other. A recipient that one node sent may stand in a part that another one had.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import structlog

from mta.master.books import DeliveryBook, LeasedPart
from mta.master.collector import Collector
from mta.master.recovery import doubt_line, no_chooser, no_schedule, wait_for_writers
from mta.model.limits import PART_INDEX_BITS
from mta.model.outcome import Status
from mta.outcomes.journal import segments_of
from mta.outcomes.kept import (
    ALWAYS_NEEDED,
    RunMark,
    dropped_up_to,
    kept_segments,
    local_runs,
    marked_runs,
    remark,
    remove_run,
)
from mta.outcomes.line import COLUMNS, escaped, log_line, session_columns, timestamp
from mta.outcomes.replay import OutcomeReader, RecipientOutcome
from mta.queue import claim as claims
from mta.queue import epochs, forgotten, nodes
from mta.queue.connection import Conn, acquire
from mta.queue.epochs import Epoch
from mta.queue.nodes import RECOVERED, NodeRun, RunState
from mta.queue.settle import Doubt, commit

OUTCOMES_PER_SETTLEMENT: Final = 2_000
CLOCK_S: Final = 60.0  # by which clocks of nodes and servers may differ without a consequence
WAIT_S: Final = 0.3
SAY_S: Final = 10.0
CAUSE_NO_REPLY: Final = "the process died before the reply came"
CAUSE_LATE: Final = "sent before the failover, which the database had forgotten"
ORPHANS: Final = "orphans.log"
log = structlog.get_logger()
_Who = tuple[int, int]  # delivery, number


@dataclass
class LocalRun:
    """A run that left something in the journal directory, and what the database knows of it (None: nothing)."""

    mark: RunMark
    alive_until_s: float  # the last lease that the database has acknowledged, by its clock
    state: RunState | None
    kept_up_to: int  # the highest settlement that is kept of it
    is_over: bool  # it ended in good order, or was recovered

    @property
    def settled(self) -> int:
        """The settlement up to which nothing of the run can be missing in the database."""
        if self.state is None or (self.state.settled >= RECOVERED and not self.state.is_ended):
            return 0
        return self.state.settled

    def behind(self) -> str:
        """How the database is seen to lack something of the run; empty: it is not."""
        if self.state is None:
            return f"the database does not know run {self.mark.id}" if self.mark.started_us else ""
        recorded = max(self.mark.recorded, self.kept_up_to)
        if ALWAYS_NEEDED > recorded > self.state.settled:
            return f"run {self.mark.id} recorded settlement {recorded}, the database has {self.state.settled}"
        is_alive = not self.state.is_ended and self.state.settled < RECOVERED
        if is_alive and self.mark.started_us and self.alive_until_s > self.state.alive_until.timestamp() + 1:
            return f"run {self.mark.id} was acknowledged a heartbeat that the database does not have"
        return ""


@dataclass
class Reconciled:
    """What came of it."""

    settled: int = 0  # recipients whose outcome the database had forgotten
    in_doubt: int = 0
    orphans: int = 0  # sent, and their append is not there
    incomplete: list[str] = field(default_factory=list)  # why the journals do not tell everything

    @property
    def is_complete(self) -> bool:
        return not self.incomplete


async def look_at_runs(conn: Conn, directory: Path) -> list[LocalRun]:
    """The runs that left anything here, the oldest first, held against the database."""
    found = local_runs(directory)
    known = await nodes.states(conn, [mark.id for mark, _ in found])
    unfinished = marked_runs(directory)
    runs = []
    for mark, alive_until_s in found:
        state = known.get(mark.id)
        if state is not None and mark.started_us not in (0, state.started_us):
            state = None  # another run was given this number since
        kept = kept_segments(directory, mark.id)
        kept_up_to = kept[-1].settlement if kept else 0
        runs.append(LocalRun(mark, alive_until_s, state, kept_up_to, mark.id not in unfinished))
    return runs


async def enter_epoch(conn: Conn, directory: Path, name: str) -> Epoch:
    """The epoch in which the next run of this node begins. Says so when the database is another, or behind."""
    runs = await look_at_runs(conn, directory)
    last = await epochs.latest(conn)
    is_behind = next((how for run in reversed(runs) if run.mark.epoch == last.id and (how := run.behind())), "")
    epoch, is_new = await epochs.enter(conn, is_behind=is_behind)
    if not epoch.is_open:
        await epochs.expect(conn, epoch.id, name)
    missing = [how for run in runs if run.mark.epoch < epoch.id and (how := run.behind())]
    if is_new or missing:
        log.error(
            "the database may have forgotten what it had acknowledged",
            cause=epoch.cause,
            epoch=epoch.id,
            missing=missing or "nothing that this node knows of",
            system_identifier=epoch.system_identifier,
            timeline=epoch.timeline,
            do="nothing, while every node comes back: each tells it from its journal, and only then mail is sent",
        )
    return epoch


async def highest_forgotten(conn: Conn, directory: Path) -> int:
    """The highest number of a run that the database has forgotten: files here are named after it. 0: there is none."""
    return max((run.mark.id for run in await look_at_runs(conn, directory) if run.state is None), default=0)


class Reconciler:
    """Tells the database what it has forgotten of this node. One for each start of a run; used once."""

    def __init__(self, pool: asyncpg.Pool, own: NodeRun, lease_s: float, directory: Path) -> None:
        self._pool = pool
        self._own = own
        self._lease_s = lease_s
        self._directory = directory
        self._collector = Collector(no_schedule(), lambda _: None)
        self._books: dict[int, DeliveryBook] = {}
        self._result = Reconciled()
        self._runs: list[LocalRun] = []
        self.sequence = 0  # the number of its last settlement; the run goes on from there

    async def run(self, epoch: Epoch, keep_s: float) -> Reconciled:
        """All runs of this node that began before the epoch. Those that are not ended are left to recovery."""
        async with acquire(self._pool) as conn:
            runs = await look_at_runs(conn, self._directory)
        self._runs = [run for run in runs if run.mark.epoch < epoch.id and run.mark.id != self._own.id]
        if not self._runs:
            return self._result
        async with self._alone() as conn:
            for run in self._runs:
                await self._reconcile(conn, run)
        self._check_reach(self._runs, epoch, keep_s)
        for run in self._runs:
            if run.state is None:
                remove_run(self._directory, run.mark.id, ALWAYS_NEEDED)
        log.warning(
            "the journals of this node were told to the database once more",
            settled=self._result.settled,
            in_doubt=self._result.in_doubt,
            orphans=self._result.orphans,
        )
        return self._result

    async def conclude(self) -> None:
        """Says that this node has told all that it knows, and returns when every node has."""
        own = self._own
        if self._result.incomplete:
            log.error(
                "journals do not tell all that the database may have forgotten",
                why=self._result.incomplete,
                node=own.name,
                do="docs/operating.md, High availability; to go on: mta db failover --without NODE, with this node",
            )
        else:
            async with acquire(self._pool) as conn:
                await epochs.confirm(conn, own.epoch, own.name)
        await wait_until_open(self._pool, own, self._lease_s)
        for run in self._runs:
            remark(self._directory, msgspec.structs.replace(run.mark, epoch=own.epoch))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Conn]:
        """A connection while no other node reconciles. The lease is renewed as long as that takes."""
        async with acquire(self._pool) as conn:
            while not await epochs.begin_reconciliation(conn):
                await nodes.renew(conn, self._own.id, self._lease_s)
                await asyncio.sleep(WAIT_S)
            try:
                yield conn
            finally:
                if not conn.is_closed():
                    await epochs.end_reconciliation(conn)

    async def _reconcile(self, conn: Conn, run: LocalRun) -> None:
        await wait_for_writers(self._directory, run.mark.id)
        needed = [kept for kept in kept_segments(self._directory, run.mark.id) if kept.settlement > run.settled]
        paths = [kept.path for kept in needed] + segments_of(self._directory, run.mark.id)
        reader = OutcomeReader(paths)
        for outcomes in reader.outcomes():
            await nodes.renew(conn, self._own.id, self._lease_s)
            await self._tell(conn, outcomes)
        await self._tell(conn, reader.open_intents())
        if reader.is_damaged:
            self._result.incomplete.append(f"a segment of run {run.mark.id} is damaged")

    def _check_reach(self, runs: list[LocalRun], epoch: Epoch, keep_s: float) -> None:
        """Whether the journals reach back to where the database is."""
        incomplete = self._result.incomplete
        for run in runs:
            if (dropped := dropped_up_to(self._directory, run.mark.id)) > run.settled:
                lacks = f"settlements up to {dropped} are not kept any more, the database has {run.settled}"
                incomplete.append(f"run {run.mark.id}: {lacks}")
            if not run.is_over and run.mark.boot_id not in ("", self._own.boot_id):
                incomplete.append(f"the machine stopped in run {run.mark.id}, so its journal may lack its end")
        lag_s = max(run.alive_until_s for run in runs) - epoch.as_of.timestamp()
        if lag_s > max(keep_s, CLOCK_S) and any(run.behind() for run in runs):
            incomplete.append(f"the database is behind by {lag_s:.0f} s, journals are kept for {keep_s:.0f} s")

    # --- recipients ---------------------------------------------------------------------------

    async def _tell(self, conn: Conn, outcomes: Iterable[RecipientOutcome]) -> None:
        """In transactions, in each of which a recipient stands once."""
        batch: dict[_Who, RecipientOutcome] = {}
        for outcome in outcomes:
            who = (outcome.delivery_id, outcome.number)
            if who in batch or len(batch) >= OUTCOMES_PER_SETTLEMENT:
                await self._record(conn, batch)
                batch = {}
            batch[who] = outcome
        if batch:
            await self._record(conn, batch)

    async def _record(self, conn: Conn, batch: dict[_Who, RecipientOutcome]) -> None:
        asked = await _unknown(conn, list(batch.values()))
        if not asked:
            return
        async with conn.transaction():
            places = await self._find(conn, asked)
            left = [outcome for outcome in asked if not self._settle(outcome, places)]
            for part in list(self._collector.parts.values()):
                self._collector.release_if_free(part)
            await self._name(conn, left)
            settlement, _ = self._collector.take()
            if not settlement.is_empty:
                self.sequence += 1
                await commit(conn, self._own, settlement, self.sequence, COLUMNS)

    async def _find(self, conn: Conn, asked: list[RecipientOutcome]) -> dict[_Who, tuple[LeasedPart, int, bool]]:
        """Where these recipients are open, and whether a run of this epoch has them; their parts are locked."""
        places: dict[_Who, tuple[LeasedPart, int, bool]] = {}
        found = await forgotten.parts(conn, {outcome.part_id for outcome in asked})
        await self._enter(conn, found, asked, places)
        missing = [outcome for outcome in asked if (outcome.delivery_id, outcome.number) not in places]
        if missing:
            elsewhere = await forgotten.parts_of(
                conn,
                {outcome.delivery_id for outcome in missing},
                {outcome.number >> PART_INDEX_BITS for outcome in missing},
                {outcome.number for outcome in missing},
                {claimed.id for claimed, _ in found},
            )
            await self._enter(conn, elsewhere, missing, places)
        return places

    async def _enter(
        self,
        conn: Conn,
        found: list[forgotten.OwnedPart],
        asked: list[RecipientOutcome],
        places: dict[_Who, tuple[LeasedPart, int, bool]],
    ) -> None:
        wanted = {(outcome.delivery_id, outcome.number): outcome for outcome in asked}
        for claimed, owner_epoch in found:
            try:
                part = LeasedPart(claimed, await self._book(conn, claimed.delivery_id))
            except (msgspec.DecodeError, msgspec.ValidationError):
                continue  # whoever claims it sets it aside, and says so
            for position in part.open_positions():
                who = (claimed.delivery_id, part.number(position))
                outcome = wanted.get(who)
                if outcome is not None and _is_same(outcome, part, position):
                    places[who] = (part, position, owner_epoch >= self._own.epoch)

    async def _book(self, conn: Conn, delivery_id: int) -> DeliveryBook:
        book = self._books.get(delivery_id)
        if book is None:
            book = DeliveryBook(await claims.delivery_view(conn, delivery_id), no_chooser())
            book.is_leaving = True
            self._books[delivery_id] = book
        return book

    def _settle(self, outcome: RecipientOutcome, places: dict[_Who, tuple[LeasedPart, int, bool]]) -> bool:
        """False: the recipient is not open any more."""
        place = places.get((outcome.delivery_id, outcome.number))
        if place is None:
            return False
        part, position, is_live = place
        if not outcome.line and (outcome.attempt < part.attempt or part.delivery.view.is_simulated):
            return True  # what came of it was recorded since, or nothing was sent
        if is_live or outcome.attempt < part.attempt:
            self._doubt_late(outcome, part.delivery)
            return True
        if part.id not in self._collector.parts:
            self._collector.hold(part)
        told, line = outcome.told, outcome.line
        if told.status is None:
            told = told._replace(status=Status.IN_DOUBT, cause=told.cause or CAUSE_NO_REPLY)
            line = doubt_line(part, position, told)
        self._result.in_doubt += told.status is Status.IN_DOUBT
        self._result.settled += told.status is not Status.IN_DOUBT
        self._collector.recovered(part, position, told, line)
        return True

    def _doubt_late(self, one: RecipientOutcome, book: DeliveryBook) -> None:
        """It is with somebody who may send it, or who did: too late to settle it, not too late to name it."""
        if not _may_have_arrived(one) or book.view.is_simulated:
            return
        policy = book.view.in_doubt_policy.value
        told, address = one.told, one.address.replace("\\\\", "\\")
        doubt = Doubt(
            one.delivery_id, one.number, one.part_id, one.attempt, address, told.mx_host, told.peer, policy, CAUSE_LATE
        )
        verdict = f"{Status.IN_DOUBT:d}\t3\t0\t"
        session = session_columns("", told.mx_host, told.peer, "")
        at, text = timestamp(time.time()), f"in doubt: {CAUSE_LATE}"
        line = log_line(
            at, one.delivery_id, one.number, one.part_id, one.attempt, verdict, address, None, session, text
        )
        self._collector.name_doubt(doubt, line.encode())
        self._result.in_doubt += 1

    async def _name(self, conn: Conn, left: list[RecipientOutcome]) -> None:
        """Those that are not open, and of whom the log does not know this outcome."""
        sent = [one for one in left if _may_have_arrived(one)]
        known = await forgotten.appended(conn, [(one.delivery_id, one.number >> PART_INDEX_BITS) for one in sent])
        for place in sorted(known):
            self._doubt_late(sent[place], await self._book(conn, sent[place].delivery_id))
        orphans = [one for place, one in enumerate(sent) if place not in known]
        if orphans:
            self._result.orphans += len(orphans)
            with (self._directory / ORPHANS).open("ab") as file:
                file.writelines(one.line or _orphan_line(one) for one in orphans)


def _may_have_arrived(one: RecipientOutcome) -> bool:
    return one.told.status in (Status.DELIVERED, Status.IN_DOUBT, None)


def _is_same(outcome: RecipientOutcome, part: LeasedPart, position: int) -> bool:
    """Not only by number: a database that lost appends gives their numbers to others."""
    if escaped(part.rows[position][0]) != outcome.address:
        return False
    if not outcome.at:
        return True
    at = datetime.datetime.fromisoformat(outcome.at)
    return at.timestamp() + CLOCK_S > part.claimed.appended_at.timestamp()


async def _unknown(conn: Conn, outcomes: list[RecipientOutcome]) -> list[RecipientOutcome]:
    """Those that the log does not have."""
    lines = [one for one in outcomes if one.line]
    intents = [one for one in outcomes if not one.line]
    recorded = await forgotten.recorded(conn, [(one.delivery_id, one.number, one.at) for one in lines])
    doubted = await forgotten.doubted(conn, [(one.delivery_id, one.number, one.attempt) for one in intents])
    unknown = [one for place, one in enumerate(lines) if place not in recorded]
    return unknown + [one for place, one in enumerate(intents) if place not in doubted]


def _orphan_line(one: RecipientOutcome) -> bytes:
    return f"begun\t{one.delivery_id}\t{one.number}\t{one.part_id}\t{one.attempt}\t{one.address}\n".encode()


async def wait_until_open(pool: asyncpg.Pool, own: NodeRun, lease_s: float) -> None:
    """Until every node that the epoch waits for has reconciled. Says every ten seconds for whom it waits."""
    said_s = 0.0
    while True:
        async with acquire(pool) as conn:
            waiting = await epochs.try_open(conn, own.epoch)
            await nodes.renew(conn, own.id, lease_s)
        if not waiting:
            return
        if time.monotonic() - said_s >= SAY_S:
            said_s = time.monotonic()
            log.error(
                "nothing is sent before other nodes have told what the database forgot",
                nodes=waiting,
                do="start them, each with its journal directory; for one that is gone: mta db failover --without NODE",
            )
        await asyncio.sleep(WAIT_S)
