"""The local journal: what a child is about to send, and what came of it, before anybody counts on it.

One writer a child, append-only segment files ``<node>-<child>-<n>.journal``. A record is a length, a CRC-32
and a MessagePack value; a torn last record is what a kill in the middle of a write leaves, and is ignored:
its intents were not yet acted upon, since the body follows the write. Any other damage makes the journal one
that is not complete: what it does not tell of may have been sent all the same.

Records live in the page cache: they survive the death of any process, not of the machine. After a restart of
the machine (another boot id) the journal is not believed to be complete; see `mta.master.recovery`. Nor is it
when the run's mark, ``<node>.run``, is not beside it: then this is not the directory that the run wrote to, or
somebody has emptied it.

A segment leaves when all that it tells is in the database: to ``kept/``, for the time in which a database may turn out
to have forgotten it (`mta.outcomes.kept`). An open intent would keep its segment for as long as a
server is silent, so a new segment begins with the intents that are still open, and how many segments there are
depends on what is not committed yet, not on the slowest server.

States of a message, as the journal knows them (what a crash finds, and who cleans up):

====================  =========================  =============================================================
intent, no outcome    in doubt                   recovery lists it, then follows the delivery's policy
intent and outcome    known, maybe not stored    recovery stores it, unless its position is settled already
neither               not begun                  its part goes back to the queue
====================  =========================  =============================================================
"""

from __future__ import annotations

import enum
import fcntl
import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mta.model.limits import FRAME_BYTES_MAX

_HEADER = struct.Struct("!II")
_PROBE_BYTES = 64 * 1024  # some hundred messages: sending does not go on for one of them
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.journal")


class Intent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A body that is about to be written."""

    part_id: int
    position: int
    mx_host: str
    peer: str
    limit: str  # the key of the limit that counts it
    # Who it is, whatever number the part has: a database that lost its last seconds gives numbers of parts out again.
    delivery_id: int = 0
    number: int = 0
    attempt: int = 0
    address: str = ""
    dated_unix_s: int = 0  # of its Date header: what goes again after a doubt is the same message


class Settled(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What came of one recipient. ``status`` 0: it goes back, no attempt was made."""

    batch: int
    part_id: int
    position: int
    status: int
    limit: str  # the key of the limit that counts it


Doubt = tuple[int, int, str, str, str]  # part, position, MX host, peer, cause


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One write. ``sequence`` is that of the Report which will carry these outcomes to the master."""

    sequence: int
    intents: list[Intent]
    settled: list[Settled]
    lines: bytes
    doubts: list[Doubt] = []


class JournalError(OSError):
    """The journal cannot be written; nothing may be sent until it can."""


@dataclass(eq=False, slots=True)
class Segment:
    """One file. It may go when no intent in it is open and all reports up to ``release`` are committed."""

    path: Path
    open_intents: int = 0
    release: int = 0


@dataclass(eq=False)
class Journal:
    """The writing side; owned by one child's event loop, never shared."""

    directory: Path
    node_id: int
    child: int
    segment_bytes_max: int = 8 * 1024 * 1024  # some 30,000 messages: a second or two of the fastest child
    _fd: int = -1
    _lock_fd: int = -1
    _size: int = 0
    _number: int = 0
    _closed_segments: list[Segment] = field(default_factory=list)
    _encoder: msgspec.msgpack.Encoder = field(default_factory=msgspec.msgpack.Encoder)
    segment: Segment = field(init=False)

    def open(self) -> None:
        """Takes the child's lock and opens a segment. JournalError: `write` will try both again."""
        self._take_lock()
        self._open_segment()

    def _take_lock(self) -> None:
        """Recovery tells by it whether this writer is gone; so nothing is written without it."""
        path = lock_path(self.directory, self.node_id, self.child)
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise JournalError(error.errno, f"cannot lock {path}: {error.strerror}") from error
        self._lock_fd = fd

    def _open_segment(self) -> None:
        self._number += 1
        path = self.directory / f"{self.node_id}-{self.child}-{self._number}.journal"
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            raise JournalError(error.errno, f"cannot open {path}: {error.strerror}") from error
        self._size = 0
        self.segment = Segment(path)

    @property
    def is_full(self) -> bool:
        """The next record begins a new segment: it should hold all intents that are open."""
        return self._size >= self.segment_bytes_max

    def write(self, record: Record) -> None:
        """Appends one record in one write. JournalError: nothing of it counts, the file is as it was before."""
        if self._lock_fd < 0:
            self._take_lock()
        if self.is_full:
            self._rotate()
        if self._fd < 0:
            self._open_segment()
        body = self._encoder.encode(record)
        framed = _HEADER.pack(len(body), zlib.crc32(body)) + body
        try:
            written = os.write(self._fd, framed)
        except OSError as error:
            self._cut_back()
            raise JournalError(error.errno, f"cannot write {self.segment.path}: {error.strerror}") from error
        if written != len(framed):
            self._cut_back()
            raise JournalError(0, f"cannot write {self.segment.path}: {written} of {len(framed)} bytes taken")
        self._size += written

    def probe(self) -> None:
        """Tries whether there is room again, and for more than the next record. JournalError: there is not."""
        if self._lock_fd < 0:
            self._take_lock()
        if self._fd < 0:
            self._open_segment()
        # A kill in the middle leaves what reads as a torn record.
        room = _HEADER.pack(2 * _PROBE_BYTES, 0) + bytes(_PROBE_BYTES)
        try:
            written = os.write(self._fd, room)
        except OSError as error:
            raise JournalError(error.errno, f"cannot write {self.segment.path}: {error.strerror}") from error
        finally:
            self._cut_back()
        if written != len(room):
            raise JournalError(0, f"cannot write {self.segment.path}: {written} of {len(room)} bytes taken")

    def _cut_back(self) -> None:
        # A half-written record would hide all that follows it. If even the cut fails, this file takes no more.
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._rotate()

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._size = 0
        self._closed_segments.append(self.segment)

    def committed(self, sequence: int, settlement: int = 0) -> None:
        """All reports up to ``sequence`` are in the database: segments that are not needed any more leave.

        ``settlement``: the number up to which the database has them, by which they are kept; 0: they are removed.
        """
        self._closed_segments = [
            segment
            for segment in self._closed_segments
            if segment.open_intents or segment.release > sequence or not put_away(segment.path, settlement)
        ]

    def close(self) -> None:
        """Closes the files and gives up the lock; what is not committed stays for recovery."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def lock_directory(directory: Path) -> int:
    """Makes the directory and takes it for this process; the file descriptor holds it. BlockingIOError: it is taken."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BlockingIOError(f"another daemon uses the journal in {directory}") from None
    return fd


def lock_path(directory: Path, node_id: int, child: int) -> Path:
    return directory / f"{node_id}-{child}.lock"


def segments_of(directory: Path, node_id: int, child: int | None = None) -> list[Path]:
    """The segment files of a node run (or of one of its children), in the order they were written."""
    found = []
    for path in directory.iterdir():
        named = _NAME.fullmatch(path.name)
        if named and int(named[1]) == node_id and child in (None, int(named[2])):
            found.append((int(named[2]), int(named[3]), path))
    return [path for _, _, path in sorted(found)]


def runs_with_segments(directory: Path) -> set[int]:
    """The runs whose segments are here."""
    return {int(named[1]) for path in directory.iterdir() if (named := _NAME.fullmatch(path.name))}


def kept_path(directory: Path) -> Path:
    """Where segments are kept after their commit."""
    return directory / "kept"


def put_away(path: Path, settlement: int) -> bool:
    """Keeps a segment under the number of the settlement that recorded the last of it; 0: removes it.

    False: it cannot be moved. Then it stays where it is, where a recovery reads it once more and finds nothing new.
    """
    if not settlement:
        path.unlink(missing_ok=True)
        return True
    try:
        os.utime(path)  # it is kept from now on
        path.rename(kept_path(path.parent) / f"{path.stem}-{settlement}.journal")
    except FileNotFoundError:
        return not path.exists()
    except OSError:
        return False
    return True


class SegmentEnd(enum.Enum):
    """How the reading of a segment ended."""

    WHOLE = "whole"
    TORN = "torn"  # in the middle of a record, as a kill in the middle of a write leaves it
    DAMAGED = "damaged"  # no kill leaves this: what stood from there on is not known


def read_segment(path: Path) -> tuple[list[Record], SegmentEnd]:
    """The records of a segment, up to the first that is not whole. JournalError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(error.errno, f"cannot read {path}: {error.strerror}") from error
    records: list[Record] = []
    at = 0
    while at < len(content):
        if at + _HEADER.size > len(content):
            return records, SegmentEnd.TORN
        size, crc = _HEADER.unpack_from(content, at)
        # No record is empty: this is what the blocks of a file look like that never reached the disk.
        if not 0 < size <= FRAME_BYTES_MAX:
            return records, SegmentEnd.DAMAGED
        body = content[at + _HEADER.size : at + _HEADER.size + size]
        if len(body) < size:
            return records, SegmentEnd.TORN
        if zlib.crc32(body) != crc:
            return records, SegmentEnd.DAMAGED
        try:
            records.append(_record_decoder.decode(body))
        except msgspec.DecodeError:  # written by another version of this program
            return records, SegmentEnd.DAMAGED
        at += _HEADER.size + size
    return records, SegmentEnd.WHOLE


_record_decoder = msgspec.msgpack.Decoder(Record)
