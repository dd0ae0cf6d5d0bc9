"""Settings of the resolver that make no sense are refused by name."""

from __future__ import annotations

import pytest

from mta.model.dns import DnsSettings
from mta.model.errors import BadInput


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"timeout_s": 0}, "dns.timeout_s"),
        ({"tries": 0}, "dns.tries"),
        ({"concurrency_max": 0}, "dns.concurrency_max"),
        ({"ipv4": False, "ipv6": False}, "dns.ipv4"),
        ({"ttl_min_s": 600, "ttl_max_s": 60}, "dns.ttl_min_s"),
        ({"failure_ttl_s": 60, "failure_ttl_max_s": 30}, "dns.failure_ttl_s"),
        ({"hosts_max": 0}, "dns.hosts_max"),
    ],
)
def test_a_senseless_value_is_refused_with_its_key(settings: dict[str, object], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        DnsSettings(**settings)  # type: ignore[arg-type]
    assert caught.value.where == where
