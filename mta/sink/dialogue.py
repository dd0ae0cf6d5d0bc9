"""One SMTP connection of the sink: aiosmtpd's server, made to follow a script and to record.

aiosmtpd reads commands, checks their syntax and order, and speaks STARTTLS. Replaced here is what a
script must be able to change, and what costs too much per message: addresses are read by a pattern
before aiosmtpd's full parser is tried, a body is read in blocks instead of lines, and one idle timer serves
the whole connection.

A connection counts as closed from the moment that QUIT is read or that the sink decides to close: a
client that waits for the reply before it opens the next connection must not seem to hold two.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any, Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from mta.sink.far import MESSAGE_BYTES_MAX, Far
from mta.sink.provider import Refusal
from mta.sink.record import Accepted, Connection, Refused, Violated
from mta.sink.script import Action, Disconnect, Situation, Step

COMMAND_LINE_OCTETS_MAX: Final = 2048  # RFC 5321 §4.5.3.1.4 asks for 512; extensions add to it
IDLE_TIMEOUT_S: Final = 300.0  # RFC 5321 §4.5.3.2.7; here between once and twice as long
READ_BLOCK_BYTES: Final = 128 * 1024

_DOT: Final = b"\r\n.\r\n"
_OK_MAIL: Final = b"250 2.1.0 OK"
_OK_RCPT: Final = b"250 2.1.5 OK"
_OK_DOT: Final = b"250 2.0.0 OK"
_GO_ON: Final = b"354 End data with <CR><LF>.<CR><LF>"

# The common address, as atoms; all others go to aiosmtpd's parser, which takes twenty times longer.
_ATOM: Final = r"[^\x00-\x20\x7f\"(),.:;<>@\[\\\]]+"
_PATH: Final = re.compile(rf"[ \t]*<({_ATOM}(?:\.{_ATOM})*@{_ATOM}(?:\.{_ATOM})*)>(.*)\Z", re.DOTALL)
_MESSAGE_ID: Final = re.compile(rb"\r\nMessage-ID:(?:[ \t]|\r\n[ \t])*([^\r\n]*)", re.IGNORECASE)
_ENHANCED: Final = re.compile(r"[245]\d\d [245]\.\d{1,3}\.\d{1,3} ")


class _Handler:
    """aiosmtpd's hooks: each asks the connection itself."""

    def __dir__(self) -> Iterable[str]:
        """Only the hooks, for the same reason as in ``Dialogue``."""
        return _HOOKS

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, server: Dialogue, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> bytes:
        return await server.on_mail(address, options)

    async def handle_RCPT(  # noqa: N802
        self, server: Dialogue, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> bytes:
        return await server.on_rcpt(address)

    async def handle_RSET(self, server: Dialogue, session: Session, envelope: Envelope) -> bytes:  # noqa: N802
        return b"250 2.0.0 OK"

    async def handle_NOOP(  # noqa: N802
        self, server: Dialogue, session: Session, envelope: Envelope, arg: str | None
    ) -> bytes:
        return b"250 2.0.0 OK"

    async def handle_QUIT(self, server: Dialogue, session: Session, envelope: Envelope) -> bytes:  # noqa: N802
        await server.end()
        return b"221 2.0.0 Bye"

    async def handle_exception(self, error: Exception) -> str:
        """A bug of ours: shown whole, and the client may try again."""
        traceback.print_exception(error, file=sys.stderr)
        return "451 4.3.0 fault in the sink"


_HOOKS: Final = tuple(name for name in vars(_Handler) if name.startswith("handle_"))
_HANDLER: Final = _Handler()


class Dialogue(SMTP):
    """One connection. Its state is touched by its own task and by the callbacks of its transport only."""

    # aiosmtpd's reader takes its limit from here; bodies are read in blocks of this size.
    line_length_limit = READ_BLOCK_BYTES
    command_size_limit = COMMAND_LINE_OCTETS_MAX

    def __init__(self, far: Far) -> None:
        super().__init__(
            _HANDLER,
            data_size_limit=None if "SIZE" in far.hidden else MESSAGE_BYTES_MAX,
            enable_SMTPUTF8="SMTPUTF8" not in far.hidden,
            hostname=far.hostname,
            ident="ESMTP mta sink",
            tls_context=None if "STARTTLS" in far.hidden else far.tls,
            timeout=IDLE_TIMEOUT_S,
            loop=far.loop,
        )
        # aiosmtpd shares its limits of all connections and lets every EHLO raise them; these stay.
        self.command_size_limits = _SAME_FOR_ALL
        self._far = far
        self._name = ""  # the connection's id; empty until there is one
        self._client, self._client_port, self._local = "", 0, ""
        self._situation = Situation()
        self._messages = 0
        self._is_open = False
        self._is_active = False
        self._may_pipeline = "PIPELINING" not in far.hidden

    def __dir__(self) -> Iterable[str]:
        """Only the commands: aiosmtpd walks over all attributes for each new connection, which is slow."""
        return _COMMANDS

    # --- the life of a connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._name:
            self._situation.is_tls = True
            return  # the second call, after STARTTLS
        client, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._client, self._client_port, self._local = client[0], client[1], local[0]
        self._situation.client, self._situation.server = self._client, self._local
        self._name = self._far.next_connection()
        self._is_open = True
        self._far.dialogues.add(self)
        self._record_connection(True)

    def connection_lost(self, error: Exception | None) -> None:
        self._far.dialogues.discard(self)
        if self._note_end() and self._far.keeper is not None:
            ending = self._far.loop.create_task(self._far.keeper.closed(self._name))
            self._far.endings.add(ending)
            ending.add_done_callback(self._far.endings.discard)
        if self.transport is not None:  # aiosmtpd's is not made for a second call, which TLS makes
            super().connection_lost(error)

    async def end(self) -> None:
        """From here on the connection counts as closed."""
        if self._note_end() and self._far.keeper is not None:
            await self._far.keeper.closed(self._name)

    def _note_end(self) -> bool:
        if not self._is_open:
            return False
        self._is_open = False
        self._record_connection(False)
        return True

    def stop(self) -> asyncio.Task[None] | None:
        """The sink goes away: ends the connection now. The task is this connection's, if it has one."""
        self._note_end()
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]
        return self._handler_coroutine

    def _record_connection(self, is_open: bool) -> None:
        tls = self.session.ssl if self.session is not None else None
        version = tls["ssl_object"].version() or "" if tls else ""
        self._far.record.write(
            Connection(
                time.monotonic(),
                time.time(),
                self._name,
                is_open,
                self._client,
                self._client_port,
                self._local,
                self._messages,
                version,
            )
        )
        self._far.flush_soon()

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Notes that something happened; the one timer looks at that when it is due."""
        self._is_active = True
        if self._timeout_handle is None:
            self._timeout_handle = self.loop.call_later(self._timeout_duration, self._timeout_cb)

    def _timeout_cb(self) -> None:
        if self._is_active:
            self._is_active = False
            self._timeout_handle = self.loop.call_later(self._timeout_duration, self._timeout_cb)
        elif self.transport is not None:
            self.transport.close()

    async def _handle_client(self) -> None:
        try:
            if await self._greet():
                await super()._handle_client()
        except ConnectionError:
            pass  # the client went away in mid-command: connection_lost has it in the record
        except Exception:
            # The top of a connection's task: a fault of ours is shown and ends this connection.
            traceback.print_exc(file=sys.stderr)
            if self.transport is not None:
                self.transport.abort()  # type: ignore[attr-defined]

    async def _greet(self) -> bool:
        """What comes before the greeting; False when the connection is over."""
        action = self._far.script.at(Step.CONNECT, self._situation)
        if action is not None:
            reply = await self._act(Step.CONNECT, action)
            if reply is not None:
                await self._close_with(reply)
        if self._far.keeper is not None:
            refusal = await self._far.keeper.connect(self._name, self._client, self._local)
            if refusal is not None:
                await self._close_with(await self._refuse(Step.CONNECT, refusal))
        return True

    # --- what a script or the provider may do at any step ---

    async def _act(
        self, step: Step, action: Action, recipients: tuple[str, ...] = (), *, is_stored: bool = False
    ) -> bytes | None:
        """Carries out an action; the reply to give instead of the usual one, or None for that.

        Does not return when the action ends the connection: the task is cancelled with its connection.
        """
        if action.delay_ms:
            await asyncio.sleep(action.delay_ms / 1000)
        is_silent = action.never_answer or action.disconnect is Disconnect.BEFORE_REPLY
        if (is_silent or action.code >= 400) and not is_stored:
            self._record_refusal(step, 0 if is_silent else action.code, recipients)
        if is_silent:
            if not action.never_answer:
                await self._close(reset=action.reset)
            await self._wait_for_the_end()
        reply = action.reply.encode() if action.code else None
        if action.disconnect is Disconnect.AFTER_REPLY or action.code == 421:
            await self._close_with(reply or _USUAL[step], reset=action.reset)
        return reply

    async def _refuse(self, step: Step, refusal: Refusal, recipients: tuple[str, ...] = ()) -> bytes:
        """The provider's refusal; does not return when it closes the connection."""
        if refusal.violation is not None:
            self._record_violation(refusal.violation.value)
        self._record_refusal(step, int(refusal.reply[:3]), recipients)
        if refusal.closes:
            await self._close_with(refusal.reply.encode())
        return refusal.reply.encode()

    async def _close_with(self, reply: bytes, *, reset: bool = False) -> None:
        await self.end()
        await self.push(reply)
        await self._close(reset=reset)
        await self._wait_for_the_end()

    async def _close(self, *, reset: bool) -> None:
        await self.end()
        self._far.record.flush()
        transport = self.transport
        if transport is None:
            return
        if reset:
            # A linger of zero makes the kernel answer by RST and forget what was not sent.
            await asyncio.sleep(0)  # replies already given leave first
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()  # type: ignore[attr-defined]
        else:
            transport.close()

    async def _wait_for_the_end(self) -> None:
        """Waits until connection_lost cancels this task."""
        await self.loop.create_future()

    def _record_refusal(self, step: Step, code: int, recipients: tuple[str, ...]) -> None:
        at_s, unix_s = time.monotonic(), time.time()
        sender = self._situation.mail_from
        self._far.record.write(Refused(at_s, unix_s, self._name, step.value, code, sender, recipients))
        self._far.flush_soon()

    def _record_violation(self, what: str) -> None:
        at_s, unix_s = time.monotonic(), time.time()
        self._far.record.write(Violated(at_s, unix_s, self._name, self._client, self._local, what))
        self._far.flush_soon()

    async def push(self, status: str | bytes) -> None:
        """Gives a reply. One that is not the usual gets an enhanced code where it has none (RFC 2034 §4)."""
        if isinstance(status, str):
            if status[0] in "45" and not _ENHANCED.match(status):
                status = f"{status[:4]}{status[0]}.5.0 {status[4:]}"
            status = status.encode()
        if not self._may_pipeline and self._has_more:
            self._record_violation("pipelining")
        self._far.record.flush()  # before the reply leaves: who has read it finds in the record what led to it
        self._writer.write(status + b"\r\n")
        await self._writer.drain()

    @property
    def _has_more(self) -> bool:
        """The client has sent on, before the reply to what it sent last."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    # --- commands ---

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        found = _PATH.match(arg)
        if found is None:
            return super()._getaddr(arg)
        return found.group(1), found.group(2)

    async def smtp_HELO(self, hostname: str) -> None:  # noqa: N802 - aiosmtpd's name
        await self._hello(hostname, "HELO", f"250 {self.hostname}".encode())

    async def smtp_EHLO(self, hostname: str) -> None:  # noqa: N802
        assert self.session is not None
        await self._hello(hostname, "EHLO", self._far.ehlo_reply(self.session.ssl is not None))

    async def _hello(self, hostname: str, command: str, reply: bytes) -> None:
        if not hostname:
            await self.push(f"501 5.5.4 Syntax: {command} hostname")
            return
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self._situation.helo = hostname
        action = self._far.script.at(Step.HELO, self._situation)
        instead = None if action is None else await self._act(Step.HELO, action)
        if instead is None:
            assert self.session is not None
            self.session.host_name = hostname
            self.session.extended_smtp = command == "EHLO"
        await self.push(instead or reply)

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802
        if self._has_more:
            self._record_violation("pipelining-starttls")  # RFC 3207 §4: must be the last in a group
        action = self._far.script.at(Step.STARTTLS, self._situation)
        refusal = None if action is None else await self._act(Step.STARTTLS, action)
        if refusal is not None:
            await self.push(refusal)
            return
        await super().smtp_STARTTLS(arg)

    async def on_mail(self, address: str, options: list[str]) -> bytes:
        """MAIL with good syntax."""
        assert self.envelope is not None
        sender = "" if address == "<>" else address
        self._situation.mail_from = sender
        if self._far.hidden and (refusal := self._check_offered(options)):
            return refusal
        if not sender.isascii() and not self.envelope.smtp_utf8:
            return self._refuse_smtputf8()
        reply = None
        if Step.MAIL in self._far.script.speaks_at:
            action = self._far.script.at(Step.MAIL, self._situation)
            reply = None if action is None else await self._act(Step.MAIL, action)
        if reply is None and self._far.keeper is not None:
            refused = await self._far.keeper.mail(self._name, sender)
            reply = None if refused is None else await self._refuse(Step.MAIL, refused)
        if reply is None or reply.startswith(b"2"):
            self.envelope.mail_from = address
        return reply or _OK_MAIL

    def _check_offered(self, options: list[str]) -> bytes | None:
        """A parameter of an extension that is hidden (SIZE, BODY, SMTPUTF8) is an error of the client's."""
        for option in options:
            name = option.partition("=")[0]
            if ("8BITMIME" if name == "BODY" else name) in self._far.hidden:
                self._record_violation("extension")
                return f"555 5.5.4 parameter {name} was not offered".encode()
        return None

    def _refuse_smtputf8(self) -> bytes:
        self._record_violation("smtputf8")
        return b"553 5.6.7 a non-ASCII address needs SMTPUTF8"

    async def on_rcpt(self, address: str) -> bytes:
        """RCPT with good syntax, after MAIL."""
        assert self.envelope is not None
        if not address.isascii() and not self.envelope.smtp_utf8:
            return self._refuse_smtputf8()
        action = self._far.script.at(Step.RCPT, self._situation, address)
        reply = None if action is None else await self._act(Step.RCPT, action, (address,))
        if reply is None and self._far.keeper is not None:
            refused = await self._far.keeper.rcpt(self._name, address)
            reply = None if refused is None else await self._refuse(Step.RCPT, refused, (address,))
        if reply is None or reply.startswith(b"2"):
            self.envelope.rcpt_tos.append(address)
        return reply or _OK_RCPT

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802
        assert self.envelope is not None
        recipients = self.envelope.rcpt_tos
        if not self.envelope.mail_from:
            await self.push("503 5.5.1 need MAIL first")
        elif not recipients:
            await self.push("554 5.5.1 no valid recipients")
        elif arg:
            await self.push("501 5.5.4 Syntax: DATA")
        elif await self._may_send_body(recipients):
            body = await self._read_body()
            reply = b"552 5.3.4 message is too big" if body is None else await self._on_dot(recipients, body)
            self._set_post_data_state()  # type: ignore[no-untyped-call]
            await self.push(reply)

    async def _may_send_body(self, recipients: list[str]) -> bool:
        action = self._far.script.for_message(Step.DATA, self._situation, recipients)
        reply = None if action is None else await self._act(Step.DATA, action, tuple(recipients))
        if reply is None and self._far.keeper is not None:
            refused = await self._far.keeper.data(self._name)
            reply = None if refused is None else await self._refuse(Step.DATA, refused, tuple(recipients))
        if self._has_more:
            self._record_violation("pipelining-data")  # RFC 2920 §3.1: DATA ends a group
        await self.push(reply or _GO_ON)
        return reply is None or reply.startswith(b"3")

    async def _read_body(self) -> bytes | None:
        """The message without its transparent dots (RFC 5321 §4.5.2); None when it is above SIZE.

        The CRLF of the DATA command belongs to the end of an empty body, so it is put back in front; and
        the body of a message then begins after a line end like every other of its lines.
        """
        reader = self._reader
        reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]
        blocks: list[bytes] = []
        size_bytes = 0
        while True:
            try:
                block = await reader.readuntil(_DOT)
            except asyncio.LimitOverrunError as overrun:
                # No end in a full buffer: all that cannot be a part of the end is taken out.
                block = await reader.read(overrun.consumed)
                size_bytes += len(block)
                if size_bytes <= MESSAGE_BYTES_MAX:
                    blocks.append(block)
                continue
            if size_bytes + len(block) > MESSAGE_BYTES_MAX + len(_DOT) + 2:
                return None
            body = b"".join((*blocks, block)) if blocks else block
            self._is_active = True
            return body[:-3].replace(b"\r\n.", b"\r\n")[2:]

    async def _on_dot(self, recipients: list[str], body: bytes) -> bytes:
        """The final dot was read: decides, records, and gives the reply."""
        self._check_body(body)
        action = self._far.script.for_message(Step.DOT, self._situation, recipients)
        if action is None or action.store:
            if self._far.keeper is not None:
                refused = await self._far.keeper.dot(self._name)
                if refused is not None:
                    return await self._refuse(Step.DOT, refused, tuple(recipients))
            self._store(recipients, body, action)
        if action is None:
            return _OK_DOT
        return await self._act(Step.DOT, action, tuple(recipients), is_stored=action.store) or _OK_DOT

    def _check_body(self, body: bytes) -> None:
        if body.count(b"\n") != (lines := body.count(b"\r\n")) or body.count(b"\r") != lines:
            self._record_violation("bare-newline")  # RFC 5321 §2.3.8
        if "8BITMIME" in self._far.hidden and not body.isascii():
            self._record_violation("8bit")

    def _store(self, recipients: list[str], body: bytes, action: Action | None) -> None:
        far = self._far
        sha256, offset = "", -1
        if far.keeps_bodies:
            sha256, offset = hashlib.sha256(body).hexdigest(), far.record.keep_body(body)
        self._messages += 1
        reply = 250
        if action is not None and (action.never_answer or action.disconnect is Disconnect.BEFORE_REPLY):
            reply = 0
        elif action is not None and action.code:
            reply = action.code
        far.record.write(
            Accepted(
                time.monotonic(),
                time.time(),
                self._name,
                self._client,
                self._local,
                self._situation.mail_from,
                tuple(recipients),
                _message_id(body),
                len(body),
                reply,
                sha256,
                offset,
            )
        )
        far.record.flush()  # now, as a script may delay the reply or leave it out


def _message_id(body: bytes) -> str:
    """The Message-ID of a message's header, "" without one."""
    header_end = body.find(b"\r\n\r\n")
    header = b"\r\n" + (body if header_end < 0 else body[:header_end])
    found = _MESSAGE_ID.search(header)
    return "" if found is None else found.group(1).strip().decode("utf-8", "backslashreplace")


class _SameForAll(dict[str, int]):
    """One limit for every command, which nobody can raise."""

    def __missing__(self, command: str) -> int:
        return COMMAND_LINE_OCTETS_MAX

    def __setitem__(self, command: str, limit: int) -> None:
        return


_SAME_FOR_ALL: Final[Any] = _SameForAll()
_COMMANDS: Final = (
    *("smtp_HELO", "smtp_EHLO", "smtp_STARTTLS", "smtp_MAIL", "smtp_RCPT", "smtp_DATA"),
    *("smtp_RSET", "smtp_NOOP", "smtp_VRFY", "smtp_HELP", "smtp_EXPN", "smtp_QUIT"),
)
_USUAL: Final = {
    Step.CONNECT: b"421 4.3.2 closing",
    Step.HELO: b"250 OK",
    Step.STARTTLS: b"220 Ready",
    Step.MAIL: _OK_MAIL,
    Step.RCPT: _OK_RCPT,
    Step.DATA: _GO_ON,
    Step.DOT: _OK_DOT,
}
