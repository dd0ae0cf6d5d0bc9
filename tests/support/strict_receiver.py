"""A receiver that forgives nothing: each departure from RFC 5321, 5322 and their extensions is written down.

It shares no code with what it judges. It takes octets off the socket in reads of a size that a test chooses, so their
boundaries can fall anywhere, and keeps each message exactly as a mailbox would: dots unstuffed, nothing else touched.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

_TURNS_HELD = 4  # of the loop; in the second one octets that were in flight have been read
_LINE_OCTETS_MAX = 998  # RFC 5322 §2.1.1
_COMMAND_OCTETS_MAX = 512 - 2  # RFC 5321 §4.5.3.1.4
_MAIL_PARAMETER_OCTETS = 26 + 17 + 10  # RFC 1870 §3, RFC 6152 §2, RFC 6531 §3.1 make MAIL so much longer
_GO_TLS = "220 2.0.0 go on in TLS"
_LAST_IN_GROUP = (b"EHLO", b"HELO", b"DATA", b"QUIT", b"NOOP", b"STARTTLS")  # RFC 2920 §3.1

_MAIL = re.compile(rb"MAIL FROM:<(.*)>((?: [A-Z0-9][A-Z0-9-]*(?:=[!-<>-~]+)?)*)")
_RCPT = re.compile(rb"RCPT TO:<(.+)>")
_BDAT = re.compile(rb"BDAT (0|[1-9][0-9]*)( LAST)?")
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+"
_LABEL = rb"[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9\x80-\xff-]*[A-Za-z0-9\x80-\xff])?"
_MAILBOX = re.compile(
    rb"(%b(?:\.%b)*|\"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*\")@(%b(?:\.%b)+)" % (_ATOM, _ATOM, _LABEL, _LABEL), re.DOTALL
)
_FIELD = re.compile(rb"([!-9;-~]+):(?: .*)?", re.DOTALL)
_ONCE = frozenset(  # RFC 5322 §3.6, RFC 2045 §3
    b"bcc cc content-transfer-encoding content-type date from in-reply-to message-id mime-version references reply-to "
    b"sender subject to".split()
)


@dataclass(frozen=True)
class Received:
    """A message with its envelope, as it came."""

    mail_from: bytes
    recipients: tuple[bytes, ...]
    parameters: dict[str, str]  # of MAIL
    octets: bytes
    by: str  # DATA or BDAT


@dataclass(frozen=True)
class Transaction:
    """A MAIL that was taken, and each RCPT after it with the code that answered it; content or none."""

    session: int  # counted from 1
    mail_from: bytes
    parameters: dict[str, str]
    asked: list[tuple[str, int]] = field(default_factory=list)

    @property
    def domains(self) -> set[str]:
        return {recipient.rpartition("@")[2] for recipient, _ in self.asked}


class StrictReceiver:
    """``async with StrictReceiver("PIPELINING", "SIZE") as receiver: ... receiver.port``.

    ``violations`` says in words what was wrong, and stays empty for a faultless client. ``read_octets`` bounds one
    read of the socket, ``receive_buffer_octets`` what the kernel holds for it. Without ``has_headers`` bodies are
    any text, and held to the rules of lines only. With ``tls`` it offers STARTTLS besides. ``answers`` to RCPT are
    by local part: a 421 closes the connection, an empty one drops it. ``recipients_max`` a transaction are taken.
    ``sender_answer`` refuses each MAIL.
    """

    def __init__(
        self,
        *keywords: str,
        read_octets: int = 65536,
        receive_buffer_octets: int | None = None,
        has_headers: bool = True,
        tls: ssl.SSLContext | None = None,
        answers: Mapping[str, str] | None = None,
        recipients_max: int | None = None,
        sender_answer: str = "",
    ) -> None:
        self.sender_answer = sender_answer
        self.answers = answers or {}
        self.recipients_max = recipients_max
        self.transactions: list[Transaction] = []
        self.keywords = keywords
        self.names = frozenset(keyword.split(" ")[0] for keyword in keywords)
        self.read_octets = read_octets
        self.has_headers = has_headers
        self.tls = tls
        self.messages: list[Received] = []
        self.violations: list[str] = []
        self.verbs: list[str] = []  # of all commands, in their order
        self.port = 0
        self._receive_buffer_octets = receive_buffer_octets
        self._sessions: list[_Session] = []

    async def __aenter__(self) -> Self:
        sock = socket.socket(proto=socket.IPPROTO_TCP)
        if self._receive_buffer_octets is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_octets)
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(self._session, sock=sock)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for session in self._sessions:
            session.drop()
        await self._server.wait_closed()

    def _session(self) -> _Session:
        session = _Session(self, len(self._sessions) + 1)
        self._sessions.append(session)
        return session


class _Session(asyncio.BufferedProtocol):
    def __init__(self, receiver: StrictReceiver, number: int) -> None:
        self._receiver = receiver
        self._number = number
        # A view: under TLS, asyncio slices what it is given and reads into the slice (bytearray would give a copy).
        self._read = memoryview(bytearray(receiver.read_octets))
        self._unread = bytearray()
        self._held = b""  # the command whose reply must be awaited, while it is
        self._is_greeted = False
        self._is_tls = False
        self._upgrade: asyncio.Task[None] | None = None
        self._is_data = False
        self._bdat_left: int | None = None
        self._is_last_chunk = False
        self._begin()

    def _begin(self) -> None:
        self._mail_from: bytes | None = None
        self._recipients: list[bytes] = []
        self._parameters: dict[str, str] = {}
        self._message = bytearray()
        self._is_chunked = False

    # -- transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, but not by descent
        self._hold(b"the connection", "220 mx.example.test ESMTP")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self._unread += self._read[:nbytes]
        self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._unread or self._is_data or self._bdat_left:
            self._violated(f"the connection ended inside of something: {bytes(self._unread[:40])!r}")

    def drop(self) -> None:
        self._transport.abort()

    def _violated(self, what: str) -> None:
        self._receiver.violations.append(what)

    def _reply(self, command: bytes, text: str) -> None:
        if "PIPELINING" not in self._receiver.names or command.startswith(_LAST_IN_GROUP):
            self._hold(command, text)
        else:
            self._transport.write(text.encode() + b"\r\n")

    def _hold(self, command: bytes, text: str) -> None:
        """Reply some turns later: what arrives until then was sent without waiting."""
        self._held = command
        self._later(text, _TURNS_HELD)

    def _later(self, text: str, turns: int) -> None:
        is_upgrading = self._upgrade is not None and not self._upgrade.done()
        if turns > 0 or is_upgrading:
            asyncio.get_running_loop().call_soon(self._later, text, turns - 1)
            return
        self._held = b""
        if not self._transport.is_closing():
            self._transport.write(text.encode() + b"\r\n")
            if text.startswith(("221", "421")):
                self._transport.close()
            elif text == _GO_TLS:
                self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())

    async def _start_tls(self) -> None:
        context = self._receiver.tls
        assert context is not None
        self._is_tls = True
        self._is_greeted = False  # RFC 3207 §4.2: all that was said before is forgotten
        self._begin()
        try:
            transport = await asyncio.get_running_loop().start_tls(self._transport, self, context, server_side=True)
        except (OSError, EOFError) as error:
            self._violated(f"no TLS: {error!r}")
            self.drop()
            return
        self._transport = cast(asyncio.Transport, transport)

    # -- octets ----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        while True:
            if self._held and self._unread:
                self._violated(f"{bytes(self._unread[:40])!r} came before the reply to {self._held!r}")
            if self._bdat_left is not None:
                if not self._take_chunk():
                    return
                continue
            end = self._unread.find(b"\r\n")
            if end < 0:
                return
            line = bytes(self._unread[:end])
            del self._unread[: end + 2]
            if self._is_data:
                self._data_line(line)
            else:
                self._command(line)

    def _take_chunk(self) -> bool:
        """True when the chunk is complete."""
        assert self._bdat_left is not None
        taken = self._unread[: self._bdat_left]
        del self._unread[: len(taken)]
        self._message += taken
        self._bdat_left -= len(taken)
        if self._bdat_left:
            return False
        self._bdat_left = None
        if self._is_last_chunk:
            self._end_message("BDAT")
        else:
            self._reply(b"BDAT", "250 2.0.0 go on")
        return True

    def _data_line(self, line: bytes) -> None:
        if line == b".":
            self._is_data = False
            self._end_message("DATA")
            return
        if line.startswith(b"."):
            if not line.startswith(b".."):
                self._violated(f"a dot at a line's start without a second one: {line[:40]!r}")
            line = line[1:]
        self._message += line + b"\r\n"

    def _end_message(self, by: str) -> None:
        octets = bytes(self._message)
        assert self._mail_from is not None
        self._receiver.messages.append(Received(self._mail_from, tuple(self._recipients), self._parameters, octets, by))
        is_utf8 = "SMTPUTF8" in self._parameters
        is_8bit = self._parameters.get("BODY") == "8BITMIME"
        faults = faults_of_lines(octets, is_utf8=is_utf8, is_8bit=is_8bit)
        if self._receiver.has_headers:
            faults += faults_of_headers(octets)
        size = self._parameters.get("SIZE")
        if size is not None and int(size) != len(octets):
            faults.append(f"SIZE={size}, and {len(octets)} octets came")
        for fault in faults:
            self._violated(f"{fault}, in {octets[:80]!r}")
        self._begin()
        self._reply(b"BDAT" if by == "BDAT" else b".", "250 2.0.0 kept")

    # -- commands --------------------------------------------------------------------------------------------------

    def _command(self, line: bytes) -> None:
        verb = line.split(b" ")[0]
        self._receiver.verbs.append(verb.decode("latin-1"))
        self._check_octets(verb, line)
        if verb in (b"EHLO", b"HELO"):
            self._on_hello(line)
        elif line == b"STARTTLS" and self._receiver.tls is not None and not self._is_tls:
            self._reply(line, _GO_TLS)
        elif line == b"QUIT":
            self._reply(line, "221 2.0.0 bye")
        elif line == b"RSET":
            self._begin()
            self._reply(line, "250 2.0.0 reset")
        elif not self._is_greeted:
            self._refuse(line, "503 5.5.1 no EHLO")
        elif verb == b"MAIL":
            self._on_mail(line)
        elif verb == b"RCPT":
            self._on_rcpt(line)
        elif verb == b"DATA":
            self._on_data(line)
        elif verb == b"BDAT" and "CHUNKING" in self._receiver.names:
            self._on_bdat(line)
        else:
            self._refuse(line, "500 5.5.2 what?")

    def _check_octets(self, verb: bytes, line: bytes) -> None:
        octets_max = _COMMAND_OCTETS_MAX + (_MAIL_PARAMETER_OCTETS if verb == b"MAIL" else 0)
        if len(line) > octets_max:
            self._violated(f"a command of {len(line)} octets: {line[:40]!r}")
        if re.search(rb"[\x00-\x1f\x7f]", line):
            self._violated(f"a control character in {line[:200]!r}")
        if not line.isascii() and "SMTPUTF8" not in self._receiver.names:
            self._violated(f"octets over 127 in {line[:200]!r}")

    def _refuse(self, line: bytes, text: str) -> None:
        self._violated(f"{text} to {line[:200]!r}")
        self._reply(line, text)

    def _on_hello(self, line: bytes) -> None:
        if re.fullmatch(rb"(?:EHLO|HELO) %b(?:\.%b)*" % (_LABEL, _LABEL), line) is None:
            self._refuse(line, "501 5.5.4 no name")
            return
        self._is_greeted = True
        self._begin()
        lines = ["mx.example.test", *self._receiver.keywords]
        if self._receiver.tls is not None and not self._is_tls:
            lines.append("STARTTLS")
        self._reply(line, "\r\n".join([f"250-{text}" for text in lines[:-1]] + [f"250 {lines[-1]}"]))

    def _on_mail(self, line: bytes) -> None:
        parts = _MAIL.fullmatch(line)
        if parts is None or self._mail_from is not None:
            self._refuse(line, "503 5.5.1 not now" if parts else "501 5.5.4 syntax")
            return
        parameters: dict[str, str] = {}
        for parameter in parts[2].decode("ascii").split():
            name, _, value = parameter.partition("=")
            keyword = {"BODY": "8BITMIME"}.get(name, name)
            if keyword not in self._receiver.names or keyword not in ("SIZE", "8BITMIME", "SMTPUTF8"):
                self._violated(f"{parameter}, which was not offered")
            if name in parameters:
                self._violated(f"{name} twice in {line!r}")
            if re.fullmatch({"SIZE": r"[0-9]{1,20}", "BODY": r"7BIT|8BITMIME"}.get(name, ""), value) is None:
                self._violated(f"the value of {parameter}")
            parameters[name] = value
        self._parameters = parameters
        if parts[1]:  # empty: the null path
            self._check_mailbox(parts[1])
        if self._receiver.sender_answer:
            self._reply(line, self._receiver.sender_answer)
            return
        self._mail_from = parts[1]
        self._receiver.transactions.append(Transaction(self._number, parts[1], parameters))
        self._reply(line, "250 2.1.0 ok")

    def _on_rcpt(self, line: bytes) -> None:
        parts = _RCPT.fullmatch(line)
        if parts is not None and self._receiver.sender_answer:
            self._reply(line, "503 5.5.1 no MAIL")  # pipelined behind it
            return
        if parts is None or self._mail_from is None or self._is_chunked:
            self._refuse(line, "501 5.5.4 syntax" if parts is None else "503 5.5.1 not now")
            return
        self._check_mailbox(parts[1])
        recipient = parts[1].decode()
        answer = self._receiver.answers.get(recipient.rpartition("@")[0])
        if answer is None and len(self._recipients) == self._receiver.recipients_max:
            answer = "452 4.5.3 too many recipients"
        code = 250 if answer is None else int(answer[:3] or 0)
        self._receiver.transactions[-1].asked.append((recipient, code))
        if answer is None:
            self._recipients.append(parts[1])
        elif code in (0, 421):
            self._unread.clear()  # what was pipelined behind it is read by nobody
        if not code:
            self.drop()
        elif code == 421:
            self._later(answer or "", 0)
        else:
            self._reply(line, answer or "250 2.1.5 ok")

    def _check_mailbox(self, mailbox: bytes) -> None:
        parts = _MAILBOX.fullmatch(mailbox)
        if parts is None:
            self._violated(f"{mailbox!r} is no mailbox")
        elif len(parts[1]) > 64 or len(parts[2]) > 255 or len(mailbox) > 254:  # RFC 5321 §4.5.3.1
            self._violated(f"{mailbox!r} is too long")
        if not mailbox.isascii() and "SMTPUTF8" not in self._parameters:
            self._violated(f"{mailbox!r} without SMTPUTF8")

    def _on_data(self, line: bytes) -> None:
        if line != b"DATA" or not self._recipients or self._is_chunked:
            self._refuse(line, "503 5.5.1 not now")
            return
        self._is_data = True
        self._reply(line, "354 go")

    def _on_bdat(self, line: bytes) -> None:
        parts = _BDAT.fullmatch(line)
        if parts is None or not self._recipients:
            # What follows is a chunk and no command: there is nothing left to talk about.
            self._violated(f"at the wrong time, or none: {line!r}")
            self.drop()
            return
        self._is_chunked = True
        self._bdat_left = int(parts[1])
        self._is_last_chunk = parts[2] is not None


def faults_of_lines(octets: bytes, *, is_utf8: bool, is_8bit: bool) -> list[str]:
    """What RFC 5321 §4.5.3.1.6, RFC 5322 §2.1, §2.3 and RFC 6531 §3.6 have against the lines of a message."""
    faults = []
    if octets and not octets.endswith(b"\r\n"):
        faults.append("no CRLF at the end")
    for number, line in enumerate(octets.split(b"\r\n"), 1):
        if b"\r" in line or b"\n" in line:
            faults.append(f"a bare CR or LF in line {number}")
        if len(line) > _LINE_OCTETS_MAX:
            faults.append(f"{len(line)} octets in line {number}")
        if b"\0" in line:
            faults.append(f"NUL in line {number}")
    head, _, body = octets.partition(b"\r\n\r\n")
    if not head.isascii() and not (is_utf8 or is_8bit):
        faults.append("octets over 127 in the header")
    if not body.isascii() and not is_8bit:
        faults.append("octets over 127 in the body")
    return faults


def faults_of_headers(octets: bytes) -> list[str]:
    """What RFC 5322 §2.2, §3.6 has against the header section of a message."""
    head, separator, _ = octets.partition(b"\r\n\r\n")
    faults = [] if separator else ["no empty line behind the header"]
    names: list[bytes] = []
    for line in head.split(b"\r\n"):
        if line.startswith((b" ", b"\t")):
            if not names or not line.strip():
                faults.append(f"a fold of nothing: {line!r}")
            continue
        field = _FIELD.fullmatch(line)
        if field is None:
            faults.append(f"no header line: {line[:80]!r}")
        else:
            names.append(field[1].lower())
    faults += [f"{name!r} twice" for name in _ONCE if names.count(name) > 1]
    faults += [f"no {name!r}" for name in (b"date", b"from") if name not in names]
    return faults
