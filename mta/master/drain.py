"""The end of a run: what is waited for, for how long, and what is said of it meanwhile.

The first signal drains: servers answer what is on the wire, the database takes what came of it. Each of the two waits
has a bound, and the second signal ends either at once. What is not recorded then stands in the journals.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from mta.master.books import LeasedPart
from mta.master.children import Children
from mta.outcomes.writer import Writer
from mta.queue import nodes
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.nodes import NodeRun
from mta.traffic.schedule import Schedule

DRAIN_S: Final = 660.0  # a final dot may be answered after ten minutes (RFC 5321 §4.5.3.2.6)
RECORD_S: Final = 15.0  # for the database to take the last outcomes; the journals keep what it does not
STOP_NOW_S: Final = 2.0  # the same after the second signal
SAY_S: Final = 10.0
SITES_SAID_MAX: Final = 5
log = structlog.get_logger()


class Drain:
    """Owned by the daemon's loop. ``stop_now`` is set by the second signal."""

    def __init__(
        self, pool: asyncpg.Pool, node: NodeRun, children: Children, schedule: Schedule[LeasedPart], stop: asyncio.Event
    ) -> None:
        self._pool = pool
        self._node = node
        self._children = children
        self._schedule = schedule
        self._stop_now = stop

    async def tell(self) -> None:
        """Has `mta queue show` say so; a database that is away is told when it is back."""
        while True:
            try:
                async with acquire(self._pool) as conn:
                    await nodes.begin_drain(conn, self._node.id)
                return
            except DATABASE_AWAY as error:
                log.debug("nobody is told of the drain", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(1.0)

    async def wait_for(self, task: asyncio.Task[None], within_s: float) -> None:
        """Until it has ended, the time is over, or the second signal has come."""
        stopped = asyncio.ensure_future(self._stop_now.wait())
        try:
            await asyncio.wait([task, stopped], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()

    async def wait_for_children(self, within_s: float = DRAIN_S) -> None:
        """Until each child has ended, which is when its servers have answered; at most ``within_s``."""
        now_s = asyncio.get_running_loop().time
        end_s, say_at_s = now_s() + within_s, now_s()
        stopped = asyncio.ensure_future(self._stop_now.wait())
        try:
            while (left := self._children.not_ended) and not stopped.done():
                if now_s() >= end_s:
                    log.warning("drain took too long; what is left is recovered at the next start")
                    return
                if now_s() >= say_at_s:
                    say_at_s += SAY_S
                    self._say_servers(end_s - now_s())
                ended = [asyncio.ensure_future(child.ended.wait()) for child in left]
                wait_s = max(0.0, min(end_s, say_at_s) - now_s())
                await asyncio.wait([stopped, *ended], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for waiter in ended:
                    waiter.cancel()
        finally:
            stopped.cancel()

    def _say_servers(self, left_s: float) -> None:
        sessions = [
            session for child in self._children.not_ended for session in self._schedule.sessions_of(child.number)
        ]
        sites = sorted({session.group.site.key for session in sessions})
        log.info(
            "draining",
            waits_for="servers",
            sites=len(sites),
            sessions=len(sessions),
            recipients=sum(session.in_flight for session in sessions),
            seconds_left=round(left_s),
            some_sites=sites[:SITES_SAID_MAX],
        )

    async def wait_for_writer(self, writer: Writer, task: asyncio.Task[None]) -> bool:
        """Until the last outcome is recorded; False when the database does not take it within the bound."""
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + RECORD_S
        while not task.done() and not self._stop_now.is_set() and now_s() < end_s:
            await self.wait_for(task, min(SAY_S, end_s - now_s()))
            if not task.done():
                left_s = round(max(0.0, end_s - now_s()))
                log.info("draining", waits_for="database", error=writer.trouble, seconds_left=left_s)
        if not task.done() and self._stop_now.is_set():
            await asyncio.wait([task], timeout=STOP_NOW_S)
        return task.done() or not task.cancel()
