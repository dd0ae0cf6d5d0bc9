"""Policies of domains (RFC 8461): found, fetched, remembered, and what they make of a route."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import dns.rcode
import pytest
import structlog
import trustme

from mta.dns.resolver import Resolver
from mta.model.dns import DnsSettings
from mta.model.site import NoRoute, Route, Site, plain_key
from mta.model.sts import POLICY_BYTES_MAX
from mta.model.tls import TlsSettings
from mta.sts import fetch, open_routes
from mta.sts.fetch import Fetcher
from mta.sts.routes import FETCH_AGAIN_S, REFRESH_S, PolicyRoutes
from mta.sts.store import PolicyStore
from tests.support.authorities import ca_file
from tests.support.dns_server import DnsServer
from tests.support.policy_server import PolicyServer, policy

AUTHORITY = trustme.CA()
DOMAINS = ["shop.test", "other.test", "third.test", "none.test"]
ID = {"TXT": ['"v=STSv1; id=1;"']}
HTTP = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b"


def response(status: bytes, kind: bytes, body: bytes, more: bytes = b"") -> bytes:
    return HTTP % (status, kind, more, len(body), body)


class World:
    """A name server, a policy server, and clocks that stand still until they are moved."""

    def __init__(self, names: DnsServer, policies: PolicyServer, folder: Path) -> None:
        self.names = names
        self.policies = policies
        self.folder = folder
        self.now_s = 1_000.0
        self.stack = AsyncExitStack()
        self.current: PolicyRoutes | None = None

    def routes(self, *, exempt: tuple[str, ...] = (), trusted: trustme.CA = AUTHORITY) -> PolicyRoutes:
        settings = DnsSettings(
            nameservers=(self.names.endpoint,), allow_networks=("127.0.0.0/8",), ipv6=False, negative_ttl_max_s=60
        )
        resolver = Resolver(settings, clock=lambda: self.now_s, random=random.Random(42))
        fetcher = Fetcher(resolver, ca_file=ca_file(self.folder, trusted), port=self.policies.port)
        store = PolicyStore(self.folder / "mta-sts.json")
        store.read()
        self.current = PolicyRoutes(
            resolver,
            fetcher,
            store,
            entries_max=1_000,
            exempt=exempt,
            clock=lambda: self.now_s,
            wall_clock=lambda: 1e9 + self.now_s,
        )
        return self.current

    async def restart(self) -> PolicyRoutes:
        assert self.current is not None
        await self.current.close()
        return self.routes()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    zones: dict[str, dict[str, list[str]]] = {
        "mx1.test": {"A": ["127.0.0.1"]},
        "mx2.test": {"A": ["127.0.0.2"]},
    }
    for domain in DOMAINS:
        zones[domain] = {"MX": ["10 mx1.test.", "20 mx2.test."]}
        zones[f"mta-sts.{domain}"] = {"A": ["127.0.0.1"]}
        zones[f"_mta-sts.{domain}"] = dict(ID)
    del zones["_mta-sts.none.test"]
    async with DnsServer(zones) as names, PolicyServer(AUTHORITY, DOMAINS, {}) as policies:
        made = World(names, policies, tmp_path)
        yield made
        if made.current is not None:
            await made.current.close()


def site(route: Route | None) -> Site:
    assert isinstance(route, Site), route
    return route


def texts_asked(world: World) -> int:
    return sum(count for (_, kind), count in world.names.queries.items() if kind == "TXT")


def set_id(world: World, domain: str, text: str | None) -> None:
    if text is None:
        world.names.zones.pop(f"_mta-sts.{domain}")
    else:
        world.names.zones[f"_mta-sts.{domain}"] = {"TXT": [f'"v=STSv1; id={text};"']}


async def test_a_policy_to_be_enforced_makes_a_site_of_its_own(world: World) -> None:
    world.policies.replies = {
        "mta-sts.shop.test": policy("mx1.test", "mx2.test"),
        "mta-sts.other.test": policy("*.test"),
    }
    routes = world.routes()
    assert routes.cached("shop.test") is None
    shop = site(await routes.route("shop.test"))
    plain = site(await routes.route("none.test"))
    assert (shop.is_verified, plain.is_verified) == (True, False)
    assert shop.hosts == plain.hosts
    assert shop.key == f"{plain.key}+sts"
    assert plain_key(shop.key) == plain.key
    # Domains of equal sites with policies that come to the same share all of it.
    assert await routes.route("other.test") is shop
    assert routes.cached("shop.test") is shop
    assert routes.cached("none.test") is plain


async def test_each_domain_costs_one_question_more_and_no_more(world: World) -> None:
    routes = world.routes()
    for _ in range(3):
        await asyncio.gather(*(routes.route(domain) for domain in DOMAINS * 5))
    assert {name: count for (name, kind), count in world.names.queries.items() if kind == "TXT"} == {
        f"_mta-sts.{domain}": 1 for domain in DOMAINS
    }
    assert sum(count for (_, kind), count in world.names.queries.items() if kind == "MX") == len(DOMAINS)


async def test_hosts_that_the_policy_does_not_name_are_not_used(world: World) -> None:
    world.policies.replies = {
        "mta-sts.shop.test": policy("mx2.test"),
        "mta-sts.other.test": policy("elsewhere.test", "*.mx1.test"),
    }
    routes = world.routes()
    with structlog.testing.capture_logs() as logs:
        shop = site(await routes.route("shop.test"))
        other = await routes.route("other.test")
        for domain in ("shop.test", "other.test"):
            await routes.route(domain)
    assert [host.name for host in shop.hosts] == ["mx2.test"]
    assert shop.is_verified
    assert plain_key(shop.key) == site(await routes.route("none.test")).key
    assert isinstance(other, NoRoute)
    assert (other.is_final, other.enhanced) == (False, "4.7.5")
    assert other.text == "other.test: its MTA-STS policy names none of its MX hosts (mx1.test, mx2.test)"
    said = [(log["domain"], log["hosts"]) for log in logs if log["event"] == "mta-sts policy does not name hosts"]
    assert said == [("shop.test", "mx1.test"), ("other.test", "mx1.test, mx2.test")]


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_a_policy_that_is_not_to_be_enforced_changes_nothing(world: World, mode: str) -> None:
    world.policies.replies = {"mta-sts.shop.test": policy("elsewhere.test", mode=mode)}
    routes = world.routes()
    with structlog.testing.capture_logs() as logs:
        assert await routes.route("shop.test") is await routes.route("none.test")
        assert routes.cached("shop.test") is routes.cached("none.test")
    assert [log["mode"] for log in logs if log["event"] == "mta-sts policy"] == [mode]
    told = [log["mode"] for log in logs if log["event"] == "mta-sts policy does not name hosts"]
    assert told == (["testing"] if mode == "testing" else [])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (None, "status 404"),
        (response(b"301 Moved", b"text/plain", b"", b"Location: https://mta-sts.shop.test/x\r\n"), "status 301"),
        (response(b"500 Oh", b"text/plain", policy("mx1.test")), "status 500"),
        (response(b"200 OK", b"text/html", policy("mx1.test")), "'text/html', not text/plain"),
        (response(b"200 OK", b"text/plain", b"<html>"), "no key and value"),
        (response(b"200 OK", b"text/plain", b"a: b\n" * POLICY_BYTES_MAX), "larger than 65,536 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 500\r\n\r\nversion", "peer closed"),
        (b"HTTP/nonsense\r\n\r\n", "RemoteProtocolError"),
    ],
)
async def test_without_a_policy_that_can_be_had_the_domain_has_none(
    world: World, reply: bytes | None, why: str
) -> None:
    if reply is not None:
        world.policies.replies["mta-sts.shop.test"] = reply
    routes = world.routes()
    with structlog.testing.capture_logs() as logs:
        assert not site(await routes.route("shop.test")).is_verified
        world.now_s += FETCH_AGAIN_S - 1
        assert not site(await routes.route("shop.test")).is_verified
        assert world.policies.requests == {"mta-sts.shop.test": 1}
        world.now_s += 1
        assert not site(await routes.route("shop.test")).is_verified
        assert world.policies.requests == {"mta-sts.shop.test": 2}
    failed = [log for log in logs if log["event"] == "mta-sts policy cannot be fetched"]
    assert len(failed) == 1  # the same again is no news
    assert why in failed[0]["error"]


async def test_a_policy_server_must_prove_who_it_is(world: World) -> None:
    world.policies.replies = {f"mta-sts.{domain}": policy("*.test") for domain in (*DOMAINS, "foreign.test")}
    world.names.zones["foreign.test"] = {"MX": ["10 mx1.test."]}
    world.names.zones["mta-sts.foreign.test"] = {"A": ["127.0.0.1"]}
    world.names.zones["_mta-sts.foreign.test"] = dict(ID)
    routes = world.routes()
    with structlog.testing.capture_logs() as logs:
        assert not site(await routes.route("foreign.test")).is_verified
    assert "Hostname mismatch" in logs[0]["error"]
    assert site(await routes.route("shop.test")).is_verified
    await routes.close()
    (world.folder / "mta-sts.json").unlink()
    routes = world.routes(trusted=trustme.CA())
    with structlog.testing.capture_logs() as logs:
        assert not site(await routes.route("shop.test")).is_verified
    assert "unable to get local issuer certificate" in logs[0]["error"]
    assert world.policies.requests == {"mta-sts.shop.test": 1}


async def test_a_policy_server_may_not_lead_us_inside(world: World) -> None:
    world.names.zones["mta-sts.shop.test"] = {"A": ["10.0.0.1"]}
    with structlog.testing.capture_logs() as logs:
        assert not site(await world.routes().route("shop.test")).is_verified
    assert logs[0]["error"] == "mta-sts.shop.test has the refused address 10.0.0.1 (private)"


async def test_the_next_address_is_tried_when_one_does_not_answer(world: World) -> None:
    world.names.zones["mta-sts.shop.test"] = {"A": ["127.0.0.1", "127.0.0.0"]}  # .0 comes first, and nobody is there
    world.policies.replies = {"mta-sts.shop.test": policy("*.test")}
    assert site(await world.routes().route("shop.test")).is_verified


async def test_a_silent_policy_server_holds_up_its_own_domain_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_S_MAX", 0.3)
    world.policies.is_silent = True
    routes = world.routes()
    waiting = asyncio.ensure_future(routes.route("shop.test"))
    assert not site(await routes.route("none.test")).is_verified
    assert not waiting.done()
    with structlog.testing.capture_logs() as logs:
        assert not site(await waiting).is_verified
    assert "did not answer in" in logs[0]["error"]


async def test_a_policy_holds_though_its_record_goes_and_its_server_too(world: World) -> None:
    """What somebody in the path can bring about (RFC 8461 §5.1); a restart is no way out either."""
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test", max_age_s=100_000)}
    routes = world.routes()
    assert site(await routes.route("shop.test")).is_verified
    set_id(world, "shop.test", None)
    world.policies.replies.clear()
    world.now_s += 10_000
    assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx1.test"]
    routes = await world.restart()
    assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx1.test"]
    world.names.rcodes["_mta-sts.shop.test"] = dns.rcode.SERVFAIL
    world.now_s += 10_000
    assert site(await routes.route("shop.test")).is_verified
    # Another id announces a policy that cannot be had: the old one holds.
    world.names.rcodes.clear()
    set_id(world, "shop.test", "2")
    world.now_s += 10_000
    assert site(await routes.route("shop.test")).is_verified
    # Once at first, once after the restart as it does not name mx2.test, once for the other id.
    assert world.policies.requests["mta-sts.shop.test"] == 3
    # Its time is over.
    set_id(world, "shop.test", None)
    world.now_s += 80_000
    assert not site(await routes.route("shop.test")).is_verified


async def test_a_new_id_brings_the_new_policy(world: World) -> None:
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    routes = world.routes()
    assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx1.test"]
    world.policies.replies = {"mta-sts.shop.test": policy("mx2.test")}
    world.now_s += 1_000
    assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx1.test"]
    set_id(world, "shop.test", "2")
    world.now_s += 1_000
    assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx2.test"]
    world.policies.replies = {"mta-sts.shop.test": policy(mode="none")}
    set_id(world, "shop.test", "3")
    world.now_s += 1_000
    assert not site(await routes.route("shop.test")).is_verified
    assert world.policies.requests["mta-sts.shop.test"] == 3


async def test_hosts_that_a_policy_does_not_name_have_it_fetched_again_whatever_its_id(world: World) -> None:
    """RFC 8461 §8.1: the record with the id may be as old as its TTL when the hosts are new already."""
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test", "mx2.test")}
    routes = world.routes()
    await routes.route("shop.test")
    world.policies.replies = {"mta-sts.shop.test": policy("mx3.test")}
    world.names.zones["shop.test"] = {"MX": ["10 mx3.test."]}
    world.names.zones["mx3.test"] = {"A": ["127.0.0.3"]}
    world.now_s += 310
    assert routes.current("shop.test") is None
    moved = await asyncio.gather(*(routes.renewed("shop.test") for _ in range(20)))
    assert {tuple(host.name for host in site(route).hosts) for route in moved} == {("mx3.test",)}
    assert all(site(route).is_verified for route in moved)
    assert world.policies.requests["mta-sts.shop.test"] == 2
    assert routes.cached("shop.test") == moved[0]


async def test_a_policy_that_names_no_host_is_fetched_again_once_in_five_minutes(world: World) -> None:
    world.policies.replies = {"mta-sts.shop.test": policy("elsewhere.test")}
    routes = world.routes()
    for minutes, requests in ((0, 1), (1, 1), (3, 1), (2, 2), (1, 2), (5, 3)):
        world.now_s += minutes * 60
        for _ in range(3):
            route = await routes.route("shop.test")
            assert isinstance(route, NoRoute)
            assert (route.is_final, route.enhanced) == (False, "4.7.5")
        assert world.policies.requests["mta-sts.shop.test"] == requests, minutes
    # As soon as it names the hosts, the mail goes; one that names some of them is asked for no more.
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    world.now_s += 310
    for _ in range(4):
        assert [host.name for host in site(await routes.route("shop.test")).hosts] == ["mx1.test"]
        world.now_s += 310
    assert world.policies.requests["mta-sts.shop.test"] == 4


async def test_a_policy_is_fetched_anew_long_before_it_ends(world: World) -> None:
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test", max_age_s=200_000)}
    routes = world.routes()
    await routes.route("shop.test")
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test", "mx2.test", max_age_s=200_000)}
    world.now_s += REFRESH_S
    assert len(site(await routes.route("shop.test")).hosts) == 1  # not waited for
    async with asyncio.timeout(10):
        while world.policies.requests["mta-sts.shop.test"] < 2:  # noqa: ASYNC110 - the far end has no event
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while len(site(await routes.route("shop.test")).hosts) == 1:
            world.now_s += 1_000  # until its record is asked for again
    assert len(site(await routes.route("shop.test")).hosts) == 2


async def test_what_has_no_name_or_is_exempt_is_not_asked_for(world: World) -> None:
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    routes = world.routes(exempt=("sh*.test",))
    assert not site(await routes.route("shop.test")).is_verified
    assert site(await routes.route("[127.0.0.1]")).key == "[127.0.0.1]"
    route = await routes.route("not a domain")
    assert isinstance(route, NoRoute)
    assert route.enhanced == "5.1.2"
    assert texts_asked(world) == 0


async def test_a_file_that_is_broken_stops_nothing(world: World) -> None:
    (world.folder / "mta-sts.json").write_text('{"shop.test": {"id"')
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    with structlog.testing.capture_logs() as logs:
        routes = world.routes()
    assert [log["event"] for log in logs] == ["mta-sts policies cannot be read"]
    assert site(await routes.route("shop.test")).is_verified


async def test_a_file_that_cannot_be_written_is_said_once(world: World) -> None:
    (world.folder / "mta-sts.new").mkdir()
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    routes = world.routes()
    assert site(await routes.route("shop.test")).is_verified
    with structlog.testing.capture_logs() as logs:
        await routes.close()
    assert [log["event"] for log in logs] == ["mta-sts policies cannot be stored"]


async def test_the_settings_decide_whether_policies_are_asked_for(world: World) -> None:
    dns_settings = DnsSettings(nameservers=(world.names.endpoint,), allow_networks=("127.0.0.0/8",), ipv6=False)
    world.policies.replies = {"mta-sts.shop.test": policy("mx1.test")}
    for is_on in (True, False):
        tls = TlsSettings(mta_sts=is_on, mta_sts_port=world.policies.port, ca_file=ca_file(world.folder, AUTHORITY))
        routes = open_routes(dns_settings, tls, smtp_port=25, directory=None, random=random.Random(1))
        try:
            assert site(await routes.route("shop.test")).is_verified is is_on
        finally:
            await routes.close()
    assert texts_asked(world) == 1
