"""One process of a sink: listens, serves until it is asked to stop, leaves its record complete."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.sink.certificate import tls_context
from mta.sink.dialogue import Dialogue
from mta.sink.far import Far
from mta.sink.keeper import Keeper, LinkedKeeper, OwnKeeper, serve_link
from mta.sink.options import SinkOptions
from mta.sink.provider import Provider, read_provider
from mta.sink.record import RecordWriter
from mta.sink.script import Script, dice, read_script

BACKLOG: Final = 4096  # connections that wait to be accepted; the kernel's somaxconn may allow fewer
STOP_TIMEOUT_S: Final = 2.0


class ProcessOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A sink's options for its process number ``index`` (from 0). ``port`` is decided, not 0.

    ``links`` are the file descriptors of socket pairs: in process 0 one to each other process, in the
    others the one to process 0; none without a provider.
    """

    sink: SinkOptions
    index: int
    port: int
    certificate: Path | None = None
    links: tuple[int, ...] = ()

    def line(self) -> bytes:
        """One line of JSON, for the standard input of the process."""
        return msgspec.json.encode(self, enc_hook=str) + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> ProcessOptions:
        return msgspec.json.decode(line, type=cls, dec_hook=lambda kind, value: kind(value))


def listening_socket(address: str, port: int) -> socket.socket:
    """A bound socket that shares its port with the other processes of the sink; BadInput when it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        raise BadInput(f"{address}:{port}", f"cannot be listened on: {error.strerror}") from error
    return bound


class Server:
    """Start, serve, stop; ``stop`` may be called at any time and more than once."""

    def __init__(self, options: ProcessOptions) -> None:
        self._options = options
        self._servers: list[asyncio.Server] = []
        self._links: list[asyncio.Task[None]] = []
        self._linked: LinkedKeeper | None = None
        self._far: Far | None = None
        self._record: RecordWriter | None = None

    async def start(self, on_loss: Callable[[], None]) -> None:
        """Listens when it returns. ``on_loss``: the process that holds the provider is gone, so stop."""
        options, sink = self._options, self._options.sink
        randomness = dice(sink.seed, options.index)
        script = Script(randomness=randomness) if sink.script is None else read_script(sink.script, randomness)
        keeper = await self._open_keeper(on_loss)
        self._record = RecordWriter(sink.record, keeps_bodies=sink.bodies)
        far = self._far = Far(
            hostname=sink.hostname,
            script=script,
            keeper=keeper,
            record=self._record,
            hidden=sink.hide,
            tls=None if options.certificate is None else tls_context(options.certificate),
            keeps_bodies=sink.bodies,
        )
        loop = asyncio.get_running_loop()
        for address in sink.addresses:
            bound = listening_socket(address, options.port)
            self._servers.append(await loop.create_server(lambda: Dialogue(far), sock=bound, backlog=BACKLOG))

    async def _open_keeper(self, on_loss: Callable[[], None]) -> Keeper | None:
        path = self._options.sink.provider
        if path is None:
            return None
        ends = [socket.socket(fileno=link) for link in self._options.links]
        if self._options.index > 0:
            self._linked = LinkedKeeper(on_loss)
            await self._linked.open(ends[0])
            return self._linked
        provider = Provider(read_provider(path))
        loop = asyncio.get_running_loop()
        self._links = [loop.create_task(serve_link(provider, end)) for end in ends]
        return OwnKeeper(provider)

    async def stop(self) -> None:
        """Ends all connections and completes the record."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._far is not None:
            tasks = {task for dialogue in list(self._far.dialogues) if (task := dialogue.stop()) is not None}
            if tasks | self._far.endings:
                await asyncio.wait(tasks | self._far.endings, timeout=STOP_TIMEOUT_S)
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        self._links.clear()
        if self._linked is not None:
            self._linked.close()
        if self._record is not None:
            self._record.close()
            self._record = None


async def serve(options: ProcessOptions, ready: Callable[[], None], over: asyncio.Event) -> None:
    """Serves until SIGTERM, SIGINT, or ``over`` (set when whoever started this process is gone)."""
    # aiosmtpd writes four lines a command, even when nobody reads them.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    # Who started this process may have blocked them for itself, and a mask is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    server = Server(options)
    try:
        await server.start(over.set)
        # A connection leaves few cycles behind; collecting young ones often costs a tenth of the time.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        ready()
        await over.wait()
    finally:
        await server.stop()
