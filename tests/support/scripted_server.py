"""A raw asyncio server on loopback that plays a scripted session to each client."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self, cast

from tests.support.dialogue_script import Answer, Script, ScriptedSession


class _Connection(asyncio.Protocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self.session = ScriptedSession(server.script)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._server.connections.append(self)
        self._answer(self.session.greet())

    def data_received(self, data: bytes) -> None:
        self._answer(self.session.receive(data))

    def drop(self) -> None:
        self._transport.abort()

    def _answer(self, answers: list[Answer]) -> None:
        # One write for all: a client that is led astray by what comes with a reply must be led astray here.
        octets = b"".join(answer.octets for answer in answers)
        if octets:
            self._transport.write(octets)
        match answers[-1].then if answers else "":
            case "close":
                self._transport.close()
            case "reset":
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()


class ScriptedServer:
    """``async with ScriptedServer(script) as server: ... server.port ... server.sessions``."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections: list[_Connection] = []
        self.port = 0

    @property
    def sessions(self) -> list[ScriptedSession]:
        return [connection.session for connection in self.connections]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self.connections:
            connection.drop()
        await self._server.wait_closed()
