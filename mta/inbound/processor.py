"""From the spool to the log: each mail is read, recorded once, and removed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import structlog

from mta.failure.qualify import BounceRule
from mta.inbound.meaning import Meaning, Trust
from mta.inbound.readers import UNREADABLE, Readers
from mta.inbound.spool import Spool, mails_in
from mta.model.outcome import Status
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.feedback import Feedback, Recorded, count, latest_numbers, record
from mta.telemetry.outages import DATABASE
from mta.telemetry.waits import event_or_timeout

BATCH: Final = 200
LOOK_S: Final = 0.5
# A bounce may be here before the commit of what it is about; after so long there is no such recipient.
UNKNOWN_S: Final = 600.0
AGAIN_S: Final = 20.0
FORWARDED_HOURLY_MAX: Final = 500  # a storm of junk is not passed on to a person
log = structlog.get_logger()


class Processor:
    """`run` is its only task; the reading is done in a process of its own."""

    def __init__(self, spool: Spool, rules: Sequence[BounceRule], trust: Trust, *, forwards: bool = False) -> None:
        self._spool = spool
        self._readers = Readers(rules, trust)
        self._wanted: Sequence[BounceRule] | None = None
        self._forwards = forwards
        self._forwarded: tuple[int, int] = (0, 0)  # of this hour
        self.counts: Counter[str] = Counter()

    def use(self, rules: Sequence[BounceRule]) -> None:
        """Other rules from now on; what is being read is read by those before."""
        self._wanted = rules

    async def run(self, pool: asyncpg.Pool, stop_wanted: asyncio.Event) -> None:
        """Until told to stop; what is left then is done by the next one."""
        try:
            while not stop_wanted.is_set():
                try:
                    is_done = await self.step(pool) == 0
                    DATABASE.answered("record what came back")
                except DATABASE_AWAY as error:
                    DATABASE.failed("record what came back", error)
                    is_done = True
                if is_done:
                    await event_or_timeout(stop_wanted, LOOK_S)
        finally:
            await asyncio.to_thread(self._readers.close)

    async def step(self, pool: asyncpg.Pool) -> int:
        """Deals with the oldest files that are due; how many were looked at."""
        paths = await asyncio.to_thread(self._spool.waiting, BATCH)
        if not paths:
            return 0
        if self._wanted is not None:
            self._readers.use(self._wanted)
            self._wanted = None
        found = await self._readers.read(paths)
        meanings = [one for mails in found if mails is not None for one in mails]
        async with acquire(pool) as conn, conn.transaction():
            meanings = await _with_senders(conn, meanings)
            items = [one.feedback for one in meanings if one.feedback is not None]
            recorded = await record(conn, items) if items else Recorded(0, 0, frozenset())
            verdicts = _verdicts(meanings, recorded.unknown)
            counts = Counter(one.what for one, verdict in zip(meanings, verdicts, strict=True) if verdict is not None)
            counts.update(f"unplaced: {verdict}" for verdict in verdicts if verdict)
            counts += Counter({"recorded": recorded.fresh, "repeated": recorded.repeated})
            if counts:
                await count(conn, counts)
        self.counts.update(counts)
        rest = iter(verdicts)
        of_files = [None if mails is None else [next(rest) for _ in mails] for mails in found]
        await asyncio.to_thread(self._clear, paths, of_files)
        return len(paths)

    def _clear(self, paths: Sequence[Path], verdicts: Sequence[list[str | None] | None]) -> None:
        is_aside = False
        for path, of_mails in zip(paths, verdicts, strict=True):
            if of_mails is None:
                is_aside |= self._give_up(path)
                continue
            left: dict[int, tuple[Path, str]] = {}
            for index, verdict in enumerate(of_mails):
                if verdict is None:
                    left[index] = (self._spool.new, "")
                elif verdict == UNREADABLE:
                    self._spool.set_aside(path, verdict)
                    is_aside = True
                elif verdict:
                    left[index] = (self._spool.forward if self._may_forward() else self._spool.unplaced, verdict)
                    is_aside = True
            self._spool.settle(path, left, AGAIN_S)
        if is_aside and (gone := self._spool.trim()):
            log.warning("mails that were set aside are too many or too old, the oldest went", files=gone)

    def _give_up(self, path: Path) -> bool:
        """A file that readers do not survive; whether it was set aside. Of several mails the others shall be read."""
        if mails_in(path.name) > 1:
            self._spool.split(path)
            return False
        log.error("a mail cannot be read", file=path.name)
        self._spool.set_aside(path, UNREADABLE)
        return True

    def _may_forward(self) -> bool:
        if not self._forwards:
            return False
        hour, many = self._forwarded
        now = int(time.monotonic() // 3600)
        self._forwarded = (now, many + 1 if now == hour else 1)
        return self._forwarded[1] <= FORWARDED_HOURLY_MAX


def _verdicts(meanings: Sequence[Meaning], unknown: frozenset[tuple[int, Status]]) -> list[str | None]:
    """For each mail: why it is set aside; empty: it is dealt with; None: it is looked at again later."""
    verdicts: list[str | None] = []
    for one in meanings:
        if one.feedback is None or (one.feedback.number, one.feedback.status) not in unknown:
            verdicts.append(one.aside)
            continue
        # The sender of an unsubscription is looked for in what was delivered: nothing more will be there later.
        is_late = bool(one.sender) or time.time() - one.feedback.at.timestamp() >= UNKNOWN_S
        verdicts.append("unknown-recipient" if is_late else None)
    return verdicts


async def _with_senders(conn: Conn, meanings: list[Meaning]) -> list[Meaning]:
    """Those who leave and are known by their address alone, by the number of what they were sent last."""
    senders = {one.sender for one in meanings if one.sender}
    if not senders:
        return meanings
    numbers = await latest_numbers(conn, senders)
    return [
        msgspec.structs.replace(one, feedback=_numbered(one.feedback, numbers.get(one.sender, 0)))
        if one.sender and one.feedback is not None
        else one
        for one in meanings
    ]


def _numbered(feedback: Feedback, number: int) -> Feedback:
    return msgspec.structs.replace(feedback, number=number)
