"""What all connections of one process of the sink share, and what the sink says of itself in EHLO."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Final, Protocol

from mta.sink.keeper import Keeper
from mta.sink.record import RecordWriter
from mta.sink.script import Script

EXTENSIONS: Final = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "STARTTLS")
MESSAGE_BYTES_MAX: Final = 50 * 1024 * 1024  # announced as SIZE


class Stoppable(Protocol):
    """A connection, as far as the server that ends it needs to know."""

    def stop(self) -> asyncio.Task[None] | None:
        """Ends it; the task is over soon, and writes no more to the record then."""


class Far:
    """What all connections of one process share. Owned by the server."""

    def __init__(
        self,
        *,
        hostname: str,
        script: Script,
        keeper: Keeper | None,
        record: RecordWriter,
        hidden: Iterable[str] = (),
        tls: ssl.SSLContext | None = None,
        keeps_bodies: bool = False,
    ) -> None:
        self.hostname = hostname
        self.script = script
        self.keeper = keeper
        self.record = record
        self.hidden = frozenset(hidden)
        self.tls = tls
        self.keeps_bodies = keeps_bodies
        self.loop = asyncio.get_running_loop()
        self.dialogues: set[Stoppable] = set()
        self.endings: set[asyncio.Task[None]] = set()  # words of closed connections to the keeper
        self._opened = 0
        self._flushes = False

    def next_connection(self) -> str:
        self._opened += 1
        return f"{self.record.stem}.{self._opened}"

    def flush_soon(self) -> None:
        """Writes the record at the loop's next turn, once for all events until then."""
        if not self._flushes:
            self._flushes = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        self.record.flush()

    def ehlo_reply(self, over_tls: bool) -> bytes:
        """The whole reply to EHLO (RFC 5321 §4.1.1.1)."""
        lines = [self.hostname]
        for name in EXTENSIONS:
            if name in self.hidden or (name == "STARTTLS" and (self.tls is None or over_tls)):
                continue
            lines.append(f"SIZE {MESSAGE_BYTES_MAX}" if name == "SIZE" else name)
        last = len(lines) - 1
        return "\r\n".join(f"250{' ' if at == last else '-'}{line}" for at, line in enumerate(lines)).encode()
