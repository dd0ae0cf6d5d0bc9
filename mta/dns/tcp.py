"""One question over one TCP connection (RFC 7766), for an answer that is too long for a datagram.

Not compiled: seldom used, and what mypyc makes of waiting while an exception is under way is no `asyncio`
(tests/pure/test_compiled_traps.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from mta.dns.nameservers import Endpoint

CONNECTIONS_MAX: Final = 64  # at once; few answers are that long


class TcpFailed(Exception):  # noqa: N818 - why, in the words of the log
    """No answer came over TCP."""


class TcpClient:
    """Asks questions over TCP, each within ``timeout_s``, the wait for one of the connections included."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def ask(self, endpoint: Endpoint, query: bytes) -> bytes:
        """The answer as it came, without its length. Raises TcpFailed, in any case within the time."""
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                return await _exchange(endpoint, query)
        except TimeoutError:
            why = "time-out"
        except (OSError, EOFError) as error:
            why = type(error).__name__
        raise TcpFailed(f"no answer over TCP from {endpoint} ({why})")


async def _exchange(endpoint: Endpoint, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)
    finally:
        # Not closed in good order: a server that takes nothing more would keep the socket, and us, for minutes.
        writer.transport.abort()
