"""Lines of the log made by hand, settings of streams, and a consumer of webhooks that behaves as a test wants."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from mta.model.outcome import Status
from tests.support.launch import launch

SECRET = b"0123456789abcdef0123456789abcdef"
SECRET_TEXT = "whsec_" + base64.b64encode(SECRET).decode()

_LINES = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, type, category, code, enhanced,
                              address, reference, site, mx_host, peer, egress, reply, bytes)
SELECT now() + make_interval(secs => i * 0.000001), $1, $2 + i, 1, 1, $4, 0, 0, 0, 250, '2.0.0',
       'u' || ($2 + i) || '@Example.com', 'ref-' || ($2 + i), 'mx.example.com', 'mx.example.com', '192.0.2.1', 'a',
       'ok', 1234
FROM generate_series(0, $3 - 1) i
"""


async def add_lines(
    conn: asyncpg.Connection, first: int, count: int = 1, *, delivery: int = 1, status: Status = Status.DELIVERED
) -> None:
    """In one transaction, but for one that is open."""
    await conn.execute(_LINES, delivery, first, count, status)


def write_secret(directory: Path, text: str = SECRET_TEXT) -> Path:
    path = directory / "secret"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


@dataclass
class Call:
    """A request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        if self.headers["content-type"] == "application/json":
            return list(json.loads(self.body))
        assert self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.splitlines()]

    def is_signed(self, secret: bytes = SECRET) -> bool:
        """As a consumer would look, with nothing of ours."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        return any(hmac.compare_digest(f"v1,{expected}", one) for one in self.headers["webhook-signature"].split(" "))


# What a consumer answers: a status with more headers; "hang": nothing; "drop": the connection ends;
# "half": it ends in the middle of a good answer's body.
Answer = tuple[int, dict[str, str]] | str
OK: Answer = (200, {})


@dataclass
class Consumer:
    """A real HTTP server on loopback. ``answer`` is asked for each request, with its number from 0."""

    answer: Callable[[int, Call], Answer] = lambda _number, _call: OK
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    taken: list[Call] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of the calls that were acknowledged."""
        return [event for call in self.taken for event in call.events]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a process that is killed: what is under way ends."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server ends
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert head[0].startswith("POST ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        call = Call(headers, await reader.readexactly(int(headers["content-length"])))
        number = len(self.calls)
        self.calls.append(call)
        answer = self.answer(number, call)
        if answer == "hang":
            await reader.read()  # until the client goes away
            return False
        if answer == "drop":
            return False
        if answer == "half":
            self.taken.append(call)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhal")
            await writer.drain()
            return False
        assert not isinstance(answer, str)
        status, more = answer
        lines = [f"HTTP/1.1 {status} Whatever", "Content-Length: 4", *(f"{k}: {v}" for k, v in more.items()), "", ""]
        if 200 <= status < 300:
            self.taken.append(call)
        writer.write("\r\n".join(lines).encode() + b"said")
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def consumer(answer: Callable[[int, Call], Answer] | None = None) -> AsyncIterator[Consumer]:
    one = Consumer() if answer is None else Consumer(answer)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


def write_settings(directory: Path, dsn: str, streams: str) -> Path:
    """``streams``: the [[stream]] tables."""
    path = directory / "mta.toml"
    path.write_text(
        f'[node]\nname = "n"\njournal_dir = "{directory / "journal"}"\n[database]\ndsn = "{dsn}"\n{streams}'
    )
    return path


class Keep:
    """`mta keep` in a process of its own. Its log is ``log``, one object a line."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.log: list[dict[str, Any]] = []

    async def start(self) -> None:
        self.process = await launch(
            *("keep", "--config", str(self._config), "--log-json"),
            env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 30)
        await self._reader
        return code
