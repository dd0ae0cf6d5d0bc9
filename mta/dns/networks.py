"""Which addresses may be dialled at all (threats D4): mail to a stranger's domain must not reach inside."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from mta.model.errors import BadInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Ranges = tuple[tuple[int, int, str], ...]  # first and last address, why; plain numbers are ten times quicker to compare


def _ranges(networks: Iterable[tuple[str, str]]) -> Ranges:
    parsed = [(ipaddress.ip_network(text), why) for text, why in networks]
    return tuple((int(network.network_address), int(network.broadcast_address), why) for network, why in parsed)


def _refused_by(ranges: Ranges, address: Address) -> str:
    number = int(address)
    for first, last, why in ranges:
        if first <= number <= last:
            return why
    return ""


# RFC 6890 registries, as far as a mail host can never stand there. Documentation networks are not in
# the list: nobody routes them, so nothing can be reached through them.
_REFUSED_V4 = _ranges(
    (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers and clouds"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_REFUSED_V6 = _ranges(
    (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard-only"),
        ("2001::/32", "Teredo"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
# Networks whose members hold an IPv4 address, with the number of bits to its right.
_EMBEDDING = tuple(
    (int(ipaddress.IPv6Address(start)) >> 128 - bits, 128 - bits, shift)
    for start, bits, shift in (
        ("::ffff:0:0", 96, 0),  # v4-mapped, RFC 4291 §2.5.5.2
        ("::", 96, 0),  # v4-compatible, RFC 4291 §2.5.5.1
        ("::ffff:0:0:0", 96, 0),  # v4-translated, RFC 2765 §2.1
        ("64:ff9b::", 96, 0),  # NAT64, RFC 6052 §2.1
        ("2002::", 16, 80),  # 6to4, RFC 3056 §2
    )
)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv6Address):
        number = int(address)
        for prefix, right_bits, shift in _EMBEDDING:
            if number >> right_bits == prefix:
                return ipaddress.IPv4Address(number >> shift & 0xFFFFFFFF)
    return None


class AddressPolicy:
    """Holds an address against the refused networks, the operator's exceptions and our own addresses.

    ``BadInput`` for a network or address that does not parse. Immutable after construction.
    """

    def __init__(self, *, allow_networks: Iterable[str] = (), own_addresses: Iterable[str] = ()) -> None:
        self._allowed: tuple[Network, ...] = tuple(_network(text) for text in allow_networks)
        self._own: frozenset[Address] = frozenset(_address(text) for text in own_addresses)

    def judge(self, address: str) -> tuple[bool, str]:
        """Whether ``address`` is our own, and why it must not be dialled (empty: it may be).

        An IPv4 address inside an IPv6 address counts as well as the one around it.
        """
        parsed = ipaddress.ip_address(address)
        embedded = _embedded(parsed)
        is_own = parsed in self._own or (embedded is not None and embedded in self._own)
        if self._is_allowed(parsed):
            return is_own, ""
        why = _refused_by(_REFUSED_V4 if parsed.version == 4 else _REFUSED_V6, parsed)
        if not why and embedded is not None and not self._is_allowed(embedded):
            inner = _refused_by(_REFUSED_V4, embedded)
            why = f"{inner}, as {embedded} inside it" if inner else ""
        return is_own, why

    def _is_allowed(self, address: Address) -> bool:
        return any(address in network for network in self._allowed)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as problem:
        raise BadInput("dns.allow_networks", f"{text!r} is not a network: {problem}") from problem


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as problem:
        raise BadInput("dns.own_addresses", f"{text!r} is not an address: {problem}") from problem
