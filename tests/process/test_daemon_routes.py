"""Where mail goes: what a domain's DNS says of it, which host takes it, and what becomes of it when none does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mta.master.routing import LOOKUPS_MAX
from mta.model.outcome import Reason, Status
from tests.support.dns_server import DnsServer, Zone
from tests.support.node import World, until
from tests.support.outcomes import log_of, statuses
from tests.support.postgres import Database

DEAD = "127.0.0.99"  # nobody listens there: connections are refused at once
ZONES: dict[str, object] = {
    "mx.test": {"A": ["127.0.0.1"]},
    "dead.test": {"A": [DEAD]},
    "private.test": {"A": ["10.0.0.1"]},
    "good.test": {"MX": [(10, "mx.test")]},
    "alias.test": {"CNAME": "good.test"},
    "implicit.test": {"A": ["127.0.0.1"]},
    "null.test": {"MX": [(0, ".")]},
    "broken.test": {"fault": "servfail"},
    "inside.test": {"MX": [(10, "private.test")]},
    "second.test": {"MX": [(10, "dead.test"), (20, "mx.test")]},
    "lost.test": {"MX": [(10, "dead.test")]},
}


async def test_what_dns_says_of_a_domain_decides_what_becomes_of_its_recipients(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, zones=ZONES) as world:
        node = world.node(children=1)
        await node.start()
        sent = ["good.test", "alias.test", "implicit.test"]
        # "[10.0.0.1]" is an address literal: no name has to be looked up to get inside.
        failed = {"none.test": "5.1.2", "null.test": "5.1.10", "inside.test": "5.4.4", "[10.0.0.1]": "5.4.4"}
        delivery = await world.deliver([f"ann@{domain}" for domain in [*sent, *failed, "broken.test"]])
        await world.wait_for(
            delivery, lambda shown: (shown.delivered, shown.failed, shown.deferrals) == (len(sent), len(failed), 1)
        )
        rows = {row["address"].partition("@")[2]: row for row in await log_of(world, delivery)}
        assert {domain: rows[domain]["enhanced"] for domain in failed} == failed
        assert {rows[domain]["reason"] for domain in failed} == {Reason.INVALID_DOMAIN}
        assert (rows["broken.test"]["status"], rows["broken.test"]["enhanced"]) == (Status.DEFERRED, "4.4.3")
        assert world.record().recipients() == {f"ann@{domain}": 1 for domain in sent}
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def test_far_more_domains_than_are_looked_up_at_a_time_get_their_routes(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, zones={"*.many.test": {"MX": [(0, ".")]}}) as world:
        node = world.node(children=1)
        await node.start()
        count = 2 * LOOKUPS_MAX + 500
        delivery = await world.deliver([f"ann@d{number}.many.test" for number in range(count)])
        await world.wait_for(delivery, lambda shown: shown.failed == count)
        assert set(world.nameserver.lookups.values()) == {1}
        assert await node.stop() == 0


async def test_loopback_is_refused_unless_the_configuration_allows_it(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, zones=ZONES) as world:
        node = world.node(children=1)
        node.config.write_text(node.config.read_text().replace('allow_networks = ["127.0.0.0/8", "::1/128"]', ""))
        await node.start()
        delivery = await world.deliver(["ann@good.test"])
        assert (await world.wait_for(delivery)).failed == 1
        (row,) = await log_of(world, delivery)
        assert row["enhanced"] == "5.4.4"
        assert "127.0.0.1 (loopback)" in row["reply"]
        assert world.record().connections == []


async def test_a_dead_first_host_costs_no_attempt_and_a_dead_site_holds_up_no_other(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, zones=ZONES) as world:
        node = world.node(children=1)
        await node.start()
        lost = await world.deliver([f"u{number}@lost.test" for number in range(50)])
        delivery = await world.deliver([f"u{number}@second.test" for number in range(50)])
        assert (await world.wait_for(delivery)).delivered == 50
        rows = await log_of(world, delivery)
        assert {(row["attempt"], row["mx_host"], row["peer"]) for row in rows} == {(1, "mx.test", "127.0.0.1")}
        # A site without any living host is waited for, then deferred; stopped before that, nothing was attempted.
        assert await statuses(world, lost) == {}
        assert await node.stop() == 0
        audited = await world.audit(lost)
        assert audited.is_clean
        assert (audited.open, audited.leased) == (50, 0)


async def test_when_a_site_is_given_up_its_domains_routes_are_looked_up_again(
    tmp_path: Path, database: Database
) -> None:
    """All in one run, since a site is given up after half a minute: `mta.traffic.actions.Bounds.patience_s`."""
    zones: dict[str, Zone] = {name: {"A": [DEAD]} for name in ("dead.test", "other.test", "third.test")}
    zones |= {"mx.test": {"A": ["127.0.0.1"]}, "readdressed.test": {"MX": ["10 other.test."]}}
    zones |= {f"{name}.test": {"MX": ["10 dead.test."]} for name in ("moved", "same", "silent")}
    zones["gone.test"] = {"MX": ["10 third.test."]}
    async with DnsServer(zones) as server, World(tmp_path, database) as world:
        server.ttl_s = server.negative_ttl_s = 2
        node = world.node(children=1)
        own = f"{world.nameserver.address}:{world.nameserver.port}"
        text = node.config.read_text().replace(own, server.endpoint)
        node.config.write_text(text.replace("[dns]", "[dns]\nttl_min_s = 1\ntries = 1\ntimeout_s = 1.0"))
        await node.start()
        domains = ("moved", "readdressed", "same", "silent", "gone")
        delivery = await world.deliver([f"u{number}@{domain}.test" for domain in domains for number in range(100)])
        await until("their hosts are tried", lambda: all(server.queries[f"{name}.test", "MX"] for name in domains))
        await asyncio.sleep(1)  # the answers have come
        server.zones["moved.test"] = {"MX": ["10 mx.test."]}
        server.zones["other.test"] = {"A": ["127.0.0.1"]}
        server.silent.add("silent.test")
        del server.zones["gone.test"]
        await world.wait_for(
            delivery, lambda shown: (shown.delivered, shown.deferrals, shown.failed) == (200, 200, 100), wait_s=90
        )
        rows = await log_of(world, delivery)
        came_of = {(row["address"].partition("@")[2], row["status"], row["enhanced"], row["attempt"]) for row in rows}
        assert came_of == {
            ("moved.test", Status.DELIVERED, "2.0.0", 1),
            ("readdressed.test", Status.DELIVERED, "2.0.0", 1),
            ("same.test", Status.DEFERRED, "4.4.1", 1),
            ("silent.test", Status.DEFERRED, "4.4.1", 1),  # that no host answers says more than a silent name server
            ("gone.test", Status.FAILED, "5.1.2", 1),
        }
        assert {one["domain"] for one in node.said("route has changed")} == {"moved.test", "readdressed.test"}
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean
