"""Daemons come and go: two on one database, drained, started again, stopped before there is a database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from mta.model.outcome import Status
from tests.support.launch import launch
from tests.support.node import WAIT_S, World, addresses
from tests.support.outcomes import accepted_for, all_back_in_the_queue, statuses, value
from tests.support.postgres import Database

SLOW_SITE = '[[rule]]\nstep = "dot"\ndelay_ms = 5\n'


def from_source(address: str) -> str:
    return f'[[egress]]\nname = "only"\nid = 1\nhelo = "node.example"\nsource_ipv4 = "{address}"\n'


async def test_two_nodes_share_a_delivery_and_each_recipient_is_sent_once(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_SITE) as world:
        bounds = {"ready_recipients_max": 600, "ready_per_site_max": 600, "claim_parts_max": 1}
        nodes = [
            world.node(name, children=1, settings=from_source(source), **bounds)
            for name, source in (("one", "127.0.0.2"), ("two", "127.0.0.3"))
        ]
        await asyncio.gather(*(node.start() for node in nodes))
        to = addresses(3_000)
        delivery = await world.deliver(to, part_recipients=50)
        assert (await world.wait_for(delivery)).delivered == 3_000
        assert await asyncio.gather(*(node.stop() for node in nodes)) == [0, 0]
        by_node = Counter(message.client for message in world.record().accepted)
        assert min(by_node["127.0.0.2"], by_node["127.0.0.3"]) > 500
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert (await world.audit(delivery)).is_clean
        assert await value(world, "SELECT count(*) FROM mta.node WHERE ended_at IS NULL") == 0


async def test_a_drain_finishes_what_is_on_the_wire_and_the_next_run_sends_exactly_the_rest(
    tmp_path: Path, database: Database
) -> None:
    rules = '[[rule]]\nname = "few"\nmx = "*"\nscope = "path"\nconnections_max = 4\n'
    async with World(tmp_path, database, script=SLOW_SITE) as world:
        node = world.node(rules=rules)
        await node.start()
        # Two whose final dot is answered only after the stop, and longer than a look at the children takes.
        slow = ["slow1+delay-2500@d0.test", "slow2+delay-2500@d1.test"]
        slow_ones = await world.deliver(slow)
        delivery = await world.deliver(addresses(600))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 50)
        assert await node.stop() == 0
        await all_back_in_the_queue(world)
        shown = await world.show(delivery)
        assert shown.delivered == accepted_for(world, "u") < 600
        assert node.said("stopped")[0]["left_in_hand"] == 0
        assert list((node.directory / "journal").glob("*.journal")) == []
        await node.start()
        await world.wait_for(delivery)
        await world.wait_for(slow_ones)
        assert await statuses(world, slow_ones) == {Status.DELIVERED: 2}
        assert await node.stop() == 0
        assert world.record().recipients() == dict.fromkeys(slow + addresses(600), 1)
        assert (await world.audit(delivery)).is_clean
        assert not node.said("an earlier run was recovered")


async def test_a_daemon_that_waits_for_its_database_says_so_and_can_be_stopped(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        dsn = "postgresql://nobody@127.0.0.1:1/nothing"
        command = ("run", "--config", str(node.config), "--log-json")
        process = await launch(*command, env={**os.environ, "MTA_DATABASE_URL": dsn})
        try:
            assert process.stderr is not None
            said = json.loads(await asyncio.wait_for(process.stderr.readline(), WAIT_S))
            assert said["event"] == "waiting for the database"
            assert (said["database"], "refused" in said["error"]) == ("127.0.0.1:1/nothing", True)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
        finally:
            if process.returncode is None:
                process.kill()


async def test_what_operators_are_shown_agrees_with_what_happened(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        to = [*addresses(5), "gone+550@d0.test", "busy+450@d0.test"]
        delivery = await world.deliver(to, name="Spring", retry='{"jitter": 0}')
        await world.wait_for(delivery, lambda shown: (shown.delivered, shown.failed, shown.deferrals) == (5, 1, 1))
        queue, shown, found, missing = await asyncio.gather(
            mta(database, "queue", "show"),
            mta(database, "delivery", "show", str(delivery)),
            mta(database, "log", "find", "busy+450@d0.test"),
            mta(database, "log", "find", "nobody@d0.test"),
        )
        (waiting,) = queue["waiting"]
        assert (waiting["name"], waiting["recipients"], waiting["due"], waiting["leased"]) == ("Spring", 1, 0, 0)
        assert 200 < waiting["next_due_in_s"] <= 300  # put off by a 4yz: it goes again within minutes
        (living,) = queue["nodes"]
        assert (living["name"], living["alive"], living["parts"]) == ("one", True, 0)
        counted = {key: shown[key] for key in ("appended", "delivered", "failed", "deferrals", "in_doubt", "state")}
        assert counted == {
            **{"appended": 7, "delivered": 5, "failed": 1, "deferrals": 1, "in_doubt": 0},
            "state": "running",
        }
        (line,) = found
        assert (line["attempt"], line["code"], line["mx_host"], line["site"]) == (1, 450, "mx.test", "mx.test")
        assert missing == []
        assert world.record().recipients() == dict.fromkeys(addresses(5), 1)


async def mta(database: Database, *arguments: str) -> Any:
    """What the program prints with ``--json``."""
    process = await launch(*arguments, "--json", env={**os.environ, "MTA_DATABASE_URL": database.dsn})
    printed, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0
    text = printed.decode()
    return [json.loads(line) for line in text.splitlines()] if arguments[0] == "log" else json.loads(text)
