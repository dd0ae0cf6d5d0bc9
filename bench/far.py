"""The far end: our sink, or Postfix's ``smtp-sink``; and Postfix's ``smtp-source``, the yardstick.

``smtp-source`` has no queue, no log, no rules and one message for all: it shows what this machine and this far end
give to a sender that does nothing but send.
"""

from __future__ import annotations

import enum
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Protocol

from mta.model.errors import BadInput, LocalFault
from mta.sink.processes import SinkOptions, SinkProcesses

ADDRESS: Final = "127.0.0.1"
AIOSMTPD_PROCESSES: Final = 2
SMTP_SINK_SESSIONS_MAX: Final = 4_000  # its own default serves 256 at a time
START_TIMEOUT_S: Final = 10.0
SOURCE_TIMEOUT_S: Final = 600.0
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class SinkKind(enum.StrEnum):
    """Who receives."""

    AIOSMTPD = "aiosmtpd"
    SMTP_SINK = "smtp-sink"


class FarEnd(Protocol):
    """Listens on ``ADDRESS``:``port`` between ``start`` and ``stop``."""

    @property
    def port(self) -> int: ...

    @property
    def pids(self) -> list[int]: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


def default_kind() -> SinkKind:
    """``smtp-sink`` where it is installed: it is the one that is not slower than we are."""
    return SinkKind.SMTP_SINK if shutil.which("smtp-sink", path=_PATH) else SinkKind.AIOSMTPD


def far_end(kind: SinkKind, directory: Path) -> FarEnd:
    """A far end, not started; BadInput when it is not installed."""
    if kind is SinkKind.AIOSMTPD:
        return SinkProcesses(SinkOptions(record=directory / "record", processes=AIOSMTPD_PROCESSES))
    program = shutil.which("smtp-sink", path=_PATH)
    if program is None:
        raise BadInput("--sink", "smtp-sink is not installed here; it comes with Postfix")
    return SmtpSink(program, directory.name)


class SmtpSink:
    """Postfix's ``smtp-sink``. ``name`` is what it says in HELO, and how it is known in a list of processes."""

    def __init__(self, program: str, name: str) -> None:
        self._program = program
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def start(self) -> None:
        self.port = _free_port()
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to serve as root
        options = ["-h", self._name, "-m", str(SMTP_SINK_SESSIONS_MAX), f"{ADDRESS}:{self.port}", "4096"]
        self._process = subprocess.Popen(
            [self._program, *as_user, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _is_listening(self.port):
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
    program = shutil.which("smtp-source", path=_PATH)
    if program is None:
        return None
    options = ["-4", "-d", "-s", str(connections), "-m", str(messages), "-l", str(size_bytes)]
    envelope = ["-f", "news@shop.example", "-t", "user@bench.test", "-M", "bench.test"]
    began_s = time.monotonic()
    subprocess.run([program, *options, *envelope, f"{ADDRESS}:{port}"], check=True, timeout=SOURCE_TIMEOUT_S)
    return messages / (time.monotonic() - began_s)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind((ADDRESS, 0))
        port: int = bound.getsockname()[1]
        return port


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection((ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True
