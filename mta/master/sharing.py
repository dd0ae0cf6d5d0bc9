"""This node's shares of limits that other nodes use too: one exchange a second with the database.

A share is lowered here first and told of then; what is granted holds when the commit is known. An exchange that fails
changes nothing but that the node goes on with what it has; without its lease it begins nothing at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

import asyncpg
import structlog

from mta.master.books import LeasedPart
from mta.model.waiting import WaitReason
from mta.queue import shares as store
from mta.queue.connection import DATABASE_AWAY, Conn
from mta.queue.nodes import NodeRun
from mta.queue.settle import load_credits
from mta.queue.shares import LimitKind, Peer
from mta.traffic.limit import Held
from mta.traffic.limits import DAY_S
from mta.traffic.quota import BUCKET_S
from mta.traffic.schedule import Schedule

EXCHANGE_S: Final = 1.0
SOON_S: Final = 0.25  # when somebody waits for a share
log = structlog.get_logger()


class Sharing:
    """Owned by the master's loop; `run` is its only task. ``wake`` lets the schedule act on new shares."""

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
        self._egress_ids = sorted(set(egress_ids))
        self._schedule = schedule
        self._shares: dict[LimitKind, int] | None = {}  # None: alone
        self._targets: dict[LimitKind, int] = {}
        self._common: frozenset[int] = frozenset(self._egress_ids)
        self._lost: set[str] = set()
        self._peers: tuple[str, ...] = ()
        self._trouble = ""
        self._wake = wake

    async def begin(self, conn: Conn) -> None:
        """Before anything is sent: nothing shared may go before the first exchange is through."""
        self._apply()
        await self._exchange(conn)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SOON_S if self._is_waited_for() else EXCHANGE_S)
            try:
                async with self._pool.acquire(timeout=10) as conn:
                    await self._exchange(conn)
            except DATABASE_AWAY as error:
                if not self._trouble:
                    self._trouble = f"{type(error).__name__}: {error}"
                    log.warning(
                        "shares of limits are not exchanged, the node keeps to those it has", error=self._trouble
                    )
            else:
                if self._trouble:
                    self._trouble = ""
                    log.info("shares of limits are exchanged again")

    def _is_waited_for(self) -> bool:
        return self._shares is not None and any(
            lane.wait is not None and lane.wait.reason is WaitReason.SHARE for lane in self._schedule.lanes
        )

    async def _exchange(self, conn: Conn) -> None:
        asks = self._lower() if self._shares is not None else []
        found = await store.exchange(
            conn,
            self._node.name,
            self._node.id,
            self._egress_ids,
            is_bound=self._shares is not None,
            asks=asks,
        )
        await self._count_lost(conn, found.lost)
        self._say(found.peers)
        if not found.peers:
            self._shares = None
        elif self._shares is None:
            # Another has come: from here on this node keeps to what it holds, and says so in the next exchange.
            self._bind(found.peers)
            await self._exchange(conn)
            return
        else:
            self._common = _common(found.peers, self._egress_ids)
            self._shares = {at: granted.share for at, granted in found.granted.items()}
            self._targets = {at: granted.target for at, granted in found.granted.items()}
        self._apply()

    def _bind(self, peers: list[Peer]) -> None:
        now_s = asyncio.get_running_loop().time()
        self._common = _common(peers, self._egress_ids)
        self._shares = {}
        # First shut, so that what is held is known; nothing runs in between.
        self._schedule.set_shares({}, now_s, self._common)
        self._shares = {(held.key, held.kind): held.held for held in self._schedule.shares_wanted(now_s)}
        self._apply()

    def _lower(self) -> list[tuple[Held, int]]:
        """What is told: each limit with what this node goes by from now on: what it holds, and of the rest of its share
        no more than it wants, and than others leave it."""
        assert self._shares is not None
        now_s = asyncio.get_running_loop().time()
        asks = []
        local: dict[LimitKind, int] = {}
        for held in self._schedule.shares_wanted(now_s):
            at = (held.key, held.kind)
            share = self._shares.get(at, 0)
            wanted = min(share, held.wanted, self._targets.get(at, share))
            keeps = max(held.held, wanted)
            # Connections over the target are closed when they have sent what they have; they count until then.
            local[at] = wanted if held.kind in ("c", "p") else keeps
            asks.append((held, keeps))
        self._schedule.set_shares(local, now_s, self._common)
        return asks

    def _apply(self) -> None:
        now_s = asyncio.get_running_loop().time()
        shares = self._shares
        if shares is not None:
            # Those that are to be closed are not opened anew meanwhile.
            shares = {
                at: min(share, self._targets.get(at, share)) if at[1] in ("c", "p") else share
                for at, share in shares.items()
            }
        self._schedule.set_shares(shares, now_s, self._common)
        self._wake()

    async def _count_lost(self, conn: Conn, lost: Collection[str]) -> None:
        """What a node that was alone and is dead has used counts here."""
        for name in lost:
            if name not in self._lost:
                self._lost.add(name)
                since = int((time.time() - DAY_S) // BUCKET_S) - 1
                now_s = asyncio.get_running_loop().time()
                self._schedule.load_credits(await load_credits(conn, name, since), now_s)

    def _say(self, peers: list[Peer]) -> None:
        names = tuple(sorted(peer.name for peer in peers if peer.is_living))
        if names != self._peers:
            self._peers = names
            log.info("limits are shared with", nodes=list(names))


def _common(peers: list[Peer], own: Collection[int]) -> frozenset[int]:
    theirs: set[int] = set()
    for peer in peers:
        theirs |= peer.egress_ids
    return frozenset(theirs & set(own))
