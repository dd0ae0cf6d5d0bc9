"""Keys of sites and the order in which hosts are tried."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mta.model.site import MxHost, Site, order_hosts, plain_key, site_key, verified_site


def reverse(names: list[str]) -> None:
    names.reverse()


def test_key_is_equal_exactly_for_equal_sets() -> None:
    key = site_key([(10, "a.example"), (20, "b.example")])
    assert key == site_key([(20, "b.example"), (10, "a.example")])
    assert key.startswith("a.example+1-")
    others = ([(10, "a.example"), (30, "b.example")], [(10, "a.example"), (20, "c.example")], [(10, "a.example")])
    assert all(site_key(other) != key for other in others)


def test_key_of_a_lone_host_is_its_name() -> None:
    assert site_key([(10, "a.example")]) == site_key([(50, "a.example")]) == "a.example"


def test_preference_comes_before_chance() -> None:
    a, b = MxHost("a", 10, ("192.0.2.1",)), MxHost("b", 10, ("192.0.2.2",))
    c = MxHost("c", 20, ("192.0.2.3",))
    site = Site("a+2-x", (a, b, c))
    assert order_hosts(site, reverse) == [(b, "192.0.2.2"), (a, "192.0.2.1"), (c, "192.0.2.3")]


def test_equal_hosts_share_first_place_evenly() -> None:
    site = Site("s", tuple(MxHost(f"mx{number}", 10, (f"192.0.2.{number}",)) for number in range(4)))
    rng = random.Random(7)
    firsts = Counter(order_hosts(site, rng.shuffle)[0][0].name for _ in range(4000))
    assert set(firsts) == {"mx0", "mx1", "mx2", "mx3"}
    assert all(900 < count < 1100 for count in firsts.values())


def test_ipv4_of_a_host_comes_before_its_ipv6_and_chance_stays_inside_a_family() -> None:
    host = MxHost("a", 10, ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
    addresses = [address for _, address in order_hosts(Site("a", (host,)), reverse)]
    assert addresses == ["192.0.2.2", "192.0.2.1", "2001:db8::2", "2001:db8::1"]


def test_an_address_of_several_hosts_is_tried_once() -> None:
    """Three hosts that name 16 distinct addresses give 16 paths (campaign-mta §12 row 23)."""
    hosts = tuple(
        MxHost(f"mx{number}", 10, tuple(f"192.0.2.{last}" for last in range(number * 4, number * 4 + 8)))
        for number in range(3)
    )
    pairs = order_hosts(Site("s", hosts), random.Random(3).shuffle)
    assert len(pairs) == len({address for _, address in pairs}) == 16


def test_a_verified_site_is_another_than_the_plain_one_of_the_same_hosts() -> None:
    hosts = (MxHost("a.test", 10, ("192.0.2.1",)), MxHost("b.test", 20, ("192.0.2.2",)))
    site = Site(site_key([(10, "a.test"), (20, "b.test")]), hosts)
    twin, some = verified_site(site, hosts), verified_site(site, hosts[1:])
    assert twin == Site(f"{site.key}+sts", hosts, is_verified=True)
    assert some.hosts == hosts[1:]
    assert len({site.key, twin.key, some.key, verified_site(site, hosts[:1]).key}) == 4


@pytest.mark.parametrize("plain", ["mx.test", "mx.test+1-abcdefgh", "[192.0.2.1]", "sts", "a+dane.test"])
@pytest.mark.parametrize("suffix", ["", "+dane", "+sts", "+dane+sts", "+sts-abc234", "+dane+sts-abc234"])
def test_the_plain_key_is_what_people_call_the_site(plain: str, suffix: str) -> None:
    assert plain_key(plain + suffix) == plain
