"""A TCP port in front of a PostgreSQL server, that can fall silent: it goes on taking what it passes on no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Forwarder:
    """``dsn``: of the server behind it, by way of the port. Use as an asynchronous context manager."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._socket = str(Path(parse_qs(parts.query)["host"][0]) / ".s.PGSQL.5432")
        self._user, self._path = parts.username, parts.path
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Forwarder:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def dsn(self) -> str:
        return f"postgresql://{self._user}@127.0.0.1:{self.port}{self._path}"

    def fall_silent(self) -> None:
        """Connections stay, and new ones are taken; nothing goes through."""
        self._passes.clear()

    def go_on(self) -> None:
        self._passes.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._passes.wait()
            theirs, ours = await asyncio.open_unix_connection(self._socket)
            async with contextlib.AsyncExitStack() as stack:
                stack.callback(ours.close)
                stack.callback(writer.close)
                pumps = [asyncio.create_task(self._pump(*pair)) for pair in ((reader, ours), (theirs, writer))]
                for pump in pumps:
                    stack.callback(pump.cancel)
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # asyncio's own streams log a callback that was cancelled
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._passes.wait()
                sink.write(data)
                await sink.drain()
            await self._passes.wait()  # an end is news too


@contextlib.asynccontextmanager
async def silent_listener() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in held:
            writer.close()
