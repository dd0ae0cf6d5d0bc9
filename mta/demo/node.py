"""One node as an operator has it: ``mta run`` in a process of its own, its log read, its children known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

from mta.model.errors import LocalFault

START_TIMEOUT_S: Final = 60.0  # a loaded machine imports slowly
STOP_TIMEOUT_S: Final = 20.0
LOG_KEPT_LINES: Final = 200


class NodeProcess:
    """``start``, ``stop`` and ``kill``, any number of times. The log is appended to ``log_file``.

    The daemon runs in a session of its own: a Ctrl-C in our terminal reaches it through us, in good order.
    """

    def __init__(self, config: Path, log_file: Path, *command: str, ready: str = "running") -> None:
        """``command``: of ours, ``run`` unless another is given; ``ready``: what its log says when it works."""
        self._command = command or ("run",)
        self._ready = ready
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_KEPT_LINES)
        self._config = config
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._running = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the master; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Returns when the daemon says that it runs; LocalFault with the end of its log when it does not."""
        home = str(Path(__file__).parents[2])  # the package of this very code, wherever the working directory is
        self._running.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mta.cli.main", *self._command, "--config", str(self._config), "--log-json"),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**_environment(), "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))},
        )
        self._reader = asyncio.create_task(self._read_log(self._process))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._running.wait()
        except TimeoutError:
            raise LocalFault(f"the daemon did not start: {self._log_end()}") from None
        if not self.pid:
            raise LocalFault(f"the daemon ended at once: {self._log_end()}")

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with self._log_file.open("ab") as file:
            async for line in process.stderr:
                file.write(line)
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"event": line.decode(errors="replace").rstrip()}  # a traceback, line by line
                self.log.append(entry)
                if entry.get("event") == self._ready:
                    self._running.set()
        await process.wait()
        self._running.set()  # whoever waits for it looks whether it lives

    def child_pids(self) -> list[int]:
        """The living child processes, the oldest first."""
        pids: set[int] = set()
        for path in Path(f"/proc/{self.pid}/task").glob("*/children"):
            try:
                pids.update(map(int, path.read_text().split()))
            except FileNotFoundError:
                continue  # a thread that ended meanwhile
        return sorted(pid for pid in pids if b"mta.child" in _command_line(pid))

    async def stop(self) -> None:
        """SIGTERM and a drain; SIGKILL when that takes too long. Does nothing when it does not run."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL to the master; its children see their socket close and end by themselves."""
        await self._end(signal.SIGKILL)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        children = self.child_pids()
        if self._process.returncode is None:
            self._process.send_signal(number)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._reader is not None:
            await self._reader
        await _gone(children)
        self._process = None

    def _log_end(self) -> str:
        return " / ".join(str(entry.get("event")) for entry in list(self.log)[-8:]) or "(it wrote no log)"


def _environment() -> dict[str, str]:
    # A database that the operator named for other commands must not win over the one in our file.
    return {name: value for name, value in os.environ.items() if name not in ("MTA_DATABASE_URL", "MTA_CONFIG")}


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def _gone(pids: list[int]) -> None:
    """Waits until orphans have ended; what is still there after a while is killed."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + STOP_TIMEOUT_S / 4
    while left := [pid for pid in pids if b"mta.child" in _command_line(pid)]:
        if loop.time() > deadline_s:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            deadline_s = loop.time() + STOP_TIMEOUT_S
        await asyncio.sleep(0.02)
