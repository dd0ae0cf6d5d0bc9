"""A forecast is held against what then happens at a real node; the record is played under other rules."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.launch import launch
from tests.support.node import Node, World, addresses
from tests.support.postgres import Database

RATE = """
[[rule]]
name = "steady"
mx = "*"
scope = "shared"
connections_max = 10
messages_per_second_max = 100
"""


async def say(node: Node, *words: str) -> Any:
    """The last line of what a command prints, as JSON."""
    process = await launch(*words, "--config", str(node.config), "--json")
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])


async def test_a_forecast_of_a_steady_delivery_is_within_a_tenth_of_what_happens(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(rules=RATE)
        await node.start()
        delivery = await world.deliver(addresses(2_000))
        told = await say(node, "forecast", str(delivery), "--message-s", "0.005")
        assert told["recipients"] > 1_000
        assert told["bottlenecks"][0]["rule"] == "steady"
        assert told["bottlenecks"][0]["limit"] == "messages_per_second_max"
        assert told["bottlenecks"][0]["value"] == 100
        assert told["bottlenecks"][0]["origin"].endswith("rules.toml:7")
        assert told["bottlenecks"][0]["gain_s"] > 3
        await world.wait_for(delivery)
        compared = await say(node, "forecast", str(delivery), "--compare")
        (kept,) = compared["forecasts"]
        assert kept["ended_at"] is not None
        assert abs(kept["error_percent"]) <= 10, (kept, told)
        assert compared["mean_error_percent"] == abs(kept["error_percent"])


async def test_before_sending_a_list_of_addresses_is_enough_and_afterwards_the_record_tells_of_other_rules(
    tmp_path: Path, database: Database
) -> None:
    """The sink refuses more than half as too fast; so many as it took it would take again in a minute."""
    script = '[[rule]]\nstep = "rcpt"\nrecipient = "*"\nodds = 0.6\ncode = 450\ntext = "4.7.28 too many messages"\n'
    async with World(tmp_path, database, script=script) as world:
        node = world.node(rules=RATE)
        await node.start()
        to = addresses(300)
        listed = tmp_path / "list.txt"
        listed.write_text("\n".join(to))
        told = await say(node, "forecast", "--recipients", str(listed))
        assert (told["recipients"], told["delivery"], told["sites_count"]) == (300, None, 1)
        assert 1 < told["seconds"] < 20
        delivery = await world.deliver(to)
        shown = await world.wait_for(delivery, lambda shown: shown.deferrals + shown.delivered == 300)
        assert 100 < shown.deferrals < 260
        gentle = tmp_path / "gentle.toml"
        gentle.write_text(RATE.replace("messages_per_second_max = 100", "messages_per_minute_max = 30"))
        replayed = await say(node, "rules", "replay", "--since", "1h", "--rules", str(gentle))
        assert replayed["recorded_refusals"] == shown.deferrals
        assert replayed["refusals"] == 0
        assert replayed["refusals_avoided"] == replayed["recorded_refusals"]
        assert replayed["recipients"] == 300
        assert replayed["assumptions"]
        wide = tmp_path / "wide.toml"
        wide.write_text(RATE)
        again = await say(node, "rules", "replay", "--since", "1h", "--rules", str(wide))
        assert again["refusals"] >= shown.deferrals
