"""Small servers of IMAP (RFC 3501) and POP3 (RFC 1939) with one mailbox each, as far as reading one goes."""

from __future__ import annotations

import contextlib
import re
import socketserver
import ssl
import threading
from collections.abc import Iterator

USER, PASSWORD = "bounces", 'a "password" \\ of its own'


class Mailbox:
    """``fails_at``: a command after which the connection is cut, once."""

    def __init__(self, mails: list[bytes]) -> None:
        self.mails = dict(enumerate(mails, 1))
        self.flags: dict[int, set[str]] = {uid: set() for uid in self.mails}
        self.fails_at = ""
        self.said: list[str] = []

    def unseen(self) -> list[int]:
        return [uid for uid, flags in self.flags.items() if not flags & {"\\Seen", "\\Deleted"}]


class _Handler(socketserver.StreamRequestHandler):
    timeout = 20
    server: _Server

    def say(self, line: str | bytes) -> None:
        self.wfile.write(line if isinstance(line, bytes) else line.encode() + b"\r\n")

    def secure(self) -> None:
        assert self.server.tls is not None
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.request.makefile("rb", -1), self.request.makefile("wb", 0)

    def handle(self) -> None:
        with contextlib.suppress(OSError), contextlib.closing(self):
            if self.server.tls is not None and self.server.is_wrapped:
                self.secure()
            self.greet()
            while line := self.rfile.readline():
                text = line.decode().rstrip("\r\n")
                self.server.mailbox.said.append(text)
                if self.server.mailbox.fails_at and self.server.mailbox.fails_at in text:
                    self.server.mailbox.fails_at = ""
                    return
                if not self.answer(text):
                    return

    def close(self) -> None:
        """What is left of a handshake, too."""
        self.request.close()

    def greet(self) -> None:
        raise NotImplementedError

    def answer(self, text: str) -> bool:
        raise NotImplementedError


class Imap(_Handler):
    def greet(self) -> None:
        self.say("* OK ready")

    def answer(self, text: str) -> bool:
        box = self.server.mailbox
        tag, _, rest = text.partition(" ")
        command, _, arguments = rest.partition(" ")
        match command.upper():
            case "CAPABILITY":
                self.say("* CAPABILITY IMAP4rev1" + (" STARTTLS" if self.server.tls else ""))
            case "STARTTLS":
                self.say(f"{tag} OK begin")
                self.secure()
                return True
            case "LOGIN":
                quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
                if arguments != f'{USER} "{quoted}"':
                    self.say(f"{tag} NO wrong password")
                    return True
            case "SELECT" if arguments != '"INBOX"':
                self.say(f"{tag} NO there is no such mailbox")
                return True
            case "SELECT":
                self.say(f"* {len(box.mails)} EXISTS")
            case "EXPUNGE":
                for uid in [uid for uid, flags in box.flags.items() if "\\Deleted" in flags]:
                    del box.mails[uid], box.flags[uid]
            case "LOGOUT":
                self.say("* BYE bye")
                self.say(f"{tag} OK done")
                return False
            case "UID":
                self._uid(arguments)
            case _:
                self.say(f"{tag} BAD what?")
                return True
        self.say(f"{tag} OK done")
        return True

    def _uid(self, arguments: str) -> None:
        box = self.server.mailbox
        if arguments == "SEARCH UNSEEN UNDELETED":
            self.say("* SEARCH" + "".join(f" {uid}" for uid in box.unseen()))
            return
        found = re.fullmatch(r"(FETCH|STORE) (\d+) (.+)", arguments)
        assert found is not None, arguments
        uid = int(found[2])
        if found[3] == "(RFC822.SIZE)":
            self.say(f"* {uid} FETCH (UID {uid} RFC822.SIZE {len(box.mails[uid])})")
        elif found[3] == "(BODY.PEEK[])":
            self.say(
                b"* %d FETCH (UID %d BODY[] {%d}\r\n" % (uid, uid, len(box.mails[uid])) + box.mails[uid] + b")\r\n"
            )
        else:
            flags = re.fullmatch(r"\+FLAGS\.SILENT \((.+)\)", found[3])
            assert flags is not None, arguments
            box.flags[uid] |= set(flags[1].split())


class Pop3(_Handler):
    def greet(self) -> None:
        self._deleted: set[int] = set()
        self._user = ""
        self.say("+OK ready")

    def answer(self, text: str) -> bool:
        box = self.server.mailbox
        command, _, argument = text.partition(" ")
        match command.upper():
            case "CAPA":
                self.say(b"+OK\r\n" + (b"STLS\r\n" if self.server.tls else b"") + b".\r\n")
            case "STLS":
                self.say("+OK begin")
                self.secure()
            case "USER":
                self._user = argument
                self.say("+OK")
            case "PASS":
                self.say("+OK" if (self._user, argument) == (USER, PASSWORD) else "-ERR wrong password")
            case "LIST":
                self.say("+OK")
                for uid, mail in box.mails.items():
                    self.say(f"{uid} {len(mail)}")
                self.say(".")
            case "RETR":
                mail = box.mails[int(argument)].replace(b"\r\n.", b"\r\n..")
                self.say(b"+OK\r\n" + (b"." if mail.startswith(b".") else b"") + mail + b".\r\n")
            case "DELE":
                self._deleted.add(int(argument))
                self.say("+OK")
            case "QUIT":
                for uid in self._deleted:
                    del box.mails[uid], box.flags[uid]
                self.say("+OK bye")
                return False
            case _:
                self.say("-ERR what?")
        return True


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, mailbox: Mailbox, handler: type[_Handler], tls: ssl.SSLContext | None, is_wrapped: bool) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.mailbox = mailbox
        self.tls = tls
        self.is_wrapped = is_wrapped


@contextlib.contextmanager
def serving(
    mailbox: Mailbox, handler: type[_Handler], tls: ssl.SSLContext | None = None, *, is_wrapped: bool = True
) -> Iterator[int]:
    """The port. With ``tls`` from the first octet on, or (not wrapped) after STARTTLS."""
    with _Server(mailbox, handler, tls, is_wrapped) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
