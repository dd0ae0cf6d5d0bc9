"""What every bench stands on: PostgreSQL with fsync on, a far end, a name server in a process of its own, one node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from bench.content import FIELDS
from bench.far import ADDRESS, FarEnd, Receiver, SinkKind, far_end
from bench.openssl import Dkim, settings_of
from bench.receiver import ReceiverOptions, Taken
from bench.usage import PeakMegabytes, Used, children_of, cpu_seconds, peak_rss_mb
from mta.demo.node import NodeProcess
from mta.demo.stage import destroy, own_directory, uninterrupted
from mta.model.errors import LocalFault
from mta.model.limits import AUTO_PART_RECIPIENTS_MAX
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.audit import audit
from mta.queue.connection import connect, connection
from mta.queue.deliveries import NewDelivery
from mta.queue.embedded import EmbeddedPostgres
from mta.queue.load import BATCH_RECIPIENTS_MAX
from mta.queue.migrate import migrate
from mta.queue.part import Part, Row

PREFIX: Final = "mta-bench-"
SUFFIX: Final = "bench.test"
STALL_S: Final = 60.0
POLL_S: Final = 0.02
_SETTLED: Final = "SELECT delivered + failed + expired FROM mta.delivery_stats WHERE delivery_id = $1"
_ALL_SETTLED: Final = """
SELECT delivery_id, delivered + failed + expired AS settled FROM mta.delivery_stats
WHERE delivery_id = ANY ($1::bigint[])
"""


class BenchFailed(Exception):  # noqa: N818 - a sentence for whoever started it
    """No figure can be given; the text says why."""


class Zone(msgspec.Struct, frozen=True):
    """Domains d0, d1, ... of ``suffix`` over MX hosts mx0, mx1, ... of it."""

    suffix: str
    domains: int
    hosts: int
    first_share: float = 0.0  # of the domains on mx0; 0: even


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the world is made of."""

    sink: SinkKind
    manner: ReceiverOptions = ReceiverOptions()
    rules: str
    zones: tuple[Zone, ...]
    children: int
    sessions_max: int = 1_000  # of one child
    dkim: Dkim = Dkim.NONE


@contextlib.asynccontextmanager
async def database(directory: Path) -> AsyncIterator[tuple[EmbeddedPostgres, asyncpg.Connection[asyncpg.Record], str]]:
    """A server in ``directory`` with fsync on, a connection to a database with our tables, and its address."""
    postgres = EmbeddedPostgres(directory / "postgres")
    try:
        await uninterrupted(postgres.start)
        async with connection(postgres.dsn) as conn:
            await conn.execute("CREATE DATABASE bench")
        dsn = postgres.database_dsn("bench")
        conn = await connect(dsn, application_name="mta bench")
        try:
            await migrate(conn)
            yield postgres, conn, dsn
        finally:
            await conn.close(timeout=5)
    finally:
        destroy(postgres)


@contextlib.asynccontextmanager
async def standing(plan: Plan, on_step: Callable[[str], None]) -> AsyncIterator[World]:
    """A world as long as the context lasts; the node is started and stopped by the bench itself."""
    async with contextlib.AsyncExitStack() as stack:
        world = World(plan, on_step, stack)
        await world.set_up()
        yield world


class World:
    """What `standing` has set up."""

    def __init__(self, plan: Plan, on_step: Callable[[str], None], stack: contextlib.AsyncExitStack) -> None:
        self._plan = plan
        self._on_step = on_step
        self._stack = stack
        self.conn: asyncpg.Connection[asyncpg.Record]
        self.postgres: EmbeddedPostgres
        self.far_end: FarEnd
        self.node: NodeProcess

    async def set_up(self) -> None:
        """Everything but the node's start; what stands is cleared with the stack, also when the rest fails."""
        self._on_step("starting PostgreSQL, the far end and the name server")
        directory = self._stack.enter_context(own_directory(PREFIX))
        self.postgres, self.conn, dsn = await self._stack.enter_async_context(database(directory))
        self.far_end = far_end(self._plan.sink, directory, self._plan.manner)
        self._stack.callback(self.far_end.stop)
        await uninterrupted(self.far_end.start)
        nameserver = await self._start_nameserver(directory)
        (directory / "mx-rules.toml").write_text(self._plan.rules)
        config = directory / "mta.toml"
        config.write_text(
            _config(self._plan, dsn, nameserver, self.far_end.port) + settings_of(self._plan.dkim, directory)
        )
        self.node = NodeProcess(config, directory / "log")
        self._stack.push_async_callback(self.node.kill)

    async def _start_nameserver(self, directory: Path) -> str:
        """In a process of its own, so that its CPU time is nobody's. Answers ADDRESS:PORT."""
        zones = directory / "zones.toml"
        zones.write_text(
            "".join(
                f"[[spread]]\nsuffix = {zone.suffix!r}\ndomains = {zone.domains}\nhosts = {zone.hosts}\n"
                f"addresses = [{ADDRESS!r}]\nfirst_share = {zone.first_share}\n"
                for zone in self._plan.zones
            )
        )
        arguments = ("sink", "nameserver", str(zones), "--listen", f"{ADDRESS}:0", "--json")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mta.cli.main", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self._stack.push_async_callback(_end, process)
        self._nameserver_pid = process.pid
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        if not line:
            raise LocalFault("the name server did not start; standard error says why")
        return msgspec.json.decode(line, type=dict[str, str])["listening"]

    async def fill(
        self, rows: Iterable[Row], content: bytes, *, fields: tuple[str, ...] = FIELDS, retry: str | None = None
    ) -> int:
        """A delivery of these recipients in the queue, durable and sealed, not started; its id."""
        new = NewDelivery(name="bench", content=content, retry=retry)
        delivery_id = await deliveries.create(self.conn, new)
        numbered = enumerate(_parts(rows))
        while batch := list(islice(numbered, BATCH_RECIPIENTS_MAX // AUTO_PART_RECIPIENTS_MAX)):
            await append_parts(self.conn, delivery_id, [Part(f"{number}", fields, part) for number, part in batch])
        await deliveries.seal(self.conn, delivery_id)
        # What filling the queue left to be written is not the drain's business.
        await self.conn.execute("CHECKPOINT")
        return delivery_id

    def stopwatch(self) -> Callable[[], Used]:
        """Starts now; a call tells what was used since. The node runs, at both times the same."""
        postmaster = self.postgres.postmaster_pid()
        assert postmaster is not None
        who = self.node.pid, postmaster, self.far_end.pids, self._nameserver_pid
        before, began_s = cpu_seconds(*who), time.monotonic()
        return lambda: Used(time.monotonic() - began_s, cpu_seconds(*who).since(before))

    def peak_memory(self) -> PeakMegabytes:
        """Of the node that runs, since it was started."""
        postmaster = self.postgres.postmaster_pid()
        assert postmaster is not None
        return PeakMegabytes(
            master=round(peak_rss_mb([self.node.pid]), 1),
            child=round(peak_rss_mb(self.node.child_pids()), 1),
            postgres=round(peak_rss_mb([postmaster, *children_of(postmaster)]), 1),
        )

    def check_taken(self, messages: int) -> None:
        """BenchFailed unless the receiver counted so many messages. To be asked when the world has ended."""
        if isinstance(self.far_end, Receiver) and self.taken().messages != messages:
            raise BenchFailed(f"the receiver counted {self.taken().messages:,} messages instead of {messages:,}")

    def taken(self) -> Taken:
        """What the receiver counted; nothing before the world has ended, or when somebody else received."""
        return self.far_end.taken if isinstance(self.far_end, Receiver) else Taken()

    async def warm_up(
        self, rows: Iterable[Row], content: bytes, *, fields: tuple[str, ...] = FIELDS, retry: str | None = None
    ) -> None:
        """A delivery that is not measured: modules are loaded and caches filled, as in a daemon that has run before."""
        listed = list(rows)
        delivery_id = await self.fill(listed, content, fields=fields, retry=retry)
        await deliveries.start(self.conn, delivery_id)
        await self.wait(delivery_id, lambda settled: settled >= len(listed))

    async def drain(self, delivery_id: int, recipients: int) -> Used:
        """Starts it, and waits until what became of each recipient is durable."""
        read = self.stopwatch()
        await deliveries.start(self.conn, delivery_id)
        await self.wait(delivery_id, lambda settled: settled >= recipients)
        return read()

    async def check(self, delivery_id: int, delivered: int) -> None:
        """BenchFailed unless so many were delivered, each of all recipients has one outcome, and nobody is left."""
        shown = await deliveries.show(self.conn, delivery_id)
        audited = await audit(self.conn, delivery_id)
        if shown.delivered != delivered or not audited.is_clean:
            raise BenchFailed(f"{shown.delivered:,} of {delivered:,} delivered, {shown.failed:,} failed; {audited}")

    async def wait(self, delivery_id: int, is_over: Callable[[int], object]) -> int:
        """Until ``await is_over(settled)`` is true; looked at 50 times a second. Answers how many were settled."""
        loop = asyncio.get_running_loop()
        last, moved_at_s = -1, loop.time()
        while True:
            settled: int = await self.conn.fetchval(_SETTLED, delivery_id)
            answer = is_over(settled)
            if await answer if asyncio.iscoroutine(answer) else answer:
                return settled
            if settled != last:
                last, moved_at_s = settled, loop.time()
            elif loop.time() - moved_at_s > STALL_S:
                log = [entry.get("event") for entry in list(self.node.log)[-5:]]
                raise BenchFailed(f"{settled:,} settled, nothing more for {STALL_S:.0f} s; its log ends {log}")
            if not self.node.pid:
                raise BenchFailed(f"the daemon ended by itself: {list(self.node.log)[-3:]}")
            await asyncio.sleep(POLL_S)

    async def wait_any(self, recipients: dict[int, int]) -> None:
        """Until one of several deliveries, given with their numbers of recipients, has all of them settled."""

        async def is_over() -> bool:
            rows = await self.conn.fetch(_ALL_SETTLED, list(recipients))
            return any(row["settled"] >= recipients[row["delivery_id"]] for row in rows)

        await self.wait(next(iter(recipients)), lambda _: is_over())


def rule(name: str, mx: str, **keys: int | str) -> str:
    """A ``[[rule]]`` with one count for all hosts that it covers."""
    written = {"name": name, "mx": mx, "scope": "shared", **keys}
    # JSON's texts, numbers and truth values are also TOML's.
    return "[[rule]]\n" + "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in written.items())


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while part := list(islice(rows, AUTO_PART_RECIPIENTS_MAX)):
        yield part


def _config(plan: Plan, dsn: str, nameserver: str, port: int) -> str:
    return f"""\
[node]
name = "bench"
journal_dir = "journal"
[database]
dsn = "{dsn}"
[children]
count = {plan.children}
sessions_max = {plan.sessions_max}
[dns]
nameservers = ["{nameserver}"]
allow_networks = ["127.0.0.0/8"]
ipv6 = false
[smtp]
port = {port}
[rules]
file = "mx-rules.toml"
[[egress]]
name = "bench"
id = 1
helo = "mail.shop.example"
"""


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
