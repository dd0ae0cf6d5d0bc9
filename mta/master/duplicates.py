"""Looks for duplicates in deliveries that run: whatever was appended since the last look waits for the next.

One look at a time, beside the claims, so that what was looked at goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterable

import asyncpg
import structlog

from mta.queue import duplicates
from mta.queue.claim import DeliveryView
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.telemetry.faults import log_internal_error
from mta.telemetry.outages import DATABASE

log = structlog.get_logger()

# Between two looks at a delivery: small appends one after another are looked at together.
REST_S = 1.0
# A look at a delivery of many millions reads much to compare a little, so it is not to be most of what the server does.
REST_OF_LOOK = 4.0
REST_AFTER_FAULT_S = 60.0


class DuplicateChecks:
    """Owned by the master's loop. ``on_done`` is called when parts have become due, or may be looked at again."""

    def __init__(self, pool: asyncpg.Pool, on_done: Callable[[], None]) -> None:
        self._pool = pool
        self._on_done = on_done
        self._task: asyncio.Task[None] | None = None
        self._rests_until_s: dict[int, float] = {}

    def look(self, views: Iterable[DeliveryView]) -> None:
        """Begin with one of these that has parts waiting, the one whose rest ended first, unless one is under way."""
        if self._task is not None:
            return
        loop = asyncio.get_running_loop()
        # What is cancelled or over is claimed as it is, to be recorded as such.
        now = datetime.datetime.now(datetime.UTC)
        waiting = {
            view.id for view in views if view.has_unchecked and view.state == "running" and now < view.valid_until
        }
        self._rests_until_s = {
            one: until_s for one, until_s in self._rests_until_s.items() if one in waiting or until_s > loop.time()
        }
        if not waiting:
            DATABASE.answered("duplicates")  # there is nothing left that it could not do
            return
        until_s, delivery_id = min((self._rests_until_s.get(one, 0.0), one) for one in waiting)
        if until_s > loop.time():
            loop.call_at(until_s, self._on_done)
        else:
            self._task = loop.create_task(self._check(delivery_id))

    async def _check(self, delivery_id: int) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        fault_rest_s = 0.0
        try:
            async with acquire(self._pool) as conn:
                excluded = await duplicates.check(conn, delivery_id)
            DATABASE.answered("duplicates")
            log.info(
                "looked for duplicates",
                delivery=delivery_id,
                excluded=excluded,
                seconds=round(loop.time() - began_s, 2),
            )
        except DATABASE_AWAY as error:
            DATABASE.failed("duplicates", error)
        except Exception as error:
            fault_rest_s = REST_AFTER_FAULT_S
            log_internal_error("looking for duplicates in a delivery, which waits", error, delivery=delivery_id)
        finally:
            self._task = None
        now_s = loop.time()
        self._rests_until_s[delivery_id] = now_s + max(REST_S, REST_OF_LOOK * (now_s - began_s), fault_rest_s)
        self._on_done()

    async def stop(self) -> None:
        """What is under way is given up; nothing of it is kept."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
