"""A site held to a trickle: its surplus waits in the queue, the others go on, memory keeps its bound."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.node import World, until
from tests.support.outcomes import leased, queue_says, value
from tests.support.postgres import Database

TRICKLE = "127.0.0.2"
ZONES: dict[str, object] = {
    "mx.test": {"A": ["127.0.0.1"]},
    "mx-slow.test": {"A": [TRICKLE]},
    "*.fast.test": {"MX": [(10, "mx.test")]},
    "*.slow.test": {"MX": [(10, "mx-slow.test")]},
}
# A hundred in any five minutes.
RULES = """
[[rule]]
name = "trickle"
mx = "mx-slow.test"
messages_per_hour_max = 1200

[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = 10
"""
ON_TRICKLE = "site IS NOT NULL AND owner IS NULL AND due_at > now()"


async def test_surplus_of_a_throttled_site_returns_to_the_queue_while_others_finish_within_the_memory_bound(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, ZONES, sink_addresses=("127.0.0.1", TRICKLE)) as world:
        node = world.node(rules=RULES, ready_recipients_max=1_000, ready_per_site_max=200)
        await node.start()
        to = [f"u{n}@d{n % 7}.{'slow' if n % 2 else 'fast'}.test" for n in range(6_000)]
        delivery = await world.deliver(to)
        most = 0

        async def others_are_through() -> bool:
            nonlocal most
            most = max(most, await leased(world))
            return (await world.show(delivery)).delivered >= 3_000 + 100

        await queue_says("the other half is delivered, and a slice of the slow one", others_are_through)
        # A claim takes a part at least; and the queue's count also holds what was settled but is not on record yet.
        assert 0 < most <= 2 * (1_000 + 256)

        async def only_what_can_go_soon_is_in_memory() -> bool:
            return await leased(world) <= 100

        await queue_says("the rest waits in the queue", only_what_can_go_soon_is_in_memory)
        sites = await value(world, f"SELECT array_agg(DISTINCT site) FROM mta.delivery_part WHERE {ON_TRICKLE}")
        assert sites == ["mx-slow.test"]
        waiting = await value(world, f"SELECT sum(count)::bigint FROM mta.delivery_part WHERE {ON_TRICKLE}")
        assert 2_700 <= waiting <= 2_900
        by_host = world.record().max_in_window_by(300, "local")
        assert by_host == {"127.0.0.1": 3_000, TRICKLE: 100}
        # Nothing of that counts as an attempt.
        assert (await world.show(delivery)).deferrals == 0
        assert await node.stop() == 0
        audited = await world.audit(delivery)
        assert audited.is_clean
        assert (audited.final, audited.open, audited.leased) == (3_100, 2_900, 0)


async def test_a_reload_that_lowers_a_quota_holds_at_once_and_remembers_what_was_used(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, ZONES, sink_addresses=("127.0.0.1", TRICKLE)) as world:
        node = world.node(children=1, rules=RULES.replace("1200", "12000"))
        await node.start()
        first = await world.deliver([f"a{n}@d.slow.test" for n in range(70)])
        assert (await world.wait_for(first)).delivered == 70
        rules = node.directory / "rules.toml"
        good = rules.read_text()
        rules.write_text(good + '\n[[rule]]\nname = "broken"\nmx = "*.example"\nconections_max = 3\n')
        node.signal(signal.SIGHUP)
        await until("the log says what is wrong", lambda: node.said("rules are not changed"))
        error = str(node.said("rules are not changed")[0]["error"])
        assert f"{rules}:{good.count(chr(10)) + 5}" in error
        assert "conections_max" in error
        # Nothing of the broken file holds, nothing of the old one is lost.
        second = await world.deliver([f"b{n}@d.slow.test" for n in range(10)])
        assert (await world.wait_for(second)).delivered == 10
        rules.write_text(good.replace("12000", "1200"))
        node.signal(signal.SIGHUP)
        await until("the rules are reloaded", lambda: node.said("rules reloaded"))
        third = await world.deliver([f"c{n}@d.slow.test" for n in range(200)])
        await world.wait_for(third, lambda shown: shown.delivered == 20)
        await world.wait_for(await world.deliver(["other@d.fast.test"]))
        assert (await world.show(third)).delivered == 20
        assert world.record().max_in_window_by(300, "local")[TRICKLE] == 100
