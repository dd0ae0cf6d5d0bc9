"""NDJSON files: one that grows, and complete ones beside it.

A batch is on the disk before it counts as taken. A process that dies in the middle of a write leaves a torn line; who
opens the file next cuts it off, and the batch comes again. Complete files have whole lines only.
"""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import os
import time
from pathlib import Path
from typing import Final

import structlog

from mta.settings.streams import FilesSettings
from mta.stream.sink import Away, Batch, one_line

SUFFIX: Final = ".ndjson"
_MODE: Final = 0o640
_BLOCK: Final = 64 * 1024
log = structlog.get_logger()


class EventFile:
    """The growing file of a stream. Blocks; raises OSError, and then nothing of what was being written is in it.

    It is completed when it has ``bytes_max``, and at the end of each period of ``period_s`` of Unix time.
    """

    def __init__(self, directory: Path, name: str, bytes_max: int, period_s: float, keep: int) -> None:
        self._directory = directory
        self._name = name
        self._bytes_max = bytes_max
        self._period_s = period_s
        self._keep = keep
        self._handle: int | None = None
        self._size = 0
        self._period = 0

    @property
    def path(self) -> Path:
        return self._directory / f"{self._name}{SUFFIX}"

    def write(self, text: bytes) -> None:
        """Whole lines. They are on the disk when it returns."""
        self.complete_if_due(len(text))
        handle = self._open()
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fdatasync(handle)
        except OSError:
            os.ftruncate(handle, self._size)
            raise
        self._size += len(text)
        self._period = self._period_now()

    def complete_if_due(self, more: int = 0) -> None:
        """``more``: octets that are about to be written."""
        if self._handle is None and not self.path.exists():
            return
        handle = self._open()
        is_full = more > 0 and self._size + more > self._bytes_max
        if self._size == 0 or not (is_full or self._period != self._period_now()):
            return
        os.rename(self.path, self._free_name())
        self._sync_directory()
        os.close(handle)
        self._handle = None
        self._drop_old()

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _period_now(self) -> int:
        return int(time.time() // self._period_s)

    def _open(self) -> int:
        """The file of that name, which another program may have moved away or deleted."""
        if self._handle is not None:
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(self._handle)):
                    return self._handle
            except FileNotFoundError:
                pass  # it is made anew below
            self.close()
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._repair(handle)
            self._sync_directory()
            known = os.fstat(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle, self._size = handle, known.st_size
        self._period = int(known.st_mtime // self._period_s) if known.st_size else self._period_now()
        return handle

    def _repair(self, handle: int) -> None:
        """Cuts off what stands behind the last line end."""
        size = end = os.fstat(handle).st_size
        keep = 0
        while end > 0:
            begin = max(0, end - _BLOCK)
            at = os.pread(handle, end - begin, begin).rfind(b"\n")
            if at >= 0:
                keep = begin + at + 1
                break
            end = begin
        if keep < size:
            os.ftruncate(handle, keep)
            os.fdatasync(handle)
            log.info("a torn line was cut off", file=str(self.path), octets=size - keep)

    def _free_name(self) -> Path:
        now = datetime.datetime.now(datetime.UTC)
        while True:
            path = self._directory / f"{self._name}-{now:%Y%m%dT%H%M%S.%f}Z{SUFFIX}"
            if not path.exists():
                return path
            now += datetime.timedelta(microseconds=1)

    def _drop_old(self) -> None:
        if not self._keep:
            return
        for path in self.complete_files()[: -self._keep]:
            path.unlink(missing_ok=True)

    def complete_files(self) -> list[Path]:
        """The oldest first."""
        # A stream whose name begins with ours and a dash has files of its own: a time is what comes next in ours.
        pattern = f"{self._name}-{'[0-9]' * 8}T{'[0-9]' * 6}.{'[0-9]' * 6}Z{SUFFIX}"
        return sorted(self._directory.glob(pattern))

    def _sync_directory(self) -> None:
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class FilesSink:
    """Writes in a thread: a disk may take its time."""

    def __init__(self, settings: FilesSettings) -> None:
        self._directory = Path(settings.directory)
        self._file = EventFile(
            self._directory,
            settings.name,
            settings.rotate_mbytes * 1_000_000,
            settings.rotate_s,
            settings.keep_files,
        )

    async def send(self, batch: Batch) -> None:
        text = b"\n".join(batch.lines) + b"\n"
        try:
            await asyncio.to_thread(self._file.write, text)
        except OSError as error:
            raise Away(self._told(error)) from error

    async def idle(self) -> None:
        try:
            await asyncio.to_thread(self._file.complete_if_due)
        except OSError as error:
            raise Away(self._told(error)) from error

    async def test(self, batch: Batch) -> str:
        """Writes and removes a file of its own: the stream's may be in use, and is for real events."""
        path = self._directory / f".{self._file.path.stem}.test"
        try:
            await asyncio.to_thread(_try_out, path, batch.lines[0])
        except OSError as error:
            raise Away(self._told(error)) from error
        return f"{self._directory} can be written"

    async def close(self) -> None:
        await asyncio.to_thread(self._file.close)

    def _told(self, error: OSError) -> str:
        if isinstance(error, BlockingIOError):
            return f"{self._file.path} is written by another process"
        return f"{self._file.path} cannot be written: {one_line(error)}"


def _try_out(path: Path, text: bytes) -> None:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        os.write(handle, text)
        os.fsync(handle)
    finally:
        os.close(handle)
        path.unlink()
