"""A directory of mails that were accepted and are not dealt with yet. What `put` has answered survives a power cut.

``tmp/`` is being written, ``new/`` is accepted, ``forward/`` waits to be sent on, ``unplaced/`` could not be told to
be about anybody, and is kept for a look: its file names end in the reason. Mails that come at the same time share a
file, so that they share its sync; what is left of such a file when the others are dealt with gets files of its own.

In a file each mail is one line of JSON, the envelope with ``octets``, and then so many octets.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import msgspec
import structlog

from mta.model.errors import BadInput

KEPT_FILES_MAX: Final = 10_000  # of those set aside; the oldest go
KEPT_BYTES_MAX: Final = 1 << 30
KEPT_S_MAX: Final = 30 * 86_400.0
BATCH: Final = 64  # mails in a file,
BATCH_BYTES: Final = 8 << 20  # and about so much
_HEAD_OCTETS_MAX: Final = 1 << 20
FAULT_STATUS: Final = 70
log = structlog.get_logger()


class SpoolFullError(OSError):
    """As much waits as may wait."""


class Stored(msgspec.Struct, frozen=True):
    """The envelope. ``client``: an IP address, or where it was fetched."""

    recipients: list[str]
    mail_from: str
    client: str
    at_unix_s: float


class _Head(Stored, frozen=True):
    """The line before a mail."""

    octets: int


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(_Head)


class Spool:
    """``put`` may be called from any thread; one thread writes, several mails at a time. What stands under "the
    processor's side" is called by one caller at a time.

    Raises BadInput when another process has the directory.
    """

    def __init__(self, directory: Path, bytes_max: int = 1 << 40) -> None:
        self.new = directory / "new"
        self.unplaced = directory / "unplaced"
        self.forward = directory / "forward"
        self._tmp = directory / "tmp"
        for path in (self._tmp, self.new, self.unplaced, self.forward):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(directory)
        for left in self._tmp.iterdir():
            left.unlink()  # never answered for
        self._bytes_max = bytes_max
        self._bytes = _bytes_in(self.new)
        self._counting = threading.Lock()
        self._listed: deque[str] = deque()
        self._postponed: dict[str, float] = {}  # until when, monotonic
        self._numbers = itertools.count()
        self._wanted: SimpleQueue[tuple[bytes, Future[None]] | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="spool", daemon=True)
        self._writer.start()

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._bytes_max

    def put(self, envelope: Stored, mail: bytes | bytearray) -> Future[None]:
        """Done when the mail is on disk; an OSError when it cannot be."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # who asked may go away; the mail is kept all the same
        if self.is_full:
            done.set_exception(SpoolFullError("the spool is full"))
        else:
            self._wanted.put((_record(envelope, mail), done))
        return done

    def close(self) -> None:
        """Writes what is under way, and lets the directory go."""
        self._wanted.put(None)
        self._writer.join()
        os.close(self._lock)

    def _write_all(self) -> None:
        while (first := self._wanted.get()) is not None:
            batch = [first]
            size = len(first[0])
            while len(batch) < BATCH and size < BATCH_BYTES and not self._wanted.empty():
                following = self._wanted.get()
                if following is None:
                    self._wanted.put(None)
                    break
                batch.append(following)
                size += len(following[0])
            try:
                self._write(batch)
            except BaseException as error:  # nobody would ever be answered again
                log.critical("the spool's writer failed", error=f"{type(error).__name__}: {error}")
                os._exit(FAULT_STATUS)

    def _write(self, batch: Sequence[tuple[bytes, Future[None]]]) -> None:
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}-{len(batch)}"
        try:
            size = self._put_file(self.new / name, [record for record, _ in batch])
        except OSError as error:
            for _, done in batch:
                done.set_exception(error)
            return
        self._count(size)
        for _, done in batch:
            done.set_result(None)

    def _put_file(self, path: Path, records: Sequence[bytes]) -> int:
        """Its contents are on disk before it has its name, and the name before this returns; how many octets."""
        written = self._tmp / path.name
        try:
            size = _write_file(written, records)
            written.rename(path)
            _sync_directory(path.parent)
        except OSError:
            # Not answered for; whoever hands it in again gives us a second one, which counts once.
            written.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return size

    def _count(self, change: int) -> None:
        with self._counting:
            self._bytes += change

    # --- the processor's side -----------------------------------------------------------------

    def waiting(self, most: int) -> list[Path]:
        """Files to deal with, the oldest first, of so many mails or little more; each is given once in a look through
        all that wait."""
        now = time.monotonic()
        if not self._listed:
            with os.scandir(self.new) as entries:
                names = sorted(entry.name for entry in entries)
            self._postponed = {name: until for name, until in self._postponed.items() if until > now}
            self._listed.extend(name for name in names if name not in self._postponed)
        paths: list[Path] = []
        while self._listed and most > 0:
            paths.append(self.new / self._listed.popleft())
            most -= mails_in(paths[-1].name)
        return paths

    def settle(self, path: Path, left: Mapping[int, tuple[Path, str]], again_s: float) -> None:
        """All mails of a file are dealt with, but for some: by their place in it where each goes, and why.

        Those that go to ``new`` are not given again for ``again_s``; a restart forgets that.
        """
        if left:
            mails = read_stored(path)
            for index, (directory, why) in left.items():
                own = _own_name(path.name, index)
                if directory == self.new:
                    self._postponed[own] = time.monotonic() + again_s
                    if own == path.name:
                        return  # it has a file of its own already
                self._put_own(directory / f"{own}{'.' if why else ''}{why}", mails[index])
        self._remove(path)

    def split(self, path: Path) -> None:
        """Each mail of a file gets a file of its own."""
        for index, mail in enumerate(read_stored(path)):
            self._put_own(self.new / _own_name(path.name, index), mail)
        self._remove(path)

    def set_aside(self, path: Path, why: str) -> None:
        """A file as a whole: kept for a look."""
        if path.parent == self.new:
            self._count(-_size(path))
        try:
            path.rename(self.unplaced / f"{path.name}.{why}")
        except FileNotFoundError:
            return  # somebody has taken it away

    def _put_own(self, path: Path, mail: tuple[Stored, bytes]) -> None:
        size = self._put_file(path, [_record(*mail)])
        if path.parent == self.new:
            self._count(size)

    def _remove(self, path: Path) -> None:
        self._count(-_size(path))
        path.unlink(missing_ok=True)

    def trim(self) -> int:
        """Of what was set aside the oldest files go, by number, size and age; how many went."""
        gone = 0
        for directory in (self.unplaced, self.forward):
            bytes_kept = 0
            for kept, path in enumerate(sorted(directory.iterdir(), reverse=True), 1):
                bytes_kept += _size(path)
                age_s = time.time() - int(path.name[:20]) / 1e9 if path.name[:20].isdigit() else 0.0
                if kept > KEPT_FILES_MAX or bytes_kept > KEPT_BYTES_MAX or age_s > KEPT_S_MAX:
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone


def read_stored(path: Path) -> list[tuple[Stored, bytes]]:
    """The mails of a file. Raises msgspec.DecodeError for one that nobody here wrote."""
    mails: list[tuple[Stored, bytes]] = []
    with path.open("rb") as file:
        while head := file.readline(_HEAD_OCTETS_MAX):
            envelope = _decoder.decode(head)
            mail = file.read(envelope.octets)
            if len(mail) != envelope.octets:
                raise msgspec.DecodeError("the file is not whole")
            mails.append((Stored(envelope.recipients, envelope.mail_from, envelope.client, envelope.at_unix_s), mail))
    return mails


def mails_in(name: str) -> int:
    """How many mails a file of this name holds."""
    count = name.rpartition("-")[2]
    return int(count) if count.isascii() and count.isdigit() else 1


def _own_name(name: str, index: int) -> str:
    return name if "." in name else f"{name}.{index}"


def _record(envelope: Stored, mail: bytes | bytearray) -> bytes:
    head = _Head(envelope.recipients, envelope.mail_from, envelope.client, envelope.at_unix_s, len(mail))
    return b"".join((_encode(head), b"\n", mail))


def _locked(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BadInput("inbound.spool_dir", f"{directory} is in use by another process") from None
    return lock


def _write_file(path: Path, records: Sequence[bytes]) -> int:
    octets = records[0] if len(records) == 1 else b"".join(records)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return len(octets)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _bytes_in(directory: Path) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries)
