"""What the node says of paths that refuse: in the log, in the database for operators, and as an alert.

Owned by the master's loop.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from mta.master.books import LeasedPart
from mta.model.failure import Category
from mta.queue import refusals as store
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.refusals import RestedPath
from mta.telemetry.outages import DATABASE
from mta.traffic.refusals import RestChange
from mta.traffic.schedule import Schedule

TICK_S: Final = 1.0
PROLONG_S: Final = 300.0  # an alert ends an hour after it was seen last, so that of a path that rests is seen so often
UNTOLD_MAX: Final = 1_000  # paths that the database does not know of yet, while it is away
log = structlog.get_logger()


class RefusedPaths:
    """Takes what the schedule decides of refused paths, and tells it. `run` is its only task."""

    def __init__(self, pool: asyncpg.Pool, node: str, schedule: Schedule[LeasedPart]) -> None:
        self._pool = pool
        self._node = node
        self._schedule = schedule
        self._resting: dict[tuple[str, str], tuple[RestChange, float]] = {}  # since when it was told
        self._untold: dict[tuple[str, str], RestChange] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.look(asyncio.get_running_loop().time())
            if self._untold:
                try:
                    await self._tell()
                except DATABASE_AWAY as error:
                    DATABASE.failed("record refused paths", error)
                else:
                    DATABASE.answered("record refused paths")

    def look(self, now_s: float) -> None:
        """Says what has changed since the last look."""
        for change in self._schedule.take_rest_changes():
            _say(change, now_s)
            self._note(change)
        for key, (change, told_s) in list(self._resting.items()):
            if now_s - told_s >= PROLONG_S:
                self._resting[key] = (change, now_s)
                self._untold.setdefault(key, change)

    def _note(self, change: RestChange) -> None:
        key = (change.refusal.egress, change.refusal.peer)
        if change.until_s:
            self._resting[key] = (change, asyncio.get_running_loop().time())
        else:
            self._resting.pop(key, None)
        if key in self._untold or len(self._untold) < UNTOLD_MAX:
            self._untold[key] = change

    async def _tell(self) -> None:
        now_s = asyncio.get_running_loop().time()
        told = dict(self._untold)
        async with acquire(self._pool) as conn:
            raised = await store.record(conn, self._node, [_row(change, now_s) for change in told.values()])
        for key, change in told.items():
            if self._untold.get(key) is change:
                del self._untold[key]
        for one in raised:
            log.warning(
                "alert",
                kind="our-fault",
                egress=one.egress,
                sender="",
                site=one.site,
                category=one.category.label,
                what=one.detail,
                reply=one.said,
            )


def _row(change: RestChange, now_s: float) -> RestedPath:
    refusal = change.refusal
    return RestedPath(
        refusal.egress,
        refusal.peer,
        refusal.mx_host,
        refusal.site,
        refusal.scope.value,
        refusal.stage,
        refusal.reply.code,
        refusal.reply.enhanced,
        refusal.reply.text,
        Category(int(refusal.judged.partition("\t")[2])),
        change.refused,
        max(0.0, change.until_s - now_s) if change.until_s else None,
    )


def _say(change: RestChange, now_s: float) -> None:
    refusal = change.refusal
    shown = {
        "egress": refusal.egress,
        "mx_host": refusal.mx_host,
        "peer": refusal.peer,
        "site": refusal.site,
        "scope": refusal.scope.value,
        "stage": refusal.stage,
        "reply": str(refusal.reply),
        "recipients": change.refused,
    }
    if change.until_s:
        log.warning("path rests after refusals", **shown, for_s=round(change.until_s - now_s))
    else:
        log.info("path is good again", **shown)
