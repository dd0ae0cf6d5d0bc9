"""The listener for mail that comes back in the test's own loop, and a client that says just what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mta.inbound.listener import Listener
from mta.inbound.spool import Spool, Stored, read_stored
from mta.message.verp import ReturnPathSigner, base36
from mta.settings.inbound import InboundSettings

DOMAIN = "back.example"
KEY = b"a key of the tests, of 32 octets"
WAIT_S = 20.0


def path_of(number: int, key: bytes = KEY) -> str:
    """The signed return path of a recipient."""
    return f"{ReturnPathSigner(key).local_part(base36(number))}@{DOMAIN}"


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """All lines of a reply; empty at the end of the connection."""
        lines = []
        async with asyncio.timeout(WAIT_S):
            while line := await self.reader.readline():
                lines.append(line.decode())
                if line[3:4] != b"-":
                    break
        return "".join(lines)

    async def say(self, octets: bytes | str) -> str:
        self.writer.write(octets if isinstance(octets, bytes) else octets.encode() + b"\r\n")
        await self.writer.drain()
        return await self.reply()

    async def code(self, octets: bytes | str) -> str:
        """The code and, where there is one, the enhanced code of the reply."""
        return " ".join(word for word in (await self.say(octets)).split()[:2] if word[0].isdigit())

    async def envelope(self, *recipients: str) -> list[str]:
        """Codes of MAIL, RCPT... and DATA."""
        commands = ["MAIL FROM:<>", *(f"RCPT TO:<{to}>" for to in recipients), "DATA"]
        return [await self.code(command) for command in commands]

    async def hand_in(self, octets: bytes, *recipients: str) -> str:
        codes = await self.envelope(*recipients)
        assert codes[-1] == "354", codes
        return await self.code(octets + b"\r\n.\r\n")

    async def start_tls(self) -> None:
        await self.writer.start_tls(_unchecked(), server_hostname="localhost")

    async def is_closed(self) -> bool:
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Scene:
    def __init__(self, directory: Path, settings: InboundSettings) -> None:
        self.spool = Spool(directory, settings.spool_mbytes_max << 20)
        self.listener = Listener(settings, KEY, self.spool)
        self.port = 0
        self._clients: list[Client] = []

    async def client(self, *, greets: bool = True) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))
        self._clients.append(client)
        if greets:
            assert (await client.reply()).startswith("220 ")
            assert (await client.say("EHLO mx.example.net")).startswith("250-")
        return client

    def mails(self) -> list[tuple[Stored, bytes]]:
        return [mail for path in sorted(self.spool.new.iterdir()) for mail in read_stored(path)]

    def leave(self) -> None:
        for client in self._clients:
            client.writer.close()


@contextlib.asynccontextmanager
async def listening(directory: Path, **settings: Any) -> AsyncIterator[Scene]:
    """A listener on loopback, whose spool nobody reads."""
    given = {"domains": (DOMAIN,), "addresses": (("127.0.0.1", 0),), "name": "back.test", **settings}
    scene = Scene(directory, InboundSettings(**given))
    ((_, scene.port),) = await scene.listener.start()
    try:
        yield scene
    finally:
        scene.leave()
        await scene.listener.stop()
        await asyncio.to_thread(scene.spool.close)
