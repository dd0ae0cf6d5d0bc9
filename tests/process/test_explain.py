"""``mta explain`` beside a real daemon: what it says is what holds, and what then happens."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from mta.master.control import ask
from tests.support.launch import launch
from tests.support.node import Node, World, addresses
from tests.support.outcomes import queue_says, value
from tests.support.postgres import Database

RULES = """
[[rule]]
name = "hourly"
mx = "mx.test"
messages_per_hour_max = 120
"""


async def explained(node: Node, world: World, what: str, *options: str) -> str:
    process = await launch(
        *("explain", what, "--config", str(node.config), "--dsn", world.database.dsn, *options),
    )
    told, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return told.decode() + errors.decode()


async def explained_json(node: Node, world: World, what: str) -> Any:
    return json.loads((await explained(node, world, what, "--json")).splitlines()[0])


async def test_what_an_hourly_limit_holds_is_told_by_address_message_site_and_delivery(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(rules=RULES, children=1)
        await node.start()
        delivery = await world.deliver([*addresses(30), "last@d9.test"])

        async def a_slice_is_through() -> bool:
            return (await world.show(delivery)).delivered == 10

        await queue_says("a slice of the hour is delivered", a_slice_is_through)
        by_address = await explained_json(node, world, "last@d9.test")
        [recipient] = by_address["recipients"]
        assert recipient["queued"]["node"] == "one"
        assert recipient["here"]["where"] == "ready"
        [lane] = recipient["here"]["lanes"]
        assert (lane["site"], lane["waiting"], lane["reason"]) == ("mx.test", 21, "rule-messages-per-hour")
        [egress] = lane["egresses"]
        assert (egress["rule"], egress["reason"]) == ("hourly", "rule-messages-per-hour")
        assert egress["origin"].endswith(("rules.toml:2", "rules.toml:5"))
        assert 200 < lane["until_unix_s"] - time.time() <= 310
        figures = {one["span_s"]: (one["used"], one["most"]) for one in lane["limits"]}
        assert figures == {300: (10, 10), 3600: (10, 120)}

        number = recipient["queued"]["number"]
        words = await explained(node, world, f"{delivery}:{number}")
        assert "last@d9.test in delivery" in words
        assert "rule hourly (" in words
        assert "in 5 min" in words
        assert "goes on " in words
        assert "waits nowhere, and the log has nothing" in await explained(node, world, f"{delivery}:nobody")
        sent = await value(world, "SELECT address FROM mta.delivery_log LIMIT 1")
        words = await explained(node, world, sent)
        assert "waits nowhere" in words
        assert "delivered" in words

        site = await explained_json(node, world, "mx.test")
        [again] = site["here"]["lanes"]
        assert (again["site"], again["reason"], again["limits"]) == (lane["site"], lane["reason"], lane["limits"])
        of_delivery = await explained_json(node, world, str(delivery))
        [waiting] = of_delivery["here"]["waiting"]
        assert waiting == {"reason": "rule-messages-per-hour", "site": "mx.test", "recipients": 21}
        assert "what holds most first" in await explained(node, world, str(delivery))

        status = await asyncio.to_thread(ask, node.directory / "journal", "status")
        assert (status["node"], status["ready"], status["hold"]) == ("one", 21, "")
        assert len(status["children"]["living"]) == 1
        limits = await asyncio.to_thread(ask, node.directory / "journal", "limits", text="hourly")
        assert {(row["used"], row["most"]) for row in limits["limits"]} == {(10, 10), (10, 120)}
        effects = await asyncio.to_thread(ask, node.directory / "journal", "effects")
        assert effects == {"effects": [], "all": 0}

        assert await node.stop() == 0
        words = await explained(node, world, "last@d9.test")
        assert "told from the database alone" in words
        assert "In the queue: due now" in words


async def test_a_pool_that_is_not_there_a_paused_delivery_and_a_deferral_are_told(
    tmp_path: Path, database: Database
) -> None:
    script = '[[rule]]\nstep = "rcpt"\nrecipient = "busy@*"\ncode = 451\ntext = "4.7.1 come back later"\n'
    async with World(tmp_path, database, script=script) as world:
        node = world.node(children=1)
        await node.start()
        nowhere = await world.deliver(["a@d0.test"], egress_pool="nowhere")
        paused = await world.deliver(["b@d0.test"], start=False)
        busy = await world.deliver(["busy@d0.test"])
        await world.wait_for(busy, lambda shown: shown.deferrals == 1)
        words = await explained(node, world, "a@d0.test")
        assert f"in delivery {nowhere} " in words
        assert "no-egress: pool nowhere is not configured on this node" in words
        assert "its delivery is editing" in await explained(node, world, "b@d0.test")
        words = await explained(node, world, f"{busy}:busy@d0.test")
        assert "deferred after 1 attempts, due " in words
        assert "4.7.1 come back later" in words
        assert paused != busy
