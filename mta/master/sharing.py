"""This node's shares of limits that other nodes use too: one exchange a second with the database.

What is told and what is made of the answer is in `mta.traffic.holdings`. An exchange that fails changes nothing but
that the node goes on with what it has; without its lease it begins nothing at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import asyncpg
import structlog

from mta.master.books import LeasedPart
from mta.model.waiting import WaitReason
from mta.queue import shares as store
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.nodes import NodeRun
from mta.telemetry.outages import DATABASE
from mta.traffic.holdings import Holdings
from mta.traffic.ledger import Peer
from mta.traffic.schedule import Schedule

EXCHANGE_S: Final = 1.0
SOON_S: Final = 0.25  # when somebody waits for a share
log = structlog.get_logger()


class Sharing:
    """Owned by the master's loop; `run` is its only task. ``wake`` lets the schedule act on new shares.

    From its making until `begin` is through nothing that is shared may be used.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        node: NodeRun,
        egress_ids: Collection[int],
        schedule: Schedule[LeasedPart],
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._node = node
        self._egress_ids = frozenset(egress_ids)
        self._schedule = schedule
        self._holdings = Holdings(schedule, self._egress_ids, _now_s())
        self._peers: tuple[str, ...] = ()
        self._wake = wake

    async def begin(self, conn: Conn) -> None:
        """Before anything is sent: nothing shared may go before the first exchange is through."""
        await self._exchange(conn)

    async def end(self, conn: Conn) -> None:
        """The run has ended in good order: others may have its connections at once."""
        await store.leave(conn, self._node.name)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SOON_S if self._is_waited_for() else EXCHANGE_S)
            try:
                async with acquire(self._pool) as conn:
                    await self._exchange(conn)
            except DATABASE_AWAY as error:
                DATABASE.failed("exchange shares of limits", error)
            else:
                DATABASE.answered("exchange shares of limits")

    def _is_waited_for(self) -> bool:
        return self._holdings.bound_ids is not None and any(
            lane.wait is not None and lane.wait.reason is WaitReason.SHARE for lane in self._schedule.lanes
        )

    async def _exchange(self, conn: Conn) -> None:
        while True:
            asks = self._holdings.tell(_now_s())
            found = await store.exchange(
                conn,
                self._node.name,
                self._node.id,
                self._egress_ids,
                bound_ids=self._holdings.bound_ids,
                asks=asks,
            )
            self._say(found.peers)
            if not self._holdings.take(found.common, found.granted, _now_s()):
                break
        self._wake()

    def _say(self, peers: list[Peer]) -> None:
        names = tuple(sorted(peer.name for peer in peers if peer.is_living))
        if names != self._peers:
            self._peers = names
            log.info("limits are shared with", nodes=list(names))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
