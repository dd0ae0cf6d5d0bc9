"""Where mail leaves from: shares of a pool, the HELO name of each source, masks, and a pool that is not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.support.node import World, addresses, until
from tests.support.outcomes import log_of
from tests.support.postgres import Database

EGRESSES = """
[[egress]]
name = "heavy"
id = 1
helo = "heavy.example"
source_ipv4 = "127.0.0.2"
weight = 3
exclude_domains = ["d9.test"]

[[egress]]
name = "light"
id = 2
helo = "light.example"
source_ipv4 = "127.0.0.3"

[pools]
default = ["heavy", "light"]
"""
# Whoever does not say the name of the address that they come from is refused for good.
HELO_SCRIPT = """
[[rule]]
step = "mail"
client = "127.0.0.2"
helo = "heavy.example"

[[rule]]
step = "mail"
client = "127.0.0.3"
helo = "light.example"

[[rule]]
step = "mail"
code = 550
"""


async def test_sources_of_a_pool_share_by_weight_and_each_says_its_own_name(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=HELO_SCRIPT) as world:
        node = world.node(settings="batch_recipients = 10\n" + EGRESSES)
        await node.start()
        to = addresses(2_000)
        delivery = await world.deliver(to)
        assert (await world.wait_for(delivery)).delivered == 2_000
        by_source = Counter(
            message.client for message in world.record().accepted if "@d9." not in message.recipients[0]
        )
        assert sum(by_source.values()) == 1_800
        assert 0.65 < by_source["127.0.0.2"] / 1_800 < 0.85
        # Excluded from one source, a domain has the other to itself.
        excluded = {message.client for message in world.record().accepted if "@d9." in message.recipients[0]}
        assert excluded == {"127.0.0.3"}
        named = {"127.0.0.2": "heavy", "127.0.0.3": "light"}
        logged = Counter(row["egress"] for row in await log_of(world, delivery))
        sent = Counter(named[message.client] for message in world.record().accepted)
        assert logged == sent


async def test_a_delivery_for_an_unknown_pool_waits_and_the_log_says_why(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        waiting = await world.deliver(addresses(10), egress_pool="elsewhere")
        await until(
            "the log says so", lambda: node.said("delivery waits: its egress pool is not configured on this node")
        )
        await world.wait_for(await world.deliver(addresses(10)))
        assert (await world.show(waiting)).delivered == 0
        assert await node.stop() == 0
        # A node that knows the pool takes it up; nothing was lost by the waiting.
        other = world.node("two", settings=EGRESSES.replace("default =", 'elsewhere = ["light"]\ndefault ='))
        await other.start()
        assert (await world.wait_for(waiting)).delivered == 10
