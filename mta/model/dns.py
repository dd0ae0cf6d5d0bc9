"""What an operator can set about looking up mail hosts."""

from __future__ import annotations

import msgspec

from mta.model.errors import BadInput


class DnsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds and choices of the resolver; refused with ``BadInput`` when they make no sense.

    ``nameservers`` are recursive servers, ``192.0.2.53``, ``127.0.0.1:5353`` or ``[2001:db8::53]:53``; none
    means those of ``/etc/resolv.conf``. The first is preferred for as long as it answers.
    A query is tried ``tries`` times, ``timeout_s`` each (campaign-mta §12 row 23).
    ``allow_networks`` lifts the refusal of loopback, private and other inner addresses (threats D4).
    ``own_names`` and ``own_addresses`` are those by which we are known in mail (RFC 5321 §5.1, loops).
    """

    nameservers: tuple[str, ...] = ()
    timeout_s: float = 5.0
    tries: int = 4
    concurrency_max: int = 500  # queries without an answer yet, over all nameservers
    cache_entries_max: int = 200_000  # domains; as many hosts besides
    ttl_min_s: int = 60
    ttl_max_s: int = 86_400
    negative_ttl_max_s: int = 3_600
    failure_ttl_s: int = 30  # how long a SERVFAIL or a silence is believed; doubles while it goes on
    failure_ttl_max_s: int = 480
    ipv4: bool = True
    ipv6: bool = True
    allow_networks: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    own_addresses: tuple[str, ...] = ()
    hosts_max: int = 16  # MX hosts used of a set, the most preferred ones (threats D5)
    addresses_per_host_max: int = 8

    def __post_init__(self) -> None:
        self._check_bounds()
        if not self.ipv4 and not self.ipv6:
            raise BadInput("dns.ipv4", "ipv4 and ipv6 are both off; one of them is needed to reach any host")
        if self.ttl_min_s > self.ttl_max_s:
            raise BadInput("dns.ttl_min_s", f"{self.ttl_min_s} is more than ttl_max_s ({self.ttl_max_s})")
        if self.failure_ttl_s > self.failure_ttl_max_s:
            raise BadInput(
                "dns.failure_ttl_s", f"{self.failure_ttl_s} is more than failure_ttl_max_s ({self.failure_ttl_max_s})"
            )

    def _check_bounds(self) -> None:
        for key, low, high in _BOUNDS:
            value = getattr(self, key)
            if not low <= value <= high:
                raise BadInput(f"dns.{key}", f"{value} is out of range; allowed is {low} to {high}")


_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("timeout_s", 0.01, 60),
    ("tries", 1, 20),
    ("concurrency_max", 1, 20_000),
    ("cache_entries_max", 1, 10_000_000),
    ("ttl_min_s", 1, 86_400),
    ("ttl_max_s", 1, 604_800),
    ("negative_ttl_max_s", 1, 86_400),  # RFC 2308 §5: more than a day "should" not be believed
    ("failure_ttl_s", 1, 300),  # RFC 2308 §7.1: at most five minutes for a failure's first caching
    ("failure_ttl_max_s", 1, 3_600),
    ("hosts_max", 1, 200),
    ("addresses_per_host_max", 1, 64),
)
