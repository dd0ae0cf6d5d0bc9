"""Opening a session: connect, greeting, EHLO, STARTTLS, EHLO again; then the transport is handed over.

aiosmtplib's ``SMTPProtocol`` sends and reads. It drops octets that come while no reply is owed, and keeps what follows
a reply in the same segment; either would let a server (or somebody in the path) speak ahead, so ``_Handshake`` counts
replies against commands underneath it and ends the session at the first octet too many.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import socket
import ssl
from typing import Literal, cast

import msgspec
from aiosmtplib.errors import SMTPException, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from mta.model.errors import BadInput, RemoteProtocolError
from mta.model.reply import Reply
from mta.model.timeouts import SessionTimeouts
from mta.smtp.envelope import Stage
from mta.smtp.extensions import Extensions, parse_ehlo
from mta.smtp.reply import ReplyParser

TlsPolicy = Literal["disabled", "opportunistic", "required"]

# Linux; Python 3.11 has no name for it. The port is chosen at connect, by the whole 4-tuple: without it each source
# address could open only as many connections as it has ports.
_IP_BIND_ADDRESS_NO_PORT = 24


class SessionTarget(msgspec.Struct, frozen=True):
    """Where a session goes, as whom, and how."""

    mx_host: str  # name for SNI and logs; A-labels
    peer: str  # IP literal
    helo: str
    port: int = 25
    source: str | None = None  # IP literal to bind; None: the kernel chooses
    tls: TlsPolicy = "opportunistic"
    timeouts: SessionTimeouts = SessionTimeouts()


class SessionFailed(Exception):  # noqa: N818 - what happened, in the words of the log
    """No session: at which stage, by which reply if one said so, and why. Nothing is left open."""

    def __init__(self, stage: Stage, reply: Reply | None, cause: str) -> None:
        super().__init__(f"{stage.name}: {cause}")
        self.stage = stage
        self.reply = reply
        self.cause = cause


class OpenSession:
    """A greeted session, idle, that nobody drives yet. Take it over or discard it."""

    __slots__ = ("_handshake", "extensions", "is_tls", "tls", "transport")

    def __init__(
        self, transport: asyncio.Transport, handshake: _Handshake, extensions: Extensions, is_tls: bool, tls: str
    ) -> None:
        self.transport = transport
        self.extensions = extensions
        self.is_tls = is_tls
        self.tls = tls  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; when plain: "" or why the handshake was given up
        self._handshake = handshake

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Let ``protocol`` drive the transport from now on.

        Raises SessionFailed when the server spoke or left since the session was opened.
        """
        fault = self._handshake.idle_fault()
        if fault:
            self.discard()
            raise SessionFailed(Stage.IDLE, self._handshake.unowed, fault)
        self.transport.set_protocol(protocol)
        return self.transport

    def discard(self) -> None:
        """Drop the connection without a word."""
        self.transport.abort()


class _Handshake(SMTPProtocol):
    """aiosmtplib's protocol with a strict count of replies underneath."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.reply: Reply | None = None  # the last one
        self.unowed: Reply | None = None
        self.fault = ""
        self._owed = 1  # the greeting
        self._parser = ReplyParser()

    def expect_reply(self) -> None:
        """A command is about to be sent."""
        self.reply = None
        self._owed += 1

    def data_received(self, data: bytes) -> None:
        if self.fault:
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
        if replies and owed:
            self.reply = replies[0]
        self.unowed = replies[owed] if len(replies) > owed else None
        if self._owed < 0 or (self._owed == 0 and self._parser.is_mid_reply):
            self._fail("octets that are not owed")
            return
        super().data_received(data)

    def idle_fault(self) -> str:
        """Why an idle session may not be used; empty if it may."""
        if self.fault:
            return self.fault
        return "" if self.is_connected else "closed by the server"

    def _fail(self, what: str) -> None:
        self.fault = f"protocol error: {what}"
        if self.unowed is not None and self.unowed.code == 421:
            self.fault = f"the server closed the session: {self.unowed}"
        self.drop()

    def drop(self) -> None:
        if self.transport is not None:
            cast(asyncio.Transport, self.transport).abort()


class _Budget:
    """Time left of the whole set-up; each step gets its own limit or what is left."""

    def __init__(self, timeouts: SessionTimeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + timeouts.setup_s

    def left_s(self, step_s: float) -> float:
        return max(0.001, min(step_s, self._end_s - self._loop.time()))


class _TlsFailed(Exception):  # noqa: N818
    """STARTTLS was offered and did not work."""

    def __init__(self, failure: SessionFailed) -> None:
        super().__init__(failure.cause)
        self.failure = failure


async def open_session(target: SessionTarget) -> OpenSession:
    """Connect and say hello; raises SessionFailed, in any case within ``timeouts.setup_s``.

    With opportunistic TLS a refused or failed STARTTLS is answered by one new connection without it, and ``tls`` of
    the session says why (RFC 3207 §6; threats C4). Certificates are not verified: there is no one to check them
    against without DANE or MTA-STS, and any encryption is better than none (RFC 7435).
    """
    if not target.helo.isascii() or not target.helo.isprintable() or " " in target.helo or not target.helo:
        raise BadInput("helo", f"{target.helo!r} is not a name of printable ASCII without spaces")
    budget = _Budget(target.timeouts)
    try:
        return await _open(target, budget, tls=target.tls)
    except _TlsFailed as error:
        if target.tls == "required":
            raise error.failure from error
        session = await _open(target, budget, tls="disabled")
        session.tls = f"plain after {error.failure}"
        return session


async def _open(target: SessionTarget, budget: _Budget, *, tls: TlsPolicy) -> OpenSession:
    handshake = await _connect(target, budget)
    try:
        await _greeting(handshake, budget.left_s(target.timeouts.greeting_s))
        extensions = await _hello(handshake, target, budget)
        if tls != "disabled" and extensions.starttls:
            await _start_tls(handshake, target, budget)
            extensions = await _hello(handshake, target, budget)
        elif tls == "required":
            raise SessionFailed(Stage.STARTTLS, None, "STARTTLS is required and not offered")
        fault = handshake.idle_fault()
        if fault:
            raise SessionFailed(Stage.EHLO, handshake.unowed, fault)
    except BaseException:
        handshake.drop()
        raise
    transport = cast(asyncio.Transport, handshake.transport)  # uvloop's are none by class
    description = _tls_description(transport)
    return OpenSession(transport, handshake, extensions, bool(description), description)


async def _connect(target: SessionTarget, budget: _Budget) -> _Handshake:
    loop = asyncio.get_running_loop()
    is_ipv6 = ipaddress.ip_address(target.peer).version == 6
    try:
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:  # out of files: this session has failed, the process has not
        raise SessionFailed(Stage.CONNECT, None, os.strerror(error.errno) if error.errno else str(error)) from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.source is not None:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((target.source, 0))
        async with asyncio.timeout(budget.left_s(target.timeouts.connect_s)):
            await loop.sock_connect(sock, (target.peer, target.port))
        _, handshake = await loop.create_connection(lambda: _Handshake(loop), sock=sock)
    except TimeoutError as error:
        sock.close()
        raise SessionFailed(Stage.CONNECT, None, "timed out") from error
    except OSError as error:
        sock.close()
        raise SessionFailed(Stage.CONNECT, None, os.strerror(error.errno) if error.errno else str(error)) from error
    except BaseException:
        sock.close()
        raise
    return handshake


async def _greeting(handshake: _Handshake, timeout_s: float) -> None:
    try:
        await handshake.read_response(timeout=timeout_s)
    except (SMTPException, OSError) as error:
        raise _failure(handshake, Stage.GREETING, error) from error
    reply = _reply(handshake, Stage.GREETING)
    if not reply.is_positive:  # 554, 521: this host takes no mail (RFC 7504); 421: not now
        raise SessionFailed(Stage.GREETING, reply, str(reply))


async def _hello(handshake: _Handshake, target: SessionTarget, budget: _Budget) -> Extensions:
    """EHLO; HELO when the server does not know it (RFC 5321 §3.2), which offers nothing."""
    response = await _command(handshake, Stage.EHLO, b"EHLO", target, budget)
    reply = _reply(handshake, Stage.EHLO)
    if reply.is_positive:
        return parse_ehlo(response.message.split("\n"))
    if reply.is_permanent and reply.code != 521:
        await _command(handshake, Stage.EHLO, b"HELO", target, budget)
        reply = _reply(handshake, Stage.EHLO)
        if reply.is_positive:
            return Extensions()
    raise SessionFailed(Stage.EHLO, reply, str(reply))


async def _command(
    handshake: _Handshake, stage: Stage, verb: bytes, target: SessionTarget, budget: _Budget
) -> SMTPResponse:
    fault = handshake.idle_fault()
    if fault:
        raise SessionFailed(stage, handshake.unowed, fault)
    handshake.expect_reply()
    timeout_s = budget.left_s(target.timeouts.command_s)
    try:
        return await handshake.execute_command(verb, target.helo.encode("ascii"), timeout=timeout_s)
    except (SMTPException, OSError) as error:
        raise _failure(handshake, stage, error) from error


async def _start_tls(handshake: _Handshake, target: SessionTarget, budget: _Budget) -> None:
    """RFC 3207 §4. Octets between the 220 and the handshake end the session: nobody honest sends them (threats C3)."""
    fault = handshake.idle_fault()
    if fault:
        raise SessionFailed(Stage.STARTTLS, handshake.unowed, fault)
    handshake.expect_reply()
    timeout_s = budget.left_s(target.timeouts.command_s)
    try:
        await handshake.start_tls(_unverified_context(), server_hostname=target.mx_host, timeout=timeout_s)
    except (SMTPException, OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if handshake.fault:
            raise _failure(handshake, Stage.STARTTLS, error) from error
        reply = handshake.reply
        if reply is not None and reply.code != 220:
            raise _TlsFailed(SessionFailed(Stage.STARTTLS, reply, str(reply))) from error
        failure = _failure(handshake, Stage.STARTTLS, error)
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, None, failure.cause)) from error


def _reply(handshake: _Handshake, stage: Stage) -> Reply:
    """The reply that aiosmtplib just gave us, as our parser read it."""
    if handshake.fault or handshake.reply is None:
        raise SessionFailed(stage, handshake.unowed, handshake.fault or "no reply")
    return handshake.reply


def _failure(handshake: _Handshake, stage: Stage, error: Exception) -> SessionFailed:
    if handshake.fault:
        return SessionFailed(stage, handshake.unowed, handshake.fault)
    if isinstance(error, TimeoutError | SMTPTimeoutError):
        return SessionFailed(stage, None, "timed out")
    cause = error.__cause__ or error
    return SessionFailed(stage, None, f"{type(cause).__name__}: {cause}"[:500])


@functools.cache
def _unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=1")  # weak beats none, and none is what a refused handshake would mean
    return context


def _tls_description(transport: asyncio.BaseTransport) -> str:
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return ""
    name, _, _ = ssl_object.cipher() or ("?", "", 0)
    return f"{ssl_object.version()} {name}"
