"""Where questions are sent: the operator's list, or that of the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import dns.resolver
import msgspec

from mta.model.dns import DnsSettings
from mta.model.errors import BadInput
from mta.model.tls import Dane, TlsSettings

_PORT = 53
_RESOLV_CONF = "/etc/resolv.conf"


class Endpoint(msgspec.Struct, frozen=True):
    """One nameserver: an IP literal and its port, the same for UDP and TCP."""

    address: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    @property
    def is_on_this_machine(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.is_ipv6 else f"{self.address}:{self.port}"


def endpoints(written: Sequence[str], resolv_conf: str = _RESOLV_CONF) -> tuple[Endpoint, ...]:
    """``written`` nameservers, or those of ``resolv_conf`` if there are none; ``BadInput`` if that is no answer."""
    if written:
        return tuple(_endpoint(text) for text in written)
    try:
        found = dns.resolver.Resolver(resolv_conf).nameservers
    except (dns.resolver.NoResolverConfiguration, OSError) as problem:
        what = f"none is set, and {resolv_conf} names none either ({problem})"
        raise BadInput("dns.nameservers", what) from problem
    return tuple(_endpoint(str(server)) for server in found)


def check_trust(dns: DnsSettings, tls: TlsSettings) -> None:
    """Raises BadInput when DANE would go by the word of a name server that could be anybody."""
    if tls.dane is not Dane.ON:
        return
    for server in endpoints(dns.nameservers):
        if not server.is_on_this_machine:
            raise BadInput(
                "tls.dane",
                f"'on' takes the word of name servers on this machine only, and {server} is not; with a safe way"
                f" to it write '{Dane.TRUST_RESOLVER.value}'",
            )


def _endpoint(text: str) -> Endpoint:
    address, port = _split(text)
    try:
        parsed = ipaddress.ip_address(address)
        number = int(port) if port.isdecimal() else 0
    except ValueError as problem:
        raise BadInput("dns.nameservers", f"{text!r} is not an address, or address:port") from problem
    if not 0 < number < 65536:
        raise BadInput("dns.nameservers", f"{text!r} has no port between 1 and 65535")
    return Endpoint(str(parsed), number)


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if bracket and not rest:
            return address, str(_PORT)
        return address, rest[1:] if rest.startswith(":") else ""
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, port
    return text, str(_PORT)
