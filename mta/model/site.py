"""Where mail for a domain goes: MX hosts (RFC 5321 §5.1) and the site they form.

Domains that are served by the same set of MX hosts form one site: one ready queue, one backoff.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from itertools import groupby

import msgspec

from mta.model.tls import Authorities

# At the end of a key, in this order: hosts with TLSA records that hold; the policy of a domain that is to be enforced.
# Such sites are none of others: their recipients must not be sent over sessions that are not as safe.
DANE_SUFFIX = "+dane"
STS_SUFFIX = "+sts"
_KEY_DIGEST_BYTES = 10  # whoever could find a second set with our key would share another site's queue


class MxHost(msgspec.Struct, frozen=True, gc=False):
    """One host of a site. ``addresses`` are IP literals, IPv4 and IPv6 as configured, in the order to try."""

    name: str  # lower case, no trailing dot, A-labels
    preference: int
    addresses: tuple[str, ...]
    authorities: Authorities = ()  # empty: none, or the resolver cannot vouch for them


class Site(msgspec.Struct, frozen=True):
    """A set of MX hosts, sorted by (preference, name).

    ``key`` names the site in the queue, the log and the console: the most preferred host's name,
    with ``+n`` and a short digest of the whole set when there are n more hosts; so it is equal for
    two domains exactly when their MX host sets (names and preferences) are equal; the preference of
    a lone host does not count. ``hosts`` are those of the set that can be used now. Where their certificates are
    to be verified for these domains but not for others, a suffix says so, see `plain_key`.
    """

    key: str
    hosts: tuple[MxHost, ...]
    is_verified: bool = False  # by a policy of its domains (RFC 8461) that is to be enforced


class NoRoute(msgspec.Struct, frozen=True):
    """A domain that cannot be routed: final (NXDOMAIN, null MX, only refused addresses) or not (timeout).

    ``enhanced`` is the RFC 3463 code to record, ``text`` the sentence for the log. ``is_of_machine``: no name server
    could be asked at all, so it says nothing about the domain, and nobody is charged.
    """

    is_final: bool
    enhanced: str
    text: str
    is_of_machine: bool = False


Route = Site | NoRoute


def site_key(hosts: Iterable[tuple[int, str]]) -> str:
    """The key of the site that these (preference, name) pairs form; any order, at least one, no pair twice.

    >>> site_key([(10, "mx.example.com")])
    'mx.example.com'
    """
    ordered = sorted(hosts)
    first = ordered[0][1]
    if len(ordered) == 1:
        # A lone host's preference means nothing: 5 and 10 reach the same place in the same order.
        return first
    written = "\n".join(f"{preference} {name}" for preference, name in ordered)
    digest = hashlib.blake2b(written.encode(), digest_size=_KEY_DIGEST_BYTES).digest()
    return f"{first}+{len(ordered) - 1}-{base64.b32encode(digest).decode().lower()}"


def verified_site(site: Site, hosts: tuple[MxHost, ...]) -> Site:
    """The site of domains whose policy names ``hosts`` (all of the site's, or some), which are to be verified."""
    key = site.key + STS_SUFFIX
    if len(hosts) < len(site.hosts):
        written = "\n".join(host.name for host in hosts)
        digest = hashlib.blake2b(written.encode(), digest_size=_KEY_DIGEST_BYTES).digest()
        key = f"{key}-{base64.b32encode(digest).decode().lower()}"
    return Site(key, hosts, is_verified=True)


def plain_key(key: str) -> str:
    """The key without what tells verified sites apart: what rules and people mean by a site.

    >>> plain_key("mx.example.com+1-abc+dane+sts")
    'mx.example.com+1-abc'
    """
    return _SUFFIXES.sub("", key)


def order_hosts(site: Site, shuffle: Callable[[list[str]], None]) -> list[tuple[MxHost, str]]:
    """The (host, address) pairs of a site in the order to try them for one attempt, no address twice.

    Hosts by preference, in random order among equals (RFC 5321 §5.1); then each host's addresses, IPv4 before
    IPv6 as they stand in the host, in random order inside a family so that a host of many addresses is loaded
    evenly. ``shuffle`` shuffles in place, as ``random.Random(seed).shuffle`` does.
    """
    if len(site.hosts) == 1 and len(site.hosts[0].addresses) == 1:
        return [(site.hosts[0], site.hosts[0].addresses[0])]  # most sites of a long tail
    pairs: list[tuple[MxHost, str]] = []
    seen: set[str] = set()
    for _, level in groupby(site.hosts, key=_preference):
        by_name = {host.name: host for host in level}
        names = list(by_name)
        shuffle(names)
        for name in names:
            host = by_name[name]
            for _, family in groupby(host.addresses, key=_is_ipv6):
                addresses = [address for address in family if address not in seen]
                shuffle(addresses)
                seen.update(addresses)
                pairs.extend((host, address) for address in addresses)
    return pairs


_SUFFIXES = re.compile(r"(?:\+dane)?(?:\+sts(?:-[a-z2-7]+)?)?\Z")


def _preference(host: MxHost) -> int:
    return host.preference


def _is_ipv6(address: str) -> bool:
    return ":" in address
