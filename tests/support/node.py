"""A whole world for process tests: a real sink, a real name server, a real database, real daemons.

Everything is on loopback. A node is the real ``mta run`` in a process of its own, so it can be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.audit import Audit, audit
from mta.queue.deliveries import Delivery, NewDelivery
from mta.queue.part import Part
from mta.sink.nameserver import ThreadedNameserver
from mta.sink.processes import SinkOptions
from mta.sink.record import Record
from tests.support.content import content_json
from tests.support.forked_sink import ForkedSink
from tests.support.launch import Launched, launch
from tests.support.postgres import Database

WAIT_S = 60.0  # a bound for what takes a second or two; reached only when something is broken
GENEROUS_RULES = """
[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = 20
"""

TWO_CONNECTIONS = """
[[rule]]
name = "slow"
mx = "*"
scope = "path"
connections_max = 2
"""


async def until(what: str, holds: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Waits until ``holds()`` is true; fails with ``what`` after ``wait_s``."""
    end = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < end, f"not within {wait_s:.0f} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Node:
    """One daemon: ``mta run`` with its own configuration, journal and log file."""

    name: str
    directory: Path
    config: Path
    process: Launched | None = None
    _log: list[dict[str, object]] = field(default_factory=list)
    _reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the daemon and returns when it says that it runs."""
        self._log.clear()
        self.process = await launch("run", "--config", str(self.config), "--log-json")
        self._reader = asyncio.create_task(self._read_log(self.process))
        await until(f"node {self.name} runs; it said {self._log}", lambda: self.said("running") or self.has_ended)
        assert not self.has_ended, f"node {self.name} ended at once: {self._log}"

    async def _read_log(self, process: Launched) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as file:
            async for line in process.stderr:
                file.write(line)
                file.flush()
                try:
                    self._log.append(json.loads(line))
                except ValueError:
                    self._log.append({"event": line.decode(errors="replace")})

    @property
    def log(self) -> list[dict[str, object]]:
        """Log entries since the last start."""
        return self._log

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    def said(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in self._log if entry.get("event") == event]

    def child_pids(self) -> list[int]:
        """The living child processes."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        found = [int(pid) for path in tasks for pid in path.read_text().split()]
        return [pid for pid in found if b"mta.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    async def stop(self) -> int:
        """SIGTERM, and wait for the drain; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self._wait()

    async def kill(self) -> None:
        """SIGKILL to the master; its children end by themselves."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self._wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill_child(self, index: int = 0) -> int:
        """SIGKILL to one child; its pid."""
        pid = self.child_pids()[index]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def _wait(self) -> int:
        assert self.process is not None
        code = await asyncio.wait_for(self.process.wait(), WAIT_S)
        if self._reader is not None:
            await asyncio.wait_for(self._reader, WAIT_S)
        return code


@dataclass
class World:
    """A sink, a name server and a database; nodes are added as a test wants them.

    ``zones``: as of `mta.sink.nameserver`; by default every name under ``test`` that tests use has one MX host
    at 127.0.0.1. Use as an asynchronous context manager.
    """

    directory: Path
    database: Database
    zones: dict[str, object] = field(default_factory=dict)
    sink_addresses: Sequence[str] = ("127.0.0.1",)
    sink_processes: int = 1
    script: str = ""  # TOML of `mta.sink.script`
    provider: str = ""  # TOML of `mta.sink.provider`
    tls: bool = False
    hide: tuple[str, ...] = ()
    bodies: bool = False  # keep them, see `mta.sink.record.read_body`
    nodes: list[Node] = field(default_factory=list)

    async def __aenter__(self) -> World:
        for name in ("script", "provider"):
            if getattr(self, name):
                (self.directory / f"{name}.toml").write_text(getattr(self, name))
        self.record_dir = self.directory / "record"
        self.record_dir.mkdir()
        options = SinkOptions(
            record=self.record_dir,
            addresses=list(self.sink_addresses),
            processes=self.sink_processes,
            script=self.directory / "script.toml" if self.script else None,
            provider=self.directory / "provider.toml" if self.provider else None,
            tls=self.tls,
            hide=self.hide,
            bodies=self.bodies,
        )
        zones = self.zones or one_host_zones(10)
        self.sink = await asyncio.to_thread(ForkedSink(options).__enter__)
        self.nameserver = await asyncio.to_thread(ThreadedNameserver(zones).__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.kill()
        await asyncio.to_thread(self.nameserver.__exit__, None, None, None)
        await asyncio.to_thread(self.sink.__exit__, None, None, None)

    def node(
        self,
        name: str = "one",
        *,
        rules: str = GENEROUS_RULES,
        children: int = 2,
        settings: str = "",
        ipv6: bool = False,
        **keys: object,
    ) -> Node:
        """A node's configuration, not started. ``settings`` is TOML after the common part; ``keys`` are of [master]."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "rules.toml").write_text(rules)
        master = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
        (directory / "mta.toml").write_text(
            f"""
[node]
name = "{name}"
journal_dir = "{directory / "journal"}"
[database]
dsn = "{self.database.dsn}"
[dns]
nameservers = ["{self.nameserver.address}:{self.nameserver.port}"]
allow_networks = ["127.0.0.0/8", "::1/128"]
ipv6 = {json.dumps(ipv6)}
[smtp]
port = {self.sink.port}
[rules]
file = "rules.toml"
[master]
poll_idle_s = 0.1
{master}
[children]
count = {children}
{settings}
"""
        )
        node = Node(name, directory, directory / "mta.toml")
        self.nodes.append(node)
        return node

    async def deliver(
        self,
        addresses: Sequence[str],
        *,
        start: bool = True,
        seal: bool = True,
        part_recipients: int = 256,
        value: str = "Ann",
        **of_delivery: object,
    ) -> int:
        """A delivery to these addresses, appended, sealed and started; its id."""
        given: dict[str, object] = {"name": "test", "content": content_json(), **of_delivery}
        async with self.database.pool.acquire() as conn:
            delivery_id = await deliveries.create(conn, NewDelivery(**given))  # type: ignore[arg-type]
            parts = [
                Part(
                    f"part:{at}",
                    ("first",),
                    [(address, None, [value]) for address in addresses[at : at + part_recipients]],
                )
                for at in range(0, len(addresses), part_recipients)
            ]
            for at in range(0, len(parts), 64):
                await append_parts(conn, delivery_id, parts[at : at + 64])
            if seal:
                await deliveries.seal(conn, delivery_id)
            if start:
                await deliveries.start(conn, delivery_id)
        return delivery_id

    async def show(self, delivery_id: int) -> Delivery:
        async with self.database.pool.acquire() as conn:
            return await deliveries.show(conn, delivery_id)

    async def wait_for(
        self, delivery_id: int, holds: Callable[[Delivery], object] | None = None, wait_s: float = WAIT_S
    ) -> Delivery:
        """Waits until the delivery is finished, or until ``holds`` is true of it."""
        end = time.monotonic() + wait_s
        while True:
            shown = await self.show(delivery_id)
            if holds(shown) if holds else shown.state == "finished":
                return shown
            assert time.monotonic() < end, f"not within {wait_s:.0f} s: {shown}; {[n.log[-5:] for n in self.nodes]}"
            await asyncio.sleep(0.05)

    async def audit(self, delivery_id: int) -> Audit:
        async with self.database.pool.acquire() as conn:
            return await audit(conn, delivery_id)

    def record(self) -> Record:
        """What the sink wrote down so far."""
        return Record.load(self.record_dir)


def one_host_zones(domains: int, address: str = "127.0.0.1") -> dict[str, object]:
    """``d0.test`` ... with one MX host for all of them."""
    zones: dict[str, object] = {"mx.test": {"A": [address]}}
    for number in range(domains):
        zones[f"d{number}.test"] = {"MX": [(10, "mx.test")]}
    return zones


def addresses(count: int, domains: int = 10) -> list[str]:
    """``u0@d0.test`` ... spread over the domains of `one_host_zones`."""
    return [f"u{number}@d{number % domains}.test" for number in range(count)]
