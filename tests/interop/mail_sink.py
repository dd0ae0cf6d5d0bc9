"""The other side of a relaying server: a host that refuses some recipients as a script says, and keeps other mail.

It stands in a network namespace of its own, at the other end of a pair of virtual interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

_RCPT = re.compile(rb"(?i)RCPT TO:\s*<([^@>]*)@[^>]*>")
_EHLO = b"250-mx.far.example\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 10000000\r\n"


class KeptMail(NamedTuple):
    """A message, and the local part that it was sent to."""

    to: str
    octets: bytes


@contextlib.contextmanager
def far_network(addresses: Sequence[str], near_address: str) -> Iterator[int]:
    """A network in which ``addresses`` are, reached from ``near_address``; the process that it belongs to."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        with holder.stdout as told:
            told.readline()  # it is in there, now
        inside = f"nsenter --net=/proc/{holder.pid}/ns/net ip"
        for command in (
            f"ip link add near type veth peer name far netns {holder.pid}",
            "ip link set near up",
            f"{inside} link set lo up",
            *(f"{inside} address add {address}/32 dev far" for address in addresses),
            f"{inside} link set far up",
            f"{inside} route add default dev far",
            *(f"ip route add {address}/32 dev near src {near_address}" for address in addresses),
        ):
            subprocess.run(command.split(), check=True)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _enter_network(pid: int) -> None:
    """Sockets that this thread makes from now on are in the network of that process."""
    with open(f"/proc/{pid}/ns/net", "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


class MailSink:
    """Listens on an address of a `far_network`, in threads. ``replies``: to RCPT, by the recipient's local part."""

    def __init__(self, network: int, address: str, port: int, replies: Mapping[str, str]) -> None:
        self.replies = replies
        self.kept: list[KeptMail] = []
        sink = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                sink.serve(self)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._is_listening = threading.Event()

        def run() -> None:
            _enter_network(network)
            self._server = socketserver.ThreadingTCPServer((address, port), Session)
            self._server.daemon_threads = True
            self._is_listening.set()
            self._server.serve_forever()

        self._thread = threading.Thread(target=run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_listening.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, session: socketserver.StreamRequestHandler) -> None:
        """One session: each command has its reply, DATA only with a recipient."""
        say, recipients = session.wfile.write, list[str]()
        say(b"220 mx.far.example ESMTP\r\n")
        for line in session.rfile:
            command = line[:4].upper()
            if command == b"RCPT":
                found = _RCPT.match(line)
                to = found[1].decode(errors="replace") if found else ""
                refusal = self.replies.get(to)
                if refusal is None:
                    recipients.append(to)
                say((refusal or "250 2.1.5 Ok").encode() + b"\r\n")
            elif command == b"DATA" and recipients:
                say(b"354 Go on\r\n")
                octets = b"".join(iter(session.rfile.readline, b".\r\n")).replace(b"\r\n..", b"\r\n.")
                self.kept += [KeptMail(to, octets) for to in recipients]
                recipients = []
                say(b"250 2.0.0 Kept\r\n")
            elif command == b"QUIT":
                say(b"221 2.0.0 Bye\r\n")
                return
            else:
                if command in (b"MAIL", b"RSET", b"EHLO", b"HELO"):
                    recipients = []
                say({b"EHLO": _EHLO, b"DATA": b"503 5.5.1 Nobody to send it to\r\n"}.get(command, b"250 2.0.0 Ok\r\n"))
