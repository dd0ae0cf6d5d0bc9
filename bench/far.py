"""The far end: our sink, our lean receiver, or Postfix's ``smtp-sink``; and ``smtp-source``, the yardstick.

``smtp-source`` has no queue, no log, no rules and one message for all: it shows what this machine and this far end
give to a sender that does nothing but send.
"""

from __future__ import annotations

import enum
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bench.receiver import Listening, ReceiverOptions, Taken
from mta.model.errors import BadInput, LocalFault
from mta.sink.processes import SinkOptions, SinkProcesses

ADDRESS: Final = "127.0.0.1"
AIOSMTPD_PROCESSES: Final = 2
SMTP_SINK_SESSIONS_MAX: Final = 5_000  # its own default serves 256 at a time
START_TIMEOUT_S: Final = 10.0
SOURCE_TIMEOUT_S: Final = 600.0
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class SinkKind(enum.StrEnum):
    """Who receives."""

    AIOSMTPD = "aiosmtpd"
    RECEIVER = "receiver"
    SMTP_SINK = "smtp-sink"


class FarEnd(Protocol):
    """Listens on ``ADDRESS``:``port`` between ``start`` and ``stop``."""

    @property
    def port(self) -> int: ...

    @property
    def pids(self) -> list[int]: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


def default_kind(*, tls: bool = False) -> SinkKind:
    """``smtp-sink`` where it is installed and will do: it costs least. It knows no STARTTLS."""
    return SinkKind.RECEIVER if tls or program("smtp-sink") is None else SinkKind.SMTP_SINK


def program(name: str) -> str | None:
    """Where a program is, also one that only root is meant to find."""
    return shutil.which(name, path=_PATH)


def far_end(kind: SinkKind, directory: Path, manner: ReceiverOptions) -> FarEnd:
    """A far end, not started; BadInput when it is not installed, or has no such manners."""
    if kind is SinkKind.RECEIVER:
        return Receiver(manner)
    if manner.permanent or manner.temporary:
        raise BadInput("--sink", f"{kind} cannot refuse a share of the addresses; the receiver can")
    if kind is SinkKind.AIOSMTPD:
        if manner.dot_delay_s:
            raise BadInput("--sink", f"{kind} cannot answer late without a script; the receiver can")
        return SinkProcesses(SinkOptions(record=directory / "record", processes=AIOSMTPD_PROCESSES, tls=manner.tls))
    if manner.tls:
        raise BadInput("--sink", "smtp-sink knows no STARTTLS; the receiver does")
    found = program("smtp-sink")
    if found is None:
        raise BadInput("--sink", "smtp-sink is not installed here; it comes with Postfix")
    return SmtpSink(found, directory.name, round(manner.dot_delay_s))


class Receiver:
    """`bench.receiver` in processes of its own. ``taken`` is what it said when it was stopped."""

    def __init__(self, options: ReceiverOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.pids: list[int] = []
        self.taken = Taken()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.receiver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in our terminal reaches it through us
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self._options) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()  # it says this, or ends
        if not line:
            raise LocalFault("the receiver did not start; standard error says why")
        listening = msgspec.json.decode(line, type=Listening)
        self.port, self.pids = listening.port, listening.pids

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            said, _ = process.communicate(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its processes end with their standard input
            said, _ = process.communicate()
        if said:
            self.taken = msgspec.json.decode(said, type=Taken)


class SmtpSink:
    """Postfix's ``smtp-sink``. ``name`` is what it says in HELO, and how it is known in a list of processes."""

    def __init__(self, program: str, name: str, dot_delay_s: int = 0) -> None:
        self._program = program
        self._name = name
        self._dot_delay_s = dot_delay_s
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def start(self) -> None:
        self.port = free_port()
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to serve as root
        delay = ["-W", f".:{self._dot_delay_s}"] if self._dot_delay_s else []
        options = ["-h", self._name, "-m", str(SMTP_SINK_SESSIONS_MAX), *delay, f"{ADDRESS}:{self.port}", "4096"]
        self._process = subprocess.Popen(
            [self._program, *as_user, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_listening(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise LocalFault("smtp-sink did not start; standard error says why")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def smtp_source_messages_per_second(port: int, *, connections: int, messages: int, size_bytes: int) -> float | None:
    """Messages a second of ``smtp-source``, which keeps its connections (-d) as we do; None where it is absent."""
    source = program("smtp-source")
    if source is None:
        return None
    options = ["-4", "-d", "-s", str(connections), "-m", str(messages), "-l", str(size_bytes)]
    envelope = ["-f", "news@shop.example", "-t", "user@bench.test", "-M", "bench.test"]
    began_s = time.monotonic()
    subprocess.run([source, *options, *envelope, f"{ADDRESS}:{port}"], check=True, timeout=SOURCE_TIMEOUT_S)
    return messages / (time.monotonic() - began_s)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind((ADDRESS, 0))
        port: int = bound.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    try:
        socket.create_connection((ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True
