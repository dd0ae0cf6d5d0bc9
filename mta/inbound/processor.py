"""From the spool to the log: what a mail means, whom it is about, and that it is recorded once."""

from __future__ import annotations

import asyncio
import datetime
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import structlog

from mta.bounces import Kind, Letter, read_letter
from mta.failure.qualify import BounceRule, Qualifier
from mta.inbound.spool import Spool, Stored, read_stored
from mta.message.verp import parse_verp
from mta.model.failure import Category, FailureType
from mta.model.outcome import Status
from mta.queue.connection import DATABASE_AWAY
from mta.queue.feedback import Feedback, record
from mta.telemetry.waits import event_or_timeout

BATCH: Final = 200
LOOK_S: Final = 0.5
# A bounce may be here before the commit of what it is about; after so long there is no such recipient.
UNKNOWN_S: Final = 600.0
_NO_COMPLAINT: Final = frozenset({"auth-failure", "not-spam", "dmarc"})
log = structlog.get_logger()


class Understood(msgspec.Struct, frozen=True):
    """``feedback`` None: it says nothing that is recorded. ``is_placed`` False: nobody knows whom it is about."""

    path: str
    kind: Kind
    feedback: Feedback | None
    is_placed: bool


_qualifier: Qualifier | None = None  # of the process that reads; see `_begin`
_key = b""


def _begin(rules: Sequence[BounceRule], key: bytes) -> None:
    global _qualifier, _key
    _qualifier, _key = Qualifier(rules), key
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """A reader whose service was killed must not outlive it."""
    parent.join()
    os._exit(3)


def _understand_all(paths: Sequence[str]) -> list[Understood]:
    assert _qualifier is not None
    return [_understand_file(path, _qualifier, _key) for path in paths]


def _understand_file(path: str, qualifier: Qualifier, key: bytes) -> Understood:
    try:
        stored, mail = read_stored(Path(path))
    except (msgspec.DecodeError, OSError):
        return Understood(path, Kind.NOT_BOUNCE, None, False)
    return understood(path, stored, read_letter(mail), qualifier, key)


def understood(path: str, stored: Stored, letter: Letter, qualifier: Qualifier, key: bytes) -> Understood:
    """Whom a letter is about is told by a return path of ours alone: that it was sent to, or that it returns."""
    number = _number(stored, letter, key)
    if letter.kind is Kind.AUTOREPLY:
        return Understood(path, letter.kind, None, True)  # somebody is away: no news of the address
    if number is None or letter.kind is Kind.NOT_BOUNCE:
        return Understood(path, letter.kind, None, False)
    at = datetime.datetime.fromtimestamp(stored.at_unix_s, datetime.UTC)
    if letter.kind is Kind.FEEDBACK:
        if letter.feedback_type in _NO_COMPLAINT:
            return Understood(path, letter.kind, None, True)
        complaint = Feedback(number, Status.COMPLAINED, at, reply=f"complaint: {letter.feedback_type}"[:500])
        return Understood(path, letter.kind, complaint, True)
    failed = [one for one in letter.recipients if not one.is_delayed]
    if not failed:
        return Understood(path, letter.kind, None, True)  # a warning: the far end goes on trying
    evidence = failed[0].evidence  # a message has one recipient
    verdict = qualifier.qualify(evidence._replace(stage=evidence.stage or "bounce"))
    if verdict.category is Category.NOT_A_FAILURE:
        return Understood(path, letter.kind, None, True)
    kind = FailureType.SOFT if verdict.type is FailureType.NOT_DEFINED else verdict.type
    bounce = Feedback(
        *(number, Status.BOUNCED, at, kind, verdict.reason, verdict.category),
        *(min(max(evidence.code, 0), 999), evidence.enhanced[:20], evidence.text.replace("\0", "")[:2_000]),
    )
    return Understood(path, letter.kind, bounce, True)


def _number(stored: Stored, letter: Letter, key: bytes) -> int | None:
    paths = [*stored.recipients, letter.returned.get("return-path", ""), letter.returned.get("x-envelope-from", "")]
    for path in paths:
        number = parse_verp(path.strip("<> ").partition("@")[0], key)
        if number is not None:
            return number
    return None


class Processor:
    """`run` is its only task; the reading is done in a process of its own."""

    def __init__(self, spool: Spool, rules: Sequence[BounceRule], key: bytes) -> None:
        self._spool = spool
        self.counts: Counter[str] = Counter()
        self._readers = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(list(rules), key)
        )

    async def run(self, pool: asyncpg.Pool, stop_wanted: asyncio.Event) -> None:
        """Until told to stop; what is left then is done by the next one."""
        try:
            while not stop_wanted.is_set():
                try:
                    is_done = await self.step(pool) < BATCH
                except DATABASE_AWAY as error:
                    log.warning(
                        "the database is away, mail waits in the spool", error=f"{type(error).__name__}: {error}"
                    )
                    is_done = True
                if is_done:
                    await event_or_timeout(stop_wanted, LOOK_S)
        finally:
            self._readers.shutdown(cancel_futures=True)

    async def step(self, pool: asyncpg.Pool) -> int:
        """Deals with the oldest mails; how many were dealt with."""
        loop = asyncio.get_running_loop()
        paths = [str(path) for path in await asyncio.to_thread(self._spool.waiting, BATCH)]
        if not paths:
            return 0
        letters = await loop.run_in_executor(self._readers, _understand_all, paths)
        items = [one.feedback for one in letters if one.feedback is not None]
        unknown: frozenset[int] = frozenset()
        if items:
            async with pool.acquire(timeout=10) as conn:
                recorded = await record(conn, items)
            unknown = recorded.unknown
            self.counts["recorded"] += recorded.fresh
            self.counts["repeated"] += recorded.repeated - len(unknown)
        return await asyncio.to_thread(self._clear, letters, unknown)

    def _clear(self, letters: Sequence[Understood], unknown: frozenset[int]) -> int:
        done = 0
        now_s = datetime.datetime.now(datetime.UTC).timestamp()
        for letter in letters:
            path = Path(letter.path)
            is_unknown = letter.feedback is not None and letter.feedback.number in unknown
            if is_unknown and now_s - path.stat().st_mtime < UNKNOWN_S:
                continue
            self.counts[letter.kind.value] += 1
            done += 1
            if letter.is_placed and not is_unknown:
                path.unlink()
            else:
                self.counts["unplaced"] += 1
                self._spool.set_aside(path)
        return done
