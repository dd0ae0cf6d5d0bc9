"""A sink as the others use it: N processes on one port, started, awaited and stopped.

::

    with SinkProcesses(SinkOptions(record=tmp_path / "record", processes=2)) as sink:
        deliver_to("127.0.0.1", sink.port)
    assert sink.record().duplicates() == {}

The parent holds a bound socket for each address while the sink lives, so the port stays reserved even when
all processes were killed and one is started again. ``async with`` does the same without blocking the loop.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from mta.model.errors import BadInput, LocalFault
from mta.sink.certificate import write_certificate
from mta.sink.options import SinkOptions, check_options
from mta.sink.provider import read_provider
from mta.sink.record import Record, Statistics
from mta.sink.script import dice, read_script
from mta.sink.server import ProcessOptions, listening_socket

__all__ = ["SinkOptions", "SinkProcesses"]

START_TIMEOUT_S: Final = 30.0  # a loaded machine imports slowly
STOP_TIMEOUT_S: Final = 10.0
PORT_ATTEMPTS_MAX: Final = 20  # a free port of one address may be taken on the next


class SinkProcesses:
    """Owns its processes and its record directory. ``start`` and ``stop`` are idempotent.

    ``port`` and ``pids`` are known once started; ``certificate`` is the PEM file (with its key) of a
    sink with ``tls``, None otherwise. Not for use from several threads at once.
    """

    def __init__(self, options: SinkOptions) -> None:
        check_options(options)
        if options.script is not None:
            read_script(options.script, dice(options.seed))  # a bad file speaks here, not in a child
        if options.provider is not None:
            read_provider(options.provider)
        self.options = options
        self.port = options.port
        self.record_dir = Path(options.record)
        self.certificate: Path | None = None
        self._reserved: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._private: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def ended(self) -> list[int]:
        """The ids of processes that are no longer running, though nobody stopped the sink."""
        return [process.pid for process in self._processes if process.poll() is not None]

    def __enter__(self) -> SinkProcesses:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> SinkProcesses:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Returns when every process listens. BadInput when an address cannot be had; then nothing runs."""
        if self._processes:
            return
        self.record_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._reserve_port()
            if self.options.tls:
                self._private = tempfile.TemporaryDirectory(prefix="mta-sink-")
                self.certificate = Path(self._private.name) / "certificate.pem"
                write_certificate(self.certificate, self.options.hostname, self.options.addresses)
            links = _make_links(self.options.processes if self.options.provider is not None else 1)
            try:
                for index in range(self.options.processes):
                    self._processes.append(self._spawn(index, links.get(index, [])))
            finally:
                for ends in links.values():
                    for end in ends:
                        end.close()
            deadline = time.monotonic() + START_TIMEOUT_S
            for process in self._processes:
                _wait_until_listening(process, deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Asks every process to end, waits, and kills what does not end in time."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes:
            _end(process, deadline)
        self._processes.clear()
        for reserved in self._reserved:
            reserved.close()
        self._reserved.clear()
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def kill(self, index: int) -> None:
        """SIGKILL for one process; returns when it is dead."""
        process = self._processes[index]
        process.kill()
        _end(process, time.monotonic() + STOP_TIMEOUT_S)

    def restart(self, index: int) -> None:
        """Starts a dead process anew on the same port. Not for a sink of several processes with a provider."""
        if self.options.provider is not None and self.options.processes > 1:
            raise LocalFault("the links to the provider do not survive one of its processes: restart the whole sink")
        self.kill(index)
        self._processes[index] = self._spawn(index, [])
        _wait_until_listening(self._processes[index], time.monotonic() + START_TIMEOUT_S)

    def record(self) -> Record:
        """What was recorded until now; complete when stopped."""
        return Record.load(self.record_dir)

    def statistics(self) -> Statistics:
        return self.record().statistics()

    def _reserve_port(self) -> None:
        first, *others = self.options.addresses
        for attempt in range(PORT_ATTEMPTS_MAX):
            self._reserved = [listening_socket(first, self.options.port)]
            self.port = self._reserved[0].getsockname()[1]
            try:
                self._reserved.extend(listening_socket(address, self.port) for address in others)
            except BadInput:
                for reserved in self._reserved:
                    reserved.close()
                self._reserved = []
                if self.options.port or attempt == PORT_ATTEMPTS_MAX - 1:
                    raise
            else:
                return

    def _spawn(self, index: int, ends: list[socket.socket]) -> subprocess.Popen[bytes]:
        links = tuple(end.fileno() for end in ends)
        line = ProcessOptions(
            sink=self.options, index=index, port=self.port, certificate=self.certificate, links=links
        ).line()
        # The package of this very code, wherever the caller's working directory is.
        home = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "mta.sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=links,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()
        return process


def _make_links(processes: int) -> dict[int, list[socket.socket]]:
    """Socket pairs between process 0 and each other one, by process."""
    links: dict[int, list[socket.socket]] = {0: []}
    for index in range(1, processes):
        ours, theirs = socket.socketpair()
        links[0].append(ours)
        links[index] = [theirs]
    return links


def _wait_until_listening(process: subprocess.Popen[bytes], deadline: float) -> None:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
    if not readable:
        raise LocalFault(f"sink process {process.pid} did not listen within {START_TIMEOUT_S:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise LocalFault(f"sink process {process.pid} ended before it listened; standard error says why")
    answer = msgspec.json.decode(line, type=dict[str, str | bool])
    if "where" in answer:
        raise BadInput(str(answer["where"]), str(answer["what"]))


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Waits for a process that was told to end, kills it at the deadline, closes our ends of its pipes."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
