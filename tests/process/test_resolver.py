"""The resolver against a nameserver on loopback (threats D1 to D8, D11)."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import uvloop

from mta.dns import Resolver
from mta.dns.answer import Answer, Found, RecordType
from mta.dns.nameservers import endpoints
from mta.dns.transport import Transport
from mta.model.dns import DnsSettings
from mta.model.errors import BadInput
from mta.model.site import MxHost, NoRoute, Site
from mta.sink.nameserver import Nameserver
from tests.support.dns_server import DnsServer, Zone

ZONES = {
    "shop.test": {"MX": ["20 mx2.mail.test.", "10 mx1.mail.test."]},
    "twin.test": {"MX": ["10 mx1.mail.test.", "20 mx2.mail.test."]},
    "mx1.mail.test": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
    "mx2.mail.test": {"A": ["192.0.2.2"]},
    "plain.test": {"A": ["192.0.2.9"]},
    "six.test": {"AAAA": ["2001:db8::9"]},
    "null.test": {"MX": ["0 ."], "A": ["192.0.2.9"]},
    "alias.test": {"CNAME": ["shop.test."]},
    "dangling.test": {"CNAME": ["nowhere.test."]},
    "loop1.test": {"CNAME": ["loop2.test."]},
    "loop2.test": {"CNAME": ["loop1.test."]},
    "aliasmx.test": {"MX": ["10 mx-alias.mail.test."]},
    "mx-alias.mail.test": {"CNAME": ["mx1.mail.test."]},
    "inside.test": {"MX": ["10 localhost.mail.test."]},
    "localhost.mail.test": {"A": ["127.0.0.1"]},
    "empty.test": {"TXT": ['"no mail here"']},
    "ours.test": {"MX": ["10 mx1.mail.test.", "20 out.sender.test.", "30 mx2.mail.test."]},
    "mine.test": {"MX": ["10 out.sender.test.", "20 mx2.mail.test."]},
}
SHOP = (
    MxHost("mx1.mail.test", 10, ("192.0.2.1", "2001:db8::1")),
    MxHost("mx2.mail.test", 20, ("192.0.2.2",)),
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer(dict(ZONES)) as started:
        yield started


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def resolver_for(clock: Clock) -> AsyncIterator[Callable[..., Resolver]]:
    async with AsyncExitStack() as stack:

        def make(*servers: str, **settings: object) -> Resolver:
            chosen = {"timeout_s": 0.05, "tries": 4, "own_names": ("out.sender.test",), **settings}
            made = Resolver(DnsSettings(nameservers=servers, **chosen), clock=clock, random=random.Random(42))
            stack.push_async_exit(made)
            return made

        yield make


@pytest.fixture
def resolver(server: DnsServer, resolver_for: Callable[..., Resolver]) -> Resolver:
    """Of usual time-outs: tests in which silence plays no part must not fail on a slow machine."""
    return resolver_for(server.endpoint, timeout_s=5.0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the far end has no event of ours to set
            await asyncio.sleep(0)


def failed(route: object) -> NoRoute:
    assert isinstance(route, NoRoute)
    return route


async def test_mx_hosts_come_in_order_with_their_addresses(resolver: Resolver) -> None:
    route = await resolver.route("shop.test")
    assert isinstance(route, Site)
    assert route.hosts == SHOP
    assert route.key.startswith("mx1.mail.test+1-")


@pytest.mark.parametrize(
    ("domain", "is_final", "enhanced"),
    [
        ("null.test", True, "5.1.10"),
        ("absent.test", True, "5.1.2"),
        ("dangling.test", True, "5.1.2"),
        ("loop1.test", True, "5.4.6"),
        ("empty.test", True, "5.1.2"),
        ("inside.test", True, "5.4.4"),
        ("mine.test", True, "5.4.6"),
        ("not a domain", True, "5.1.2"),
        ("[192.0.2.999]", True, "5.1.2"),
        ("[127.0.0.1]", True, "5.4.4"),
        ("a" * 64 + ".test", True, "5.1.2"),
    ],
)
async def test_domains_without_a_route(resolver: Resolver, domain: str, is_final: bool, enhanced: str) -> None:
    route = failed(await resolver.route(domain))
    assert (is_final, enhanced) == (route.is_final, route.enhanced)


@pytest.mark.parametrize(
    ("domain", "hosts"),
    [
        ("plain.test", (MxHost("plain.test", 0, ("192.0.2.9",)),)),
        ("six.test", (MxHost("six.test", 0, ("2001:db8::9",)),)),
        ("alias.test", SHOP),
        ("aliasmx.test", (MxHost("mx-alias.mail.test", 10, ("192.0.2.1", "2001:db8::1")),)),
        ("ours.test", SHOP[:1]),
        ("[192.0.2.7]", (MxHost("[192.0.2.7]", 0, ("192.0.2.7",)),)),
    ],
)
async def test_domains_with_a_route(resolver: Resolver, domain: str, hosts: tuple[MxHost, ...]) -> None:
    route = await resolver.route(domain)
    assert isinstance(route, Site)
    assert hosts == route.hosts


async def test_aliases_that_the_server_does_not_follow_are_followed(server: DnsServer, resolver: Resolver) -> None:
    server.chase = False
    route = await resolver.route("alias.test")
    assert isinstance(route, Site)
    assert route.hosts == SHOP
    assert failed(await resolver.route("loop1.test")).enhanced == "5.4.6"
    chain = {f"hop{number}.test": {"CNAME": [f"hop{number + 1}.test."]} for number in range(40)}
    server.zones.update(chain)
    assert failed(await resolver.route("hop0.test")).enhanced == "5.4.6"
    assert server.queries.total() < 40


async def test_only_the_wanted_family_is_asked_for(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    route = await resolver_for(server.endpoint, ipv6=False, timeout_s=5.0).route("shop.test")
    assert isinstance(route, Site)
    assert route.hosts[0].addresses == ("192.0.2.1",)
    assert not [kind for _, kind in server.queries if kind == "AAAA"]


async def test_a_thousand_askers_are_one_question_each(server: DnsServer, resolver: Resolver) -> None:
    routes = await asyncio.gather(*(resolver.route(("shop.test", "twin.test")[i % 2]) for i in range(1000)))
    assert len({id(route) for route in routes}) == 1
    assert set(server.queries.values()) == {1}
    assert set(server.queries) == {
        ("shop.test", "MX"), ("twin.test", "MX"),
        ("mx1.mail.test", "A"), ("mx1.mail.test", "AAAA"), ("mx2.mail.test", "A"), ("mx2.mail.test", "AAAA"),
    }  # fmt: skip


async def test_a_cancelled_asker_does_not_disturb_the_others(server: DnsServer, resolver: Resolver) -> None:
    server.hold()
    first, second = asyncio.create_task(resolver.route("shop.test")), asyncio.create_task(resolver.route("shop.test"))
    await eventually(lambda: bool(server.queries))
    first.cancel()
    await asyncio.wait([first])
    server.release()
    assert isinstance(await second, Site)


async def test_cached_knows_what_was_asked_and_never_asks(server: DnsServer, resolver: Resolver) -> None:
    assert resolver.cached("shop.test") is None
    assert server.queries.total() == 0
    route = await resolver.route("shop.test")
    asked = server.queries.total()
    assert resolver.cached("shop.test") is route
    assert await resolver.route("shop.test") is route
    assert server.queries.total() == asked


async def test_a_route_lives_as_long_as_its_ttl(server: DnsServer, resolver: Resolver, clock: Clock) -> None:
    route = await resolver.route("shop.test")
    clock.now += 299
    assert resolver.cached("shop.test") is route
    clock.now += 12
    assert resolver.cached("shop.test") is None
    assert await resolver.route("shop.test") is route  # nothing has changed: the same object
    assert server.queries["shop.test", "MX"] == 2


@pytest.mark.parametrize(("ttl_s", "lives_s"), [(0, 60), (1, 60), (2**31 - 1, 86_400), (2**31, 60), (3600, 3600)])
async def test_ttls_are_clamped(server: DnsServer, resolver: Resolver, clock: Clock, ttl_s: int, lives_s: int) -> None:
    def patched(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        wire = server.response(query).to_wire()
        return [wire.replace((300).to_bytes(4, "big"), ttl_s.to_bytes(4, "big"))]

    server.scripts = dict.fromkeys(("shop.test", "mx1.mail.test"), patched)
    server.zones["shop.test"] = {"MX": ["10 mx1.mail.test."]}
    assert isinstance(await resolver.route("shop.test"), Site)
    clock.now += lives_s - 1
    await resolver.route("shop.test")
    assert server.queries["shop.test", "MX"] == 1
    clock.now += 12
    await resolver.route("shop.test")
    assert server.queries["shop.test", "MX"] == 2


async def test_a_route_just_ended_is_handed_out_while_one_refresh_runs(
    server: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    old = await resolver.route("shop.test")
    server.zones["mx1.mail.test"] = {"A": ["192.0.2.77"]}
    clock.now += 305
    assert all(resolver.cached("shop.test") is old for _ in range(50))
    assert resolver.statistics().refreshes == 1
    await eventually(lambda: resolver.statistics().refreshes == 0)
    new = resolver.cached("shop.test")
    assert isinstance(new, Site)
    assert isinstance(old, Site)
    assert (new.key, new.hosts[0].addresses) == (old.key, ("192.0.2.77",))
    assert server.queries["shop.test", "MX"] == 2
    assert server.queries["mx1.mail.test", "A"] == 2


async def test_domains_of_one_site_share_the_object_and_its_refresh(
    server: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    """The hosts' addresses end first: one refresh serves all domains, without asking for any MX again."""
    for name in ("mx1.mail.test", "mx2.mail.test"):

        def short(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
            return [server.response(query).to_wire().replace((300).to_bytes(4, "big"), (100).to_bytes(4, "big"))]

        server.scripts[name] = short
    assert await resolver.route("shop.test") is await resolver.route("twin.test")
    server.zones["mx1.mail.test"] = {"A": ["192.0.2.77"]}
    clock.now += 105
    resolver.cached("shop.test")
    resolver.cached("twin.test")
    assert resolver.statistics().refreshes == 1
    await eventually(lambda: resolver.statistics().refreshes == 0)
    new = resolver.cached("shop.test")
    assert new is resolver.cached("twin.test")
    assert isinstance(new, Site)
    assert new.hosts[0].addresses == ("192.0.2.77",)
    assert server.queries["shop.test", "MX"] == server.queries["twin.test", "MX"] == 1


async def test_a_name_that_changes_its_mind_never_leads_inside(
    server: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    """Rebinding (threats D4): whatever the next answer is, no inner address is ever handed out."""
    outside, inside = "192.0.2.1", "127.0.0.1"
    for answers in ([outside], [inside], [outside, inside], [inside]):
        server.zones["plain.test"] = {"A": answers}
        clock.now += 400
        route = await resolver.route("plain.test")
        handed_out = (
            {address for host in route.hosts for address in host.addresses} if isinstance(route, Site) else set()
        )
        assert handed_out == {outside} & set(answers)


async def test_a_no_is_believed_for_its_time(server: DnsServer, resolver: Resolver, clock: Clock) -> None:
    assert failed(await resolver.route("absent.test")).enhanced == "5.1.2"
    clock.now += 119
    await resolver.route("absent.test")
    assert server.queries["absent.test", "MX"] == 1
    server.zones["absent.test"] = {"A": ["192.0.2.5"]}
    clock.now += 12
    assert isinstance(await resolver.route("absent.test"), Site)
    server.negative_ttl_s = 10**6
    await resolver.route("gone.test")
    clock.now += 3601 + 10
    await resolver.route("gone.test")
    assert server.queries["gone.test", "MX"] == 2


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTAUTH])
async def test_a_failing_server_is_never_final(server: DnsServer, resolver: Resolver, rcode: dns.rcode.Rcode) -> None:
    server.rcodes = {"plain.test": rcode}
    route = failed(await resolver.route("plain.test"))
    assert (route.is_final, route.enhanced) == (False, "4.4.3")
    assert dns.rcode.to_text(rcode) in route.text
    assert not [kind for name, kind in server.queries if name == "plain.test" and kind != "MX"]  # no A fallback


async def test_a_failure_is_believed_briefly_then_longer(server: DnsServer, resolver: Resolver, clock: Clock) -> None:
    server.rcodes = {"shop.test": dns.rcode.SERVFAIL}
    for lives_s in (30, 60, 120, 240, 480, 480):
        asked = server.queries["shop.test", "MX"]
        assert not failed(await resolver.route("shop.test")).is_final
        clock.now += lives_s - 1
        assert resolver.cached("shop.test") is not None
        clock.now += 2
        assert resolver.cached("shop.test") is None  # a failure is not handed out past its end
        assert server.queries["shop.test", "MX"] == asked + 2
    server.rcodes.clear()
    assert isinstance(await resolver.route("shop.test"), Site)


async def test_silence_is_temporary_after_all_tries(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    server.silent = {"shop.test"}
    resolver = resolver_for(server.endpoint)
    route = failed(await resolver.route("shop.test"))
    assert (route.is_final, route.enhanced) == (False, "4.4.3")
    assert server.queries["shop.test", "MX"] == 4
    transport = resolver.statistics().transport
    assert transport is not None
    assert (transport.timeouts, transport.outstanding) == (4, 0)


async def test_a_lost_packet_costs_one_more_try(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    lost: list[int] = []

    def lose_first(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        lost.append(query.id)
        return [server.response(query).to_wire()] if len(lost) > 1 else []

    server.scripts = {"shop.test": lose_first}
    assert isinstance(await resolver_for(server.endpoint, timeout_s=0.2).route("shop.test"), Site)
    assert len(set(lost)) == 2


class Lossy(DnsServer):
    """Loses its first answer to every third name, as a full socket buffer would."""

    def __init__(self, zones: dict[str, Zone]) -> None:
        super().__init__(zones)
        self.lost: set[str] = set()

    def _answers(self, query: dns.message.Message, *, is_tcp: bool) -> list[bytes]:
        name = query.question[0].name.to_text(omit_final_dot=True)
        if int(name.removeprefix("shop").removesuffix(".test")) % 3 == 0 and name not in self.lost:
            self.lost.add(name)
            return []
        return super()._answers(query, is_tcp=is_tcp)


async def test_lost_answers_in_a_burst_do_not_wait_out_the_time_limit(resolver_for: Callable[..., Resolver]) -> None:
    domains = [f"shop{number}.test" for number in range(120)]
    server = Lossy({domain: {"MX": ["0 ."]} for domain in domains})
    async with server:
        resolver = resolver_for(server.endpoint, timeout_s=60.0, concurrency_max=50)
        async with asyncio.timeout(30):
            routes = await asyncio.gather(*map(resolver.route, domains))
        assert {failed(route).enhanced for route in routes} == {"5.1.10"}
        transport = resolver.statistics().transport
        assert transport is not None
        assert (transport.timeouts, transport.repeated, transport.queries) == (0, 40, 160)
        assert len(server.lost) == 40


async def test_a_dead_server_is_passed_over_for_a_living_one(
    server: DnsServer, resolver_for: Callable[..., Resolver]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        dead_port = reserved.getsockname()[1]
    resolver = resolver_for(f"127.0.0.1:{dead_port}", server.endpoint, timeout_s=2.0)
    started = time.monotonic()
    assert isinstance(await resolver.route("shop.test"), Site)
    assert time.monotonic() - started < 1.5  # told by ICMP, not by the time-out
    assert isinstance(await resolver.route("plain.test"), Site)


async def test_a_failing_server_sends_us_to_the_next(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    async with DnsServer({}) as broken:
        broken.rcodes = dict.fromkeys(ZONES, dns.rcode.SERVFAIL)
        resolver = resolver_for(broken.endpoint, server.endpoint, timeout_s=5.0)
        assert isinstance(await resolver.route("shop.test"), Site)


async def test_a_truncated_answer_is_asked_for_over_tcp(server: DnsServer, resolver: Resolver) -> None:
    server.truncated = {"shop.test"}
    route = await resolver.route("shop.test")
    assert isinstance(route, Site)
    assert route.hosts == SHOP
    assert server.tcp_queries == 1


async def test_truncated_over_tcp_as_well_is_temporary(server: DnsServer, resolver: Resolver) -> None:
    def always(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.TC
        return [response.to_wire()]

    server.scripts = {"shop.test": always}
    assert not failed(await resolver.route("shop.test")).is_final
    assert server.tcp_queries == 2


async def test_forged_answers_are_ignored_and_the_honest_one_counts(server: DnsServer, resolver: Resolver) -> None:
    def forge(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        honest = server.response(query).to_wire()
        wrong_id = (query.id ^ 1).to_bytes(2, "big") + honest[2:]
        other_question = dns.message.make_query("evil.test", "MX", id=query.id)
        other = dns.message.make_response(other_question)
        other.answer.append(dns.rrset.from_text("evil.test.", 300, "IN", "MX", "1 evil.test."))
        not_an_answer = honest[:2] + bytes((honest[2] & 0x7F,)) + honest[3:]
        return [wrong_id, other.to_wire(), not_an_answer, b"\0", query.to_wire(), honest]

    server.scripts = {"shop.test": forge}
    route = await resolver.route("shop.test")
    assert isinstance(route, Site)
    assert route.hosts == SHOP
    transport = resolver.statistics().transport
    assert transport is not None
    assert (transport.ignored, transport.timeouts) == (5, 0)


async def test_records_of_other_names_do_not_count(server: DnsServer, resolver: Resolver) -> None:
    """Neither beside the answer nor in the additional section: a stranger's zone cannot place hosts of others."""

    def poison(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text("other.test.", 300, "IN", "MX", "0 evil.test."))
        response.answer.append(dns.rrset.from_text("aliasmx.test.", 300, "IN", "MX", "10 mx1.mail.test."))
        response.additional.append(dns.rrset.from_text("mx1.mail.test.", 300, "IN", "A", "198.51.100.66"))
        return [response.to_wire()]

    server.scripts = {"aliasmx.test": poison}
    route = await resolver.route("aliasmx.test")
    assert isinstance(route, Site)
    assert route.hosts == (MxHost("mx1.mail.test", 10, ("192.0.2.1", "2001:db8::1")),)


HEADER = bytes.fromhex("8180 0001 0001 0000 0000")


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\xc0\x0c",
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\xff\0\x0a",  # longer than the packet
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\x04\0\x0a\xc0\x29",  # exchange points at itself
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\x04\0\x0a\xff\xff",  # exchange points beyond the packet
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\x01\0",  # content too short for its type
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\x03\0\x0a\x41",  # a label type that was never defined
        b"\xc0\x0c\0\x0f\0\x01\0\0\0\x01\0\x06\0\x0a\x01a\0z",  # content longer than the name in it
        b"\xff" * 300,
    ],
)
async def test_a_garbled_answer_is_temporary_and_harms_nothing(
    server: DnsServer, resolver: Resolver, tail: bytes
) -> None:
    def garble(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        question = dns.message.make_query("shop.test", "MX", id=query.id).to_wire()[12:]
        return [query.id.to_bytes(2, "big") + HEADER + question + tail]

    server.scripts = {"shop.test": garble}
    assert not failed(await resolver.route("shop.test")).is_final
    assert isinstance(await resolver.route("plain.test"), Site)


async def test_a_referral_is_no_answer(server: DnsServer, resolver: Resolver) -> None:
    def refer(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        response = dns.message.make_response(query)
        response.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.elsewhere.test."))
        return [response.to_wire()]

    server.scripts = {"plain.test": refer}
    route = failed(await resolver.route("plain.test"))
    assert (route.is_final, route.enhanced) == (False, "4.4.3")


async def test_a_server_that_does_not_know_edns_is_asked_without(server: DnsServer, resolver: Resolver) -> None:
    def old(query: dns.message.Message, is_tcp: bool) -> list[bytes]:
        if query.edns < 0:
            return [server.response(query).to_wire()]
        return [query.id.to_bytes(2, "big") + bytes.fromhex("8181 0000 0000 0000 0000")]  # FORMERR, header only

    server.scripts = {"plain.test": old}
    assert isinstance(await resolver.route("plain.test"), Site)


async def test_ids_and_ports_vary(server: DnsServer, resolver: Resolver) -> None:
    await asyncio.gather(*(resolver.route(f"absent{number}.test") for number in range(200)))
    assert len(server.source_ports) >= 4
    assert len(set(server.query_ids)) > 190


async def test_a_zone_of_a_thousand_mx_stays_bounded(server: DnsServer, resolver: Resolver) -> None:
    """1,000 names of 50 addresses each: under a second, under 20 questions at once (threats D5)."""
    server.zones["huge.test"] = {"MX": [f"10 mx{number:04}.huge.test." for number in range(1000)]}
    for number in range(1000):
        server.zones[f"mx{number:04}.huge.test"] = {"A": [f"192.0.2.{last}" for last in range(1, 51)]}
    server.truncated = {"huge.test"}
    started = time.monotonic()
    route = await resolver.route("huge.test")
    assert time.monotonic() - started < 1
    assert isinstance(route, Site)
    assert len(route.hosts) == 16
    assert {len(host.addresses) for host in route.hosts} == {8}
    transport = resolver.statistics().transport
    assert transport is not None
    assert transport.outstanding_highest < 20
    assert server.queries.total() == 1 + 16 * 2


async def test_questions_at_once_are_bounded(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    resolver = resolver_for(server.endpoint, concurrency_max=10, timeout_s=5.0)
    server.hold()
    asking = [asyncio.create_task(resolver.route(f"absent{number}.test")) for number in range(100)]
    await eventually(lambda: server.queries.total() == 10)
    transport = resolver.statistics().transport
    assert transport is not None
    assert (transport.outstanding, transport.waiting) == (10, 90)
    server.release()
    await asyncio.gather(*asking)
    transport = resolver.statistics().transport
    assert transport is not None
    assert (transport.outstanding, transport.outstanding_highest) == (0, 10)


async def test_five_thousand_domains_of_one_site_fit_a_bounded_cache(resolver_for: Callable[..., Resolver]) -> None:
    hosts = {"mx1.mail.test": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}, "mx2.mail.test": {"A": ["192.0.2.2"]}}
    mx = {"MX": [(10, "mx1.mail.test"), (20, "mx2.mail.test")]}
    domains = [f"shop{number}.test" for number in range(5000)]
    async with Nameserver({**hosts, **dict.fromkeys(domains, mx)}) as server:
        resolver = resolver_for(f"{server.address}:{server.port}", cache_entries_max=1000, timeout_s=5.0)
        sites = [await asyncio.gather(*map(resolver.route, domains[at : at + 250])) for at in range(0, 5000, 250)]
        asked = server.queries.total()
    assert isinstance(sites[0][0], Site)
    assert sites[0][0].hosts == SHOP
    assert len({id(site) for some in sites for site in some}) == 1
    found = resolver.statistics()
    assert (found.domains, found.evicted, found.places) == (1000, 4000, 1)
    assert asked == 5000 + 4


async def test_closing_ends_what_is_under_way(server: DnsServer, resolver_for: Callable[..., Resolver]) -> None:
    resolver = resolver_for(server.endpoint, concurrency_max=2)
    server.silent = {f"silent{number}.test" for number in range(5)}
    asking = [asyncio.create_task(resolver.route(name)) for name in server.silent]
    await eventually(lambda: server.queries.total() >= 2)
    await resolver.close()
    await resolver.close()
    await asyncio.wait(asking, timeout=5)
    assert all(task.cancelled() for task in asking)
    assert not failed(await resolver.route("late.test")).is_final


def test_nameservers_are_read_as_written_or_from_the_machine(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert [str(found) for found in endpoints(("127.0.0.1:5353", "192.0.2.53", "[2001:db8::53]:5300", "::1"))] == [
        "127.0.0.1:5353", "192.0.2.53:53", "[2001:db8::53]:5300", "[::1]:53",
    ]  # fmt: skip
    machine = tmp_path / "resolv.conf"
    machine.write_text("search example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    assert [str(found) for found in endpoints((), str(machine))] == ["192.0.2.53:53", "[2001:db8::53]:53"]


@pytest.mark.parametrize("wrong", ["localhost", "127.0.0.1:0", "127.0.0.1:dns", "127.0.0.1:70000", "[::1"])
def test_a_nameserver_that_makes_no_sense_is_named(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"dns\.nameservers"):
        endpoints((wrong,))


def test_a_time_limit_that_has_come_already_is_one_too_on_the_loop_of_the_daemon() -> None:
    """uvloop answers ``call_at`` for such a time with a handle that knows no time."""

    async def ask_a_silent_server() -> list[Answer]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            address, port = silent.getsockname()
            servers = endpoints([f"{address}:{port}"])
            transport = Transport(servers, timeout_s=0.0004, tries=2, outstanding_max=10, rng=random.Random(1))
            asked = [transport.ask(f"d{number}.test", RecordType.MX) for number in range(3)]
            answers = await asyncio.wait_for(asyncio.gather(*asked), 20)
            await transport.close()
            return answers

    answers = uvloop.run(ask_a_silent_server())
    assert [answer.found for answer in answers] == [Found.TEMPORARY] * 3
