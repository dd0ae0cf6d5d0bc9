"""What a server does where servers differ, asked without the product: plain SMTP over a socket.

What is found is written down (`tests.interop.result`), not judged: only a server that does not answer fails.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType

import pytest

from mta.sink.nameserver import ThreadedNameserver
from tests.interop import result
from tests.interop.place import (
    DOMAIN,
    HOST_ADDRESS,
    PORT,
    REFUSE,
    REFUSE_HEADER,
    REFUSED,
    SENDER_ADDRESS,
    SENDER_DOMAIN,
    SENDER_HOST,
    USERS,
    Place,
    dns_zones,
)
from tests.interop.remote import RemoteServer
from tests.interop.sending import DNS_PORT
from tests.interop.servers import SERVERS

SILENCE_S = 5.0  # no reply within this, where others take milliseconds: nothing is going to come
REPLY_S = 20.0
RSETS = 40
UNKNOWN = 40
MESSAGES = 110
ENVELOPE = f"MAIL FROM:<news@{SENDER_DOMAIN}>\r\nRCPT TO:<{USERS[0]}@{DOMAIN}>\r\n"
BODY = f"From: news@{SENDER_DOMAIN}\r\nDate: Mon, 30 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@{SENDER_DOMAIN}>\r\n"
# Valid, and each line of it is something that some program changes.
LINES = (
    b"From a line that begins so",
    b">From a line that is quoted already",
    b"..",
    b"blanks at the end   ",
    b"\ttab at the end\t",
    b"x" * 998,
    "Größe in eight bits".encode(),
    b"",
    b"",
)


class Session:
    """A connection to the server, from where the product would come; greeted and in EHLO."""

    def __init__(self) -> None:
        self.socket = socket.create_connection((HOST_ADDRESS, PORT), REPLY_S, source_address=(SENDER_ADDRESS, 0))
        self.file = self.socket.makefile("rb")
        self.greeting = self.reply()
        self.ehlo = self.ask(f"EHLO {SENDER_HOST}")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()
        self.socket.close()

    def write(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def reply(self, wait_s: float = REPLY_S) -> str:
        """Lines joined by ``|``; ``silence`` or ``closed`` where none came."""
        self.socket.settimeout(wait_s)
        lines = []
        while True:
            try:
                line = self.file.readline()
            except TimeoutError:
                return "silence"
            except ConnectionError:
                return "closed"
            if not line:
                return "closed"
            lines.append(line.decode(errors="replace").rstrip())
            if line[3:4] != b"-":
                return " | ".join(lines)

    def ask(self, command: str) -> str:
        self.write(command + "\r\n")
        return self.reply()

    def message(self, extra: bytes = b"Subject: x\r\n\r\nx\r\n", envelope: str = ENVELOPE) -> str:
        """One command after the other; the first reply that is not as it should be, or that to the dot."""
        for command in (*envelope.splitlines(), "DATA"):
            answer = self.ask(command)
            if answer[:1] not in "23":
                return answer
        self.write(BODY.encode() + extra + b".\r\n")
        return self.reply()


def code_of(reply: str) -> str:
    return reply if reply in ("silence", "closed") else reply[:3]


def behind_the_dot(extra: str) -> str:
    """Two messages, the envelope of the second in one write with the end of the first: the codes of its replies."""
    first_envelope = ENVELOPE.replace(USERS[0], REFUSED) if REFUSE in extra else ENVELOPE
    with Session() as session:
        if "PIPELINING" not in session.ehlo:
            return "PIPELINING is not offered"
        session.write(first_envelope + "DATA\r\n")
        first = [code_of(session.reply()) for _ in range(3)]
        if first != ["250", "250", "354"]:
            return "the first envelope gets " + " ".join(first)
        session.write(BODY + extra + ".\r\n" + ENVELOPE + "DATA\r\n")
        codes = []
        for _ in range(4):
            codes.append(code_of(session.reply(SILENCE_S)))
            if codes[-1] in ("silence", "closed"):
                break
        return " ".join(codes)


def refused_then_mail() -> str:
    """After a refusal at the dot, one command after the other: what MAIL gets."""
    with Session() as session:
        envelope = ENVELOPE.replace(USERS[0], REFUSED)
        refused = session.message(f"{REFUSE_HEADER}: {REFUSE}\r\n\r\nx\r\n".encode(), envelope)
        return f"{refused[:160]}; then MAIL: {session.ask(ENVELOPE.splitlines()[0])[:80]}"


def count_until_refused(command: str, most: int, good: str) -> str:
    """How often ``command`` is answered with ``good`` in a row, what comes then, and how long it took."""
    with Session() as session:
        if command.startswith("RCPT"):
            session.ask(ENVELOPE.splitlines()[0])
        began = time.monotonic()
        for count in range(most):
            answer = session.ask(command.format(count))
            if answer[:1] != good:
                if answer == "silence":
                    answer = f"no reply within {REPLY_S:.0f} s"
                return f"{count} times, then {answer[:120]}"
        return f"{most} times, in {time.monotonic() - began:.1f} s"


def messages_a_session() -> str:
    with Session() as session:
        for count in range(MESSAGES):
            answer = session.message()
            if answer[:1] != "2":
                return f"{count}, then {answer[:120]}"
        return f"{MESSAGES} and more"


def changed_lines(server: RemoteServer, place: Place) -> list[str]:
    """What became of `LINES` in the mailbox of a user."""
    with Session() as session:
        stuffed = b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in LINES)
        head = b"Subject: lines\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        head += b"Content-Transfer-Encoding: 8bit\r\n\r\n"
        envelope = ENVELOPE.replace(USERS[0], USERS[1])
        if "8BITMIME" in session.ehlo:
            envelope = envelope.replace("example>", "example> BODY=8BITMIME", 1)
        answer = session.message(head + stuffed, envelope)
        if answer[:1] != "2":
            return [f"not taken: {answer[:120]}"]
    end = time.monotonic() + REPLY_S
    while True:
        found = [one.octets for one in server.stored(place) if one.user == USERS[1]]
        if found:
            break
        if time.monotonic() > end:
            return ["it was accepted and is in no mailbox"]
        time.sleep(0.2)
    its = found[0].partition(b"\r\n\r\n")[2].split(b"\r\n")
    told = [f"{one[:40]!r} became {other[:40]!r}" for one, other in zip(LINES, its, strict=False) if one != other]
    if len(its) - 1 != len(LINES):
        told.append(f"{len(LINES)} lines became {len(its) - 1}")
    return told


@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_what_it_does_is_written_down(server: RemoteServer, tmp_path: Path) -> None:
    if not server.is_installed:
        pytest.skip(f"{server.name} is not installed")
    place = Place.make(tmp_path)
    refuse = f"{REFUSE_HEADER}: {REFUSE}\r\n\r\nx\r\n"
    with ThreadedNameserver(dns_zones(), port=DNS_PORT), server.running(place):
        with Session() as session:
            found: dict[str, object] = {"greeting": session.greeting, "EHLO": session.ehlo.split(" | ")[1:]}
        found["lines"] = changed_lines(server, place)
        found["behind the dot"] = behind_the_dot("Subject: x\r\n\r\nx\r\n")
        found["behind a refused dot"] = behind_the_dot(refuse)
        found["after a refused dot"] = refused_then_mail()
        found["RSET"] = count_until_refused("RSET", RSETS, "2")
        found["unknown"] = count_until_refused("RCPT TO:<nobody{:02d}@" + DOMAIN + ">", UNKNOWN, "5")
        found["messages a session"] = messages_a_session()
    for name, what in found.items():
        result.record(server.name, "habits", name, what)
    assert found["EHLO"], f"it does not answer: {found}"
