"""The nodes of a database add up what they count of recipient domains, so that an error block is by all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg

from mta.queue import error_rates as store
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.telemetry.outages import DATABASE
from mta.traffic.adaptation import Adaptation
from mta.traffic.events import TrafficEvent

LOOK_S: Final = 15.0


class RateExchange:
    """Owned by the master's loop; `run` is its only task. ``put``: what becomes of the blocks that follow."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        node: str,
        adaptation: Adaptation,
        put: Callable[[list[TrafficEvent]], None],
        now_unix_s: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._node = node
        self._adaptation = adaptation
        self._put = put
        self._now_unix_s = now_unix_s

    async def run(self) -> None:
        """While the database is away each node goes by what it has heard last."""
        while True:
            try:
                await self.look()
            except DATABASE_AWAY as error:
                DATABASE.failed("exchange error rates", error)
            else:
                DATABASE.answered("exchange error rates")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        told = self._adaptation.figures(self._now_unix_s())
        async with acquire(self._pool) as conn:
            found = await store.exchange(conn, self._node, told)
        self._put(self._adaptation.exchanged(told, found.others, found.nodes, self._now_unix_s()))
