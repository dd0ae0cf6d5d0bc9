"""What the scenarios ask of a remote server, whichever it is; one module of `tests.interop.servers` for each."""

from __future__ import annotations

import contextlib
import mailbox
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from tests.interop.layer import WORK, Layer
from tests.interop.mail_sink import MailSink
from tests.interop.place import (
    DOMAIN,
    HOST,
    HOST_ADDRESS,
    MAILBOXES,
    PASSWORD,
    PORT,
    RETURN_DOMAIN,
    SENDER_ADDRESS,
    SENDER_DOMAIN,
    SENDER_HOST,
    SUBMISSION_PORT,
    USERS,
    Place,
)

START_S = 60.0


class StoredMessage(NamedTuple):
    """A message in a mailbox: its octets as the server's own readers would show them, with CRLF."""

    user: str
    octets: bytes


class RemoteServer(ABC):
    """A server, how it is installed and run, and how its mailboxes and its log are read."""

    name: ClassVar[str]
    title: ClassVar[str]
    how: ClassVar[str]  # what is not as the server comes, in words
    start_s: ClassVar[float] = START_S
    outcomes_s: ClassVar[float] = 45.0  # within which a session has its outcomes for all recipients
    rewrites: ClassVar[str] = ""  # what it changes in messages, so that their signatures break; `original` undoes it
    tls_fails: ClassVar[str] = ""  # why its STARTTLS leads nowhere: its mail goes in the clear, as TLS is opportunistic

    reports_s: ClassVar[float] = 40.0  # within which it has reported what it could not relay
    warns: ClassVar[bool] = True  # reports that it is still trying,
    gives_up: ClassVar[bool] = False  # or at least that it tries no more, within ``reports_s``
    waits_for_domains: ClassVar[bool] = False  # takes a domain that is not there for one that is not there now
    loses_status: ClassVar[bool] = False  # reports codes of its own in the place of the next host's
    no_bounces: ClassVar[str] = ""  # why it has nothing to report

    @property
    @abstractmethod
    def is_installed(self) -> bool: ...

    @abstractmethod
    def install(self) -> None:
        """Fetches or builds it into `tests.interop.layer.STORE`; CalledProcessError when that fails."""

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def command(self, place: Place) -> list[str]:
        """Writes its configuration into ``place``; what starts it in the foreground."""

    @abstractmethod
    def stored(self, place: Place) -> Iterator[StoredMessage]:
        """Everything in its mailboxes."""

    def submit(self, place: Place, case: str, recipient: str) -> None:
        """Has a message relayed, of a `Place.is_relay`. ``case`` is in its return path."""
        del place
        with smtplib.SMTP(HOST_ADDRESS, PORT, SENDER_HOST, 30, (SENDER_ADDRESS, 0)) as session:
            session.sendmail(f"to-{case}@{RETURN_DOMAIN}", [recipient], message_to(recipient, f"news@{SENDER_DOMAIN}"))

    def came_back(self, place: Place, sink: MailSink, case: str) -> list[bytes]:
        """What was reported to the return path of a case."""
        del place
        return [mail.octets for mail in sink.kept if mail.to == f"to-{case}"]

    def log(self, place: Place) -> str:
        """Its own log, as far as it keeps one."""
        return place.log.read_text(errors="replace")

    def environment(self, place: Place) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(place.directory), "LANG": "C.UTF-8"}

    def original(self, octets: bytes) -> bytes:
        """Takes back what it is known to change in messages (``rewrites``)."""
        return octets

    @contextlib.contextmanager
    def running(self, place: Place) -> Iterator[None]:
        """Answers on `PORT` when it begins, and is gone with all its processes when it ends."""
        command = self.command(place)
        with place.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=place.directory,
                env=self.environment(place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_for_greeting(process, place)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait_for_greeting(self, process: subprocess.Popen[bytes], place: Place) -> None:
        end = time.monotonic() + self.start_s
        while time.monotonic() < end:
            if process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {process.returncode}: {place.log.read_text()[-4000:]}")
            with contextlib.suppress(OSError), socket.create_connection((HOST_ADDRESS, PORT), 5) as probe:
                probe.settimeout(10)
                if probe.recv(3) == b"220":
                    probe.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.2)
        raise AssertionError(f"{self.name} does not answer: {place.log.read_text()[-4000:]}")


@contextlib.contextmanager
def submission(place: Place) -> Iterator[smtplib.SMTP]:
    """A session of the first user, at the port for users."""
    with smtplib.SMTP(HOST_ADDRESS, SUBMISSION_PORT, SENDER_HOST, 30, (SENDER_ADDRESS, 0)) as session:
        session.ehlo()
        if session.has_extn("starttls"):
            context = ssl.create_default_context(cafile=place.directory / "ca.pem")
            context.check_hostname = False  # it is called by its address
            session.starttls(context=context)
        session.login(f"{USERS[0]}@{DOMAIN}", PASSWORD)
        yield session


def message_to(recipient: str, sender: str) -> bytes:
    """A message to relay."""
    head = f"From: {sender}\r\nTo: {recipient}\r\nSubject: To relay\r\nDate: Mon, 30 Nov 2026 12:00:00 +0000\r\n"
    return f"{head}Message-ID: <{recipient.partition('@')[0]}@{SENDER_DOMAIN}>\r\n\r\nA line.\r\n".encode()


class DebianServer(RemoteServer):
    """A server of Debian, in a layer over this machine's files."""

    layer: ClassVar[Layer]

    @property
    def is_installed(self) -> bool:
        return self.layer.is_installed

    def install(self) -> None:
        self.layer.install()

    def version(self) -> str:
        return f"{self.layer.version()} (Debian)"

    @abstractmethod
    def script(self, place: Place) -> str:
        """Configures and starts it, in ``sh``, as root in the layer; the last command stays in the foreground."""

    def command(self, place: Place) -> list[str]:
        place.write("passwd", "".join(_unix_user(name, 2000 + at) for at, name in enumerate(MAILBOXES)))
        homes = " ".join(f"/srv/users/{name}" for name in MAILBOXES)
        prepare = f"""
        hostname {HOST}
        printf '127.0.0.1 localhost\n{HOST_ADDRESS} {HOST} mx\n' > /etc/hosts
        cat {WORK}/passwd >> /etc/passwd
        mkdir -p {homes}
        for home in {homes}; do chown "${{home##*/}}" "$home"; done
        """
        return self.layer.command(place.directory, prepare + self.script(place))


def _unix_user(name: str, number: int) -> str:
    return f"{name}:x:{number}:100::/srv/users/{name}:/bin/sh\n"


def mbox_messages(folder: Path) -> Iterator[StoredMessage]:
    """Of files in mbox format (RFC 4155), one for each user; From_ lines taken away, nothing else undone."""
    for path in sorted(folder.iterdir()):
        if path.name not in MAILBOXES or not path.is_file():
            continue
        box = mailbox.mbox(path, create=False)
        try:
            for key in box.iterkeys():
                yield StoredMessage(path.name, _with_crlf(box.get_bytes(key)))
        finally:
            box.close()


def maildir_messages(folders: Path, inside: str = "") -> Iterator[StoredMessage]:
    """Of Maildirs at ``folders/USER/inside``."""
    for folder in sorted(folders.iterdir()):
        for part in ("new", "cur"):
            for path in sorted((folder / inside / part).glob("*")):
                yield StoredMessage(folder.name, _with_crlf(path.read_bytes()))


def _with_crlf(octets: bytes) -> bytes:
    """Line ends as on the wire; a CR that stands before a line end is no second one."""
    return re.sub(rb"\r?\n", b"\r\n", octets)
