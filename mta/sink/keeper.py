"""One provider for all processes of a sink: it lives in the first, the others ask it over a socket pair.

A limit on connections or messages of a client cannot be counted in several places: the kernel spreads
one client's connections over all processes. So every process holds a ``Keeper``; in the first it is the
provider itself, in the others a link to it. A question costs a round trip of some 100 microseconds, and only
a sink with a provider asks any.

When a process dies, its link ends, and the provider counts its connections as closed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

import msgspec

from mta.model.errors import LocalFault
from mta.sink.provider import Provider, Refusal

_LINE_BYTES_MAX: Final = 16 * 1024  # a question holds two addresses at most


class Keeper(Protocol):
    """Asks the provider at each step; None means yes."""

    async def connect(self, connection: str, client: str, local: str) -> Refusal | None: ...
    async def mail(self, connection: str, sender: str) -> Refusal | None: ...
    async def rcpt(self, connection: str, recipient: str) -> Refusal | None: ...
    async def data(self, connection: str) -> Refusal | None: ...
    async def dot(self, connection: str) -> Refusal | None: ...
    async def closed(self, connection: str) -> None: ...


class OwnKeeper:
    """The provider in this very process."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    async def connect(self, connection: str, client: str, local: str) -> Refusal | None:
        return self.provider.connect(connection, client, local, time.monotonic())

    async def mail(self, connection: str, sender: str) -> Refusal | None:
        return self.provider.mail(connection, sender, time.monotonic())

    async def rcpt(self, connection: str, recipient: str) -> Refusal | None:
        return self.provider.rcpt(connection, recipient, time.monotonic())

    async def data(self, connection: str) -> Refusal | None:
        return self.provider.data(connection, time.monotonic())

    async def dot(self, connection: str) -> Refusal | None:
        return self.provider.dot(connection, time.monotonic())

    async def closed(self, connection: str) -> None:
        self.provider.closed(connection)


class _Question(msgspec.Struct, array_like=True):
    step: str
    connection: str
    first: str = ""
    second: str = ""


_questions: Final = msgspec.json.Decoder(_Question)
_answers: Final = msgspec.json.Decoder(Refusal | None)
_encode: Final = msgspec.json.Encoder().encode


async def serve_link(provider: Provider, end: socket.socket) -> None:
    """Answers one other process in order, until its link ends."""
    reader, writer = await asyncio.open_connection(sock=end, limit=_LINE_BYTES_MAX)
    theirs: set[str] = set()
    try:
        while line := await reader.readline():
            question = _questions.decode(line)
            if question.step == "connect":
                theirs.add(question.connection)
            elif question.step == "closed":
                theirs.discard(question.connection)
            writer.write(_encode(_decide(provider, question)) + b"\n")
    except ConnectionError:
        pass  # that process was killed: the same as the end of its link
    finally:
        for connection in theirs:
            provider.closed(connection)
        writer.close()


def _decide(provider: Provider, question: _Question) -> Refusal | None:
    now = time.monotonic()
    match question.step:
        case "connect":
            return provider.connect(question.connection, question.first, question.second, now)
        case "mail":
            return provider.mail(question.connection, question.first, now)
        case "rcpt":
            return provider.rcpt(question.connection, question.first, now)
        case "data":
            return provider.data(question.connection, now)
        case "dot":
            return provider.dot(question.connection, now)
        case "closed":
            provider.closed(question.connection)
            return None
    raise LocalFault(f"unknown step {question.step!r} asked of the provider")


class LinkedKeeper(asyncio.Protocol):
    """The provider in another process. Answers come in the order of the questions.

    ``on_loss`` is called when the link ends: without its provider a process must not go on accepting.
    """

    def __init__(self, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss
        self._owed: list[asyncio.Future[Refusal | None]] = []
        self._received = b""
        self._transport: asyncio.Transport | None = None

    async def open(self, end: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, sock=end)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, octets: bytes) -> None:
        *lines, self._received = (self._received + octets).split(b"\n")
        for line, owed in zip(lines, self._owed, strict=False):
            if not owed.done():  # its connection may have gone meanwhile
                owed.set_result(_answers.decode(line))
        del self._owed[: len(lines)]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for owed in self._owed:
            owed.cancel()
        self._owed.clear()
        self._on_loss()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def _ask(self, question: _Question) -> Refusal | None:
        if self._transport is None:
            raise LocalFault("the link to the provider is gone")
        owed: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self._owed.append(owed)
        self._transport.write(_encode(question) + b"\n")
        return await owed

    async def connect(self, connection: str, client: str, local: str) -> Refusal | None:
        return await self._ask(_Question("connect", connection, client, local))

    async def mail(self, connection: str, sender: str) -> Refusal | None:
        return await self._ask(_Question("mail", connection, sender))

    async def rcpt(self, connection: str, recipient: str) -> Refusal | None:
        return await self._ask(_Question("rcpt", connection, recipient))

    async def data(self, connection: str) -> Refusal | None:
        return await self._ask(_Question("data", connection))

    async def dot(self, connection: str) -> Refusal | None:
        return await self._ask(_Question("dot", connection))

    async def closed(self, connection: str) -> None:
        await self._ask(_Question("closed", connection))
