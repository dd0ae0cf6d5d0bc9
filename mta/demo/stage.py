"""What has to stand before a delivery can be sent: directory, PostgreSQL, sink, name server, node. And its clearing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from mta.demo.node import NodeProcess
from mta.demo.scene import RULES, SENDER_DOMAIN, SINK_SCRIPT, Scene
from mta.queue.connection import connection
from mta.queue.embedded import EmbeddedPostgres
from mta.queue.migrate import migrate
from mta.sink.nameserver import ThreadedNameserver
from mta.sink.processes import SinkOptions, SinkProcesses

T = TypeVar("T")
PREFIX: Final = "mta-demo-"
DATABASE: Final = "mta"
SINK_PROCESSES: Final = 2
UNLOCKED_GRACE_S: Final = 60.0  # between the making of a directory and of the lock in it


class Stage:
    """An asynchronous context manager: all of it stands inside, none of it afterwards, whatever happened."""

    def __init__(self, scene: Scene, on_step: Callable[[str], None]) -> None:
        self._scene = scene
        self._on_step = on_step
        self._stack = contextlib.AsyncExitStack()
        self.directory = Path()
        self.dsn = ""

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _set_up(self) -> None:
        self.directory = self._stack.enter_context(own_directory(PREFIX))
        self._on_step("starting PostgreSQL (a real server from a wheel, fsync on)")
        postgres = EmbeddedPostgres(self.directory / "postgres")
        self._stack.callback(destroy, postgres)
        await uninterrupted(postgres.start)
        async with connection(postgres.dsn) as conn:
            await conn.execute(f"CREATE DATABASE {DATABASE}")
        self.dsn = postgres.database_dsn(DATABASE)
        async with connection(self.dsn) as conn:
            await migrate(conn)
        self._on_step("starting the far end: SMTP servers that answer as scripted, and DNS that leads to them")
        (self.directory / "script.toml").write_text(SINK_SCRIPT)
        self.record_dir = self.directory / "record"
        self.sink = SinkProcesses(
            SinkOptions(
                record=self.record_dir,
                addresses=[host.address for host in self._scene.hosts],
                processes=SINK_PROCESSES,
                script=self.directory / "script.toml",
            )
        )
        self._stack.callback(self.sink.stop)
        await uninterrupted(self.sink.start)
        nameserver = ThreadedNameserver(self._scene.zones())
        self._stack.callback(nameserver.stop)
        await uninterrupted(nameserver.start)
        self._on_step(f"starting mta run with {self._scene.options.children} child processes")
        self.node = NodeProcess(self._write_config(f"{nameserver.address}:{nameserver.port}"), self.directory / "log")
        self._stack.push_async_callback(self.node.kill)  # a drain has no point: the queue goes with it
        await self.node.start()
        self._on_step("starting mta inbound and mta keep: what comes back is taken, and addresses are quarantined")
        config = self.directory / "mta.toml"
        self.inbound = NodeProcess(config, self.directory / "inbound.log", "inbound", "run")
        self._stack.push_async_callback(self.inbound.kill)
        keeper = NodeProcess(config, self.directory / "keeper.log", "keep", ready="keeping")
        self._stack.push_async_callback(keeper.kill)
        await asyncio.gather(self.inbound.start(), keeper.start())

    @property
    def inbound_port(self) -> int:
        """Where mail that comes back is taken."""
        told = next(entry for entry in self.inbound.log if entry.get("event") == "running")
        return int(told["listening"][0].rpartition(":")[2])

    def _write_config(self, nameserver: str) -> Path:
        (self.directory / "mx-rules.toml").write_text(RULES)
        config = self.directory / "mta.toml"
        config.write_text(
            f"""\
[node]
name = "demo"
journal_dir = "journal"
[database]
dsn = "{self.dsn}"
[master]
poll_idle_s = 0.2
in_doubt_max = 100  # what is killed on purpose is to arrive all the same
[children]
count = {self._scene.options.children}
[dns]
nameservers = ["{nameserver}"]
allow_networks = ["127.0.0.0/8"]
ipv6 = false
[smtp]
port = {self.sink.port}
[rules]
file = "mx-rules.toml"
[inbound]
listen = ["127.0.0.1:0"]
domains = ["{SENDER_DOMAIN}"]
spool_dir = "spool"
[[egress]]
name = "demo"
id = 1
helo = "mail.shop.example"
"""
        )
        return config


async def uninterrupted(work: Callable[[], T]) -> T:
    """``work()`` in a thread. Cancelled meanwhile, it is awaited all the same: half-started is not clearable."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def destroy(postgres: EmbeddedPostgres) -> None:
    """Ends the server and deletes all it has, whether it was ever started or not."""
    postgres.kill()  # nobody needs its last checkpoint
    with contextlib.suppress(FileNotFoundError):
        postgres.remove()


@contextlib.contextmanager
def own_directory(prefix: str) -> Iterator[Path]:
    """A new directory under the system's temporary one, deleted afterwards; those of the dead are cleared first.

    A lock in it tells the living from the dead: it goes with the process that holds it, however that ends.
    """
    clear_leftovers(prefix)
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    lock = _lock(directory)
    try:
        yield directory
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def clear_leftovers(prefix: str) -> None:
    """Ends the processes and deletes the directories of those that were killed before they could.

    PostgreSQL is expected in ``postgres`` below such a directory; other processes are known by an argument that lies
    in the directory, or is its name.
    """
    for left in Path(tempfile.gettempdir()).glob(prefix + "*"):
        try:
            if left.is_symlink() or left.stat().st_uid != os.geteuid() or _is_in_use(left):
                continue
        except FileNotFoundError:
            continue  # another one was quicker
        destroy(EmbeddedPostgres(left / "postgres"))
        _kill_processes_of(left)
        shutil.rmtree(left, ignore_errors=True)


def _lock(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _is_in_use(directory: Path) -> bool:
    if not (directory / "lock").exists():
        return time.time() - directory.stat().st_mtime < UNLOCKED_GRACE_S
    try:
        os.close(_lock(directory))
    except BlockingIOError:
        return True
    return False


def _kill_processes_of(directory: Path) -> None:
    below, name = os.fsencode(f"{directory}/"), os.fsencode(directory.name)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if any(one.startswith(below) or one == name for one in arguments):
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or not ours
