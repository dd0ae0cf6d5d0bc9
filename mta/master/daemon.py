"""One run of a node: recover, register, start children, claim and send until told to stop, then drain.

``start / drain / stop``: `Daemon.run` does all three; the first signal drains (what is on the wire is finished, the
rest goes back to the queue), a second one stops at once (the journal tells the next run what was under way).
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import random
import time
from collections.abc import Callable

import asyncpg
import structlog

from mta.dns.resolver import Resolver
from mta.master import recovery
from mta.master.books import BatchBook, LeasedPart
from mta.master.children import Child, Children
from mta.master.collector import Collector
from mta.master.dispatch import Dispatch
from mta.master.intake import Intake
from mta.model.outcome import Status
from mta.outcomes.journal import lock_path
from mta.outcomes.replay import Journals
from mta.outcomes.writer import Writer
from mta.queue import migrate, nodes, partitions
from mta.queue.connection import Conn
from mta.queue.nodes import Fenced
from mta.queue.settle import Settlement, forget_credits, load_credits
from mta.settings.config import Settings
from mta.settings.rules_file import load_rules
from mta.telemetry.systemd import notify
from mta.traffic.quota import BUCKET_S, HOUR_S
from mta.traffic.rules import RuleSet
from mta.traffic.schedule import Bounds, Schedule
from mta.wire import (
    ChildFrame,
    ChildOptions,
    Committed,
    Opened,
    OpenFailed,
    Outcome,
    Report,
    SessionClosed,
)

LEASE_MARGIN_S = 1.0  # between our last moment and the one at which another may take over
TAKE_OVER_GRACE_S = 45.0  # after a lease has ended: its node may be about to come back with its journal
DRAIN_S = 660.0  # a final dot may be answered after ten minutes (RFC 5321 §4.5.3.2.6)
LINES_BYTES_URGENT = 1_000_000
log = structlog.get_logger()


class Daemon:
    """One run. Everything it owns is used from its event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._journal_dir = settings.journal_dir
        self._stop_wanted = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._is_draining = False
        self._lease_until_s = 0.0
        self._journal_lock = -1
        self._dead_journals: list[tuple[int, Journals]] = []
        self.started = asyncio.Event()

    # --- from outside -------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain; called again: stop now."""
        if self._stop_wanted.is_set():
            self._stop_now.set()
        self._stop_wanted.set()

    def reload_rules(self) -> None:
        """Reads the rules file anew. Raises BadInput, with the running rules unchanged, when it cannot be used."""
        self.schedule.set_rules(self._load_rules())
        self.dispatch.wake()
        log.info("rules reloaded", file=str(self._settings.rules_file))

    async def run(self) -> None:
        """The whole life of the run. Raises Fenced when another node declared it dead."""
        self._lock_journal_dir()
        rules = self._load_rules()
        try:
            pool = await self._connect()
            async with pool:
                self._pool = pool
                await self._prepare(rules)
                try:
                    await self._serve()
                finally:
                    self._kill_children()
                    await self._resolver.close()
        finally:
            os.close(self._journal_lock)

    def _load_rules(self) -> RuleSet:
        path = self._settings.rules_file
        return RuleSet() if path is None else load_rules(path)

    def _lock_journal_dir(self) -> None:
        self._journal_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._journal_lock = os.open(self._journal_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._journal_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another daemon uses the journal in {self._journal_dir}") from None

    # --- start --------------------------------------------------------------------------------

    async def _connect(self) -> asyncpg.Pool:
        """Waits for the database as long as it takes, and says so."""
        said = ""
        while True:
            try:
                pool = await asyncpg.create_pool(
                    self._settings.database.dsn,
                    min_size=2,
                    max_size=self._settings.database.pool_max,
                    command_timeout=60,
                    server_settings={"application_name": f"mta {self._settings.node.name}", "timezone": "UTC"},
                )
                async with pool.acquire() as conn:
                    await migrate.require_current(conn)
                return pool
            except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("waiting for the database", error=said)
                    notify(f"STATUS=waiting for the database: {said}")
                await asyncio.sleep(1.0)

    async def _prepare(self, rules: RuleSet) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        self.schedule: Schedule[LeasedPart] = Schedule(
            rules,
            Bounds(
                settings.children.batch_recipients,
                settings.children.sessions_max,
                settings.master.ready_per_site_max,
                settings.master.ready_recipients_max,
            ),
            unix_offset_s=time.time() - loop.time(),
            shuffle=random.SystemRandom().shuffle,
        )
        self.collector = Collector(self.schedule, self._on_work)
        self._writer: Writer | None = None
        async with self._pool.acquire() as conn:
            await partitions.ensure_partitions(conn)
            self._verp_key: bytes = await conn.fetchval("SELECT verp_key FROM mta.installation")
            self.node = await nodes.register(conn, settings.node.name, recovery.boot_id(), settings.master.lease_s)
        self._lease_until_s = loop.time() + settings.master.lease_s - LEASE_MARGIN_S
        await self._recover_earlier_runs()
        async with self._pool.acquire() as conn:
            await nodes.renew(conn, self.node.id, settings.master.lease_s)
            hour_ago = int((time.time() - HOUR_S) // BUCKET_S) - 1
            self.schedule.load_credits(await load_credits(conn, self.node.name, hour_ago), loop.time())
        self._resolver = Resolver(settings.dns, random=random.SystemRandom())
        self.children = Children(
            settings.children.effective_count, self._child_options, self._on_frame, self._on_child_end
        )
        self.dispatch = Dispatch(self.schedule, self.collector, self.children, port=settings.smtp.port)
        self.intake = Intake(
            self._pool,
            self.node,
            settings.master,
            settings.pools,
            self._resolver,
            self.schedule,
            self.collector,
            self.dispatch,
        )
        self._writer = Writer(
            self._pool,
            self.node,
            self._take_settlement,
            delay_s=settings.master.write_delay_ms / 1000,
            lines_bytes_max=LINES_BYTES_URGENT,
        )

    async def _recover_earlier_runs(self) -> None:
        async with self._pool.acquire() as conn:
            earlier = await nodes.earlier_runs(conn, self.node)
        for dead in earlier:
            await recovery.wait_for_writers(self._journal_dir, dead.id)
            journals = Journals(self._journal_dir, dead.id)
            same_boot = dead.boot_id == self.node.boot_id
            doubts = await recovery.recover_run(self._pool, dead, journals, self.collector, is_complete=same_boot)
            recovery.remove_locks(self._journal_dir, dead.id)
            log.warning("an earlier run was recovered", run=dead.id, in_doubt=doubts, same_boot=same_boot)

    def _child_options(self, child: int) -> ChildOptions:
        return ChildOptions(self.node.id, child, str(self._journal_dir), self._verp_key, self._lease_until_s)

    # --- the tasks ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        assert self._writer is not None
        gc.freeze()
        for _ in range(self.children.missing):
            self.schedule.add_child((await self.children.start_one()).number)
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._writer.run(), name="writer")
            background = [
                tasks.create_task(self._keep_lease(), name="lease"),
                tasks.create_task(self._keep_house(), name="house"),
                tasks.create_task(self._listen(), name="listen"),
            ]
            intake = tasks.create_task(self.intake.run(), name="intake")
            self.started.set()
            notify("READY=1")
            log.info("running", node=self.node.name, run=self.node.id, children=len(self.children.living))
            await self._stop_wanted.wait()
            await self._drain(intake)
            for task in background:
                task.cancel()
            self._writer.stop()
            await writer
        if not self.collector.parts:
            async with self._pool.acquire() as conn:
                await nodes.end(conn, self.node.id)
            Journals(self._journal_dir, self.node.id).remove()
            recovery.remove_locks(self._journal_dir, self.node.id)
        log.info("stopped", left_in_hand=len(self.collector.parts))

    async def _drain(self, intake: asyncio.Task[None]) -> None:
        """Nothing new; children finish what is on the wire; all else goes back to the queue."""
        self._is_draining = True
        notify("STOPPING=1")
        self.dispatch.hold_reason = "drain"
        await self.intake.stop()
        await intake
        for book in self.intake.deliveries.values():
            book.is_leaving = True
            for _ in self.schedule.remove_delivery(book.id):
                pass  # the parts know what is left of them
        for child in list(self.children.living.values()):
            self.children.drain(child)
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._all_children_gone()
        except TimeoutError:
            log.warning("drain took too long; what is left is recovered at the next start")
        for part in list(self.collector.parts.values()):
            self.collector.release_if_free(part)

    async def _all_children_gone(self) -> None:
        stop_now = asyncio.create_task(self._stop_now.wait())
        try:
            while self.children.living and not stop_now.done():
                ended = [asyncio.ensure_future(child.ended.wait()) for child in self.children.living.values()]
                await asyncio.wait([stop_now, *ended], return_when=asyncio.FIRST_COMPLETED)
                for waiter in ended:
                    waiter.cancel()
        finally:
            stop_now.cancel()

    async def _keep_lease(self) -> None:
        """Renews the lease; nothing is begun while it is not certain."""
        lease_s = self._settings.master.lease_s
        loop = asyncio.get_running_loop()
        trouble = ""
        while True:
            asked_s = loop.time()
            try:
                async with asyncio.timeout(lease_s / 3), self._pool.acquire() as conn:
                    await nodes.renew(conn, self.node.id, lease_s)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if not trouble:
                    trouble = f"{type(error).__name__}: {error}"
                    log.error("lease cannot be renewed", error=trouble)
            else:
                self._lease_until_s = asked_s + lease_s - LEASE_MARGIN_S
                self.children.renew_lease(self._lease_until_s)
                if trouble:
                    trouble = ""
                    log.info("lease is certain again")
            self._check_hold()
            notify("WATCHDOG=1")
            await asyncio.sleep(min(1.0, lease_s / 6))

    def _check_hold(self) -> None:
        if self._is_draining:
            return
        held = self.dispatch.hold_reason
        if asyncio.get_running_loop().time() >= self._lease_until_s:
            self.dispatch.hold_reason = "lease"
        elif self.children.journal_trouble:
            self.dispatch.hold_reason = "journal"
        else:
            self.dispatch.hold_reason = ""
        if held != self.dispatch.hold_reason:
            log.warning("sending", held_by=self.dispatch.hold_reason or "nothing")
            self.dispatch.wake()

    async def _keep_house(self) -> None:
        """What is done now and then: children replaced, partitions made, the dead taken over, the empty dropped."""
        loop = asyncio.get_running_loop()
        next_hour_s = next_minute_s = loop.time()
        while True:
            await asyncio.sleep(1.0)
            now_s = loop.time()
            if self.children.missing > 0:
                child = await self.children.start_one()
                self.schedule.add_child(child.number)
                self.dispatch.wake()
            self._recycle_children()
            for child in self.children.silent(now_s):
                log.error("child is silent and is killed", child=child.number, pid=child.pid)
                child.kill()
            try:
                if now_s >= next_minute_s:
                    next_minute_s = now_s + 15
                    self.schedule.forget_empty(now_s)
                    await self._take_over()
                if now_s >= next_hour_s:
                    next_hour_s = now_s + 3600
                    async with self._pool.acquire(timeout=10) as conn:
                        await partitions.ensure_partitions(conn)
                        await forget_credits(conn, self.node.name, int((time.time() - 2 * HOUR_S) // BUCKET_S))
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("housekeeping is put off", error=f"{type(error).__name__}: {error}")

    def _recycle_children(self) -> None:
        bounds = self._settings.children
        for child in list(self.children.living.values()):
            if child.is_draining:
                continue
            health = child.health
            if health.messages >= bounds.recycle_messages or health.rss_bytes >= bounds.recycle_mbytes << 20:
                log.info(
                    "child is replaced", child=child.number, messages=health.messages, mbytes=health.rss_bytes >> 20
                )
                self.schedule.retire_child(child.number)
                self.children.drain(child)

    async def _take_over(self) -> None:
        async with self._pool.acquire(timeout=10) as conn:
            dead_runs = await nodes.dead_runs(conn, self.node.name, TAKE_OVER_GRACE_S)
        for dead in dead_runs:
            spare = Collector(self.schedule, lambda _: None)
            try:
                doubts = await recovery.recover_run(self._pool, dead, None, spare, is_complete=False)
            except Fenced:
                continue  # another node was quicker
            log.warning("a dead node was taken over", node=dead.name, run=dead.id, in_doubt=doubts)

    async def _listen(self) -> None:
        """Wakes the intake on NOTIFY; without it (connection lost) the poll still finds everything."""
        while True:
            try:
                async with self._pool.acquire(timeout=10) as conn:
                    await self._listen_on(conn)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.debug("not listening", error=str(error))
            await asyncio.sleep(1.0)

    async def _listen_on(self, conn: Conn) -> None:
        lost = asyncio.Event()

        def on_news(*_: object) -> None:
            self.intake.notify()

        def on_end(*_: object) -> None:
            lost.set()

        conn.add_termination_listener(on_end)
        await conn.add_listener("mta", on_news)
        try:
            await lost.wait()
        finally:
            conn.remove_termination_listener(on_end)
            if not conn.is_closed():
                await conn.remove_listener("mta", on_news)

    # --- from children ------------------------------------------------------------------------

    def _on_frame(self, child: Child, frame: ChildFrame) -> None:
        now_s = asyncio.get_running_loop().time()
        match frame:
            case Report():
                child.last_report = frame.sequence
                self.collector.report(child.number, frame, now_s)
                self.dispatch.wake()
            case Opened():
                self.schedule.session_opened(frame.session, now_s)
            case OpenFailed():
                self.schedule.session_closed(frame.session, now_s, f"{frame.stage}: {frame.cause}")
                self.dispatch.wake()
            case SessionClosed():
                self.schedule.session_closed(frame.session, now_s, frame.cause)
                self.dispatch.wake()

    def _on_child_end(self, child: Child) -> None:
        """Its socket is at its end, so all that it reported is here; the journal tells the rest."""
        now_s = asyncio.get_running_loop().time()
        self.children.living.pop(child.number, None)
        child.kill()
        was_draining = child.is_draining
        self.schedule.retire_child(child.number)
        journals = Journals(self._journal_dir, self.node.id, child.number)
        for record in journals.records:
            if record.sequence > child.last_report and record.outcomes:
                self.collector.report(
                    child.number,
                    Report(record.sequence, self._still_out(record.outcomes), record.lines, record.doubts),
                    now_s,
                )
        doubts = self._settle_open_batches(child, journals, now_s)
        for session in self.schedule.sessions_of(child.number):
            self.schedule.session_closed(session.id, now_s, "")
        if not was_draining or doubts:
            log.error("child died", child=child.number, in_doubt=doubts)
        self._dead_journals.append((child.number, journals))
        self._on_work(0)
        self.dispatch.wake()

    def _still_out(self, outcomes: list[Outcome]) -> list[Outcome]:
        return [outcome for outcome in outcomes if outcome.batch in self.collector.batches]

    def _settle_open_batches(self, child: Child, journals: Journals, now_s: float) -> int:
        """What was out in a dead child: begun and unanswered is in doubt, the rest is ready again."""
        doubts = 0
        for number, batch in list(self.collector.batches.items()):
            if batch.child != child.number:
                continue
            for part_id, positions in list(batch.open.items()):
                doubts += self._settle_open_part(child, number, batch, part_id, sorted(positions), journals, now_s)
        return doubts

    def _settle_open_part(
        self,
        child: Child,
        number: int,
        batch: BatchBook,
        part_id: int,
        positions: list[int],
        journals: Journals,
        now_s: float,
    ) -> int:
        part = self.collector.parts[part_id]
        outcome = Outcome(number, part_id)
        lines = []
        told_doubts = []
        for position in positions:
            told = journals.told(part_id, position)
            if told is None or told.status is not None:
                outcome.returned.append(position)
                continue
            cause = "the process died before the reply came"
            told = told._replace(status=Status.IN_DOUBT, cause=cause)
            outcome.in_doubt.append(position)
            outcome = Outcome(number, part_id, told.limit, in_doubt=outcome.in_doubt, returned=outcome.returned)
            lines.append(recovery.doubt_line(part, position, told))
            told_doubts.append((part_id, position, told.mx_host, told.peer, cause))
        report = Report(child.last_report, [outcome], b"".join(lines), told_doubts)
        self.collector.report(child.number, report, now_s)
        return len(outcome.in_doubt)

    def _kill_children(self) -> None:
        for child in self.children.living.values():
            child.kill()

    # --- the writer's side --------------------------------------------------------------------

    def _on_work(self, lines_bytes: int) -> None:
        if self._writer is not None:
            self._writer.wake(lines_bytes)

    def _take_settlement(self) -> tuple[Settlement, Callable[[], None]]:
        settlement, reported = self.collector.take()
        dead, self._dead_journals = self._dead_journals, []

        def committed() -> None:
            for number, sequence in reported.items():
                child = self.children.living.get(number)
                if child is not None:
                    child.tell(Committed(sequence))
                    child.flush()
            for number, journals in dead:
                journals.remove()
                lock_path(self._journal_dir, self.node.id, number).unlink(missing_ok=True)
            if settlement.finished or settlement.released:
                self.intake.notify()

        return settlement, committed
