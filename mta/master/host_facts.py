"""The node's set of what was learnt of hosts, kept in step with the database: seen here, told, pulled, and obeyed.

What a child sees holds here at once, also while the database is away, and is told to the others when it is there. What
others see, and what operators forget, is heard of on NOTIFY, and found by a look now and then all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import asyncpg
import structlog

from mta.master.books import LeasedPart
from mta.model.host import HostFact
from mta.queue import host_facts as store
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.host_facts import StoredFact
from mta.telemetry.outages import DATABASE
from mta.traffic.host_facts import Learnt
from mta.traffic.limits import HOUR_S
from mta.traffic.schedule import Schedule
from mta.wire import HostObserved

LOOK_S: Final = 2.0
GATHER_S: Final = 0.05  # what comes at about the same time goes in one round trip
GROW_S: Final = 5.0  # between looks at which numbers of connections have grown
log = structlog.get_logger()
_Key = tuple[str, HostFact]


class HostBook:
    """Owned by the master's loop; `run` is its only task. ``wake``: what waits may go now."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        node: str,
        schedule: Schedule[LeasedPart],
        unix_offset_s: float,
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._node = node
        self._schedule = schedule
        self._facts = schedule.hosts
        self._unix_offset_s = unix_offset_s
        self._wake = wake
        self._untold: dict[_Key, Learnt] = {}
        self._grown: dict[_Key, Learnt] = {}
        self._gone: dict[_Key, Learnt] = {}  # forgotten here, to be told of
        self._changed: set[str] = set()  # hosts that the schedule has not heard of yet
        self._looked_at: str | None = None
        self._news = asyncio.Event()
        self._grow_at_s = 0.0
        self._purge_at_s = 0.0

    # --- from outside -------------------------------------------------------------------------

    def notify(self, *_: object) -> None:
        """Something has changed in the database (NOTIFY)."""
        self._news.set()

    def observed(self, frame: HostObserved) -> None:
        """A child has seen what the host of one of its sessions does."""
        session = self._schedule.session(frame.session)
        if session is None or not session.hop.rule.learn_hosts:
            return
        value = frame.value
        if frame.fact is HostFact.CONNECTIONS:
            now_s = asyncio.get_running_loop().time()
            value = self._schedule.connections_beside(session, now_s)  # of all children
        hop = session.hop
        learnt = self._facts.learn(hop.host, frame.fact, value, frame.cause, hop.mx_host, self._now_unix_s())
        if learnt is None:
            return
        key = (learnt.host, learnt.fact)
        self._gone.pop(key, None)
        self._grown.pop(key, None)
        self._untold[key] = learnt
        log.info("host fact learnt", **_shown(learnt), for_s=round(learnt.until_unix_s - learnt.learnt_unix_s))
        self._follow(learnt.host)
        self._news.set()

    async def restore(self, conn: Conn) -> None:
        """All that is known, before the first session."""
        await self._exchange(conn)
        self._tell_schedule()

    async def run(self) -> None:
        while True:
            self._news.clear()
            self._let_time_pass()
            try:
                async with acquire(self._pool) as conn:
                    await self._exchange(conn)
            except DATABASE_AWAY as error:
                DATABASE.failed("exchange host facts", error)
            else:
                DATABASE.answered("exchange host facts")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
                    await asyncio.sleep(GATHER_S)

    # --- inside -------------------------------------------------------------------------------

    def _now_unix_s(self) -> float:
        """By the schedule's clock."""
        return asyncio.get_running_loop().time() + self._unix_offset_s

    def _follow(self, host: str) -> None:
        """The schedule hears of all that changes in one turn of the loop at once."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._tell_schedule)
        self._changed.add(host)

    def _tell_schedule(self) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        self._schedule.follow_hosts(changed, asyncio.get_running_loop().time())
        self._wake()

    def _let_time_pass(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._forgotten(self._schedule.take_forgotten(), "a session did without")
        if now_s < self._grow_at_s:
            return
        self._grow_at_s = now_s + GROW_S
        now_unix_s = self._now_unix_s()
        self._forgotten(self._facts.end_over(now_unix_s), "its time is over")
        for learnt in self._facts.grow(now_unix_s):
            self._grown[learnt.host, learnt.fact] = learnt
            self._follow(learnt.host)

    def _forgotten(self, gone: Iterable[Learnt], why: str) -> None:
        for learnt in gone:
            key = (learnt.host, learnt.fact)
            self._untold.pop(key, None)
            self._grown.pop(key, None)
            self._gone[key] = learnt
            log.info("host fact forgotten", **_shown(learnt), why=why)
            self._follow(learnt.host)

    # --- with the database --------------------------------------------------------------------

    async def _exchange(self, conn: Conn) -> None:
        await self._tell(conn)
        found = await store.look(conn, self._looked_at)
        self._take(found.facts)
        self._looked_at = found.looked_at
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._purge_at_s:
            self._purge_at_s = now_s + HOUR_S
            await store.purge(conn)

    async def _tell(self, conn: Conn) -> None:
        if self._gone:
            gone = dict(self._gone)
            await store.tell_gone(conn, list(gone.values()), "over")
            _drop_told(self._gone, gone)
        if self._untold:
            untold = dict(self._untold)
            await store.tell(conn, self._node, list(untold.values()), self._now_unix_s())
            _drop_told(self._untold, untold)
        if self._grown:
            grown = dict(self._grown)
            await store.grow(conn, list(grown.values()))
            _drop_told(self._grown, grown)

    def _take(self, rows: Iterable[StoredFact]) -> None:
        now_unix_s = self._now_unix_s()
        for row in rows:
            key = (row.host, row.fact)
            held = self._facts.get(*key)
            if key in self._untold or (held is not None and held.version >= row.version):
                continue  # told of next, or known
            if row.gone_at is None:
                if key not in self._gone:
                    self._facts.put(row.learnt(now_unix_s))
                    self._follow(row.host)
            elif held is not None:
                self._facts.forget(*key)
                self._grown.pop(key, None)
                log.info("host fact forgotten", **_shown(held), why=row.gone_why)
                self._follow(row.host)


def _drop_told(waiting: dict[_Key, Learnt], told: dict[_Key, Learnt]) -> None:
    """But for what has changed since."""
    for key, learnt in told.items():
        if waiting.get(key) is learnt:
            del waiting[key]


def _shown(learnt: Learnt) -> dict[str, object]:
    return {
        "host": learnt.host,
        "mx_host": learnt.mx_host,
        "fact": learnt.fact.value,
        "value": learnt.value or None,
        "cause": learnt.cause,
    }
