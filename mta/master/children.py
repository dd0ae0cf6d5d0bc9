"""Child processes: started, heard, replaced. What to tell them is decided elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from itertools import count
from typing import cast

import structlog

from mta.wire import (
    ChildFrame,
    ChildOptions,
    Drain,
    FrameSplitter,
    Health,
    JournalState,
    Lease,
    MasterFrame,
    decode_child_frame,
    encode_frame,
)

SILENCE_S = 30.0  # a child that says nothing for so long is stopped or stuck; it reports health every second
RESTART_DELAY_S = 1.0  # at most one new child a second after a death
log = structlog.get_logger()


class Child(asyncio.Protocol):
    """One child process and the socket to it."""

    def __init__(
        self, number: int, on_frame: Callable[[Child, ChildFrame], None], on_end: Callable[[Child], None]
    ) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.health = Health(0, 0.0, 0, 0, 0)
        self.journal_trouble = ""
        self.templates: set[int] = set()
        self.last_report = 0
        self.heard_at_s = 0.0
        self.is_draining = False
        self.ended = asyncio.Event()
        self._on_frame = on_frame
        self._on_end = on_end
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._frames: list[bytes] = []

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self, options: ChildOptions) -> None:
        """Starts the process; it is ready at once, frames wait in the socket."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mta.child", str(theirs.fileno()), pass_fds=(theirs.fileno(),)
            )
        self.heard_at_s = loop.time()
        await loop.create_unix_connection(lambda: self, sock=ours)
        self.tell(options)
        self.flush()

    def tell(self, frame: MasterFrame) -> None:
        """Queues a frame; `flush` sends all that is queued in one write."""
        self._frames.append(encode_frame(frame))

    def flush(self) -> None:
        frames, self._frames = self._frames, []
        if frames and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def kill(self) -> None:
        """SIGKILL: for a child that does not answer. Its journal tells what it did."""
        if self.process is not None and self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by class, only by what they do.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at_s = asyncio.get_running_loop().time()
        for body in self._splitter.feed(data):
            frame = decode_child_frame(body)
            if isinstance(frame, Health):
                self.health = frame
            elif isinstance(frame, JournalState):
                self.journal_trouble = frame.trouble
            self._on_frame(self, frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end(self)
        self.ended.set()


class Children:
    """The family: a fixed number of living children, whatever happens to each."""

    def __init__(
        self,
        wanted: int,
        options: Callable[[int], ChildOptions],
        on_frame: Callable[[Child, ChildFrame], None],
        on_end: Callable[[Child], None],
    ) -> None:
        self._wanted = wanted
        self._options = options
        self._on_frame = on_frame
        self._on_end = on_end
        self._numbers = count(1)
        self.living: dict[int, Child] = {}

    async def start_one(self) -> Child:
        child = Child(next(self._numbers), self._on_frame, self._on_end)
        await child.start(self._options(child.number))
        self.living[child.number] = child
        log.info("child started", child=child.number, pid=child.pid)
        return child

    @property
    def missing(self) -> int:
        """How many are to be started; one that drains is replaced already while it finishes."""
        return self._wanted - sum(not child.is_draining for child in self.living.values())

    def tell_all(self, frame: MasterFrame) -> None:
        for child in self.living.values():
            child.tell(frame)
            child.flush()

    def renew_lease(self, until_s: float) -> None:
        self.tell_all(Lease(until_s))

    def drain(self, child: Child) -> None:
        """It gives back what is not begun, finishes the rest and exits."""
        child.is_draining = True
        child.tell(Drain())
        child.flush()

    def silent(self, now_s: float) -> list[Child]:
        return [child for child in self.living.values() if now_s - child.heard_at_s > SILENCE_S]

    @property
    def journal_trouble(self) -> str:
        return next((child.journal_trouble for child in self.living.values() if child.journal_trouble), "")
