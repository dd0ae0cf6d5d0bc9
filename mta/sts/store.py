"""The policies that are known, in memory and in one small file: a restart must not be a way out of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from mta.model.sts import Policy

FILE_NAME: Final = "mta-sts.json"
POLICIES_MAX: Final = 50_000  # some 200 bytes each, written as a whole
WRITE_DELAY_S: Final = 5.0  # changes are collected for so long; what a crash takes is fetched again
log = structlog.get_logger()


class Known(msgspec.Struct, frozen=True):
    """A policy, by the id under which it was announced; times are of the wall clock."""

    id: str
    policy: Policy
    fetched_unix_s: float
    expires_unix_s: float


class PolicyStore:
    """Domain -> `Known`; those that end first give way when there are too many. ``path`` None: memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Known] = {}
        self._writing: asyncio.Task[None] | None = None
        self._is_changed = False
        self._trouble = ""

    def __len__(self) -> int:
        return len(self._known)

    def read(self) -> None:
        """What an earlier run has left. A file that cannot be read is none, and is said so."""
        if self._path is None:
            return
        try:
            self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Known])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("mta-sts policies cannot be read", file=str(self._path), error=str(error))

    def find(self, domain: str, now_unix_s: float) -> Known | None:
        """The policy of a domain, if it has not ended."""
        known = self._known.get(domain)
        if known is not None and known.expires_unix_s <= now_unix_s:
            del self._known[domain]
            return None
        return known

    def keep(self, domain: str, known: Known) -> None:
        """Remembers a policy; it is in the file a little later."""
        self._known[domain] = known
        if len(self._known) > POLICIES_MAX:
            by_end = sorted(self._known, key=lambda name: self._known[name].expires_unix_s)
            for name in by_end[: POLICIES_MAX // 10]:
                del self._known[name]
        self._is_changed = True
        if self._path is not None and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_later())

    async def close(self) -> None:
        """Writes what is not written."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._path is not None and self._is_changed:
            await self._write(self._path)

    async def _write_later(self) -> None:
        assert self._path is not None
        while self._is_changed:
            await asyncio.sleep(WRITE_DELAY_S)
            await self._write(self._path)

    async def _write(self, path: Path) -> None:
        self._is_changed = False
        octets = msgspec.json.encode(self._known)
        try:
            await asyncio.to_thread(_replace, path, octets)
        except OSError as error:
            if not self._trouble:
                log.warning("mta-sts policies cannot be stored", file=str(path), error=str(error))
            self._trouble = str(error)
        else:
            self._trouble = ""


def _replace(path: Path, octets: bytes) -> None:
    """The file has either its old content or the new one, whatever happens meanwhile."""
    fresh = path.with_suffix(".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
