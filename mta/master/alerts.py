"""The daemon's eye on its deliveries: what is worth waking somebody for is said once."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from mta.queue import monitor
from mta.queue.connection import DATABASE_AWAY

PERIOD_S: Final = 60.0
FORGET_PERIOD_S: Final = 3_600.0
log = structlog.get_logger()


class Alerts:
    """Looks once a minute. Every node does: the database lets each alert be raised by one of them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
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
        async with self._pool.acquire(timeout=10) as conn:
            for alert in await monitor.check_alerts(conn):
                log.warning("alert", kind=alert.kind.value, delivery=alert.delivery_id, what=alert.detail)
            if now_s - self._forgot_s >= FORGET_PERIOD_S:
                self._forgot_s = now_s
                await monitor.forget_traffic(conn)
