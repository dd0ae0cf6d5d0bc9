"""One recipient of a domain with many hosts and addresses: few of them are called, whoever they belong to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.node import World, until
from tests.support.postgres import Database

HOSTS, ADDRESSES = 16, 8
LOOK_S = 14.0  # the addresses that were tried first are tried again after 4 and 8 s


async def test_one_recipient_of_a_hostile_domain_calls_few_addresses(tmp_path: Path, database: Database) -> None:
    addresses = [f"127.0.{host + 1}.{number + 1}" for host in range(HOSTS) for number in range(ADDRESSES)]
    zones: dict[str, object] = {"d0.test": {"MX": [(10, f"mx{host}.test") for host in range(HOSTS)]}}
    for host in range(HOSTS):
        zones[f"mx{host}.test"] = {"A": addresses[host * ADDRESSES : (host + 1) * ADDRESSES]}
    script = '[[rule]]\nstep = "connect"\ncode = 421\n'
    async with World(tmp_path, database, zones=zones, sink_addresses=addresses, script=script) as world:
        node = world.node()
        await node.start()
        await world.deliver(["u0@d0.test"])
        await until("it is called", lambda: world.record().connections)
        await asyncio.sleep(LOOK_S)  # nothing is to happen meanwhile, and no event says that it did not
        called = [one for one in world.record().connections if one.is_open]
        assert len({one.local for one in called}) == 5
        assert len(called) <= 15
