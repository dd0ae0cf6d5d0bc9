"""Automations in a real daemon: what a host says leads to what its rule says, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.support.node import World, until
from tests.support.outcomes import queue_says, value
from tests.support.postgres import Database

ZONES: dict[str, object] = {
    "mx.shy.test": {"A": ["127.0.0.1"]},
    "mx.open.test": {"A": ["127.0.0.1"]},
    "*.to.shy.test": {"MX": [(10, "mx.shy.test")]},
    "*.to.open.test": {"MX": [(10, "mx.open.test")]},
}
SCRIPT = """
[[rule]]
step = "rcpt"
recipient = "*@*.shy.test"
code = 451
text = "4.7.500 Server busy, try this recipient in a while"

[[rule]]
step = "rcpt"
recipient = "u*@*.open.test"
helo = "rule.example.com"
code = 250
text = "2.1.5 fine"

[[rule]]
step = "rcpt"
recipient = "u*@*.open.test"
code = 550
text = "5.5.4 who are you?"
"""
RULES = """
[[automation]]
name = "shy"
codes = [451]
enhanced = ["4.7"]
pattern = "server BUSY"
stages = ["rcpt"]
replies = 5
act = "suspend"
for_s = 600

[[rule]]
name = "watched"
mx = "*.shy.test"
scope = "path"
connections_max = 4
automations = ["shy"]

[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = 4
helo = "rule.example.com"
retry = { first_count = 1, first_period_s = 7_200, jitter = 0, greylist_s = 7_200 }
"""


async def test_what_a_host_says_suspends_its_rule_and_no_other(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, ZONES, script=SCRIPT) as world:
        node = world.node(rules=RULES)
        await node.start()
        busy = [f"u{n}@d{n % 3}.to.shy.test" for n in range(300)]
        free = [f"u{n}@d{n % 3}.to.open.test" for n in range(300)]
        later = ["451-4.2.1@d0.to.open.test"]
        delivery = await world.deliver([*busy, *free, *later])
        await world.wait_for(delivery, lambda shown: shown.delivered == 300 and shown.deferrals >= 6)
        await until("the event is told of", lambda: node.said("traffic event"))

        async def it_is_stored() -> bool:
            return bool(await value(world, "SELECT count(*) FROM mta.traffic_event"))

        await queue_says("the event is stored", it_is_stored)
        (name, kind, target, on, rule, detail) = await value(
            world, "SELECT ARRAY[name, kind, target, on_what, rule, detail] FROM mta.traffic_event"
        )
        assert (name, kind, target, rule) == ("shy", "suspend", "rule", "watched")
        assert on.startswith("watched|")
        assert "Server busy" in detail
        asked = sum(one.code == 451 and one.recipients[0].endswith("shy.test") for one in world.record().refused)
        assert 5 <= asked < 60  # what was under way when the fifth reply came was finished
        shown = await world.show(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (300, 0, asked + 1)
        # The rule's schedule, not the delivery's of an hour.
        due_s = await value(
            world,
            "SELECT extract(epoch FROM due_at - now())::int FROM mta.delivery_part WHERE attempt = 1 "
            "AND convert_from(recipients, 'UTF8') LIKE '%open.test%'",
        )
        assert 7_000 < due_s <= 7_200
