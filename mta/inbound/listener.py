"""The SMTP server for mail that comes back. It takes what is for us, says no to all else, and never sends an answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import ssl
import time
from collections import Counter
from typing import Final

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session

from mta.inbound.connection import Connection
from mta.inbound.spool import Spool, Stored
from mta.message.verp import ReturnPathSigner
from mta.model.errors import BadInput
from mta.settings.inbound import InboundSettings

RECIPIENTS_MAX: Final = 100  # RFC 5321 §4.5.3.1.8
RECEIVED_MAX: Final = 100  # RFC 5321 §6.3: then it is a loop
HEADER_BYTES_MAX: Final = 256 << 10
BODIES_BYTES_MAX: Final = 256 << 20  # being received at a time, all together
_ROLES: Final = frozenset({"postmaster", "abuse"})  # RFC 5321 §4.5.1, RFC 2142
log = structlog.get_logger()


class Listener:
    """``counts`` says what was answered. Owned by the loop that it is started in."""

    def __init__(self, settings: InboundSettings, key: bytes, spool: Spool) -> None:
        self._settings = settings
        self._signer = ReturnPathSigner(key)
        self._spool = spool
        self._domains = frozenset(settings.domains)
        self._names = _ROLES | {*settings.feedback_local_parts, *settings.unsubscribe_local_parts}
        self.counts: Counter[str] = Counter()
        self._open: Counter[str] = Counter()  # connections by client
        self.held = 0  # bytes of bodies in memory
        self._servers: list[asyncio.Server] = []

    async def start(self) -> list[tuple[str, int]]:
        """Listens; returns the addresses, with their ports. Raises BadInput where it cannot."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        model = Connection.model(
            self,
            loop,
            data_size_limit=settings.size_mbytes_max << 20,
            hostname=settings.name or socket.getfqdn(),
            tls_context=_tls(settings),
        )
        for host, port in settings.addresses:
            try:
                server = await loop.create_server(lambda: Connection(self, model, loop), host, port)
            except OSError as error:
                await self.stop()
                raise BadInput("inbound.listen", f"{host}:{port}: {error.strerror or error}") from None
            self._servers.append(server)
        return [server.sockets[0].getsockname()[:2] for server in self._servers]

    async def stop(self) -> None:
        """Takes no more connections. Those that are open end with the process: what they were told is on disk."""
        for server in self._servers:
            server.close()

    # --- bounds -------------------------------------------------------------------------------

    def came(self, client: str) -> str:
        """Under what name the client's connections are counted: an IPv6 client has a whole /64."""
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            name = client
        else:
            is_wide = address.version == 6 and address.ipv4_mapped is None
            name = str(ipaddress.ip_network((address, 64), strict=False)) if is_wide else client
        self._open[name] += 1
        return name

    def went(self, name: str) -> None:
        self._open[name] -= 1
        if self._open[name] <= 0:
            del self._open[name]

    def admits(self, name: str) -> bool:
        """False: there are too many connections, of all or of this client."""
        settings = self._settings
        return (
            self._open.total() <= settings.connections_max and self._open[name] <= settings.connections_per_client_max
        )

    def has_room(self, octets: int) -> bool:
        return self.held + octets <= BODIES_BYTES_MAX

    def say(self, what: str, reply: str) -> str:
        """``reply``, counted as ``what``."""
        self.counts[what] += 1
        return reply

    # --- aiosmtpd's hooks ---------------------------------------------------------------------

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        offered = [line for line in responses if not line.startswith("250-AUTH")]
        return ["\r\n".join((*offered[:-1], "250-PIPELINING", offered[-1]))]  # in one write

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._spool.is_full:
            return self.say("not-kept", "452 4.3.1 too much waits here, try again later")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return self.say("too-many-recipients", "452 4.5.3 too many recipients")
        local, _, domain = address.rpartition("@")
        # One plain address and nothing that asks to be passed on: no route, no quotes, no literal, no port.
        if domain.lower() not in self._domains or any(mark in local for mark in '@%!:"'):
            return self.say("relay", "550 5.7.1 no mail is passed on here")
        name, _, _ = local.lower().partition("+")
        if name in self._names or self._is_signed(local.lower()):
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"
        # A forged one is refused at once: it learns that a guess of one in 2**64 was wrong, and costs us no disk.
        what = "forged" if name.startswith("b-") else "unknown"
        return self.say(what, "550 5.1.1 no such address")

    def _is_signed(self, local: str) -> bool:
        """As `mta.message.verp.parse_verp` has it, which takes ten times as long while other threads run."""
        number = local[2:].partition("-")[0]
        return local.isascii() and number.isalnum() and hmac.compare_digest(self._signer.local_part(number), local)

    async def take(self, connection: Connection, envelope: Envelope, mail: bytearray) -> str:
        """The reply to a whole mail."""
        head = mail[: HEADER_BYTES_MAX + 4].partition(b"\r\n\r\n")[0]
        if len(head) > HEADER_BYTES_MAX:
            return self.say("header-too-large", "552 5.3.4 the header is too large")
        peer = connection.session.peer if connection.session is not None else None
        client = peer[0] if peer else ""
        if (b"\r\n" + head).lower().count(b"\r\nreceived:") > RECEIVED_MAX:
            log.warning("a mail in a loop is refused", client=client, recipients=envelope.rcpt_tos[:3])
            return self.say("loop", "554 5.4.6 too many hops")
        sender = (envelope.mail_from or "").encode("utf-8", "replace").decode("utf-8")
        sender = "" if sender == "<>" else sender
        try:
            stored = Stored(list(envelope.rcpt_tos), sender, client, time.time())
            await asyncio.wrap_future(self._spool.put(stored, mail))
        except OSError as error:
            self.counts["not-kept"] += 1
            if self.counts["not-kept"] == 1:  # the counts begin anew each minute
                log.error("mail cannot be kept", error=str(error))
            return "452 4.3.1 cannot be kept now, try again later"
        return self.say("accepted", "250 2.0.0 OK")


def _tls(settings: InboundSettings) -> ssl.SSLContext | None:
    if not settings.certificate_file:
        return None
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        tls.load_cert_chain(settings.certificate_file, settings.key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise BadInput("inbound.certificate_file", f"{settings.certificate_file}: {error}") from None
    return tls
