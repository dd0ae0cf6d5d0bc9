"""The first replies of a session, under a strict count: nobody may speak before it is asked.

What comes while no reply is owed, or behind a reply in the same segment, lets a server (or somebody in the path) speak
ahead of a command, so the first octet too many ends the session.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final, cast

from mta.model.errors import RemoteProtocolError
from mta.model.reply import Reply
from mta.smtp.extensions import Extensions, parse_ehlo
from mta.smtp.reply import ReplyParser

# Hosts of one site answer EHLO alike, session after session; reading it anew costs more than the rest of the greeting.
_KNOWN_ANSWERS: Final = 512
_KNOWN_ANSWER_BYTES_MAX: Final = 1024
# Lines of an answer to EHLO behind so many octets are not read: what they offer is not used.
_ANSWER_BYTES_MAX: Final = 32 * 1024


class Handshake(asyncio.Protocol):
    """Counts replies against commands; the greeting is owed from the start. One timer, whatever is waited for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport | None = None
        self.reply: Reply | None = None  # the last one
        self.unowed: Reply | None = None
        self.fault = ""
        self.loss = ""  # how the connection ended, if it did; and by which error
        self.error: Exception | None = None
        self._loop = loop
        self._octets = bytearray()  # of the last reply, the first of them
        self._owed = 1
        self._parser = ReplyParser()
        self._waiter: asyncio.Future[None] | None = None
        self._until_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._rings_s = 0.0  # kept here: for a time that has come, uvloop's call_at gives a plain Handle

    def command(self, line: bytes) -> None:
        """Sends a command line; its reply is owed from now on."""
        self.reply = None
        self._octets = bytearray()
        self._owed += 1
        assert self.transport is not None
        self.transport.write(line)

    async def wait(self, until_s: float) -> None:
        """Returns when there is a reply, or there will be none, or at ``until_s`` of the loop's clock."""
        if self.reply is not None or self.fault or self.loss:
            return
        self._waiter = self._loop.create_future()
        self._until_s = until_s
        if self._timer is None or self._rings_s > until_s:
            self.rest()
            self._set_timer(until_s)
        await self._waiter

    def rest(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def extensions(self) -> Extensions:
        """What the last reply offers, read as one to EHLO."""
        octets = bytes(self._octets[:_ANSWER_BYTES_MAX])
        return _offered(octets[: octets.rfind(b"\n") + 1])

    def idle_fault(self) -> str:
        """Why an idle session may not be used; empty if it may."""
        if self.fault:
            return self.fault
        is_connected = self.transport is not None and not self.loss and not self.transport.is_closing()
        return "" if is_connected else "closed by the server"

    def drop(self) -> None:
        self.rest()
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.loss = "closed by the server" if exc is None else f"{type(exc).__name__}: {exc}"[:500]
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self.fault:
            return
        known = _single_reply(data) if self._owed == 1 and self._may_be_known(data) else None
        if known is not None:
            self._owed = 0
            self._octets += data
            self.reply = known
            self._wake()
            return
        try:
            replies = self._parser.feed(data)
        except RemoteProtocolError as error:
            self._fail(str(error))
            return
        if self._parser.fault is not None:
            self._fail(str(self._parser.fault))
            return
        owed, self._owed = self._owed, self._owed - len(replies)
        if len(self._octets) < _ANSWER_BYTES_MAX:
            self._octets += data
        if replies and owed:
            self.reply = replies[0]
        self.unowed = replies[owed] if len(replies) > owed else None
        if self._owed < 0 or (self._owed == 0 and self._parser.is_mid_reply):
            self._fail("octets that are not owed")
        elif self.reply is not None:
            self._wake()

    # -- inside ------------------------------------------------------------------------------------------------

    def _may_be_known(self, data: bytes) -> bool:
        # A whole answer to EHLO; greetings are left alone, as many name the time.
        return data.startswith(b"250-") and len(data) <= _KNOWN_ANSWER_BYTES_MAX and not self._parser.is_mid_reply

    def _fail(self, what: str) -> None:
        self.fault = f"protocol error: {what}"
        if self.unowed is not None and self.unowed.code == 421:
            self.fault = f"the server closed the session: {self.unowed}"
        self.drop()
        self._wake()

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until_s:  # another wait than the one it was set for
            self._set_timer(self._until_s)
        else:
            self._wake()

    def _set_timer(self, until_s: float) -> None:
        self._timer = self._loop.call_at(until_s, self._ring)
        self._rings_s = until_s

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@functools.lru_cache(maxsize=_KNOWN_ANSWERS)
def _single_reply(octets: bytes) -> Reply | None:
    """The reply that ``octets`` are, if they are exactly one."""
    parser = ReplyParser()
    try:
        replies = parser.feed(octets)
    except RemoteProtocolError:
        return None
    is_whole = len(replies) == 1 and not parser.is_mid_reply and parser.fault is None
    return replies[0] if is_whole else None


@functools.lru_cache(maxsize=_KNOWN_ANSWERS)
def _offered(octets: bytes) -> Extensions:
    return parse_ehlo([line[4:].strip().decode("ascii", "replace") for line in octets.split(b"\n")])
