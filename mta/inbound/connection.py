"""One SMTP connection of the listener: aiosmtpd's dialogue, within bounds that it does not have."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiosmtpd.smtp import SMTP, syntax

if TYPE_CHECKING:
    from mta.inbound.listener import Listener

IDLE_S: Final = 300.0  # RFC 5321 §4.5.3.2.7
SESSION_S: Final = 3_600.0
LINE_OCTETS_MAX: Final = 64 << 10  # RFC 5321 allows 1,000; a bounce with a longer line is a bounce all the same
_END: Final = b"\r\n.\r\n"
# How often a command may be given in a connection; then 421.
COMMANDS_MAX: Final = {"MAIL": 1_000, "RCPT": 20_000, "DATA": 1_000, "RSET": 1_000, "*": 50}
_PLAIN: Final = re.compile(r"<([A-Za-z0-9!#$&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+|)>(?: +(.*))?", re.DOTALL)
log = structlog.get_logger()


class Connection(SMTP):
    """Made by the listener for each client."""

    line_length_limit = LINE_OCTETS_MAX

    def __init__(self, listener: Listener, model: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        # Not the library's own: it looks through all its methods, which takes longer than to receive a bounce.
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(loop=loop, limit=self.line_length_limit),
            client_connected_cb=self._cb_client_connected,
            loop=loop,
        )
        for name in model.keys() - self.__dict__.keys():
            setattr(self, name, model[name])
        self._smtp_methods = {name: getattr(self, f"smtp_{name}") for name in model["_smtp_methods"]}
        self._listener = listener
        self._counted = ""
        self._end_s = 0.0

    @classmethod
    def model(cls, listener: Listener, loop: asyncio.AbstractEventLoop, **options: Any) -> dict[str, Any]:
        """What all connections of a listener have in common; made once."""
        made = cls.__new__(cls)
        SMTP.__init__(
            made,
            listener,
            ident="ESMTP",
            enable_SMTPUTF8=True,
            timeout=IDLE_S,
            command_call_limit=COMMANDS_MAX,
            loop=loop,
            **options,
        )
        return vars(made)

    # --- who may be here, and for how long ----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._end_s:  # else the second call, after STARTTLS
            peer = transport.get_extra_info("peername")
            self._end_s = self.loop.time() + SESSION_S
            self._counted = self._listener.came(peer[0] if peer else "local")
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._counted:
            self._listener.went(self._counted)
            self._counted = ""
        super().connection_lost(error)

    async def _handle_client(self) -> None:
        if not self._listener.admits(self._counted):
            await self.push(self._listener.say("too-many-connections", "421 4.3.2 too many connections"))
            if self.transport is not None:
                self.transport.close()
            return
        await super()._handle_client()

    def _reset_timeout(self, duration: float | None = None) -> None:
        left_s = max(self._end_s - self.loop.time(), 0.0)
        super()._reset_timeout(min(duration or IDLE_S, left_s) or 0.001)

    def _timeout_cb(self) -> None:
        if self.transport is not None:
            self.transport.write(self._listener.say("timeout", "421 4.4.2 too slow").encode() + b"\r\n")  # type: ignore[attr-defined]
            self.transport.close()

    async def handle_exception(self, error: Exception) -> str:
        log.error("a command failed", error=f"{type(error).__name__}: {error}", client=self._counted)
        return self._listener.say("failed", "451 4.3.0 local error")

    # --- commands -----------------------------------------------------------------------------

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        plain = _PLAIN.fullmatch(arg)
        if plain is not None:
            return plain[1] or "<>", plain[2] or ""  # the library's own way, which takes its time
        address: tuple[str | None, str | None] = super()._getaddr(arg)
        return address

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802 - nobody has to say who they are here
        await self.push("502 5.5.1 not offered")

    async def smtp_VRFY(self, arg: str) -> None:  # noqa: N802
        await self.push("252 2.5.2 send it and see")

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802
        """The library keeps each line as an object of its own: a body of empty lines would take 40 times its size."""
        if await self.check_helo_needed():
            return
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        body = _Body(self._listener, self.data_size_limit or 0)
        try:
            await self._receive(body)
            if body.refusal:
                reply = body.refusal
            else:
                reply = await self._listener.take(self, self.envelope, body.octets)
        finally:
            body.release()
        self.envelope = self._create_envelope()
        await self.push(reply)

    async def _receive(self, body: _Body) -> None:
        """Up to the end of the mail, which is CRLF . CRLF and nothing like it (RFC 5321 §4.1.1.4)."""
        first = await self._reader.readexactly(len(_END) - 2)
        if first == _END[2:]:
            return
        # Put back, for the end may begin in it. The library takes as much from this buffer at STARTTLS.
        self._reader._buffer[:0] = first  # type: ignore[attr-defined]
        while self.transport is not None:
            try:
                body.add(await self._reader.readuntil(_END))
            except asyncio.LimitOverrunError as error:
                body.add(await self._reader.read(error.consumed))
                self._reset_timeout()
            else:
                body.finish()
                return


class _Body:
    """What of a body is in memory: nothing any more once it is refused."""

    def __init__(self, listener: Listener, octets_max: int) -> None:
        self._listener = listener
        self._octets_max = octets_max
        self.octets = bytearray()
        self._held = 0
        self.refusal = ""

    def add(self, some: bytes) -> None:
        if self.refusal:
            return
        if self._held + len(some) > self._octets_max + len(_END):
            self.refuse("too-large", "552 5.3.4 message too large")
        elif not self._listener.has_room(len(some)):
            self.refuse("too-much-at-once", "452 4.3.1 too much at once, try again later")
        else:
            self.octets += some
            self._held += len(some)
            self._listener.held += len(some)

    def finish(self) -> None:
        """The end is there. Takes off what the client put on (RFC 5321 §4.5.2)."""
        if self.refusal:
            return
        del self.octets[-len(_END) + 2 :]
        if _longest_is_over(self.octets, LINE_OCTETS_MAX):
            self.refuse("line-too-long", "500 5.6.0 line too long")
            return
        if self.octets.startswith(b"."):
            del self.octets[:1]
        self.octets = self.octets.replace(b"\r\n.", b"\r\n")

    def refuse(self, what: str, reply: str) -> None:
        self.refusal = self._listener.say(what, reply)
        self.release()

    def release(self) -> None:
        self._listener.held -= self._held
        self._held = 0
        self.octets = bytearray()


def _longest_is_over(octets: bytearray, octets_max: int) -> bool:
    """Whether a line is longer, its end included."""
    start = 0
    while len(octets) - start > octets_max:
        start = octets.rfind(b"\n", start, start + octets_max) + 1
        if start == 0:
            return True
    return False
