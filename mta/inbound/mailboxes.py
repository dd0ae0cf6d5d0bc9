"""Mail that a site has delivered to a mailbox already: fetched into the spool, and only then marked or removed.

What was fetched and not marked yet when a process died is fetched again; it counts once (`mta.queue.feedback`).
The libraries that speak IMAP and POP3 wait for their sockets, so each mailbox has a thread while it is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.parser
import email.policy
import email.utils
import imaplib
import os
import poplib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from mta.inbound.spool import Spool, Stored
from mta.model.errors import BadInput
from mta.settings.inbound import AfterReading, MailboxKind, MailboxTable, MailboxTls
from mta.settings.toml_source import decode, only_owner_and_group, read_whole
from mta.telemetry.waits import event_or_timeout

TIMEOUT_S: Final = 60.0
BATCH: Final = 500  # of one look
RECIPIENTS_MAX: Final = 100
_HEAD_OCTETS: Final = 256 << 10
# Where a mail server says for whom it put a mail into a mailbox, and where the sender says it.
_RECIPIENT_HEADERS: Final = ("delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-delivered-to", "to")
_SIZE: Final = re.compile(rb"RFC822\.SIZE (\d+)")
_UID: Final = re.compile(rb"^\d{1,10}$")
AWAY: Final = (OSError, imaplib.IMAP4.error, poplib.error_proto, EOFError)
log = structlog.get_logger()


class MailboxReader:
    """``run`` is its only task."""

    def __init__(self, table: MailboxTable, spool: Spool, octets_max: int) -> None:
        self._table = table
        self._spool = spool
        self._octets_max = octets_max
        self._socket: socket.socket | None = None  # while a server is asked, in a thread
        self.fetched = 0

    def interrupt(self) -> None:
        """Ends the wait for an answer: else the thread would go on for as long as the server takes."""
        asked = self._socket
        if asked is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                socket.socket.shutdown(asked, socket.SHUT_RDWR)  # under TLS, whose own word is for the thread alone

    async def run(self, stop_wanted: asyncio.Event) -> None:
        """Looks every so often, until told to stop. A mailbox that is away is tried again."""
        said = ""
        while not stop_wanted.is_set():
            taken = 0
            try:
                if not self._spool.is_full:
                    taken = await asyncio.to_thread(self.look)
                said = ""
            except (*AWAY, BadInput) as error:
                text = f"{type(error).__name__}: {error}"
                if text != said:
                    log.warning("a mailbox cannot be read", mailbox=self._table.name, error=text[:500])
                said = text
            if taken < BATCH:
                await event_or_timeout(stop_wanted, self._table.every_s)

    def look(self) -> int:
        """How many mails were fetched. Raises one of AWAY, or BadInput for a password file that will not do."""
        readers = {MailboxKind.MAILDIR: self._maildir, MailboxKind.IMAP: self._imap, MailboxKind.POP3: self._pop3}
        return readers[self._table.kind]()

    def _keep(self, mail: bytes) -> None:
        stored = Stored(_recipients(mail), "", self._table.name, time.time())
        self._spool.put(stored, mail).result()
        self.fetched += 1

    def _refuse(self, what: str, octets: int) -> None:
        log.warning("a mail is too large and stays", mailbox=self._table.name, mail=what, octets=octets)

    # --- a directory ---------------------------------------------------------------------------

    def _maildir(self) -> int:
        directory = Path(self._table.path)
        taken = 0
        with os.scandir(directory / "new") as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        for name in names[:BATCH]:
            path = directory / "new" / name
            try:
                octets = path.stat().st_size
                mail = path.read_bytes() if octets <= self._octets_max else None
            except FileNotFoundError:
                continue  # somebody who reads the mailbox was faster
            if mail is None:
                self._refuse(name, octets)
            else:
                self._keep(mail)
                taken += 1
            with contextlib.suppress(FileNotFoundError):
                if mail is not None and self._table.after is AfterReading.DELETE:
                    path.unlink()
                else:
                    path.rename(directory / "cur" / f"{name.partition(':')[0]}:2,S")
        return taken

    # --- IMAP (RFC 3501) ------------------------------------------------------------------------

    def _imap(self) -> int:
        table = self._table
        with self._imap_session() as imap:
            imap.login(table.user, read_password(table))
            _ok(imap.select(_quoted(table.folder)))
            (found,) = _ok(imap.uid("SEARCH", "UNSEEN", "UNDELETED"))
            taken = 0
            for uid in [one for one in (found or b"").split() if _UID.match(one)][:BATCH]:
                number = uid.decode()
                size = _SIZE.search(b" ".join(_octets(_ok(imap.uid("FETCH", number, "(RFC822.SIZE)")))))
                if size is None:
                    continue  # somebody has removed it
                if int(size[1]) > self._octets_max:
                    self._refuse(number, int(size[1]))
                    _ok(imap.uid("STORE", number, "+FLAGS.SILENT", r"(\Seen)"))
                    continue
                parts = _ok(imap.uid("FETCH", number, "(BODY.PEEK[])"))
                mail = next((part[1] for part in parts if isinstance(part, tuple)), None)
                if mail is None:
                    continue
                self._keep(mail)
                taken += 1
                flags = r"(\Seen \Deleted)" if table.after is AfterReading.DELETE else r"(\Seen)"
                _ok(imap.uid("STORE", number, "+FLAGS.SILENT", flags))
            if taken and table.after is AfterReading.DELETE:
                _ok(imap.expunge())
            return taken

    @contextlib.contextmanager
    def _imap_session(self) -> Iterator[imaplib.IMAP4]:
        table = self._table
        if table.tls is MailboxTls.YES:
            imap: imaplib.IMAP4 = imaplib.IMAP4_SSL(table.host, table.port, ssl_context=_tls(table), timeout=TIMEOUT_S)
        else:
            imap = imaplib.IMAP4(table.host, table.port, timeout=TIMEOUT_S)
        self._socket = imap.sock
        try:
            if table.tls is MailboxTls.STARTTLS:
                imap.starttls(_tls(table))
                self._socket = imap.sock
            yield imap
            imap.logout()
        finally:
            self._socket = None
            with contextlib.suppress(*AWAY):  # the connection is gone already, then
                imap.shutdown()

    # --- POP3 (RFC 1939) ------------------------------------------------------------------------

    def _pop3(self) -> int:
        table = self._table
        if table.tls is MailboxTls.YES:
            pop: poplib.POP3 = poplib.POP3_SSL(table.host, table.port, context=_tls(table), timeout=TIMEOUT_S)
        else:
            pop = poplib.POP3(table.host, table.port, timeout=TIMEOUT_S)
        self._socket = pop.sock
        try:
            if table.tls is MailboxTls.STARTTLS:
                pop.stls(_tls(table))
                self._socket = pop.sock
            pop.user(table.user)
            pop.pass_(read_password(table))
            taken = 0
            for line in pop.list()[1][:BATCH]:
                number, _, octets = line.decode("ascii", "replace").partition(" ")
                if not octets.isdigit():
                    raise poplib.error_proto(f"no list of messages: {line[:100]!r}")
                if int(octets) > self._octets_max:
                    self._refuse(number, int(octets))
                    continue
                self._keep(b"\r\n".join(pop.retr(int(number))[1]) + b"\r\n")
                pop.dele(int(number))
                taken += 1
            pop.quit()  # only now the server removes them
            return taken
        finally:
            self._socket = None
            with contextlib.suppress(*AWAY):
                pop.close()


def _recipients(mail: bytes) -> list[str]:
    """For whom it was put there, as far as headers tell. Nothing is believed of it that is not signed."""
    head = mail[:_HEAD_OCTETS].replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    headers = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(head)
    texts = [str(text) for name in _RECIPIENT_HEADERS for text in headers.get_all(name, [])][:RECIPIENTS_MAX]
    found = dict.fromkeys(address for _, address in email.utils.getaddresses(texts) if "@" in address)
    return [one.encode("utf-8", "replace").decode("utf-8") for one in found][:RECIPIENTS_MAX]


def _tls(table: MailboxTable) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=table.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise BadInput("inbound.mailbox.ca_file", f"{table.ca_file}: {error}") from None


def read_password(table: MailboxTable) -> str:
    """That of a mailbox. Raises BadInput, at its file, when it cannot be read or others could read it."""
    octets, _ = read_whole(Path(table.password_file), 4_096, only_owner_and_group("a password"))
    password = decode(octets, table.password_file).rstrip("\r\n")
    if not password or "\n" in password or "\r" in password:
        raise BadInput(table.password_file, "holds no password on one line")
    return password


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ok(answer: tuple[str, Any]) -> list[Any]:
    status, data = answer
    if status != "OK":
        raise imaplib.IMAP4.error(f"{status} {data!r}"[:300])
    return list(data)


def _octets(parts: list[Any]) -> list[bytes]:
    return [part[0] if isinstance(part, tuple) else part for part in parts if isinstance(part, bytes | tuple)]
