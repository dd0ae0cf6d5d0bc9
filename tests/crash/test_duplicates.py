"""Kills while a delivery is appended to, looked at for duplicates and sent, all at once.

The seed draws moments and victims; ``MTA_KILL_SEEDS=7,8,9`` tries others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from mta.model.outcome import InDoubtPolicy
from mta.queue import audit, deliveries
from mta.queue.append import append_parts
from mta.queue.connection import DATABASE_AWAY
from mta.queue.embedded import EmbeddedPostgres
from mta.queue.part import Part
from tests.support.formula import hold_formula
from tests.support.node import Node, World, addresses
from tests.support.postgres import Database
from tests.support.server import own_server

SEEDS = [int(seed) for seed in os.environ.get("MTA_KILL_SEEDS", "1").split(",")]
RECIPIENTS = 3_000
PART = 100
BLOWS = 6
PAUSE_S = 0.08  # between two appends, so that there is always something to look at
_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mta%'"
QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'


async def _append_all(database: Database, delivery: int, everyone: list[str], dice: random.Random) -> int:
    """Everybody, and half of them again, in parts of any order; each is asked for until it is answered."""
    again = dice.sample(everyone, RECIPIENTS // 2)
    people = [*everyone, *again]
    parts = [people[at : at + PART] for at in range(0, len(people), PART)]
    dice.shuffle(parts)
    for at, part in enumerate(parts):
        rows = [(address, None, ["Ann"]) for address in part]
        while True:
            try:
                async with database.pool.acquire() as conn:
                    await append_parts(conn, delivery, [Part(f"k{at}", ("first",), rows)])
                break
            except DATABASE_AWAY:
                await asyncio.sleep(0.05)
        await asyncio.sleep(PAUSE_S)
    return len(people)


async def _kill_some(node: Node, server: EmbeddedPostgres, database: Database, dice: random.Random) -> None:
    for _ in range(BLOWS):
        await asyncio.sleep(dice.uniform(0.2, 0.8))
        victim = dice.choice(["master", "postgres", "sessions", "everything"])
        if victim in ("master", "everything"):
            await node.kill()
        if victim in ("postgres", "everything"):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        if victim == "sessions":  # a look under way ends in the middle, the node goes on
            with contextlib.suppress(*DATABASE_AWAY):
                await database.pool.execute(_END_SESSIONS)
        if victim in ("master", "everything"):
            await node.start()


@pytest.mark.parametrize("seed", SEEDS)
async def test_whoever_is_killed_nobody_is_lost_and_nobody_is_mailed_twice(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    everyone = addresses(RECIPIENTS)
    async with own_server() as (server, database), World(tmp_path, database, sink_processes=2) as world:
        node = world.node(children=2, lease_s=3.0)
        await node.start()
        delivery = await world.deliver([], seal=False, in_doubt_policy=InDoubtPolicy.HOLD, retry=QUICK_RETRY)
        total, _ = await asyncio.gather(
            _append_all(database, delivery, everyone, dice),
            _kill_some(node, server, database, random.Random(f"{seed} kills")),
        )
        async with database.pool.acquire() as conn:
            await deliveries.seal(conn, delivery)
        await world.wait_for(delivery, lambda d: d.state == "finished" or d.waiting == d.held)
        seen = await hold_formula(world, delivery, everyone)
        assert not seen.twice
        assert not seen.queued
        async with database.pool.acquire() as conn:
            assert await audit.settle_in_doubt(conn, delivery, audit.Action.DROP) == len(seen.held)
        shown = await world.wait_for(delivery)
        assert (shown.appended, shown.excluded_duplicates) == (total, total - RECIPIENTS)
        assert shown.delivered + shown.failed == RECIPIENTS
        assert await node.stop() == 0
