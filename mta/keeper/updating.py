"""Deliverability updates taken by themselves: once a day, and one of those that were missed.

When to look is told by the history alone, so it makes no difference which keeper is the elected one, nor when it
started: if the schedule made no attempt since the last time of the day that has passed, one is due. What was not to be
had is tried again in an hour; what was refused is refused until the next day.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Final

import asyncpg
import structlog

from mta.bundle.update import Outcome, take_update
from mta.queue import updates
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.updates import Attempt, Result
from mta.settings.config import Settings

LOOK_S: Final = 60.0
AGAIN: Final = datetime.timedelta(hours=1)
_DAY: Final = datetime.timedelta(days=1)
log = structlog.get_logger()


def is_due(now: datetime.datetime, at: datetime.time, last: Attempt | None) -> bool:
    """Whether the schedule is to make an attempt. ``at``: the time of the day, with its zone."""
    slot = datetime.datetime.combine(now.astimezone(at.tzinfo), at)
    if slot > now:
        slot -= _DAY
    if last is None or last.at < slot:
        return True
    return last.result is Result.FAILED and now - last.at >= AGAIN


class Updating:
    """``beside`` runs it as long as its keeper is the elected one."""

    def __init__(self, settings: Settings, clock: Callable[[], datetime.datetime]) -> None:
        self._settings = settings
        self._clock = clock

    @contextlib.asynccontextmanager
    async def beside(self, pool: asyncpg.Pool) -> AsyncIterator[Callable[[], None]]:
        """Runs meanwhile, where updates are to be taken by themselves; what is yielded raises a fault of it."""
        if not self._settings.deliverability.enabled:
            yield lambda: None
            return
        task = asyncio.create_task(self.run(pool), name="updates")
        try:
            yield lambda: task.result() if task.done() else None
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def run(self, pool: asyncpg.Pool) -> None:
        """Until it is cancelled; a database that is away is asked again later."""
        while True:
            try:
                await self.look(pool)
            except DATABASE_AWAY as error:
                log.debug("updates are not looked for", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(LOOK_S)

    async def look(self, pool: asyncpg.Pool) -> Outcome | None:
        """Makes an attempt if one is due; what came of it."""
        async with acquire(pool) as conn:
            last = await updates.last_scheduled(conn)
            if not is_due(self._clock(), self._settings.deliverability.at, last):
                return None
            outcome = await take_update(conn, self._settings, "")
        told = {"result": outcome.result.value, "version": outcome.version, "what": outcome.detail}
        if outcome.result in (Result.FAILED, Result.REFUSED):
            log.warning("deliverability update was not taken", **told)
        else:
            log.info("deliverability update", **told)
        return outcome
