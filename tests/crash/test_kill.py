"""SIGKILL at random moments: of children, of the master, of PostgreSQL, of all at once.

The seed stands in each test's name and draws moments and victims; ``MTA_KILL_SEEDS=7,8,9`` tries others.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from mta.model.outcome import InDoubtPolicy
from mta.queue import audit
from mta.queue.embedded import EmbeddedPostgres
from tests.support.formula import hold_formula
from tests.support.node import Node, World, addresses, until
from tests.support.server import own_server

SEEDS = [int(seed) for seed in os.environ.get("MTA_KILL_SEEDS", "1").split(",")]
RECIPIENTS = 20_000
DOMAINS = 40
CONNECTIONS_MAX = 20
CHILDREN = 3
VICTIMS = ("child", "children", "master", "postgres", "everything")
RULES = f"""
[[rule]]
name = "everything"
mx = "*"
scope = "shared"
connections_max = {CONNECTIONS_MAX}
"""
# The far end takes its time, so that at any moment some messages are sent and not answered.
SLOW_SINK = """
[[rule]]
step = "dot"
odds = 0.6
delay_ms = 10
"""
QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'


class Storm:
    """Kills, and brings back what does not come back by itself."""

    def __init__(self, world: World, node: Node, server: EmbeddedPostgres, dice: random.Random) -> None:
        self.world = world
        self.node = node
        self.server = server
        self.dice = dice
        self.blows: list[str] = []

    def _recorded_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.world.record_dir.glob("*.ndjson"))

    async def wait_for_sending(self) -> None:
        """Until messages come in, and then for a random moment."""
        before = self._recorded_bytes()
        await until("something is sent", lambda: self._recorded_bytes() > before + 20_000)
        await asyncio.sleep(self.dice.uniform(0.0, 0.3))

    async def blow(self, victim: str) -> None:
        self.blows.append(victim)
        children = self.node.child_pids()
        self.dice.shuffle(children)
        if victim in ("children", "everything"):
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        elif victim == "child":
            os.kill(children[0], signal.SIGKILL)
        if victim == "everything":
            await asyncio.gather(self.node.kill(), asyncio.to_thread(self.server.kill))
        elif victim == "postgres":
            await asyncio.to_thread(self.server.kill)
        elif victim == "master":
            await self.node.kill()
        if victim in ("postgres", "everything"):
            await asyncio.to_thread(self.server.start)
        if victim in ("master", "everything"):
            await self.node.start()
        assert not self.node.has_ended, f"the daemon did not live through it: {self.node.log[-5:]}"


async def _deliver_in_a_storm(tmp_path: Path, seed: int, policy: InDoubtPolicy, blows: int) -> None:
    print(f"seed {seed}, policy {policy}")
    dice = random.Random(f"{seed} {policy}")
    everyone = addresses(RECIPIENTS, DOMAINS)
    zones: dict[str, object] = {"mx.test": {"A": ["127.0.0.1"]}, "mx.other.test": {"A": ["127.0.0.1"]}}
    for number in range(DOMAINS):
        zones[f"d{number}.test"] = {"MX": [(10, "mx.test" if number % 2 else "mx.other.test")]}
    async with (
        own_server() as (server, database),
        World(tmp_path, database, zones=zones, sink_processes=2, script=SLOW_SINK) as world,
    ):
        # So many blows may hit one recipient twice, who would then be held for good.
        node = world.node(children=CHILDREN, rules=RULES, lease_s=3.0, ready_per_site_max=RECIPIENTS, in_doubt_max=100)
        await node.start()
        delivery = await world.deliver(everyone, in_doubt_policy=policy, retry=QUICK_RETRY)
        storm = Storm(world, node, server, dice)
        # Each kind of victim once, in random order, then any.
        victims = dice.sample(VICTIMS, len(VICTIMS)) + dice.choices(VICTIMS, k=blows)
        for victim in victims[:blows]:
            await storm.wait_for_sending()
            await storm.blow(victim)
        held_at_end = policy is InDoubtPolicy.HOLD
        shown = await world.wait_for(delivery, lambda d: d.state == "finished" or (held_at_end and d.waiting == d.held))
        seen = await hold_formula(world, delivery, everyone)
        print(f"blows {storm.blows}; in doubt {shown.in_doubt}, twice {len(seen.twice)}, held {len(seen.held)}")
        assert not seen.queued
        assert shown.in_doubt <= len(storm.blows) * CONNECTIONS_MAX, "more in doubt than were ever on the wire"
        assert shown.in_doubt > 0, "no blow hit anything: the test shows nothing"
        if policy is InDoubtPolicy.HOLD:
            assert not seen.twice
            assert seen.held == seen.doubts.keys()
            async with database.pool.acquire() as conn:
                assert await audit.settle_in_doubt(conn, delivery, audit.Action.DROP) == len(seen.held)
            shown = await world.wait_for(delivery)
            seen = await hold_formula(world, delivery, everyone)
            assert seen.failed == seen.doubts.keys()
        else:
            assert shown.delivered == RECIPIENTS
        assert await node.stop() == 0
        assert not list((node.directory / "journal").glob("*.journal"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_with_resend_nothing_is_lost_and_each_repeat_is_named(tmp_path: Path, seed: int) -> None:
    await _deliver_in_a_storm(tmp_path, seed, InDoubtPolicy.RESEND, blows=7)


@pytest.mark.parametrize("seed", SEEDS)
async def test_with_hold_nothing_is_lost_and_nothing_is_repeated(tmp_path: Path, seed: int) -> None:
    await _deliver_in_a_storm(tmp_path, seed, InDoubtPolicy.HOLD, blows=7)
