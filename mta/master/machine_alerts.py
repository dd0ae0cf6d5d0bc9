"""What this machine cannot do is said once: in the log at once, as an alert as soon as the database takes it."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Final

import asyncpg
import structlog

from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.machine_alerts import MachineAlert, record
from mta.telemetry.waits import event_or_timeout
from mta.traffic.machine_faults import FaultBook, OpenFault

PERIOD_S: Final = 60.0  # an alert that is not seen for an hour has ended (`mta.queue.faults`)
RETRY_S: Final = 1.0
log = structlog.get_logger()


class MachineAlerts:
    """Owned by the master's loop."""

    def __init__(self, book: FaultBook, node: str) -> None:
        self._book = book
        self._node = node
        self._news = asyncio.Event()
        self._unrecorded: list[OpenFault] = []  # begun or over since the last that the database took

    def announce(self) -> None:
        """Logs what has begun and what is over."""
        begun, self._book.begun = self._book.begun, []
        over, self._book.over = self._book.over, []
        for fault in begun:
            log.error(
                "machine fault", cause=fault.cause.value, egress=fault.egress, what=fault.what, remedy=fault.remedy
            )
        for fault in over:
            lasted_s = round(asyncio.get_running_loop().time() - fault.since_s, 1)
            log.info(
                "machine fault is over",
                cause=fault.cause.value,
                egress=fault.egress,
                what=fault.what,
                lasted_s=lasted_s,
                times=fault.met,
            )
        self._unrecorded += begun
        self._news.set()

    async def run(self, pool: asyncpg.Pool) -> None:
        """Until it is cancelled. At its begin all that an earlier run of the node left open ends."""
        wait_s = 0.0
        while True:
            await event_or_timeout(self._news, wait_s)
            self._news.clear()
            self._book.forget(asyncio.get_running_loop().time())
            if self._book.has_news:
                self.announce()
            try:
                await self._record(pool)
                wait_s = PERIOD_S
            except DATABASE_AWAY as error:
                log.debug("machine alerts are put off", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)
                wait_s = RETRY_S

    async def _record(self, pool: asyncpg.Pool) -> None:
        told = self._unrecorded[:]
        living = list(self._book.open.values())
        ended = [_alert(one, is_open=False) for one in told if one not in living]
        async with acquire(pool) as conn:
            await record(conn, self._node, [*ended, *(_alert(one, is_open=True) for one in living)])
        del self._unrecorded[: len(told)]


def _alert(fault: OpenFault, *, is_open: bool) -> MachineAlert:
    began_unix_s = time.time() - (asyncio.get_running_loop().time() - fault.since_s)
    since = datetime.datetime.fromtimestamp(began_unix_s, datetime.UTC)
    return MachineAlert(fault.egress, fault.cause.value, fault.what, fault.remedy, since, is_open)
