"""Answers that are cut off over UDP, from servers whose TCP does everything but answer."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mta.dns import Resolver
from mta.dns.answer import Found, RecordType
from mta.dns.nameservers import endpoints
from mta.dns.tcp import TcpClient
from mta.dns.transport import Transport
from mta.model.dns import DnsSettings
from mta.model.outcome import Status
from mta.model.site import NoRoute, Site
from tests.support.dns_server import DnsServer, TcpFault, Zone
from tests.support.node import World
from tests.support.outcomes import log_of
from tests.support.postgres import Database

ZONES: dict[str, Zone] = {
    "mx.test": {"A": ["192.0.2.1"]},
    "whole.test": {"MX": ["10 mx.test."]},
    "cut.test": {"MX": ["10 mx.test."]},
}


@pytest.mark.parametrize("fault", TcpFault)
async def test_a_look_up_ends_whatever_tcp_does_and_gives_its_place_back(fault: TcpFault) -> None:
    count = 20
    zones = {**ZONES, **{f"cut{number}.test": ZONES["cut.test"] for number in range(count)}}
    async with DnsServer(zones, tcp_fault=fault) as server:
        server.truncated = {f"cut{number}.test" for number in range(count)}
        settings = DnsSettings(nameservers=(server.endpoint,), timeout_s=0.3, tries=2, concurrency_max=2, ipv6=False)
        async with Resolver(settings, random=random.Random(42)) as resolver:
            async with asyncio.timeout(30):
                routes = await asyncio.gather(*(resolver.route(f"cut{number}.test") for number in range(count)))
                assert isinstance(await resolver.route("whole.test"), Site)
            assert [isinstance(route, NoRoute) and not route.is_final for route in routes] == [True] * count
            transport = resolver.statistics().transport
            assert transport is not None
            assert (transport.outstanding, transport.waiting) == (0, 0)
            assert count <= transport.over_tcp <= 2 * count  # a try over UDP may be late on a busy machine
            assert resolver.statistics().flights == 0


async def test_an_error_of_ours_ends_its_own_question_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: TcpClient, endpoint: object, query: bytes) -> bytes:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(TcpClient, "ask", broken)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    async with DnsServer(ZONES) as server:
        server.truncated = {"cut.test"}
        transport = Transport(
            endpoints([server.endpoint]), timeout_s=5.0, tries=2, outstanding_max=1, rng=random.Random(1)
        )
        cut, whole = transport.ask("cut.test", RecordType.MX), transport.ask("whole.test", RecordType.MX)
        async with asyncio.timeout(10):
            answer = await cut
            assert (await whole).found is Found.RECORDS
        assert (answer.found, answer.text) == (Found.TEMPORARY, "internal error (ZeroDivisionError)")
        assert transport.statistics().outstanding == 0
        await transport.close()
    assert faults == []


async def test_an_error_in_finding_a_route_is_a_temporary_failure_of_its_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str, *_: object) -> None:
        raise ZeroDivisionError(name)

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    async with DnsServer(ZONES) as server:
        now_s = [1_000.0]
        settings = DnsSettings(nameservers=(server.endpoint,), ipv6=False)
        async with Resolver(settings, clock=lambda: now_s[0], random=random.Random(42)) as resolver:
            with monkeypatch.context() as patch:
                patch.setattr("mta.dns.mx.decide", broken)
                route = await resolver.route("whole.test")
                assert isinstance(route, NoRoute)
                assert (route.is_final, route.enhanced) == (False, "4.3.0")
                assert resolver.cached("whole.test") is route
            now_s[0] += 60
            assert isinstance(await resolver.route("whole.test"), Site)
            # The site's addresses have just ended, the domain has not: they are asked for behind its back.
            now_s[0] += 200
            assert isinstance(await resolver.route("cut.test"), Site)
            now_s[0] += 45
            with monkeypatch.context() as patch:
                patch.setattr("mta.dns.mx.decide", broken)
                assert isinstance(resolver.cached("cut.test"), Site)
                while resolver.statistics().refreshes:  # noqa: ASYNC110 - nobody waits for it
                    await asyncio.sleep(0)
            assert isinstance(await resolver.renewed("cut.test"), Site)
    assert faults == []


@pytest.mark.parametrize("fault", [TcpFault.REFUSED, TcpFault.SILENT])
async def test_a_daemon_goes_on_with_all_others_and_after_a_restart(
    tmp_path: Path, database: Database, fault: TcpFault
) -> None:
    zones: dict[str, Zone] = {"mx.test": {"A": ["127.0.0.1"]}}
    zones |= {f"{kind}{number}.test": {"MX": ["10 mx.test."]} for kind in ("cut", "d") for number in range(20)}
    async with DnsServer(zones, tcp_fault=fault) as server, World(tmp_path, database) as world:
        server.truncated = {f"cut{number}.test" for number in range(20)}
        node = world.node(children=1)
        own = f"{world.nameserver.address}:{world.nameserver.port}"
        text = node.config.read_text().replace(own, server.endpoint)
        node.config.write_text(text.replace("[dns]", "[dns]\ntimeout_s = 0.3\ntries = 2\nconcurrency_max = 5"))
        await node.start()
        delivery = await world.deliver([f"ann@{kind}{number}.test" for number in range(20) for kind in ("cut", "d")])
        await world.wait_for(delivery, lambda shown: (shown.delivered, shown.deferrals) == (20, 20))
        rows = {row["address"]: row for row in await log_of(world, delivery)}
        cut = [rows[f"ann@cut{number}.test"] for number in range(20)]
        assert {(row["status"], row["enhanced"]) for row in cut} == {(Status.DEFERRED, "4.4.3")}
        assert "over TCP" in cut[0]["reply"]
        assert await node.stop() == 0
        # The same at the next start, which the first of it used to end.
        await node.start()
        again = await world.deliver(["bob@cut1.test", "bob@d1.test"])
        await world.wait_for(again, lambda shown: (shown.delivered, shown.deferrals) == (1, 1))
        assert not [entry for entry in node.log if entry["event"] == "internal error"]
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean
