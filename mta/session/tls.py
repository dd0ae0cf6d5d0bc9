"""STARTTLS on a live transport, and the memory of earlier handshakes that makes the next one cheap.

A resumed handshake has no certificate, no signature and no key of the server's to check: a third of the work here, a
tenth there. What is remembered weakens nothing: it serves the same name at the same address from the same source, whose
certificate was found good by the same means (or by none), and where it does not work it is forgotten and TLS tried
without it, before anybody thinks of doing without TLS.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import OrderedDict
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Final, cast

from mta.session.handshake import Handshake

SESSIONS_MAX: Final = 1_000  # some 5 KB each, mostly the server's certificate
_ENCODING_DER: Final = 2  # as in Python's _ssl
# OpenSSL's servers say two hours, others a day; what is older is seldom known any more where load is shared.
LIFETIME_MAX_S: Final = 3_600.0


class TlsSessions:
    """What may be resumed, by whatever a handshake depends on; least recently kept out first. Clock handed in."""

    def __init__(self, entries_max: int = SESSIONS_MAX, lifetime_max_s: float = LIFETIME_MAX_S) -> None:
        self._entries: OrderedDict[Hashable, tuple[ssl.SSLSession, float]] = OrderedDict()
        self._entries_max = entries_max
        self._lifetime_max_s = lifetime_max_s

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable, now_s: float) -> ssl.SSLSession | None:
        session, until_s = self._entries.get(key, (None, 0.0))
        if session is not None and now_s >= until_s:
            del self._entries[key]
            return None
        return session

    def keep(self, key: Hashable, session: ssl.SSLSession | None, now_s: float) -> None:
        """Remembers a session, if it can be resumed at all, for as long as the server says, within our bound."""
        if session is None or not (session.has_ticket or session.id):
            return
        lifetime_s = min(self._lifetime_max_s, session.ticket_lifetime_hint or session.timeout)
        if lifetime_s <= 0:
            return
        self._entries[key] = (session, now_s + lifetime_s)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def forget(self, key: Hashable) -> bool:
        """True when there was something to forget."""
        return self._entries.pop(key, None) is not None


class Offer:
    """The session that a connection's handshake is to resume, once that is known."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: ssl.SSLSession | None = None


# Event loops have no way to be told of a session. But they call in the context in which a connection was made (uvloop)
# or STARTTLS begun (asyncio), and in both of them stands the offer that was made before the connection.
_offer: ContextVar[Offer | None] = ContextVar("_offer", default=None)


def new_offer() -> Offer:
    """For the connection that this task is about to make."""
    offer = Offer()
    _offer.set(offer)
    return offer


class _Context(ssl.SSLContext):
    """Resumes the session that was offered for the connection."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        offer = _offer.get()
        if offer is not None:
            session = offer.session
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


@functools.cache
def unverified_context() -> ssl.SSLContext:
    """Takes any certificate: for opportunistic TLS, and where it is held against TLSA records afterwards."""
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=1")  # weak beats none, and none is what a refused handshake would mean
    return context


@functools.cache
def verified_context(ca_file: str) -> ssl.SSLContext:
    """Takes certificates of trusted authorities that are for the name which the handshake is given, and no other.

    ``ca_file``: PEM; empty: the authorities of the system. The name must be a DNS-ID (RFC 9525 §6.3, RFC 8461 §4.2);
    what a common name says does not count. Raises OSError when the file cannot be used.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks names
    context.hostname_checks_common_name = False
    if ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


async def start_tls(handshake: Handshake, server_hostname: str, timeout_s: float, context: ssl.SSLContext) -> None:
    """The TLS handshake, once STARTTLS is answered by 220. Raises OSError (ssl.SSLError is one) and ValueError.

    Octets between the 220 and the handshake end the session: nobody honest sends them (RFC 3207 §4.2, threats C3).
    """
    fault = handshake.idle_fault()
    if fault:
        raise ConnectionResetError(fault)
    assert handshake.transport is not None
    upgraded = await asyncio.get_running_loop().start_tls(
        handshake.transport, handshake, context, server_hostname=server_hostname, ssl_handshake_timeout=timeout_s
    )
    handshake.transport = cast(asyncio.Transport, upgraded)


def ssl_object(transport: asyncio.BaseTransport) -> ssl.SSLObject | None:
    return cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))


def presented_chain(found: ssl.SSLObject) -> list[bytes]:
    """The certificates that the server has shown, its own first, as DER; only its own where Python gives no more."""
    public = getattr(found, "get_unverified_chain", None)  # since Python 3.13
    if public is not None:
        return [bytes(certificate) for certificate in public()]
    inner = getattr(getattr(found, "_sslobj", None), "get_unverified_chain", None)  # there since 3.10, under this name
    if inner is not None:
        return [certificate.public_bytes(_ENCODING_DER) for certificate in inner() or ()]
    own = found.getpeercert(binary_form=True)
    return [own] if own else []


def description(transport: asyncio.BaseTransport) -> str:
    """``TLSv1.3 TLS_AES_256_GCM_SHA384``; empty when plain."""
    found = ssl_object(transport)
    if found is None:
        return ""
    name, _, _ = found.cipher() or ("?", "", 0)
    return f"{found.version()} {name}"
