"""What every bench stands on: PostgreSQL with fsync on, a far end, a name server in a process of its own, one node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import asyncpg
import msgspec

from bench.far import ADDRESS, FarEnd, SinkKind, far_end
from mta.demo.node import NodeProcess
from mta.demo.stage import destroy, own_directory, uninterrupted
from mta.model.errors import LocalFault
from mta.model.limits import AUTO_PART_RECIPIENTS_MAX
from mta.queue import deliveries
from mta.queue.append import append_parts
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
FIELDS: Final = ("first_name", "voucher")
_STATE: Final = "SELECT state FROM mta.delivery WHERE id = $1"
_DELIVERED: Final = "SELECT delivered FROM mta.delivery_stats WHERE delivery_id = $1"


class BenchFailed(Exception):  # noqa: N818 - a sentence for whoever started it
    """No figure can be given; the text says why."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the world is made of. ``hosts`` MX hosts serve the domains d0, d1, ... of `SUFFIX`."""

    sink: SinkKind
    rules: str
    domains: int
    hosts: int
    children: int
    first_share: float = 0.0  # of the domains on mx0; 0: even


class World:
    """An asynchronous context manager; the node is started and stopped by the bench itself."""

    def __init__(self, plan: Plan, on_step: Callable[[str], None]) -> None:
        self._plan = plan
        self._on_step = on_step
        self._stack = contextlib.AsyncExitStack()
        self.conn: asyncpg.Connection[asyncpg.Record]
        self.postgres: EmbeddedPostgres
        self.far_end: FarEnd
        self.node: NodeProcess

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
        self._on_step("starting PostgreSQL, the far end and the name server")
        directory = self._stack.enter_context(own_directory(PREFIX))
        self.postgres = EmbeddedPostgres(directory / "postgres")
        self._stack.callback(destroy, self.postgres)
        await uninterrupted(self.postgres.start)
        async with connection(self.postgres.dsn) as conn:
            await conn.execute("CREATE DATABASE bench")
        dsn = self.postgres.database_dsn("bench")
        self.conn = await connect(dsn, application_name="mta bench")
        self._stack.push_async_callback(self.conn.close, timeout=5)
        await migrate(self.conn)
        self.far_end = far_end(self._plan.sink, directory)
        self._stack.callback(self.far_end.stop)
        await uninterrupted(self.far_end.start)
        nameserver = await self._start_nameserver(directory)
        (directory / "mx-rules.toml").write_text(self._plan.rules)
        config = directory / "mta.toml"
        config.write_text(_config(dsn, nameserver, self.far_end.port, self._plan.children))
        self.node = NodeProcess(config, directory / "log")
        self._stack.push_async_callback(self.node.kill)

    async def _start_nameserver(self, directory: Path) -> str:
        """In a process of its own, so that its CPU time is nobody's. Answers ADDRESS:PORT."""
        zones = directory / "zones.toml"
        zones.write_text(
            f"[[spread]]\nsuffix = {SUFFIX!r}\ndomains = {self._plan.domains}\nhosts = {self._plan.hosts}\n"
            f"addresses = [{ADDRESS!r}]\nfirst_share = {self._plan.first_share}\n"
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
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        if not line:
            raise LocalFault("the name server did not start; standard error says why")
        return msgspec.json.decode(line, type=dict[str, str])["listening"]

    async def fill(self, rows: Iterable[Row], content: bytes) -> int:
        """A delivery of these recipients in the queue, durable and sealed, not started; its id."""
        new = NewDelivery(name="bench", content=content)
        delivery_id = await deliveries.create(self.conn, new)
        numbered = enumerate(_parts(rows))
        while batch := list(islice(numbered, BATCH_RECIPIENTS_MAX // AUTO_PART_RECIPIENTS_MAX)):
            await append_parts(self.conn, delivery_id, [Part(f"{number}", FIELDS, part) for number, part in batch])
        await deliveries.seal(self.conn, delivery_id)
        # What filling the queue left to be written is not the drain's business.
        await self.conn.execute("CHECKPOINT")
        return delivery_id

    async def wait_finished(self, delivery_id: int) -> None:
        """Until the delivery is finished. BenchFailed when nothing moves any more."""
        await self.wait(delivery_id, lambda _: self._is_finished(delivery_id))

    async def wait(self, delivery_id: int, is_over: Callable[[int], object]) -> None:
        """Until ``await is_over(delivered)`` is true; looked at 50 times a second."""
        loop = asyncio.get_running_loop()
        last, moved_at_s = -1, loop.time()
        while True:
            delivered: int = await self.conn.fetchval(_DELIVERED, delivery_id)
            answer = is_over(delivered)
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            if delivered != last:
                last, moved_at_s = delivered, loop.time()
            elif loop.time() - moved_at_s > STALL_S:
                raise BenchFailed(f"{delivered:,} delivered, and nothing more for {STALL_S:.0f} s")
            if not self.node.pid:
                raise BenchFailed(f"the daemon ended by itself: {list(self.node.log)[-3:]}")
            await asyncio.sleep(POLL_S)

    async def _is_finished(self, delivery_id: int) -> bool:
        return bool(await self.conn.fetchval(_STATE, delivery_id) == "finished")


def content_of(size_bytes: int) -> bytes:
    """A content whose body has about ``size_bytes`` bytes, personalised at its beginning and its end."""
    line = "This line fills the body up to the size that was asked for, as news do.\n"
    frame = "Hello {{first_name}},\n\n", "\nYour voucher: {{voucher}}\n"
    filler = line * (1 + size_bytes // len(line))
    text = frame[0] + filler[: max(1, size_bytes - sum(map(len, frame)))] + frame[1]
    return msgspec.json.encode(
        {"sender": '"Bench" <news@shop.example>', "subject": "News for {{first_name}}", "text": text}
    )


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while part := list(islice(rows, AUTO_PART_RECIPIENTS_MAX)):
        yield part


def _config(dsn: str, nameserver: str, port: int, children: int) -> str:
    return f"""\
[node]
name = "bench"
journal_dir = "journal"
[database]
dsn = "{dsn}"
[children]
count = {children}
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
