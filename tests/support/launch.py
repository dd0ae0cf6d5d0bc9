"""Runs the program in processes of their own that need not load it (`tests.support.zygote`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
COLUMNS = "200"  # of a terminal
WAIT_S = 60.0
PROGRAM = "mta.cli.main"


class _Zygote:
    """The process that has loaded the program; started with the first command, ends with this process."""

    def __init__(self) -> None:
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def begin(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        files: Sequence[int],
        *,
        module: str = PROGRAM,
        kept: Sequence[int] = (),
    ) -> socket.socket:
        """Starts a command with these standard files, and with the files ``kept``, which keep their numbers.

        Its process id comes, then its exit code, a line each.
        """
        request = {
            "module": module,
            "arguments": arguments,
            "environment": dict(environment),
            "directory": str(directory),
            "numbers": [0, 1, 2, *kept],
        }
        ours, its = socket.socketpair()
        with its, self._lock:
            socket.send_fds(self._started(), [json.dumps(request).encode()], [its.fileno(), *files, *kept])
        return ours

    def _started(self) -> socket.socket:
        if self._requests is None:
            self._requests, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.zygote", str(its.fileno())],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": COLUMNS},
                    cwd=ROOT,
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return self._requests


_zygote = _Zygote()


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    stdin: str | None = None,
    *,
    module: str = PROGRAM,
    wait_s: float = WAIT_S,
) -> subprocess.CompletedProcess[str]:
    """A command to its end: ``main`` of ``module``. TimeoutError after ``wait_s``, and the command is killed."""
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write((stdin or "").encode())
        given.seek(0)
        answers = stack.enter_context(
            _zygote.begin(
                arguments, environment, directory, [file.fileno() for file in (given, out, err)], module=module
            )
        )
        answers.settimeout(wait_s)
        lines = stack.enter_context(answers.makefile("rb"))
        pid = int(lines.readline())
        try:
            code = int(lines.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess([*arguments], code, _text(out), _text(err))


def run_on_terminal(
    arguments: Sequence[str], environment: Mapping[str, str], directory: Path, *, columns: int = 80, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command to its end on a terminal so wide, where it finds ``typed``; what it wrote, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    given = {key: value for key, value in environment.items() if key not in ("COLUMNS", "NO_COLOR")}
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(open(ours, "r+b", buffering=0))
        try:
            answers = stack.enter_context(
                _zygote.begin(arguments, {**given, "TERM": "xterm", "LINES": "24"}, directory, [its, its, its])
            )
        finally:
            os.close(its)
        terminal.write(typed.encode())
        lines = stack.enter_context(answers.makefile("rb"))
        lines.readline()
        said = b""
        with contextlib.suppress(OSError):  # a terminal that nobody has open any more ends with EIO
            while chunk := terminal.read(65536):
                said += chunk
        code = int(lines.readline())
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).replace("\r\n", "\n")
    return subprocess.CompletedProcess([*arguments], code, text, "")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class Forked:
    """A process as `subprocess.Popen` has it, with pipes to its standard input and output."""

    def __init__(self, module: str, kept: Sequence[int], environment: Mapping[str, str]) -> None:
        (its_in, stdin), (stdout, its_out) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self._answers = _zygote.begin((), environment, Path.cwd(), [its_in, its_out, 2], module=module, kept=kept)
        for file in (its_in, its_out):
            os.close(file)
        self._lines = self._answers.makefile("rb")
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([], timeout or 0.0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Launched:
    """A command that runs, as `asyncio.subprocess.Process` has it."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = stdout
        self.stderr = stderr
        self._ended = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def watch(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._watch = asyncio.create_task(self._watched(answers, writer))

    async def _watched(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.returncode = int(await answers.readline())
        finally:
            self._ended.set()
            writer.close()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None, "whoever watched it is gone"
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        out, err, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, err


async def launch(*arguments: str, env: Mapping[str, str] | None = None) -> Launched:
    """``mta`` with these arguments; its output is to be read, as it stops when nobody does."""
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    environment = {"COLUMNS": COLUMNS, **os.environ} if env is None else env
    nothing = os.open(os.devnull, os.O_RDONLY)
    answers = await asyncio.to_thread(_zygote.begin, arguments, environment, Path.cwd(), [nothing, its_out, its_err])
    for file in (nothing, its_out, its_err):
        os.close(file)
    reader, writer = await asyncio.open_connection(sock=answers)
    pid = int(await asyncio.wait_for(reader.readline(), WAIT_S))
    launched = Launched(pid, await _reader(out), await _reader(err))
    launched.watch(reader, writer)
    return launched


async def _reader(file: int) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb"))
    return reader
