"""The loop of the keeper: elected, it follows the log until it is told to stop."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from mta.failure.judge import Amended, amended
from mta.failure.qualify import Qualifier, is_by_rule
from mta.failure.scope import BY_OPERATOR
from mta.keeper.updating import Updating
from mta.master.database import closing, connect
from mta.master.qualification import bounce_rules
from mta.model.errors import BadInput
from mta.model.failure import Verdict
from mta.queue import failure_texts, feed, quarantine, updates
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.process_alerts import FEEDBACK_LOCK
from mta.queue.qualified import qualified_texts
from mta.queue.updates import Update
from mta.settings.config import Settings
from mta.telemetry.outages import DATABASE
from mta.telemetry.systemd import notify
from mta.telemetry.waits import Stopped, event_or_timeout, until_stopped

LOCK: Final = FEEDBACK_LOCK
LOOK_S: Final = 1.0
STAND_BY_S: Final = 5.0
STOP_S: Final = 5.0  # for the lines at hand
RELEASE_S: Final = 3_600.0
log = structlog.get_logger()


class Keeper:
    """``run`` is its only task. ``clock`` gives the time by which addresses are released."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._stop_wanted = asyncio.Event()
        self._qualifier = Qualifier(())
        self._released_at_s = float("-inf")
        self._update: Update | None = None  # the newest that was seen
        self._updating = Updating(settings, clock)

    def stop(self) -> None:
        self._stop_wanted.set()

    def reload(self) -> None:
        """Reads the bounce rules anew; those in force stay where they cannot be used, and the log says why."""
        try:
            self._qualifier = self._load()
        except BadInput as error:
            log.error("bounce rules cannot be used, those in force stay", error=str(error))

    def _load(self) -> Qualifier:
        return Qualifier(bounce_rules(self._settings.failures, self._update))

    async def run(self) -> None:
        """Until told to stop; waits for a database that is away. Raises BadInput for rules that cannot be used."""
        self._qualifier = self._load()
        while pool := await connect(self._settings, self._stop_wanted):
            DATABASE.answered("keep")
            try:
                async with closing(pool):
                    await until_stopped(self._serve(pool), self._stop_wanted, STOP_S)
                return
            except Stopped:
                return  # the pointer has not moved: the next one goes on where this one was
            except DATABASE_AWAY as error:
                DATABASE.failed("keep", error)
                await event_or_timeout(self._stop_wanted, LOOK_S)

    async def _serve(self, pool: asyncpg.Pool) -> None:
        notify("READY=1")
        async with acquire(pool) as elected:
            while not self._stop_wanted.is_set():
                # Held by this connection for as long as it lives: whoever has it is the one.
                if not await elected.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
                    await event_or_timeout(self._stop_wanted, STAND_BY_S)
                    continue
                log.info("keeping")
                async with self._updating.beside(pool) as check:
                    while not self._stop_wanted.is_set():
                        check()
                        notify("WATCHDOG=1")
                        if await self.step(elected):
                            await event_or_timeout(self._stop_wanted, LOOK_S)

    async def step(self, conn: Conn) -> bool:
        """Deals with the next lines of the log; True when there are no more for now."""
        if (update := await updates.newer_than(conn, self._update)) is not None:
            self._update = update
            self.reload()
        async with conn.transaction():
            # Locked: who looks at past failures again (`mta.queue.requalify`) does so before these lines or after them.
            after = await feed.pointer(conn, quarantine.POINTER, from_the_beginning=True, is_locked=True)
            if await feed.is_of_another_server(conn, after):
                log.error("this database was restored from another server's dump: lines up to now are not looked at")
                await feed.begin_anew(conn, quarantine.POINTER)
                return True
            page = await feed.read(conn, after, where=quarantine.FOLLOWED)
            if page.lines:
                await quarantine.apply(conn, page, after, self._settings.quarantine)
                await failure_texts.count(conn, page.lines, (await self._amended(conn)).qualify, _is_qualified)
            if page.upto > after:
                await feed.move(conn, quarantine.POINTER, page.upto)
        now_s = asyncio.get_running_loop().time()
        if now_s - self._released_at_s >= RELEASE_S:
            self._released_at_s = now_s
            if released := await quarantine.release(conn, self._clock(), self._settings.quarantine):
                log.info("addresses are mailed again, as their time is over", addresses=released)
        return page.is_last

    async def _amended(self, conn: Conn) -> Amended:
        return amended(self._qualifier, await qualified_texts(conn))


def _is_qualified(verdict: Verdict) -> bool:
    return verdict.rule == BY_OPERATOR or is_by_rule(verdict)
