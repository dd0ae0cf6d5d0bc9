"""``python -m bench.receiver``: takes mail and forgets it, as cheaply as Python can.

It offers PIPELINING, 8BITMIME, SIZE, SMTPUTF8, if asked STARTTLS (with session tickets) and CHUNKING; refuses shares
of the addresses, the same ones in each run; may take its time over each message. Several processes share one port.
It is no strict receiver: it looks at verbs, addresses and ends of messages, and at nothing else. `mta.sink` is strict.

Options are one line of JSON on standard input, `ReceiverOptions`. It answers with one, `Listening`, and serves until
SIGTERM or the end of its standard input; then it says what it took: `Taken`.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import signal
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, cast
from zlib import crc32

import msgspec
import uvloop

from mta.sink.certificate import tls_context, write_certificate
from mta.sink.server import listening_socket

HELLO_NAME: Final = "receiver.example"
SIZE_BYTES_MAX: Final = 100 * 1024 * 1024
BACKLOG: Final = 4096
_SHARE_STEPS: Final = 1_000_000
_COUNTS: Final = struct.Struct("=QQQQQ")
# One octet for each address that was deferred, by its hash: of two that share one, the second is not deferred.
_DEFERRED_SLOTS: Final = 1 << 24
_DOT: Final = b"\r\n.\r\n"
_OK: Final = b"250 2.0.0 Ok\r\n"
_PERMANENT: Final = b"550 5.1.1 No such user here\r\n"
_TEMPORARY: Final = b"451 4.7.1 Greylisted, come back later\r\n"
_SEQUENCE: Final = b"503 5.5.1 Bad sequence of commands\r\n"

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ReceiverOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``permanent`` and ``temporary`` are shares of the addresses: refused for ever, or at their first attempt only."""

    address: str = "127.0.0.1"
    processes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    tls: bool = False
    chunking: bool = False
    permanent: _Share = 0.0
    temporary: _Share = 0.0
    dot_delay_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0


class Listening(msgspec.Struct, frozen=True):
    """The first line that it says; ``pids`` are those of the processes that serve."""

    port: int
    pids: list[int]


class Taken(msgspec.Struct, frozen=True):
    """The last line: ``bytes`` are those of messages with all that TLS and SMTP put around them taken off."""

    sessions: int = 0
    messages: int = 0
    bytes: int = 0
    permanent: int = 0
    temporary: int = 0


class Shop:
    """What the sessions of one process share."""

    def __init__(self, options: ReceiverOptions, context: ssl.SSLContext | None, deferred: mmap.mmap) -> None:
        self.context = context
        self.dot_delay_s = options.dot_delay_s
        self.loop = asyncio.get_running_loop()
        self.upgrades: set[asyncio.Task[None]] = set()
        self.sessions = self.messages = self.bytes = self.permanent = self.temporary = 0
        self._deferred = deferred
        self._permanent_below = round(options.permanent * _SHARE_STEPS)
        self._temporary_below = self._permanent_below + round(options.temporary * _SHARE_STEPS)
        offers = ["PIPELINING", f"SIZE {SIZE_BYTES_MAX}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        if options.chunking:
            offers.append("CHUNKING")
        self.hello = _hello(offers)
        self.plain_hello = _hello([*offers, "STARTTLS"]) if context is not None else self.hello

    def refusal(self, line: bytes) -> bytes:
        """The answer to a RCPT that is not accepted, or nothing."""
        if not self._temporary_below:
            return b""
        address = line[line.find(b"<") : line.find(b">")].lower()
        number = crc32(address)
        share = number % _SHARE_STEPS
        if share >= self._temporary_below:
            return b""
        if share < self._permanent_below:
            self.permanent += 1
            return _PERMANENT
        slot = crc32(b"slot" + address) % _DEFERRED_SLOTS
        if self._deferred[slot]:
            return b""
        self._deferred[slot] = 1
        self.temporary += 1
        return _TEMPORARY


class Session(asyncio.Protocol):
    """One connection. Commands that came together are answered together."""

    __slots__ = (
        *("_body_bytes", "_chunk_left", "_is_body", "_is_held", "_is_last_chunk", "_is_secure"),
        *("_rest", "_shop", "_takers", "_transport"),
    )

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._rest = b""  # not looked at yet; within a body its last octets, where the end may have begun
        self._is_body = False
        self._is_held = False  # the answer to a message takes its time, or TLS is being set up
        self._chunk_left = 0
        self._is_last_chunk = False
        self._body_bytes = 0
        self._takers = 0  # recipients accepted in this transaction

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_secure = transport.get_extra_info("ssl_object") is not None
        if not self._is_secure:  # after STARTTLS nobody is greeted again
            self._shop.sessions += 1
            self._transport.write(b"220 " + HELLO_NAME.encode() + b" ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self._is_held:
            self._rest += data
        else:
            self._go_on(data)

    def _go_on(self, data: bytes) -> None:
        replies: list[bytes] = []
        while data and not self._is_held:
            if self._chunk_left:
                data = self._take_chunk(data, replies)
            elif self._is_body:
                data = self._take_body(data, replies)
            else:
                data = self._take_commands(self._rest + data, replies)
        if data:
            self._rest = data
        if replies:
            self._transport.write(b"".join(replies))

    def _take_commands(self, data: bytes, replies: list[bytes]) -> bytes:
        """Up to the last whole line, or the one that begins something else; what stands behind it."""
        self._rest = b""
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            line = data[at:end]
            at = end + 2
            verb = line[:4].upper()
            if verb == b"RCPT":
                refusal = self._shop.refusal(line)
                self._takers += not refusal
                replies.append(refusal or _OK)
            elif verb == b"MAIL":
                self._takers = 0
                replies.append(_OK)
            elif verb == b"DATA":
                if self._takers:
                    self._is_body, self._body_bytes, self._rest = True, 0, b"\r\n"
                    replies.append(b"354 Go ahead\r\n")
                    return data[at:]
                replies.append(b"554 5.5.1 No valid recipients\r\n")
            elif self._other(verb, line, replies):
                return data[at:]
        self._rest = data[at:]
        return b""

    def _other(self, verb: bytes, line: bytes, replies: list[bytes]) -> bool:
        """A rarer command; True when what follows is not a command, or not yet."""
        if verb == b"BDAT":
            words = line.split()
            self._chunk_left, self._is_last_chunk = int(words[1]), len(words) > 2
            if not self._chunk_left:
                self._end_chunk(replies)
            return True
        if verb == b"EHLO":
            replies.append(self._shop.hello if self._is_secure else self._shop.plain_hello)
        elif verb == b"STAR" and self._shop.context is not None and not self._is_secure:
            self._is_held = True
            self._transport.write(b"".join(replies) + b"220 2.0.0 Ready to start TLS\r\n")
            replies.clear()
            self._transport.pause_reading()
            task = self._shop.loop.create_task(self._upgrade(self._shop.context))
            self._shop.upgrades.add(task)
            task.add_done_callback(self._shop.upgrades.discard)
            return True
        elif verb == b"QUIT":
            self._transport.write(b"".join(replies) + b"221 2.0.0 Bye\r\n")
            replies.clear()
            self._transport.close()
            self._is_held = True
            return True
        else:
            replies.append(_OK if verb in (b"RSET", b"HELO", b"NOOP") else b"500 5.5.2 Unknown command\r\n")
        return False

    def _take_body(self, data: bytes, replies: list[bytes]) -> bytes:
        """To the end of the message, if it is there; what stands behind it."""
        known = self._rest
        # The end may lie across the edge of two reads: then at most four octets of it have come before.
        edge = known + data[:4]
        at = edge.find(_DOT)
        if at >= 0:
            used = at + len(_DOT) - len(known)
        elif (at := data.find(_DOT)) >= 0:
            used = at + len(_DOT)
        else:
            self._body_bytes += len(data)
            self._rest = data[-4:] if len(data) >= 4 else edge[-4:]
            return b""
        self._body_bytes += used - 3  # the dot and its line end are not the message's
        self._is_body, self._rest = False, b""
        self._end_message(replies)
        return data[used:]

    def _take_chunk(self, data: bytes, replies: list[bytes]) -> bytes:
        used = min(len(data), self._chunk_left)
        self._chunk_left -= used
        self._body_bytes += used
        if not self._chunk_left:
            self._end_chunk(replies)
        return data[used:]

    def _end_chunk(self, replies: list[bytes]) -> None:
        if not self._takers:
            replies.append(_SEQUENCE)
        elif self._is_last_chunk:
            self._end_message(replies)
        else:
            replies.append(_OK)

    def _end_message(self, replies: list[bytes]) -> None:
        shop = self._shop
        shop.messages += 1
        shop.bytes += max(0, self._body_bytes)
        self._body_bytes = self._takers = 0
        if shop.dot_delay_s:
            self._is_held = True
            # uvloop counts in whole milliseconds, from a time that it read before; never to be early, one more.
            shop.loop.call_later(shop.dot_delay_s + 0.001, self._answer_late)
        else:
            replies.append(_OK)

    def _answer_late(self) -> None:
        self._is_held = False
        self._transport.write(_OK)
        data, self._rest = self._rest, b""
        if data:
            self._go_on(data)

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        # connection_made is not called again: the transport is all that changes.
        try:
            self._rest = b""  # what came ahead of the handshake does not count
            secure = await self._shop.loop.start_tls(self._transport, self, context, server_side=True)
        except (OSError, EOFError):  # ssl.SSLError is an OSError; the client sees the connection close
            self._transport.abort()
            return
        if secure is not None:
            self._transport, self._is_secure, self._is_held = secure, True, False
            data, self._rest = self._rest, b""
            self._go_on(data)


def _hello(offers: list[str]) -> bytes:
    lines = [HELLO_NAME, *offers]
    return b"".join(
        [f"250{' ' if at == len(lines) else '-'}{line}\r\n".encode("ascii") for at, line in enumerate(lines, 1)]
    )


async def _serve(shop_of: Callable[[], Shop], listening: socket.socket, stop: int) -> Taken:
    """Until SIGTERM, or until the other end of the pipe ``stop`` is closed."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_reader(stop, ended.set)
    shop = shop_of()
    server = await loop.create_server(lambda: Session(shop), sock=listening, backlog=BACKLOG)
    await ended.wait()
    server.close()
    return Taken(shop.sessions, shop.messages, shop.bytes, shop.permanent, shop.temporary)


def run(options: ReceiverOptions) -> None:
    """Processes are forked after the TLS context was made: they share the key of its tickets."""
    context = None
    if options.tls:
        with tempfile.TemporaryDirectory() as directory:
            pem = Path(directory, "certificate.pem")
            write_certificate(pem, HELLO_NAME, [options.address])
            context = tls_context(pem)
    first = listening_socket(options.address, 0)
    port = first.getsockname()[1]
    sockets = [first, *(listening_socket(options.address, port) for _ in range(options.processes - 1))]
    deferred, counts = mmap.mmap(-1, _DEFERRED_SLOTS), mmap.mmap(-1, _COUNTS.size * options.processes)
    for bound in sockets:
        bound.listen(BACKLOG)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    pids = []
    for index, bound in enumerate(sockets):
        pid = os.fork()
        if not pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            gc.freeze()
            gc.set_threshold(50_000, 50, 50)  # only sessions make circles
            work = _serve(lambda: Shop(options, context, deferred), bound, 0)
            taken = uvloop.run(work)
            _COUNTS.pack_into(counts, index * _COUNTS.size, *msgspec.structs.astuple(taken))
            os._exit(0)
        pids.append(pid)
    _say(Listening(port, pids))
    for bound in sockets:
        bound.close()
    _wait_for_end()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)
    sums = (sum(column) for column in zip(*_COUNTS.iter_unpack(counts[:]), strict=True))
    _say(Taken(*sums))


def _wait_for_end() -> None:
    """SIGTERM, or the end of standard input: whoever started us is gone."""
    asyncio.run(_ended())


async def _ended() -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    loop.add_reader(0, ended.set)
    await ended.wait()


def _say(line: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    run(msgspec.json.decode(sys.stdin.buffer.readline(), type=ReceiverOptions))
