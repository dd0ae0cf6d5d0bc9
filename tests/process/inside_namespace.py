"""Run by `tests/process/test_machine_faults.py` in a network namespace of its own: addresses and routes go and come."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.node import Node, World, addresses, one_host_zones, until
from tests.support.outcomes import log_of, until_value, value
from tests.support.postgres import Database

SOURCE = "198.51.100.9"
PEER = "192.0.2.1"
ONE = f"""
[[egress]]
name = "only"
id = 1
helo = "only.example"
source_ipv4 = "{SOURCE}"
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def world_of(tmp_path: Path, database: Database) -> World:
    return World(tmp_path, database, zones=one_host_zones(10, PEER), sink_addresses=(PEER,))


def node_of(world: World, settings: str = "") -> Node:
    node = world.node(settings=settings)
    text = node.config.read_text()
    node.config.write_text(text.replace('["127.0.0.0/8"]', '["127.0.0.0/8", "192.0.2.0/24"]'))
    return node


async def is_charged(world: World, delivery: int) -> bool:
    return bool(await log_of(world, delivery)) or bool(
        await value(world, "SELECT count(*) FROM mta.delivery_part WHERE delivery_id = $1 AND attempt > 1", delivery)
    )


async def expect_alert(world: World, cause: str, *, is_open: bool) -> None:
    query = "SELECT count(*) FROM mta.alert WHERE kind = 'machine' AND cause = $1 AND (ended_at IS NULL) = $2"
    await until_value(world, query, 1, cause, is_open)


async def test_an_address_that_goes_and_comes_back(tmp_path: Path, database: Database) -> None:
    async with world_of(tmp_path, database) as world:
        node = node_of(world, ONE)
        await node.start()
        delivery = await world.deliver(addresses(1_000))
        await until("it says so", lambda: node.said("machine fault"))
        await expect_alert(world, "address-absent", is_open=True)
        assert not await is_charged(world, delivery)
        cli = Cli(database.dsn, tmp_path)
        slow = cli.run("monitor", "slow", str(delivery), "--config", str(node.config)).stdout
        assert "1. machine" in slow
        assert SOURCE in slow
        assert "ip address add" in slow
        assert "by hand" not in slow
        explained = cli.run("explain", "mx.test", "--config", str(node.config)).stdout
        assert f"egress only: its address {SOURCE} is not on this machine" in " ".join(explained.split())
        ip("address", "add", f"{SOURCE}/32", "dev", "lo")
        assert (await world.wait_for(delivery)).delivered == 1_000
        lines = await log_of(world, delivery)
        assert [row["attempt"] for row in lines] == [1] * 1_000
        await until("it is over", lambda: node.said("machine fault is over"))
        await expect_alert(world, "address-absent", is_open=False)
        assert len(node.said("machine fault")) == 1
        assert await node.stop() == 0


@pytest.mark.parametrize(("kind", "cause"), [("", "no-route"), ("prohibit", "forbidden")])
async def test_a_route_that_comes_back(tmp_path: Path, database: Database, kind: str, cause: str) -> None:
    async with world_of(tmp_path, database) as world:
        ip("address", "delete", f"{PEER}/32", "dev", "lo")
        if kind:
            ip("route", "add", kind, PEER)
        node = node_of(world)
        await node.start()
        delivery = await world.deliver(addresses(200))
        await until("it says so", lambda: node.said("machine fault"))
        [said] = node.said("machine fault")
        assert said["cause"] == cause
        await expect_alert(world, cause, is_open=True)
        assert not await is_charged(world, delivery)
        if kind:
            ip("route", "delete", kind, PEER)
        ip("address", "add", f"{PEER}/32", "dev", "lo")
        assert (await world.wait_for(delivery)).delivered == 200
        assert {row["attempt"] for row in await log_of(world, delivery)} == {1}
        await expect_alert(world, cause, is_open=False)
        assert await node.stop() == 0
