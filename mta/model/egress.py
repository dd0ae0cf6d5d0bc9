"""Where mail leaves from: source addresses with their public identity, in weighted pools."""

from __future__ import annotations

import msgspec


class Egress(msgspec.Struct, frozen=True):
    """One source: a local address to bind, and what the world sees of it.

    ``id`` is the public identifier that rules select by range (campaign-mta §2, publicId);
    two local addresses behind one NAT address share an id.
    """

    name: str
    id: int
    helo: str
    source_ipv4: str | None = None  # None: the kernel chooses
    source_ipv6: str | None = None
    weight: int = 1
    include_domains: tuple[str, ...] = ()  # masks; empty includes all
    exclude_domains: tuple[str, ...] = ()


class EgressPool(msgspec.Struct, frozen=True):
    """A named, weighted set of egresses; a delivery asks for a pool by name."""

    name: str
    egresses: tuple[Egress, ...]


NO_SOURCE = ""


def source_for(egress: Egress, peer: str) -> str | None:
    """The local address to bind for a peer of this family; None: the kernel chooses, NO_SOURCE: it cannot be reached.

    An egress with an address in one family only does not use the other: its mail would leave from an
    address that nobody chose.
    """
    wanted, other = egress.source_ipv4, egress.source_ipv6
    if ":" in peer:
        wanted, other = other, wanted
    if wanted is None and other is not None:
        return NO_SOURCE
    return wanted
