"""Child processes: started, heard, replaced. What to tell them is decided elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import cast

import structlog

from mta.queue.dsn import without_database
from mta.settings.config import ChildrenSettings
from mta.wire import (
    ChildFrame,
    Drain,
    FrameSplitter,
    Health,
    JournalState,
    Lease,
    MasterFrame,
    decode_child_frame,
    encode_frame,
)

QUICK_DEATH_S = 5.0  # a child that lives no longer than this, and reports nothing, could not do its work at all
RESTART_DELAY_S_MAX = 30.0  # after one quick death after another, or one fault after another
FAULTS_FORGOTTEN_S = 300.0  # without one: the next is the first again
FILES_BESIDE_SESSIONS = 64  # journal, sockets to the master, libraries
log = structlog.get_logger()


def raise_file_limit(sessions_max: int) -> int:
    """Lets this process, and the children it starts, open as many files as the system allows them.

    How many sessions a child may hold then: ``sessions_max``, or fewer where there are too few files for so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = sessions_max + FILES_BESIDE_SESSIONS
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return sessions_max
    sessions = max(1, hard - FILES_BESIDE_SESSIONS)
    log.warning(
        "fewer files than sessions may be opened",
        files=hard,
        wanted=wanted,
        before=soft,
        sessions_of_child=sessions,
        remedy="LimitNOFILE of the service (ulimit -n) above children.sessions_max, then a restart",
    )
    return sessions


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
        self.started_at_s = 0.0
        self.heard_at_s = 0.0
        self.is_draining = False
        self.is_failing = False  # it said so itself
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

    async def start(self, first: Sequence[MasterFrame]) -> None:
        """Starts the process; it is ready at once, frames wait in the socket. ``first``: its options, its keys."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "mta.child", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    env=without_database(os.environ),
                )
        except BaseException:
            ours.close()  # if it was started after all, it ends by this
            raise
        self.started_at_s = self.heard_at_s = loop.time()
        await loop.create_unix_connection(lambda: self, sock=ours)
        # Before whatever it was told while it was being started (a drain, say).
        self._frames[:0] = [encode_frame(frame) for frame in first]
        self.flush()

    def tell(self, frame: MasterFrame) -> None:
        """Queues a frame; `flush` sends all that is queued in one write."""
        self._frames.append(encode_frame(frame))

    def flush(self) -> None:
        if self._transport is None:
            return  # it is being started; its options go first
        frames, self._frames = self._frames, []
        if frames and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def kill(self) -> None:
        """SIGKILL: for a child that does not answer. Its journal tells what it did."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # dead, and its end not told to us yet
                self.process.kill()

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

    async def bury(self) -> None:
        """Waits until the process is gone: before that it might still write to its journal, or to a server."""
        assert self.process is not None
        self.kill()
        await self.process.wait()


class Children:
    """The family: a fixed number of living children, whatever happens to each.

    ``on_loss`` is called at once when a child's socket is at its end, so that it is given nothing more; whoever
    has dealt with what it left behind says so by ``ended``.
    """

    def __init__(
        self,
        wanted: int,
        silence_s: float,
        first: Callable[[int], Sequence[MasterFrame]],
        on_frame: Callable[[Child, ChildFrame], None],
        on_loss: Callable[[Child], None],
    ) -> None:
        self._wanted = wanted
        self._silence_s = silence_s
        self._first = first
        self._on_frame = on_frame
        self._on_loss = on_loss
        self._numbers = count(1)
        self._delay_s = 0.0
        self._next_start_s = 0.0
        self.living: dict[int, Child] = {}
        self._unburied: dict[int, Child] = {}  # not ended yet

    async def start_one(self) -> Child | None:
        """A new child; None when there can be none now, or it died before it could be used."""
        child = Child(next(self._numbers), self._on_frame, self._lost)
        self.living[child.number] = child
        try:
            await child.start(self._first(child.number))
        except OSError as error:
            log.error("child cannot be started", child=child.number, error=str(error))
            self.living.pop(child.number, None)
            self._slow_down()
            return None
        log.info("child started", child=child.number, pid=child.pid)
        return self.living.get(child.number)

    def _lost(self, child: Child) -> None:
        self.living.pop(child.number, None)
        self._unburied[child.number] = child
        age_s = asyncio.get_running_loop().time() - child.started_at_s
        if age_s < QUICK_DEATH_S and not child.last_report and not child.is_draining:
            self._slow_down()
        elif not child.is_failing:
            self._delay_s = 0.0
        self._on_loss(child)

    def slow_down(self, child: Child) -> None:
        """It has a fault: others may meet the same, and each lives on for as long as a server owes it a reply."""
        if not child.is_failing:
            child.is_failing = True
            if asyncio.get_running_loop().time() - self._next_start_s > FAULTS_FORGOTTEN_S:
                self._delay_s = 0.0
            self._slow_down()

    def _slow_down(self) -> None:
        # The first replacement comes at once; children that cannot live at all are not started in a tight circle.
        self._next_start_s = asyncio.get_running_loop().time() + self._delay_s
        self._delay_s = min(RESTART_DELAY_S_MAX, 2 * self._delay_s or 1.0)

    def ended(self, child: Child) -> None:
        """What it left behind is dealt with."""
        self._unburied.pop(child.number, None)
        child.ended.set()

    @property
    def not_ended(self) -> list[Child]:
        """Those that live, and those whose end is not dealt with yet."""
        return [*self.living.values(), *self._unburied.values()]

    @property
    def missing(self) -> int:
        """How many are to be started; one that drains is replaced already while it finishes."""
        return self._wanted - sum(not child.is_draining for child in self.living.values())

    def may_start(self, now_s: float) -> bool:
        """One is missing, and it is not too soon after quick deaths."""
        return self.missing > 0 and now_s >= self._next_start_s

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
        """Those that said nothing for too long: stopped or stuck, since they report their health every second."""
        return [child for child in self.living.values() if now_s - child.heard_at_s > self._silence_s]

    def worn_out(self, bounds: ChildrenSettings) -> list[Child]:
        """Those that have sent so much, or grown so large, that they are to be replaced."""
        worn = []
        for child in self.living.values():
            health = child.health
            is_large = health.rss_bytes >= bounds.recycle_mbytes << 20
            if not child.is_draining and (is_large or health.messages >= bounds.recycle_messages):
                mbytes = health.rss_bytes >> 20
                log.info("child is replaced", child=child.number, messages=health.messages, mbytes=mbytes)
                worn.append(child)
        return worn

    def discount(self, stalled_s: float, now_s: float) -> None:
        """We did not listen ourselves for so long: that is no silence of the children's."""
        for child in self.living.values():
            child.heard_at_s = min(now_s, child.heard_at_s + stalled_s)

    @property
    def journal_trouble(self) -> str:
        return next((child.journal_trouble for child in self.living.values() if child.journal_trouble), "")
