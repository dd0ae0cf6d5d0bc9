"""Carries settlements into the database: collected for some milliseconds, one transaction each, in order.

When the database is away it waits, says so once, and tries again with the same settlement and number until it is
known to be recorded. What waits meanwhile is bounded by what children have in hand, since without the database
the lease ends and nothing new is begun.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import asyncpg
import structlog

from mta.outcomes.line import COLUMNS
from mta.queue.connection import acquire
from mta.queue.nodes import Fenced, NodeRun
from mta.queue.settle import Settlement, commit
from mta.telemetry.outages import DATABASE
from mta.telemetry.waits import event_or_timeout

RETRY_S = 1.0
# SQLSTATE classes 22, 23 and 42: no waiting makes these good.
_OUR_FAULTS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.SyntaxOrAccessError)
log = structlog.get_logger()


class Writer:
    """One per node run. ``take`` hands over the settlement so far and begins a new one."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        run: NodeRun,
        take: Callable[[], tuple[Settlement, Callable[[], None]]],
        *,
        delay_s: float,
        lines_bytes_max: int,
        sequence: int = 0,
    ) -> None:
        """``sequence``: the number of the run's last settlement, where it has recorded some already."""
        self._pool = pool
        self._run = run
        self._take = take
        self._delay_s = delay_s
        self._lines_bytes_max = lines_bytes_max
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()
        self._sequence = self.recorded = sequence  # the last begun, the last that the database has acknowledged
        self._is_stopping = False
        self._waiting: list[asyncio.Future[None]] = []
        self.trouble = ""
        self.commit_s = 0.0  # what it takes to record a settlement, lately
        self._began_s = math.inf  # of the settlement that is being recorded

    def committing_s(self, now_s: float) -> float:
        """For how long it has tried to record the settlement at hand; 0 when there is none."""
        return max(0.0, now_s - self._began_s)

    def wake(self, lines_bytes: int) -> None:
        """Something waits to be recorded; much of it is recorded without further delay."""
        self._wanted.set()
        if lines_bytes >= self._lines_bytes_max:
            self._urgent.set()

    async def flushed(self) -> None:
        """Returns when all that is collected now is recorded."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wanted.set()
        await waiter

    @property
    def sequence(self) -> int:
        """The number of the last settlement."""
        return self._sequence

    def stop(self) -> None:
        """Record what is there and end."""
        self._is_stopping = True
        self._wanted.set()
        self._urgent.set()

    async def run(self) -> None:
        """Until stopped. Raises Fenced when this run was declared dead."""
        while True:
            await self._wanted.wait()
            if not self._is_stopping:
                await event_or_timeout(self._urgent, self._delay_s)
            self._wanted.clear()
            self._urgent.clear()
            settlement, committed = self._take()
            waiting, self._waiting = self._waiting, []
            if settlement.is_empty:
                committed()
                _tell(waiting)
                if self._is_stopping:
                    return
                continue
            self._sequence += 1
            loop = asyncio.get_running_loop()
            self._began_s = loop.time()
            await self._until_recorded(settlement)
            self.recorded = self._sequence
            self.commit_s += 0.2 * (loop.time() - self._began_s - self.commit_s)
            self._began_s = math.inf
            committed()
            _tell(waiting)
            if self._is_stopping:
                self._wanted.set()

    async def _until_recorded(self, settlement: Settlement) -> None:
        while True:
            try:
                async with acquire(self._pool) as conn:
                    await commit(conn, self._run, settlement, self._sequence, COLUMNS)
            except Fenced:
                raise
            except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                # The last: a connection that broke in the middle of a COPY cannot even be given back.
                self._wait_for_database(error)
            except asyncpg.PostgresError as error:
                if isinstance(error, _OUR_FAULTS):
                    raise
                # Disk full, failing over, shutting down, deadlock: the server's trouble, not the settlement's.
                self._wait_for_database(error)
            else:
                self.trouble = ""
                DATABASE.answered("record outcomes")
                return
            await asyncio.sleep(RETRY_S)

    def _wait_for_database(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, asyncpg.InsufficientResourcesError) and text != self.trouble:
            # It is there, and has no room: which room is what somebody must know.
            log.error("outcomes cannot be recorded", error=text, settlement=self._sequence)
        self.trouble = text
        DATABASE.failed("record outcomes", error)


def _tell(waiting: list[asyncio.Future[None]]) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)
