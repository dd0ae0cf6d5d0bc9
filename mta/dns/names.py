"""Domain names as text: one canonical form, so that equal names are equal strings."""

from __future__ import annotations

import ipaddress
import re

import idna

from mta.model.errors import BadInput
from mta.model.limits import DOMAIN_OCTETS_MAX

_NAME_OCTETS_MAX = 253  # RFC 1035 §2.3.4: 255 on the wire, less the first length octet and the root

# Letters, digits, hyphen (RFC 5321 §4.1.2), and the underscore that some zones use in spite of it.
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


def is_host_name(name: str) -> bool:
    """Whether ``name`` (lower case, no trailing dot) is something that a host can be called."""
    return len(name) <= _NAME_OCTETS_MAX and _HOST_NAME.fullmatch(name) is not None


def canonical_domain(text: str) -> str:
    """``text`` in lower case, as A-labels, without the trailing dot. ``BadInput`` if it is no domain name.

    >>> canonical_domain("Bücher.Example.")
    'xn--bcher-kva.example'
    """
    name = text.lower()
    if is_host_name(name):
        return name
    if len(text) > DOMAIN_OCTETS_MAX:
        raise BadInput("domain", f"is {len(text)} characters long; at most {DOMAIN_OCTETS_MAX} are allowed")
    name = name.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as problem:
            raise BadInput("domain", f"{text!r} is not a domain name: {problem}") from problem
    if not is_host_name(name):
        raise BadInput("domain", f"{text!r} is not a domain name")
    return name


def literal_address(domain: str) -> str | None:
    """The address of a domain literal (RFC 5321 §4.1.3), None for a name; ``BadInput`` for a bad literal.

    >>> literal_address("[192.0.2.1]"), literal_address("[IPv6:2001:DB8::1]"), literal_address("example.com")
    ('192.0.2.1', '2001:db8::1', None)
    """
    if not domain.startswith("["):
        return None
    inner = domain[1:-1] if domain.endswith("]") else ""
    try:
        if inner[:5].lower() == "ipv6:":
            return str(ipaddress.IPv6Address(inner[5:]))
        return str(ipaddress.IPv4Address(inner))
    except ValueError as problem:
        raise BadInput("domain", f"{domain!r} is not an address literal: {problem}") from problem
