"""A server on loopback whose every connection is a coroutine of the test; with TLS where the test wants it."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Play = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One client as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.address: str = writer.get_extra_info("peername")[0]

    async def say(self, *lines: str, end: str = "\r\n") -> None:
        """Raises ConnectionError when the client has left, of which uvloop's transport makes a RuntimeError."""
        if self._writer.transport.is_closing():
            raise ConnectionResetError
        self._writer.write("".join(line + end for line in lines).encode("latin-1"))
        await self._writer.drain()

    async def hear(self) -> str:
        """A line, without its end; raises EOFError when the client has left."""
        line = await self._reader.readline()
        if not line:
            raise EOFError
        return line.decode("latin-1").rstrip("\r\n")

    async def hear_until(self, verb: str) -> None:
        while not (await self.hear()).startswith(verb):
            pass

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self._writer.start_tls(context)

    async def gone(self) -> None:
        """Wait until the client has left."""
        while await self._reader.read(65536):
            pass

    def drop(self) -> None:
        self._writer.transport.abort()


class HostileServer:
    """``async with HostileServer(play) as server: ... server.port``; a play that fails, fails the test."""

    def __init__(self, play: Play, *, receive_buffer_bytes: int | None = None) -> None:
        self._play = play
        self._receive_buffer_bytes = receive_buffer_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        sock = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only where it sees this
        if self._receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        sock.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._connected, sock=sock, limit=4096)
        self.port = sock.getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for peer in self.peers:
            peer.drop()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await self._play(peer)
            await peer.gone()
        except (EOFError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            peer.drop()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until a plain attribute of the code under test says so; fails after 20 s."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it has no event, and gets none for a test
            await asyncio.sleep(0)


def self_signed(folder: Path, name: str = "mx.example.test") -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
