"""One run of a node: recover, register, start children, claim and send until told to stop, then drain.

``start / drain / stop``: `Daemon.run` does all three; the first signal drains (what is on the wire is finished, the
rest goes back to the queue), a second one stops at once (the journal tells the next run what was under way).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from mta import is_compiled
from mta.master import recovery
from mta.master.adapt import Adapter
from mta.master.alerts import Alerts
from mta.master.answers import Answers
from mta.master.children import Child, Children
from mta.master.collector import Collector
from mta.master.control import Control
from mta.master.database import closing, connect
from mta.master.dispatch import Dispatch
from mta.master.drain import Drain
from mta.master.events import Enforcer, EventBook
from mta.master.history import LEASE_MARGIN_S, HistoryGuard, NodeHistory
from mta.master.host_facts import HostBook
from mta.master.intake import Intake
from mta.master.keys import KeyStore
from mta.master.machine_alerts import MachineAlerts
from mta.master.notifications import Listener, listen
from mta.master.qualification import Qualification
from mta.master.remains import Remains
from mta.master.rulebook import Rulebook
from mta.master.schedules import new_schedule
from mta.master.sharing import Sharing
from mta.outcomes.journal import JournalError, lock_directory
from mta.outcomes.writer import Writer
from mta.queue import nodes, partitions
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.epochs import DatabaseBehind
from mta.queue.events import CHANNEL as EVENTS_CHANNEL
from mta.queue.host_facts import CHANNEL as HOSTS_CHANNEL
from mta.queue.installation import verp_key
from mta.queue.nodes import NodeRun
from mta.queue.qualified import CHANNEL as TEXTS_CHANNEL
from mta.queue.rule_sets import CHANNEL as RULES_CHANNEL
from mta.queue.settle import Settlement, forget_credits, load_credits
from mta.settings.config import Settings, load_settings
from mta.sts import open_routes
from mta.telemetry.faults import end_on_fault
from mta.telemetry.outages import DATABASE
from mta.telemetry.systemd import notify
from mta.telemetry.waits import Stopped, event_or_timeout, until_stopped
from mta.traffic.limits import DAY_S, HOUR_S
from mta.traffic.quota import BUCKET_S
from mta.traffic.rules import RuleSet
from mta.wire import (
    ChildFrame,
    ChildOptions,
    Committed,
    Failing,
    HostObserved,
    JournalState,
    MasterFrame,
    Opened,
    OpenFailed,
    Report,
    SessionClosed,
)

END_S = 5.0  # for each of the last words to the database
WIND_DOWN_S = 20.0  # for replies that are owed when the database went back in time; other nodes wait for this one
HOUSE_S = 1.0  # between two turns of the house
STALL_S = 1.5  # without a turn of the house: then we did not listen ourselves, stopped or short of processor time
LINE_BYTES = 200  # of the log, about; the writer counts bytes, the settings say rows
RENEW_TIMEOUT_S_MAX = 10.0  # the watchdog is told after each try, whatever came of it
log = structlog.get_logger()


class Daemon:
    """One run. Everything it owns is used from its event loop only."""

    def __init__(self, settings: Settings, config: Path | None = None) -> None:
        """``config``: the file of the settings; of it the signing keys are read again at a reload."""
        self._settings = settings
        self._config = config
        self._qualification = Qualification(settings.failures, self._tell_bounce_rules)
        self._rulebook = Rulebook(settings.rules_file, settings.node.name, self._use_rules)
        self._is_prepared = False  # there is somebody to tell of new keys
        self._journal_dir = settings.journal_dir
        self._stop_wanted = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._is_draining = False
        self._lease_until_s = 0.0
        self._journal_lock = -1
        self._lost: asyncio.Queue[Child] = asyncio.Queue()  # children to bury; never more than there were
        self.started = asyncio.Event()

    # --- from outside -------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain; called again: stop now."""
        if self._stop_wanted.is_set():
            self._stop_now.set()
        self._stop_wanted.set()

    def reload_rules(self) -> None:
        """Has the files of MX rules and bounce rules read anew; when one cannot be used, the log says why."""
        self._rulebook.reload()
        self._qualification.reload()

    def reload_keys(self) -> None:
        """Reads signing settings and key files anew. Raises BadInput, with nothing changed, for a bad settings file.

        A key file that cannot be used is logged, and its sender domain keeps the keys it has.
        """
        settings = self._settings if self._config is None else load_settings(self._config)
        if self._keys.reload(settings.signing) and self._is_prepared:
            self._hand_on_keys()

    async def run(self) -> None:
        """The whole life of the run. Raises Fenced when another node declared it dead."""
        self._journal_lock = lock_directory(self._journal_dir)
        self._rulebook.read()
        self._qualification.read()
        self._keys = KeyStore(self._settings.signing)
        try:
            while pool := await connect(self._settings, self._stop_wanted, guard := HistoryGuard()):
                async with closing(pool):
                    self._pool = pool
                    self._history = NodeHistory(self._settings, guard)
                    if await self._prepared() and await self._serve_and_end():
                        return
                    pool.terminate()
                if self._stop_wanted.is_set():
                    log.info("stopped while it started")
                    return
            log.info("stopped before the database was there")
        finally:
            os.close(self._journal_lock)

    async def _prepared(self) -> bool:
        """False: told to stop, or the database went away meanwhile. What is recovered by then is recovered."""
        try:
            await until_stopped(self._prepare(), self._stop_wanted)
        except JournalError:
            raise
        except Stopped:
            if (run := self._history.registered) is not None:
                await self._end_run(run, 0)
            return False
        except (*DATABASE_AWAY, DatabaseBehind) as error:
            log.warning("cannot start, waiting for the database", error=f"{type(error).__name__}: {error}")
            await event_or_timeout(self._stop_wanted, 1.0)
            return False
        return True

    async def _serve_and_end(self) -> bool:
        """False: the database has forgotten something. The run is over, and the next one tells it from the journal."""
        try:
            await self._serve()
        except BaseExceptionGroup as group:
            behind, other = group.split(DatabaseBehind)
            if behind is None or other is not None:
                raise
            self._history.note_behind(behind.exceptions[0], self._recorded)
            return False
        finally:
            self._kill_children()
            await self._resolver.close()
        return True

    # --- start --------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        self._is_prepared = self._is_draining = False
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._fault: asyncio.Future[None] = loop.create_future()
        end_on_fault(loop, self._fail)
        unix_offset_s = time.time() - loop.time()
        async with acquire(self._pool) as conn:
            await self._rulebook.begin(conn)
            await self._qualification.begin(conn)
        rules = self._rulebook.rules
        self.schedule = new_schedule(rules, settings, unix_offset_s)
        self._machine_alerts = MachineAlerts(self.schedule.faults, settings.node.name)
        self.collector = Collector(self.schedule, self._on_work, in_doubt_max=settings.master.in_doubt_max)
        self._writer: Writer | None = None
        async with acquire(self._pool) as conn:
            await partitions.ensure_partitions(conn)
            self._verp_key = await verp_key(conn)
        self.node = await self._history.begin_run(self._pool, self._doubt_terms)
        self._lease_until_s = self._history.lease_until_s
        self._remains = Remains(self._journal_dir, self.node.id, self.collector)
        async with acquire(self._pool) as conn:
            await self._history.renew(conn)
            day_ago = int((time.time() - DAY_S) // BUCKET_S) - 1
            self.schedule.load_credits(await load_credits(conn, self.node.name, day_ago), loop.time())
        dice = random.SystemRandom()
        self._resolver = open_routes(
            settings.dns, settings.tls, smtp_port=settings.smtp.port, directory=self._journal_dir, random=dice
        )
        self.children = Children(
            settings.children.effective_count,
            settings.children.silence_s,
            self._first_frames,
            self._on_frame,
            self._on_child_loss,
        )
        self.dispatch = Dispatch(
            self.schedule, self.collector, self.children, self._qualification.judge, port=settings.smtp.port
        )
        self._writer = Writer(
            self._pool,
            self.node,
            self._take_settlement,
            delay_s=settings.master.write_delay_ms / 1000,
            lines_bytes_max=settings.master.write_rows_max * LINE_BYTES,
            sequence=self._history.sequence,
        )
        self.intake = Intake(
            self._pool,
            self.node,
            settings.master,
            settings.pools,
            self._resolver,
            self.schedule,
            self.collector,
            self.dispatch,
            self._writer.flushed,
            self._keys,
        )
        self.intake.set_rules(rules)
        await self._restore_events(self._writer, unix_offset_s)
        self.hosts = HostBook(self._pool, self.node.name, self.schedule, unix_offset_s, self.dispatch.wake)
        egress_ids = {egress.id for egress in settings.egresses}
        self._sharing = Sharing(self._pool, self.node, egress_ids, self.schedule, self.dispatch.wake)
        async with acquire(self._pool) as conn:
            await self._sharing.begin(conn)
            await self.hosts.restore(conn)
        self._is_prepared = True

    @property
    def _doubt_terms(self) -> recovery.DoubtTerms:
        return recovery.DoubtTerms(self._settings.master.in_doubt_max, self._rulebook.rules)

    async def _restore_events(self, writer: Writer, unix_offset_s: float) -> None:
        enforcer = Enforcer(self.schedule, self.intake, {egress.id for egress in self._settings.egresses})
        self.events = EventBook(self._pool, self.node.name, enforcer.apply, writer.flushed, unix_offset_s)
        async with acquire(self._pool) as conn:
            await self.events.restore(conn)
        self._adapter = Adapter(
            self._rulebook.rules,
            self.schedule,
            self.events,
            self.intake.deliveries,
            self.children,
            self._pool,
            self.node.name,
        )
        self.dispatch.automations_of = self._adapter.automations_of
        self.collector.on_attempted = self._adapter.attempted

    def _use_rules(self, rules: RuleSet) -> None:
        self.schedule.set_rules(rules, asyncio.get_running_loop().time())
        self.intake.set_rules(rules)
        self._adapter.set_rules(rules)
        self.dispatch.wake()

    def _tell_bounce_rules(self) -> None:
        if self._is_prepared:
            self.children.tell_all(self._qualification.frame)

    def _control(self, writer: Writer) -> Control:
        rulebook, lease_until_s = self._rulebook, lambda: self._lease_until_s
        answers = Answers(self, self._settings, writer, self._resolver, lambda: rulebook.rules, lease_until_s)
        return Control(self._journal_dir, answers.table())

    def _hand_on_keys(self) -> None:
        # Children first: what is taken from them below comes back of its own accord, too, when it cannot be signed.
        self.children.tell_all(self._keys.frame)
        self.intake.keys_changed()
        self.dispatch.wake()

    def _first_frames(self, child: int) -> list[MasterFrame]:
        segment_bytes_max = self._settings.children.journal_segment_kbytes << 10
        options = ChildOptions(
            self.node.id,
            child,
            str(self._journal_dir),
            segment_bytes_max,
            self._verp_key,
            self._lease_until_s,
            self._settings.tls.ca_file,
        )
        return [options, self._qualification.frame, self._keys.frame, self._adapter.frame]

    # --- the tasks ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        assert self._writer is not None
        # What lives as long as the process is never looked at again; parts and batches hold no cycles.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        for _ in range(self.children.missing):
            await self._start_child()
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._writer.run(), name="writer")
            background = [
                tasks.create_task(self._keep_lease(), name="lease"),
                tasks.create_task(self._keep_house(), name="house"),
                tasks.create_task(listen(self._pool, self._listeners()), name="listen"),
                tasks.create_task(self._bury(), name="bury"),
                tasks.create_task(self._raise_fault(), name="fault"),
                tasks.create_task(self._mind_history(), name="history"),
                tasks.create_task(self.events.run(), name="events"),
                tasks.create_task(self.hosts.run(), name="hosts"),
                tasks.create_task(self._adapter.run(), name="adaptation"),
                tasks.create_task(self._sharing.run(), name="sharing"),
                tasks.create_task(self._rulebook.run(self._pool), name="rules"),
                tasks.create_task(self._qualification.run(self._pool), name="qualification"),
                tasks.create_task(self._control(self._writer).run(), name="control"),
                tasks.create_task(Alerts(self._pool, self._settings.alarms).run(), name="alerts"),
                tasks.create_task(self._machine_alerts.run(self._pool), name="machine alerts"),
            ]
            intake = tasks.create_task(self.intake.run(), name="intake")
            self._tasks = [task for task in (writer, intake, *background) if task.get_name() != "history"]
            self.started.set()
            notify("READY=1")
            children = len(self.children.living)
            log.info("running", node=self.node.name, run=self.node.id, children=children, compiled=is_compiled())
            await self._stop_wanted.wait()
            drain = Drain(self._pool, self.node, self.children, self.schedule, self._stop_now)
            background.append(tasks.create_task(drain.tell(), name="tell of the drain"))
            await self._drain(drain, intake)
            for task in background:
                task.cancel()
            self._writer.stop()
            is_all_recorded = await drain.wait_for_writer(self._writer, writer)
        if is_all_recorded and not self.collector.parts:
            await self._end_run(self.node, self._writer.sequence, self._sharing)
        log.info("stopped", left_in_hand=len(self.collector.parts), all_recorded=is_all_recorded)

    async def _end_run(self, node: NodeRun, sequence: int, sharing: Sharing | None = None) -> None:
        try:
            async with asyncio.timeout(END_S), acquire(self._pool) as conn:
                await nodes.end(conn, node.id, sequence)
                if sharing is not None:
                    await sharing.end(conn)
        except DATABASE_AWAY as error:
            log.warning("the next start must end this run", error=f"{type(error).__name__}: {error}")
        else:
            self._history.end_run(sequence)

    async def _drain(self, drain: Drain, intake: asyncio.Task[None]) -> None:
        """Nothing new; children finish what is on the wire; all else goes back to the queue."""
        self._is_draining = True
        notify("STOPPING=1")
        self.dispatch.hold_reason = "drain"
        await self.intake.stop()
        # A claim whose answer does not come: what it leased goes back at the end of this run, or of its lease.
        await drain.wait_for(intake, END_S)
        intake.cancel()
        for book in self.intake.deliveries.values():
            book.is_leaving = True
            for _ in self.schedule.remove_delivery(book.id):
                pass  # the parts know what is left of them
        for child in list(self.children.living.values()):
            self.children.drain(child)
        await drain.wait_for_children()
        for part in list(self.collector.parts.values()):
            self.collector.release_if_free(part)

    async def _keep_lease(self) -> None:
        """Renews the lease; nothing is begun while it is not certain."""
        lease_s = self._settings.master.lease_s
        loop = asyncio.get_running_loop()
        while True:
            asked_s = loop.time()
            try:
                async with asyncio.timeout(min(lease_s / 3, RENEW_TIMEOUT_S_MAX)), acquire(self._pool) as conn:
                    await self._history.renew(conn)
            except DATABASE_AWAY as error:
                DATABASE.failed("renew the lease", error)
            else:
                self._lease_until_s = asked_s + lease_s - LEASE_MARGIN_S
                self.children.renew_lease(self._lease_until_s)
                DATABASE.answered("renew the lease")
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
        next_hour_s = next_look_s = turned_s = keys_checked_s = loop.time()
        take_over_after_s = self._settings.master.take_over_after_s
        while True:
            await asyncio.sleep(HOUSE_S)
            now_s = loop.time()
            if now_s - turned_s > STALL_S:
                self.children.discount(now_s - turned_s, now_s)
            turned_s = now_s
            for _ in range(self.children.missing):
                if self.children.may_start(now_s) and not self._is_draining:
                    await self._start_child()
                    self.dispatch.wake()
            self._recycle_children()
            for child in self.children.silent(now_s):
                log.error("child is silent and is killed", child=child.number, pid=child.pid)
                child.kill()
            if now_s - keys_checked_s >= self._keys.settings.check_s:
                keys_checked_s = now_s
                if self._keys.check():
                    self._hand_on_keys()
            self._history.sweep(now_s)
            try:
                if now_s >= next_look_s:
                    next_look_s = now_s + min(15.0, take_over_after_s / 2)
                    self.schedule.forget_empty(now_s)
                    await recovery.take_over_dead_nodes(self._pool, self.node, take_over_after_s, self._doubt_terms)
                if now_s >= next_hour_s:
                    next_hour_s = now_s + 3600
                    async with acquire(self._pool) as conn:
                        await partitions.ensure_partitions(conn)
                        old, gone = (int((time.time() - ago_s) // BUCKET_S) for ago_s in (2 * HOUR_S, DAY_S + HOUR_S))
                        await forget_credits(conn, self.node.name, old, gone)
            except DATABASE_AWAY as error:
                if not DATABASE.is_on:
                    log.warning("housekeeping is put off", error=f"{type(error).__name__}: {error}")

    async def _start_child(self) -> None:
        child = await self.children.start_one()
        if child is not None:
            self.schedule.add_child(child.number)

    def _recycle_children(self) -> None:
        for child in self.children.worn_out(self._settings.children):
            self._replace(child)

    def _replace(self, child: Child) -> None:
        """It finishes what it has begun, while another takes its place."""
        self.schedule.retire_child(child.number)
        self.children.drain(child)

    def _listeners(self) -> list[Listener]:
        return [
            ("mta", lambda *_: self.intake.notify()),
            (EVENTS_CHANNEL, self.events.notify),
            (RULES_CHANNEL, self._rulebook.notify),
            (TEXTS_CHANNEL, lambda *_: self._qualification.notify()),
            (HOSTS_CHANNEL, self.hosts.notify),
        ]

    # --- from children ------------------------------------------------------------------------

    def _on_frame(self, child: Child, frame: ChildFrame) -> None:
        now_s = asyncio.get_running_loop().time()
        match frame:
            case Report():
                child.last_report = frame.sequence
                self._adapter.report(frame)
                self.collector.report(child.number, frame, now_s)
                self.dispatch.wake()
            case Opened():
                self.schedule.session_opened(frame.session, now_s)
            case OpenFailed() if frame.errno:
                self.schedule.session_not_opened_here(frame.session, now_s, frame.call, frame.errno)
                self.dispatch.wake()
            case OpenFailed():
                self._adapter.not_opened(frame)
                self.dispatch.not_opened(frame, now_s)
                self.schedule.session_closed(frame.session, now_s, f"{frame.stage}: {frame.cause}")
                self.dispatch.wake()
            case HostObserved():
                self.hosts.observed(frame)
            case JournalState():
                self._check_hold()
            case Failing():
                log.error("child has a fault and is replaced", child=child.number, pid=child.pid, cause=frame.cause)
                self.children.slow_down(child)
                self._replace(child)
            case SessionClosed():
                self.schedule.session_closed(frame.session, now_s, frame.cause)
                self.dispatch.wake()
        if self.schedule.faults.has_news:
            self._machine_alerts.announce()

    def _on_child_loss(self, child: Child) -> None:
        """Its socket is at its end, so all that it reported is here. It gets nothing more."""
        self.schedule.retire_child(child.number)
        self._lost.put_nowait(child)

    async def _bury(self) -> None:
        """What lost children left behind is dealt with once they are gone for certain."""
        while True:
            child = await self._lost.get()
            await child.bury()
            now_s = asyncio.get_running_loop().time()
            doubts = self._remains.settle(child, now_s)
            for session in self.schedule.sessions_of(child.number):
                self.schedule.session_closed(session.id, now_s, "")
            if not child.is_draining or doubts:
                log.error("child died", child=child.number, in_doubt=doubts)
            self.children.ended(child)
            self._on_work(0)
            self.dispatch.wake()

    async def _mind_history(self) -> None:
        """Ends the run when its database has gone back in time; first what is on the wire gets its reply."""
        cause = await self._history.went_back()
        self._is_draining = True  # no new child, no claim
        self.dispatch.hold_reason = "database"
        await self.intake.stop()
        for child in list(self.children.living.values()):
            self.children.drain(child)
        drain = Drain(self._pool, self.node, self.children, self.schedule, self._stop_now)
        await drain.wait_for_children(WIND_DOWN_S)
        # More than once: asyncpg may give another error to who is cancelled while it waits for a connection.
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1.0)
        raise DatabaseBehind(cause)

    # --- faults -------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._fault.done():
            self._fault.set_exception(error)

    async def _raise_fault(self) -> None:
        """A bug in a callback ends the run: books that may be wrong decide nothing more, the journals are right."""
        await self._fault

    def _kill_children(self) -> None:
        for child in self.children.living.values():
            child.kill()

    # --- the writer's side --------------------------------------------------------------------

    @property
    def _recorded(self) -> int:
        """The number of the last settlement that the database has acknowledged."""
        return 0 if self._writer is None else self._writer.recorded

    def _on_work(self, lines_bytes: int) -> None:
        if self._writer is not None:
            self._writer.wake(lines_bytes)

    def _take_settlement(self) -> tuple[Settlement, Callable[[], None]]:
        settlement, reported = self.collector.take()
        remains = self._remains.take()

        def committed() -> None:
            self.collector.recorded(settlement)
            recorded = self._history.kept_as(self._recorded)
            for number, sequence in reported.items():
                child = self.children.living.get(number)
                if child is not None:
                    child.tell(Committed(sequence, recorded))
                    child.flush()
            self._remains.remove(remains, recorded)
            if settlement.finished or settlement.released:
                self.intake.notify()

        return settlement, committed
