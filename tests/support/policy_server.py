"""Policy servers of MTA-STS on loopback: HTTPS, with the answers that a test wants for each name."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from types import TracebackType
from typing import Self

import trustme

from tests.support.authorities import server_context


def policy(*hosts: str, mode: str = "enforce", max_age_s: int = 86_400) -> bytes:
    """The text of a policy."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {host}" for host in hosts), f"max_age: {max_age_s}", ""]
    return "\r\n".join(lines).encode()


class PolicyServer:
    """``replies``: host name (``mta-sts.DOMAIN``) -> octets of a policy, or a whole HTTP response; may be changed.

    Its certificate is for ``mta-sts.*`` of the domains that are given, by an authority of its own.
    """

    def __init__(self, authority: trustme.CA, domains: list[str], replies: dict[str, bytes]) -> None:
        self.replies = replies
        self.requests: Counter[str] = Counter()
        self.is_silent = False
        self.port = 0
        self._context = server_context(authority.issue_cert(*(f"mta-sts.{domain}" for domain in domains)))
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
            host = next(line.partition(": ")[2] for line in head if line.lower().startswith("host: "))
            self.requests[host] += 1
            if self.is_silent:
                await reader.read()
            writer.write(self._response(head[0], host))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _response(self, request: str, host: str) -> bytes:
        body = self.replies.get(host)
        if body is None or request != "GET /.well-known/mta-sts.txt HTTP/1.1":
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        if body.startswith(b"HTTP/"):
            return body
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
