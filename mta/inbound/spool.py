"""A directory of mails that were accepted and are not dealt with yet. What `put` has answered survives a power cut.

``tmp/`` is being written, ``new/`` is accepted, ``unplaced/`` could not be told to be about anybody, and is kept for a
look. A file is one line of JSON, the envelope, and then the mail.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import msgspec

UNPLACED_MAX: Final = 10_000  # files; the oldest go
BATCH: Final = 64  # mails that share a sync of the directory


class Stored(msgspec.Struct, frozen=True):
    """The envelope, as the first line of a file has it."""

    recipients: list[str]
    mail_from: str
    client: str
    at_unix_s: float


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Stored)


class Spool:
    """``put`` may be called from any thread; one thread writes, several mails at a time."""

    def __init__(self, directory: Path) -> None:
        self.new = directory / "new"
        self.unplaced = directory / "unplaced"
        self._tmp = directory / "tmp"
        for path in (self._tmp, self.new, self.unplaced):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._tmp.iterdir():
            left.unlink()  # never answered for
        self._numbers = itertools.count()
        self._wanted: SimpleQueue[tuple[bytes, Future[None]] | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="spool", daemon=True)
        self._writer.start()

    def put(self, envelope: Stored, mail: bytes) -> Future[None]:
        """Done when the mail is on disk; an OSError when it cannot be."""
        done: Future[None] = Future()
        self._wanted.put((_encode(envelope) + b"\n" + mail, done))
        return done

    def close(self) -> None:
        self._wanted.put(None)
        self._writer.join()

    def _write_all(self) -> None:
        while (first := self._wanted.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._wanted.empty():
                following = self._wanted.get()
                if following is None:
                    self._wanted.put(None)
                    break
                batch.append(following)
            self._write(batch)

    def _write(self, batch: Sequence[tuple[bytes, Future[None]]]) -> None:
        written: list[Future[None]] = []
        for octets, done in batch:
            try:
                self._write_one(octets)
            except OSError as error:
                done.set_exception(error)
            else:
                written.append(done)
        try:
            _sync_directory(self.new)
        except OSError as error:
            for done in written:
                done.set_exception(error)
        else:
            for done in written:
                done.set_result(None)

    def _write_one(self, octets: bytes) -> None:
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}"
        path = self._tmp / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(octets)
                file.flush()
                os.fsync(file.fileno())
            path.rename(self.new / name)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    # --- the processor's side -----------------------------------------------------------------

    def waiting(self, most: int) -> list[Path]:
        """The oldest first."""
        with os.scandir(self.new) as entries:
            names = sorted(entry.name for entry in entries)
        return [self.new / name for name in names[:most]]

    def set_aside(self, path: Path) -> None:
        """Nobody knows whom it is about: kept for a look, the newest of them."""
        path.rename(self.unplaced / path.name)
        kept = sorted(self.unplaced.iterdir())
        for old in kept[: max(0, len(kept) - UNPLACED_MAX)]:
            old.unlink(missing_ok=True)


def read_stored(path: Path) -> tuple[Stored, bytes]:
    """Raises msgspec.DecodeError for a file that nobody here wrote."""
    head, _, mail = path.read_bytes().partition(b"\n")
    return _decoder.decode(head), mail


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
