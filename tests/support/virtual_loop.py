"""An asyncio loop whose clock jumps to what happens next, with connections inside the process: no socket, no wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast


class NothingLeft(Exception):  # noqa: N818 - reads as what happened
    """Nobody waits for anything any more, and what was to be run is not done."""


class FarEnd(Protocol):
    """The other end of an in-process connection."""

    def connected(self, transport: VirtualTransport) -> None: ...

    def received(self, data: bytes) -> None: ...

    def client_left(self) -> None: ...


class VirtualSocket:
    """Stands for a socket that is about to connect: says which far end it will find."""

    def __init__(self, far_end: FarEnd | None) -> None:
        self.far_end = far_end

    def getpeername(self) -> tuple[str, int]:
        if self.far_end is None:
            raise OSError("not connected")
        return ("192.0.2.1", 25)

    def close(self) -> None:
        pass


class VirtualTransport(asyncio.Transport):
    """The client's end. What it writes is at the far end at once, unless that takes only so many octets."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.BaseProtocol, far_end: FarEnd) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._far_end = far_end
        self._buffer = bytearray()
        self._high_bytes = 64 * 1024
        self._low_bytes = 16 * 1024
        self._is_paused = False
        self._is_closing = False
        self._is_lost = False
        self.takes_bytes = 1 << 62  # how much more the far end takes
        self.written: Callable[[bytes], None] = lambda data: None  # sees all that is written, before it leaves

    # -- the client's calls ------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._is_closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes, self._low_bytes = high or 0, low or 0

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        data = bytes(data)
        self.written(data)
        self._buffer += data
        self._flush()
        if len(self._buffer) > self._high_bytes and not self._is_paused:
            self._is_paused = True
            cast(asyncio.Protocol, self._protocol).pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        self._is_closing = True
        self._buffer.clear()
        self._lose(None)

    # -- the far end's calls -----------------------------------------------------------------------------------

    def deliver(self, data: bytes) -> None:
        """Octets for the client."""
        if not (self._is_lost or self._is_closing) and data:
            cast(asyncio.Protocol, self._protocol).data_received(data)

    def take(self, more_bytes: int) -> None:
        """The far end takes so many octets more."""
        self.takes_bytes += more_bytes
        self._flush()

    def hang_up(self, error: Exception | None = None) -> None:
        self._is_closing = True
        self._lose(error)

    # -- inside ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self.takes_bytes > 0 and self._buffer:
            taken = bytes(self._buffer[: self.takes_bytes])
            del self._buffer[: len(taken)]
            self.takes_bytes -= len(taken)
            self._loop.call_soon(self._far_end.received, taken)
        if self._is_paused and len(self._buffer) <= self._low_bytes:
            self._is_paused = False
            self._loop.call_soon(self._resume)
        if self._is_closing and not self._buffer:
            self._lose(None)

    def _resume(self) -> None:
        if not self._is_lost:
            cast(asyncio.Protocol, self._protocol).resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        self._far_end.client_left()
        self._protocol.connection_lost(error)


class VirtualLoop(asyncio.BaseEventLoop):
    """Its time passes only while nothing is ready to run. What is due within ``turn_s`` is run in one turn."""

    def __init__(self, turn_s: float) -> None:
        super().__init__()
        self._now_s = 1.0
        self._clock_resolution = turn_s
        self._selector = self  # asked what happened outside: nothing ever does

    def time(self) -> float:
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingLeft
        self._now_s += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    async def create_connection(self, protocol_factory: Any, *_: Any, sock: Any = None, **__: Any) -> Any:
        assert isinstance(sock, VirtualSocket)
        if sock.far_end is None:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = protocol_factory()
        transport = VirtualTransport(self, protocol, sock.far_end)
        protocol.connection_made(transport)
        sock.far_end.connected(transport)
        return transport, protocol
