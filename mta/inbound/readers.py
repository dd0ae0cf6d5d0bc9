"""Mails read in a process of its own: whatever somebody makes up, the listener goes on, and the next mail is read.

A reader that dies or takes too long is replaced, and its mails are read again one by one; so the one that did it is
found, and only that one is given up.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import msgspec
import structlog

from mta.bounces import read_letter
from mta.failure.qualify import BounceRule, Qualifier
from mta.inbound.meaning import Meaning, Trust, meaning
from mta.inbound.spool import Stored, read_stored
from mta.telemetry.logs import configure_as_parent

START_S: Final = 60.0
MAIL_S: Final = 10.0  # for a file; a mail takes a millisecond, mostly
UNREADABLE: Final = "unreadable"
MEMORY_BYTES_MAX: Final = 1 << 30
log = structlog.get_logger()


class _Reading(msgspec.Struct):
    """What a reader has, in its own process."""

    qualifier: Qualifier
    trust: Trust


_reading: _Reading | None = None


def _begin(rules: Sequence[BounceRule], trust: Trust) -> None:
    global _reading
    configure_as_parent()
    _reading = _Reading(Qualifier(rules), trust)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """A reader whose service was killed must not outlive it."""
    parent.join()
    os._exit(3)


def _read_all(paths: Sequence[str]) -> list[list[Meaning]]:
    return [_read(path) for path in paths]


def _read(path: str) -> list[Meaning]:
    assert _reading is not None
    try:
        mails = read_stored(Path(path))
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, OSError):
        return [Meaning("unreadable", aside=UNREADABLE)]
    return [_meaning(_reading, stored, mail) for stored, mail in mails]


def _meaning(reading: _Reading, stored: Stored, mail: bytes) -> Meaning:
    letter = read_letter(mail, is_of_feedback_loop=reading.trust.is_of_feedback_loop(stored))
    return meaning(stored, letter, reading.qualifier, reading.trust)


class Readers:
    """Owned by the loop of the processor."""

    def __init__(self, rules: Sequence[BounceRule], trust: Trust) -> None:
        self._rules = rules
        self._trust = trust
        self._pool: ProcessPoolExecutor | None = None

    def use(self, rules: Sequence[BounceRule]) -> None:
        """Other rules, from the next call of ``read`` on."""
        self._rules = rules
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    async def read(self, paths: Sequence[Path]) -> list[list[Meaning] | None]:
        """What the mails of each file of the spool mean, in their order; None: no reader survived that file."""
        texts = [str(path) for path in paths]
        meanings = await self._try(texts)
        if meanings is not None:
            return list(meanings)
        found: list[list[Meaning] | None] = []
        for text in texts:
            one = await self._try([text])
            found.append(None if one is None else one[0])
        return found

    async def _try(self, paths: list[str]) -> list[list[Meaning]] | None:
        """None: the reader did not survive it, or not in time."""
        timeout_s = MAIL_S * (1 + len(paths))
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(list(self._rules), self._trust),
            )
            timeout_s += START_S
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, _read_all, paths)
        except (BrokenProcessPool, TimeoutError, MemoryError) as error:
            log.warning("a reader of mails is replaced", error=f"{type(error).__name__}: {error}", mails=len(paths))
            self._kill()
            return None

    def _kill(self) -> None:
        if self._pool is None:
            return
        # The library has no other way to end a worker that is busy.
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
