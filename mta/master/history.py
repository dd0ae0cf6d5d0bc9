"""What this node remembers of the database, and whether the database still knows it.

A failover or a restore ends all connections, so `HistoryGuard` looks at each new one, which costs a run nothing else.
`NodeHistory` begins runs and ends them: what an earlier one left, or the database has forgotten, is settled first.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import structlog

from mta.master import reconciliation, recovery
from mta.outcomes.kept import RunMark, mark_run, remark, remove_run, sweep_kept, touch_mark
from mta.queue import epochs, nodes
from mta.queue.connection import Conn, acquire
from mta.queue.epochs import Server
from mta.queue.nodes import NodeRun
from mta.settings.config import Settings

LEASE_MARGIN_S: Final = 1.0  # between our last moment and the one at which another may take over
SWEEP_S: Final = 2.0  # between looks at what is kept of journals
log = structlog.get_logger()
STANDBY: Final = (
    "the server is a standby and takes no writes: name both servers in the connection string, "
    "with target_session_attrs=read-write"
)


class HistoryGuard:
    """One for each pool of connections; `check` is what the pool does first with each of them."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._run_id = 0
        self._alive_until: datetime.datetime | None = None
        self.is_behind = asyncio.Event()
        self.cause = ""

    def watch(self, run: NodeRun, server: Server) -> None:
        """From here on only this server may be spoken to, with all that it acknowledged to this run."""
        self._server = server
        self._run_id = run.id

    def acknowledged(self, alive_until: datetime.datetime) -> None:
        """The database has recorded this heartbeat."""
        self._alive_until = alive_until

    async def check(self, conn: Conn) -> None:
        """Raises ConnectionError, and sets ``is_behind``, when it is another history; ConnectionError for a standby."""
        try:
            await self._compare(conn)
        except BaseException:
            conn.terminate()  # else the pool closes it in good order, which a silent server may not answer
            raise

    async def _compare(self, conn: Conn) -> None:
        server = await epochs.server_of(conn)
        if not server.timeline:
            raise ConnectionError(STANDBY)
        if self._server is None:
            return
        if server.system_identifier != self._server.system_identifier:
            self._refuse("it is another server, by its system identifier")
        if server.timeline != self._server.timeline:
            self._refuse(f"its timeline was {self._server.timeline} and is {server.timeline}: a standby was promoted")
        if self._alive_until is not None and not await nodes.has_heartbeat(conn, self._run_id, self._alive_until):
            self._refuse("it lacks a heartbeat of this run that it had acknowledged")

    def _refuse(self, cause: str) -> None:
        self.cause = self.cause or cause
        self.is_behind.set()
        raise ConnectionError(f"not the database that this run began with: {cause}")


class NodeHistory:
    """The runs of this node: one object for each start of one. Owned by the master's loop."""

    def __init__(self, settings: Settings, guard: HistoryGuard) -> None:
        self._name = settings.node.name
        self._lease_s = settings.master.lease_s
        self._journal = settings.journal
        self._directory: Path = settings.journal_dir
        self._guard = guard
        self._mark = RunMark(0)
        self._next_sweep_s = 0.0
        self.lease_until_s = 0.0  # of the run that was begun, by the loop's clock
        self.sequence = 0  # the number of its last settlement, when it was begun
        self.registered: NodeRun | None = None  # the run, as soon as the database knows it

    async def begin_run(self, pool: asyncpg.Pool, terms: recovery.DoubtTerms) -> NodeRun:
        """Registers the run and settles what earlier ones left, also what the database has forgotten of them.

        Returns when the run may claim. Raises DatabaseBehind when the database goes back once more meanwhile.
        """
        asked_s = asyncio.get_running_loop().time()
        boot_id, directory, keeps = recovery.boot_id(), self._directory, self._journal.keep_s > 0
        async with acquire(pool) as conn:
            epoch = await reconciliation.enter_epoch(conn, directory, self._name)
            above = await reconciliation.highest_forgotten(conn, directory)
            run = await nodes.register(conn, self._name, boot_id, self._lease_s, above=above)
        self.registered = run
        self._guard.watch(run, epoch.server)
        self.lease_until_s = asked_s + self._lease_s - LEASE_MARGIN_S
        self._mark = RunMark(run.id, self._name, boot_id, run.started_us, run.epoch)
        mark_run(directory, run.id, self._mark)
        reconciler = reconciliation.Reconciler(pool, run, self._lease_s, directory)
        await reconciler.run(epoch, self._journal.keep_s)
        await recovery.recover_earlier_runs(pool, run, self._lease_s, directory, terms, keeps=keeps)
        await reconciler.conclude()
        self.sequence = reconciler.sequence
        return run

    async def renew(self, conn: Conn) -> None:
        """Extends the lease of the run; raises as `mta.queue.nodes.renew` does."""
        alive_until = await nodes.renew(conn, self._mark.id, self._lease_s)
        self._guard.acknowledged(alive_until)
        touch_mark(self._directory, self._mark.id, alive_until.timestamp())

    async def went_back(self) -> str:
        """Returns when the database is seen to have gone back in time: how."""
        await self._guard.is_behind.wait()
        log.warning("the database went back in time, nothing more is begun", cause=self._guard.cause)
        return self._guard.cause

    def note_behind(self, error: BaseException, recorded: int) -> None:
        """The run is over since the database lacks some of it; ``recorded``: the last settlement acknowledged."""
        if not self._guard.is_behind.is_set():
            log.warning("the database went back in time, what is under way is broken off", cause=str(error))
        remark(self._directory, msgspec.structs.replace(self._mark, recorded=recorded))

    def kept_as(self, recorded: int) -> int:
        """Under which number segments are kept that settlement ``recorded`` was the last to need; 0: they are not."""
        return recorded if self._journal.keep_s else 0

    def end_run(self, recorded: int) -> None:
        """It ended in good order, and the database knows that."""
        remove_run(self._directory, self._mark.id, self.kept_as(recorded))

    def sweep(self, now_s: float) -> None:
        """Drops what was kept for long enough, or is too much; now and then."""
        if now_s < self._next_sweep_s:
            return
        self._next_sweep_s = now_s + SWEEP_S
        sweep_kept(self._directory, time.time(), self._journal.keep_s, self._journal.keep_mbytes << 20)
