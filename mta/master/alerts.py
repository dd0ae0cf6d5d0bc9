"""The daemon's eye on deliveries, egresses and sender domains: what is worth waking somebody for is said once."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from mta.queue import faults, monitor, process_alerts
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.faults import FaultBounds

PERIOD_S: Final = 60.0
FORGET_PERIOD_S: Final = 3_600.0
log = structlog.get_logger()


class Alerts:
    """Looks once a minute. Every node does: the database lets each alert be raised by one of them."""

    def __init__(self, pool: asyncpg.Pool, bounds: FaultBounds) -> None:
        """``bounds``: of refusals for our own fault."""
        self._pool = pool
        self._bounds = bounds
        self._forgot_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled; a database that is away is asked again the next time."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.look()
            except DATABASE_AWAY as error:
                log.debug("alerts are not looked for", error=f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Raises what is new, and says it."""
        now_s = asyncio.get_running_loop().time()
        async with acquire(self._pool) as conn:
            for alert in await monitor.check_alerts(conn):
                log.warning("alert", kind=alert.kind.value, delivery=alert.delivery_id, what=alert.detail)
            for one in await process_alerts.look(conn):
                log.warning("alert", kind=one.kind, node=one.node, what=one.detail, remedy=one.reply)
            for fault in await faults.look(conn, self._bounds):
                log.warning(
                    "alert",
                    kind="our-fault",
                    egress=fault.egress,
                    sender=fault.sender,
                    site=fault.site,
                    category=fault.category.label,
                    since=fault.since.isoformat(),
                    what=fault.detail,
                    reply=fault.reply,
                )
            if now_s - self._forgot_s >= FORGET_PERIOD_S:
                self._forgot_s = now_s
                await monitor.forget_traffic(conn)
