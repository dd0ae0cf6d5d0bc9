"""TLSA records on the way to a site: asked for where answers are validated, and believed no further (RFC 7672 §2)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import dns.rcode
import pytest

from mta.dns.resolver import Resolver
from mta.model.dns import DnsSettings
from mta.model.site import MxHost, NoRoute, Site, plain_key
from mta.sink.nameserver import Nameserver
from tests.support.dns_server import DnsServer

DIGEST = "00112233445566778899aabbccddeeff" * 2
RECORD = (3, 1, 1, bytes.fromhex(DIGEST))
TLSA = {"TLSA": [f"3 1 1 {DIGEST}"]}
ZONES = {
    "signed.test": {"MX": ["10 mx1.signed.test.", "20 mx2.signed.test.", "30 mx.plain.test."]},
    "mx1.signed.test": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
    "mx2.signed.test": {"A": ["192.0.2.2"]},
    "mx.plain.test": {"A": ["192.0.2.3"]},
    "_25._tcp.mx1.signed.test": TLSA,
    "_25._tcp.mx.plain.test": TLSA,
    "bare.test": {"MX": ["10 mx2.signed.test."]},
    "one.test": {"MX": ["10 mx1.signed.test."]},
    "guest.test": {"MX": ["10 mx1.signed.test."]},
    "implicit.test": {"A": ["192.0.2.5"]},
    "_25._tcp.implicit.test": TLSA,
    "alias.test": {"MX": ["10 alias.signed.test."]},
    "alias.signed.test": {"CNAME": ["mx1.signed.test."]},
    "leaving.test": {"MX": ["10 leaving.signed.test."]},
    "leaving.signed.test": {"CNAME": ["mx.plain.test."]},
    "_25._tcp.leaving.signed.test": TLSA,
}
SECURE = {"signed.test", "bare.test", "one.test", "implicit.test", "alias.test", "leaving.test"}
Make = Callable[..., Resolver]


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer(dict(ZONES)) as started:
        started.secure = set(SECURE)
        yield started


@pytest.fixture
async def resolver_for(server: DnsServer) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def make(*, dane_port: int | None = 25, chase: bool = True) -> Resolver:
            server.chase = chase
            made = Resolver(DnsSettings(nameservers=(server.endpoint,)), random=random.Random(42), dane_port=dane_port)
            stack.push_async_exit(made)
            return made

        yield make


async def site(resolver: Resolver, domain: str) -> Site:
    route = await resolver.route(domain)
    assert isinstance(route, Site), route
    return route


async def test_hosts_that_are_secure_all_the_way_have_their_records(server: DnsServer, resolver_for: Make) -> None:
    found = await site(resolver_for(), "signed.test")
    assert found.hosts == (
        MxHost("mx1.signed.test", 10, ("192.0.2.1", "2001:db8::1"), (RECORD,)),
        MxHost("mx2.signed.test", 20, ("192.0.2.2",)),
        MxHost("mx.plain.test", 30, ("192.0.2.3",)),
    )
    assert found.key.endswith("+dane")
    assert plain_key(found.key) == (await site(resolver_for(dane_port=None), "signed.test")).key
    # RFC 7672 §2.2.2: not of hosts in zones that are not signed.
    asked = {name for name, kind in server.queries if kind == "TLSA"}
    assert asked == {"_25._tcp.mx1.signed.test", "_25._tcp.mx2.signed.test"}


async def test_without_dane_nobody_is_asked_and_nothing_believed(server: DnsServer, resolver_for: Make) -> None:
    found = await site(resolver_for(dane_port=None), "signed.test")
    assert [host.authorities for host in found.hosts] == [(), (), ()]
    assert "TLSA" not in {kind for _, kind in server.queries}


async def test_a_domain_that_is_not_signed_shares_nothing_with_one_that_is(
    server: DnsServer, resolver_for: Make
) -> None:
    resolver = resolver_for()
    guest, one = await site(resolver, "guest.test"), await site(resolver, "one.test")
    assert (guest.key, guest.hosts[0].authorities) == ("mx1.signed.test", ())
    assert (one.key, one.hosts[0].authorities) == ("mx1.signed.test+dane", (RECORD,))
    assert await site(resolver, "guest.test") is guest
    assert server.queries["_25._tcp.mx1.signed.test", "TLSA"] == 1


async def test_without_records_a_signed_domain_is_like_any_other(resolver_for: Make) -> None:
    found = await site(resolver_for(), "bare.test")
    assert (found.key, found.hosts[0].authorities) == ("mx2.signed.test", ())


async def test_a_domain_without_mx_is_its_own_host(resolver_for: Make) -> None:
    found = await site(resolver_for(), "implicit.test")
    assert (found.key, found.hosts[0].authorities) == ("implicit.test+dane", (RECORD,))


@pytest.mark.parametrize("chase", [True, False])
async def test_the_name_behind_an_alias_is_asked_for_first(resolver_for: Make, chase: bool) -> None:
    found = await site(resolver_for(chase=chase), "alias.test")
    assert found.hosts[0].authorities == (RECORD,)


@pytest.mark.parametrize("chase", [True, False])
async def test_an_alias_that_leaves_what_is_signed_is_not_secure(resolver_for: Make, chase: bool) -> None:
    found = await site(resolver_for(chase=chase), "leaving.test")
    assert found.hosts[0].authorities == ()


async def test_the_port_is_that_of_the_hosts(server: DnsServer, resolver_for: Make) -> None:
    server.zones["_2525._tcp.mx1.signed.test"] = {"TLSA": [f"2 0 1 {DIGEST}"]}
    found = await site(resolver_for(dane_port=2525), "one.test")
    assert found.hosts[0].authorities == ((2, 0, 1, bytes.fromhex(DIGEST)),)


async def test_records_that_are_not_validated_are_none(server: DnsServer, resolver_for: Make) -> None:
    server.secure = {"one.test", "x._tcp.mx1.signed.test"}
    assert (await site(resolver_for(), "one.test")).hosts[0].authorities == ()


async def test_a_host_whose_records_cannot_be_had_is_not_used_now(server: DnsServer, resolver_for: Make) -> None:
    """Whoever can keep answers from us must not be able to talk us out of TLS by it (RFC 7672 §2.1.1)."""
    server.rcodes["_25._tcp.mx1.signed.test"] = dns.rcode.SERVFAIL
    resolver = resolver_for()
    found = await site(resolver, "signed.test")
    assert [host.name for host in found.hosts] == ["mx2.signed.test", "mx.plain.test"]
    assert found.key.endswith("+dane")
    route = await resolver.route("one.test")
    assert isinstance(route, NoRoute)
    assert (route.is_final, route.enhanced) == (False, "4.4.3")
    assert route.text.startswith("TLSA records of mx1.signed.test not known now: SERVFAIL")
    # A domain that promises nothing goes on.
    assert (await site(resolver, "guest.test")).hosts[0].name == "mx1.signed.test"


async def test_the_sinks_name_server_can_play_one_that_validates() -> None:
    zones = {
        "signed.test": {"MX": [(10, "mx.signed.test")], "secure": True},
        "mx.signed.test": {"A": ["192.0.2.1"], "secure": True},
        "_25._tcp.mx.signed.test": {"TLSA": [f"3 1 1 {DIGEST}"], "secure": True},
        "other.test": {"MX": [(10, "mx.signed.test")]},
    }
    async with Nameserver(zones) as server:
        settings = DnsSettings(nameservers=(f"{server.address}:{server.port}",))
        for port, records in ((25, (RECORD,)), (26, ())):
            async with Resolver(settings, random=random.Random(1), dane_port=port) as resolver:
                assert (await site(resolver, "signed.test")).hosts[0].authorities == records
                assert (await site(resolver, "other.test")).hosts[0].authorities == ()
        assert server.queries["_26._tcp.mx.signed.test", "TLSA"] == 1
