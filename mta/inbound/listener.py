"""The SMTP server for mail that comes back. It takes what is for us, says no to all else, and never sends an answer."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session

from mta.inbound.spool import Spool, Stored
from mta.message.verp import parse_verp
from mta.settings.inbound import InboundSettings

RECIPIENTS_MAX: Final = 100  # RFC 5321 §4.5.3.1.8
RECEIVED_MAX: Final = 100  # RFC 5321 §6.3: then it is a loop
HEADER_BYTES_MAX: Final = 256 << 10
IDLE_S: Final = 300.0
log = structlog.get_logger()


class Listener:
    """``counts`` says what was answered. Owned by the loop that it is started in."""

    def __init__(self, settings: InboundSettings, key: bytes, spool: Spool) -> None:
        self._settings = settings
        self._key = key
        self._spool = spool
        self._domains = frozenset(settings.domains)
        self._others = frozenset(settings.feedback_local_parts) | {"postmaster", "abuse"}
        self.counts: Counter[str] = Counter()
        self.open: Counter[str] = Counter()  # connections by client
        self._servers: list[asyncio.Server] = []

    async def start(self) -> list[tuple[str, int]]:
        """Listens; the addresses, with their ports."""
        tls = None
        if self._settings.certificate_file:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(self._settings.certificate_file, self._settings.key_file or None)
        loop = asyncio.get_running_loop()
        for host, port in self._settings.addresses:
            self._servers.append(await loop.create_server(self._connection(tls), host, port))
        return [server.sockets[0].getsockname()[:2] for server in self._servers]

    def _connection(self, tls: ssl.SSLContext | None) -> Callable[[], SMTP]:
        settings = self._settings
        return lambda: _Connection(
            self,
            data_size_limit=settings.size_mbytes_max << 20,
            hostname=settings.name or None,
            ident="ESMTP",
            tls_context=tls,
            timeout=IDLE_S,
            loop=asyncio.get_running_loop(),
        )

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    def admits(self, client: str) -> bool:
        """False: there are too many connections, of all or of this client."""
        settings = self._settings
        return (
            self.open.total() <= settings.connections_max and self.open[client] <= settings.connections_per_client_max
        )

    # --- aiosmtpd's hooks -----------------------------------------------------------------------

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return self._say("too-many-recipients", "452 4.5.3 too many recipients")
        local, _, domain = address.rpartition("@")
        # One plain address and nothing that asks to be passed on: no route, no quotes, no literal, no port.
        if domain.lower() not in self._domains or any(mark in local for mark in '@%!:"'):
            return self._say("relay", "550 5.7.1 no mail is passed on here")
        if local.lower() in self._others or parse_verp(local, self._key) is not None:
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"
        what = "forged" if local.lower().startswith("b-") else "unknown"
        return self._say(what, "550 5.1.1 no such address")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        mail = envelope.original_content or b""
        head, _, _ = mail[: HEADER_BYTES_MAX + 1].partition(b"\r\n\r\n")
        if len(head) > HEADER_BYTES_MAX:
            return self._say("header-too-large", "552 5.3.4 the header is too large")
        if head.lower().count(b"\r\nreceived:") > RECEIVED_MAX:
            return self._say("loop", "554 5.4.6 too many hops")
        client = session.peer[0] if session.peer else ""
        stored = Stored(list(envelope.rcpt_tos), envelope.mail_from or "", client, time.time())
        try:
            await asyncio.wrap_future(self._spool.put(stored, mail))
        except OSError as error:
            log.error("mail cannot be kept", error=str(error))
            return self._say("not-kept", "452 4.3.1 cannot be kept now, try again later")
        return self._say("accepted", "250 2.0.0 OK")

    def _say(self, what: str, reply: str) -> str:
        self.counts[what] += 1
        return reply


class _Connection(SMTP):
    def __init__(self, listener: Listener, **options: Any) -> None:
        super().__init__(listener, auth_require_tls=True, **options)
        self._listener = listener
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._client:  # else the second call, after STARTTLS
            peer = transport.get_extra_info("peername")
            self._client = peer[0] if peer else "local"
            self._listener.open[self._client] += 1
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._client:
            self._listener.open[self._client] -= 1
            if self._listener.open[self._client] <= 0:
                del self._listener.open[self._client]
        super().connection_lost(error)

    async def _handle_client(self) -> None:
        if not self._listener.admits(self._client):
            self._listener.counts["too-many-connections"] += 1
            await self.push("421 4.3.2 too many connections")
            if self.transport is not None:
                self.transport.close()
            return
        await super()._handle_client()

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802 - nobody has to say who they are here
        await self.push("502 5.5.1 not offered")
