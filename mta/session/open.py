"""Opening a session: connect, greeting, EHLO, STARTTLS, EHLO again; then the transport is handed over.

A site that takes one message a session has us open thousands a second, so the plain part is a few callbacks: the socket
goes to the event loop while it connects, as an SMTP server speaks first and its greeting says that we are connected.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import Hashable
from typing import Literal

import msgspec

from mta.model.errors import BadInput
from mta.model.machine_fault import SystemCall, is_of_machine
from mta.model.reply import Reply
from mta.model.timeouts import SessionTimeouts
from mta.model.tls import Authorities
from mta.session.authority import mismatch, usable
from mta.session.handshake import Handshake
from mta.session.tls import (
    TlsSessions,
    description,
    new_offer,
    presented_chain,
    ssl_object,
    start_tls,
    unverified_context,
    verified_context,
)
from mta.smtp.envelope import Stage
from mta.smtp.extensions import Extensions

# Verified: required, and the server must prove that it is the host.
TlsPolicy = Literal["disabled", "opportunistic", "required", "verified"]

# What stands before the cause when TLS was wanted and could not be had (RFC 3463 §3.8; no RFC names others for this).
NOT_OFFERED = "4.7.4"  # security features not supported
NOT_AUTHENTIC = "4.7.5"  # cryptographic failure

# Linux; Python 3.11 has no name for it. The port is chosen at connect, by the whole 4-tuple: without it each source
# address could open only as many connections as it has ports.
_IP_BIND_ADDRESS_NO_PORT = 24


# A connection that was never there: any other end before the greeting is the server's doing.
_NEVER_CONNECTED = frozenset(
    (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES)
)
# The last files that the process may open are not for sessions: journal, authorities, modules that are loaded late.
FILES_KEPT = 16


class SessionTarget(msgspec.Struct, frozen=True):
    """Where a session goes, as whom, and how.

    ``authorities``: TLSA records of the host (RFC 6698), if DANE holds for it: TLS is then required whatever ``tls``
    says but ``disabled``, and where one of them is usable the server must fit it. It need not prove itself otherwise.
    ``ca_file``: authorities trusted by ``verified``; empty: those of the system.
    """

    mx_host: str  # name for SNI, logs and the server's certificate; A-labels
    peer: str  # IP literal
    helo: str
    port: int = 25
    source: str | None = None  # IP literal to bind; None: the kernel chooses
    tls: TlsPolicy = "opportunistic"
    timeouts: SessionTimeouts = SessionTimeouts()
    authorities: Authorities = ()
    ca_file: str = ""

    @property
    def needs_tls(self) -> bool:
        return self.tls in ("required", "verified") or bool(self.authorities and self.tls == "opportunistic")


class SessionFailed(Exception):  # noqa: N818 - what happened, in the words of the log
    """No session: at which stage, by which reply if one said so, and why. Nothing is left open.

    ``errno`` and ``call``: the error of this machine, and the system call that gave it, where it is one; else 0.
    """

    def __init__(
        self, stage: Stage, reply: Reply | None, cause: str, call: SystemCall = SystemCall.CONNECT, number: int = 0
    ) -> None:
        super().__init__(f"{stage.name}: {cause}")
        self.stage = stage
        self.reply = reply
        self.cause = cause
        self.call = call
        self.errno = number


def _machine_failed(call: SystemCall, error: OSError) -> SessionFailed:
    return SessionFailed(Stage.CONNECT, None, f"{call.value}: {_os_text(error)}", call, error.errno or errno.EIO)


class OpenSession:
    """A greeted session, idle, that nobody drives yet. Take it over or discard it."""

    __slots__ = ("_handshake", "extensions", "is_tls", "tls", "transport")

    def __init__(
        self, transport: asyncio.Transport, handshake: Handshake, extensions: Extensions, is_tls: bool, tls: str
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


class _Budget:
    """Time left of the whole set-up; each step gets its own limit or what is left."""

    def __init__(self, timeouts: SessionTimeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + timeouts.setup_s

    def until_s(self, step_s: float) -> float:
        """On the loop's clock."""
        return min(self._loop.time() + step_s, self._end_s)

    def left_s(self, step_s: float) -> float:
        return max(0.001, min(step_s, self._end_s - self._loop.time()))


class _TlsFailed(Exception):  # noqa: N818
    """STARTTLS was offered and did not work."""

    def __init__(self, failure: SessionFailed) -> None:
        super().__init__(failure.cause)
        self.failure = failure


_tls_sessions = TlsSessions()  # of this process; how a server proved itself is part of the key


async def open_session(target: SessionTarget) -> OpenSession:
    """Connect and say hello; raises SessionFailed, in any case within ``timeouts.setup_s``.

    With opportunistic TLS a refused or failed STARTTLS is answered by one new connection without it, and ``tls`` of
    the session says why (RFC 3207 §6; threats C4). Where an earlier TLS session was to be resumed, it is first tried
    without that. Certificates are then not verified: there is no one to check them against without DANE or MTA-STS, and
    any encryption is better than none (RFC 7435).

    Where TLS is needed or the server must prove itself, and it does not, there is no session, and nothing was said in
    it but EHLO; the cause begins with ``NOT_OFFERED`` or ``NOT_AUTHENTIC``.
    """
    if not target.helo.isascii() or not target.helo.isprintable() or " " in target.helo or not target.helo:
        raise BadInput("helo", f"{target.helo!r} is not a name of printable ASCII without spaces")
    budget = _Budget(target.timeouts)
    try:
        try:
            return await _open(target, budget, tls=target.tls)
        except _TlsFailed:
            if not _forget_tls_session(target):
                raise
            return await _open(target, budget, tls=target.tls)
    except _TlsFailed as error:
        if target.needs_tls:
            raise error.failure from error
        session = await _open(target, budget, tls="disabled")
        session.tls = f"plain after {error.failure}"
        return session


async def _open(target: SessionTarget, budget: _Budget, *, tls: TlsPolicy) -> OpenSession:
    offer = new_offer()
    handshake = await _connect(target, budget)
    try:
        extensions = await _hello(handshake, target, budget)
        is_tls = tls != "disabled" and extensions.starttls
        if is_tls:
            offer.session = _tls_sessions.find(_tls_key(target), asyncio.get_running_loop().time())
            await _start_tls(handshake, target, budget)
            extensions = await _hello(handshake, target, budget)
        elif target.needs_tls:
            raise SessionFailed(Stage.STARTTLS, None, f"{NOT_OFFERED} STARTTLS is required and not offered")
        fault = handshake.idle_fault()
        if fault:
            raise SessionFailed(Stage.EHLO, handshake.unowed, fault)
    except BaseException:
        handshake.drop()
        raise
    handshake.rest()
    transport = handshake.transport
    assert transport is not None
    if is_tls:
        _keep_tls_session(target, transport)
    return OpenSession(transport, handshake, extensions, is_tls, description(transport) if is_tls else "")


async def _connect(target: SessionTarget, budget: _Budget) -> Handshake:
    """A connection whose server has greeted us."""
    loop = asyncio.get_running_loop()
    timeouts = target.timeouts
    sock = _connecting_socket(target)
    try:
        _, handshake = await loop.create_connection(lambda: Handshake(loop), sock=sock)
    except OSError as error:  # the event loop could not take it: no server has been heard yet
        sock.close()
        raise _machine_failed(SystemCall.SOCKET, error) from error
    except BaseException:
        sock.close()
        raise
    try:
        await handshake.wait(budget.until_s(min(timeouts.connect_s, timeouts.greeting_s)))
        stage = Stage.GREETING
        if not (handshake.reply or handshake.fault or handshake.loss):
            if not _is_connected(sock):
                raise SessionFailed(Stage.CONNECT, None, "timed out")
            # Since when it is connected is not known; so the whole limit for the greeting runs from here.
            await handshake.wait(budget.until_s(timeouts.greeting_s))
        elif isinstance(handshake.error, OSError) and handshake.error.errno in _NEVER_CONNECTED:
            raise SessionFailed(Stage.CONNECT, None, _os_text(handshake.error))
        reply = _reply(handshake, stage)
        if not reply.is_positive:  # 554, 521: this host takes no mail (RFC 7504); 421: not now
            raise SessionFailed(stage, reply, str(reply))
    except BaseException:
        handshake.drop()
        raise
    return handshake


def _connecting_socket(target: SessionTarget) -> socket.socket:
    """A socket on its way to the peer. Raises SessionFailed when it fails at once, by whose fault it may be."""
    call = SystemCall.SOCKET
    sock: socket.socket | None = None
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in target.peer else socket.AF_INET, socket.SOCK_STREAM)
        if sock.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.source is not None:
            call = SystemCall.BIND
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((target.source, 0))
        call = SystemCall.CONNECT
        code = sock.connect_ex((target.peer, target.port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except OSError as error:  # this session has failed, the process has not
        if sock is not None:
            sock.close()
        if is_of_machine(call, error.errno or 0):
            raise _machine_failed(call, error) from error
        raise SessionFailed(Stage.CONNECT, None, _os_text(error)) from error
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _os_text(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


async def _hello(handshake: Handshake, target: SessionTarget, budget: _Budget) -> Extensions:
    """EHLO; HELO when the server does not know it (RFC 5321 §3.2), which offers nothing."""
    reply = await _command(handshake, b"EHLO", target, budget)
    if reply.is_positive:
        return handshake.extensions()
    if reply.is_permanent and reply.code != 521:
        reply = await _command(handshake, b"HELO", target, budget)
        if reply.is_positive:
            return Extensions()
    raise SessionFailed(Stage.EHLO, reply, str(reply))


async def _command(handshake: Handshake, verb: bytes, target: SessionTarget, budget: _Budget) -> Reply:
    _check_idle(handshake, Stage.EHLO)
    handshake.command(b"%b %b\r\n" % (verb, target.helo.encode("ascii")))
    await handshake.wait(budget.until_s(target.timeouts.command_s))
    return _reply(handshake, Stage.EHLO)


def _check_idle(handshake: Handshake, stage: Stage) -> None:
    fault = handshake.idle_fault()
    if fault:
        raise SessionFailed(stage, handshake.unowed, fault)


def _reply(handshake: Handshake, stage: Stage) -> Reply:
    """What there is after a wait."""
    if handshake.fault:
        raise SessionFailed(stage, handshake.unowed, handshake.fault)
    if handshake.reply is None:
        raise SessionFailed(stage, None, handshake.loss or "timed out")
    return handshake.reply


# -- TLS -------------------------------------------------------------------------------------------------------


async def _start_tls(handshake: Handshake, target: SessionTarget, budget: _Budget) -> None:
    _check_idle(handshake, Stage.STARTTLS)
    context = _context(target)
    handshake.command(b"STARTTLS\r\n")
    await handshake.wait(budget.until_s(target.timeouts.command_s))
    if handshake.reply is None and not handshake.fault:
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, None, handshake.loss or "timed out"))
    reply = _reply(handshake, Stage.STARTTLS)
    if reply.code != 220:
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, reply, str(reply)))
    try:
        await start_tls(handshake, target.mx_host, budget.left_s(target.timeouts.command_s), context)
    except ssl.SSLCertVerificationError as error:
        why = f"{NOT_AUTHENTIC} the certificate of {target.mx_host} is not trusted: {error.verify_message}"
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, None, why)) from error
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if handshake.fault:
            raise SessionFailed(Stage.STARTTLS, handshake.unowed, handshake.fault) from error
        # Event loops abort a handshake that takes too long.
        is_late = isinstance(error, TimeoutError | ConnectionAbortedError)
        text = "timed out" if is_late else f"{type(error).__name__}: {error}"[:500]
        if target.needs_tls and isinstance(error, ssl.SSLError):
            text = f"{NOT_AUTHENTIC} {text}"
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, None, text)) from error
    _check_authorities(handshake, target)


def _context(target: SessionTarget) -> ssl.SSLContext:
    """By which the server's certificate is judged; it is the unverified one where TLSA records judge it."""
    if target.tls != "verified" or usable(target.authorities):
        return unverified_context()
    try:
        return verified_context(target.ca_file)
    except OSError as error:  # ssl.SSLError too: the file was good when the settings were read
        why = f"{NOT_AUTHENTIC} {target.ca_file or 'the trusted authorities'} cannot be used: {error}"
        number = errno.EIO if isinstance(error, ssl.SSLError) else error.errno  # that of OpenSSL is another
        raise SessionFailed(Stage.STARTTLS, None, why, SystemCall.OPEN, number or errno.EIO) from error


def _check_authorities(handshake: Handshake, target: SessionTarget) -> None:
    """DANE: the server must fit a TLSA record. One whose session is resumed has done so, under the same records."""
    if not usable(target.authorities):
        return
    assert handshake.transport is not None
    of_transport = ssl_object(handshake.transport)
    assert of_transport is not None
    if of_transport.session_reused:
        return
    why = mismatch(target.authorities, presented_chain(of_transport), target.mx_host)
    if why:
        text = f"{NOT_AUTHENTIC} the certificate of {target.mx_host} fits no TLSA record: {why}"
        raise _TlsFailed(SessionFailed(Stage.STARTTLS, None, text))


def _tls_key(target: SessionTarget) -> Hashable:
    """What a session may be resumed for: whoever was not asked who he is must not be let in by another door."""
    proof: Hashable = None
    if usable(target.authorities):
        proof = target.authorities
    elif target.tls == "verified":
        proof = f"by {target.ca_file}"
    return target.peer, target.port, target.mx_host, target.source, proof


def _keep_tls_session(target: SessionTarget, transport: asyncio.BaseTransport) -> None:
    """Not before the second EHLO is answered: the tickets of TLS 1.3 come ahead of that (RFC 8446 §4.6.1).

    One that was resumed stays until its time is over. RFC 8446 §C.4 would have a new ticket each time, so that nobody
    on the way can tell a client; ours says its name in EHLO, and Python takes 0.2 ms to copy a session.
    """
    of_transport = ssl_object(transport)
    if of_transport is not None and not of_transport.session_reused:
        _tls_sessions.keep(_tls_key(target), of_transport.session, asyncio.get_running_loop().time())


def _forget_tls_session(target: SessionTarget) -> bool:
    """True when there was one: it may be what made the handshake fail."""
    return _tls_sessions.forget(_tls_key(target))
