"""Rules of running nodes: applied, reloaded and rolled back on all of them at once, and never half."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mta.master.rulebook import Rulebook
from mta.queue import rule_sets
from mta.queue.rule_sets import How, make_bundle
from mta.traffic.rules import RuleSet
from tests.support.cli import Cli
from tests.support.node import WAIT_S, Node, World, addresses, until
from tests.support.postgres import Database

WITHIN_S = 1.0  # of being applied, a set holds on every node
RULES = '[[rule]]\nname = "few"\nmx = "*"\nscope = "path"\nconnections_max = {}\n'


def in_force(node: Node, rule_set: int) -> bool:
    """True when the node has said that this set holds."""
    events = [*node.said("rules applied"), *node.said("rules reloaded")]
    return any(entry["rule_set"] == rule_set for entry in events)


def open_now(world: World) -> int:
    """Connections that the sink has open."""
    return sum(1 if event.is_open else -1 for event in world.record().connections)


async def cli(world: World, *arguments: str, expect: int = 0) -> Any:
    runner = Cli(world.database.dsn, world.directory)
    return await asyncio.to_thread(runner.json, "rules", *arguments, expect=expect)


async def test_applied_rules_hold_on_all_nodes_and_can_be_rolled_back(tmp_path: Path, database: Database) -> None:
    slow = '[[rule]]\nstep = "dot"\ndelay_ms = 40\n'
    async with World(tmp_path, database, script=slow) as world:
        one, two = (world.node(name, children=1, rules=RULES.format(20)) for name in ("one", "two"))
        await asyncio.gather(one.start(), two.start())
        # Both have the same file: one set, whoever came first.
        history = (await cli(world, "history"))["rule_sets"]
        assert [(entry["how"], entry["applied_by"], entry["in_force"]) for entry in history] == [("start", "", True)]
        assert history[0]["node"] in ("one", "two")

        delivery = await world.deliver(addresses(2_000))
        await world.wait_for(delivery, lambda shown: shown.delivered > 100)
        new = tmp_path / "new.toml"
        new.write_text(RULES.format(2))
        said = await cli(world, "apply", str(new), "--note", "too many", "--by", "ann@desk")
        applied_at = time.monotonic()
        applied = said["rule_set"]["id"]
        assert said["is_new"]
        assert [(c["subject"], c["key"], c["old"], c["new"]) for c in said["changes"]] == [
            ("rule few", "connections_max", 20, 2)
        ]
        for node in (one, two):
            await until("the set holds", lambda node=node: in_force(node, applied))
        # The command ends some time after its commit, so this bounds it from above only by its own patience.
        assert time.monotonic() - applied_at < WITHIN_S
        assert (one.said("rules applied")[0]["by"], one.said("rules applied")[0]["how"]) == ("ann@desk", "apply")
        # Two nodes: sessions above two of each are closed after their message, and no others are begun.
        await until("sessions are closed", lambda: open_now(world) <= 4)
        assert world.record().connections_max_seen("local") > 4
        before = (await world.show(delivery)).delivered
        for _ in range(10):
            assert open_now(world) <= 4
            await asyncio.sleep(0.05)
        assert before < (await world.show(delivery)).delivered < 2_000
        assert not (await cli(world, "apply", str(new)))["is_new"]

        back = await cli(world, "rollback")
        assert back["rule_set"]["restores"] == history[0]["id"]
        for node in (one, two):
            await until("the earlier set holds", lambda node=node: in_force(node, back["rule_set"]["id"]))
        # A file that is read anew is one more set, for both.
        (two.directory / "rules.toml").write_text(RULES.format(7))
        two.signal(signal.SIGHUP)
        await until("the file is read", lambda: two.said("rules reloaded"))
        newest = two.said("rules reloaded")[0]["rule_set"]
        assert isinstance(newest, int)
        await until("the other node has it", lambda: in_force(one, newest))
        history = (await cli(world, "history"))["rule_sets"]
        assert [(entry["how"], entry["applied_by"] or entry["node"]) for entry in history[:3]] == [
            ("sighup", "two"),
            ("rollback", back["rule_set"]["applied_by"]),
            ("apply", "ann@desk"),
        ]
        assert await asyncio.gather(one.stop(), two.stop()) == [0, 0]


async def test_a_start_takes_what_is_in_force_unless_its_file_is_new(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1, rules=RULES.format(20))
        await node.start()
        new = tmp_path / "new.toml"
        new.write_text(RULES.format(2))
        applied = (await cli(world, "apply", str(new)))["rule_set"]["id"]
        await until("the set holds", lambda: in_force(node, applied))
        assert await node.stop() == 0
        await node.start()
        assert node.said("rules file is not what is in force")[0]["rule_set"] == applied
        assert in_force(node, applied)
        assert await node.stop() == 0
        (node.directory / "rules.toml").write_text(RULES.format(3))
        await node.start()
        assert not node.said("rules file is not what is in force")
        assert [entry["how"] for entry in (await cli(world, "history"))["rule_sets"]] == ["start", "apply", "start"]
        # What another program has put there and this one cannot read changes nothing here.
        async with database.pool.acquire() as conn:
            strange = make_bundle("rules.toml", {"rules.toml": "[[rule]]\nname = 'x'\nmx = '*'\nfuture = 1\n"})
            await rule_sets.apply(conn, strange, How.APPLY, applied_by="newer")
        await until("it says so", lambda: node.said("applied rules cannot be used"))
        said = node.said("applied rules cannot be used")[0]
        assert "rules.toml:4: rule.future: unknown key" in str(said["error"])
        delivery = await world.deliver(addresses(20))
        assert (await world.wait_for(delivery)).delivered == 20
        assert await node.stop() == 0


async def test_a_node_without_a_file_uses_what_is_applied(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        node.config.write_text(node.config.read_text().replace('[rules]\nfile = "rules.toml"\n', ""))
        await node.start()
        assert (await cli(world, "history"))["rule_sets"] == []
        new = tmp_path / "new.toml"
        new.write_text(RULES.format(2))
        applied = (await cli(world, "apply", str(new)))["rule_set"]["id"]
        await until("the set holds", lambda: in_force(node, applied))
        assert await node.stop() == 0


# --- without a process ------------------------------------------------------------------------


def many(rules: int, connections: int) -> str:
    return "".join(
        f'[[rule]]\nname = "r{n}"\nmx = ["*.d{n}.example", "mx?.e{n}.example"]\nconnections_max = {connections}\n'
        for n in range(rules)
    )


class Runs:
    """A rulebook that runs on a pool, and what it adopted."""

    def __init__(self, file: Path | None, pool: asyncpg.Pool) -> None:
        self.adopted: list[RuleSet] = []
        self.book = Rulebook(file, "one", self.adopted.append)
        self.book.read()
        self._pool = pool

    async def __aenter__(self) -> Runs:
        async with self._pool.acquire() as conn:
            await self.book.begin(conn)
        self._task = asyncio.create_task(self.book.run(self._pool))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


async def test_a_reload_of_very_many_rules_does_not_hold_up_the_loop(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(many(1_000, 5))
    async with Runs(file, database.pool) as runs:
        # Processor time of this thread between two turns of the loop: what the machine does besides counts for nothing.
        longest_s, last_s = 0.0, time.thread_time()
        file.write_text(many(1_000, 6))
        runs.book.reload()
        end = time.monotonic() + WAIT_S
        while not runs.adopted:
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
            now_s = time.thread_time()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        assert runs.adopted[0].rules[0].connections_max == 6
        assert longest_s < 0.05


async def test_a_reload_while_the_database_is_away_is_done_when_it_is_back(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.format(5))
    async with asyncpg.create_pool(database.dsn, min_size=0, max_size=2) as pool, Runs(file, pool) as runs:
        assert runs.book.applied is not None
        async with database.pool.acquire() as conn:
            await conn.execute("ALTER TABLE mta.rule_set RENAME TO gone")
            file.write_text(RULES.format(6))
            runs.book.reload()
            await until("it waits", lambda: runs.book._is_away)
            assert runs.adopted == []
            await conn.execute("ALTER TABLE mta.gone RENAME TO rule_set")
        await until("it is applied", lambda: runs.adopted)
        assert runs.book.rules.rules[0].connections_max == 6
        assert runs.book.applied.how is How.SIGHUP


async def test_a_broken_file_and_a_broken_set_change_nothing(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.format(5))
    async with Runs(file, database.pool) as runs:
        first = runs.book.rules
        file.write_text(RULES.format(0))
        runs.book.reload()
        async with database.pool.acquire() as conn:
            await rule_sets.apply(conn, make_bundle("a", {"a": "no = toml ="}), How.APPLY, applied_by="x")
            await until("it was looked at", lambda: runs.book._looked_at == 2)
            assert (runs.book.rules, runs.adopted) == (first, [])
            # And the next good one is taken.
            await rule_sets.apply(conn, make_bundle("a", {"a": RULES.format(9)}), How.APPLY, applied_by="x")
        await until("the good one is taken", lambda: runs.adopted)
        assert runs.book.rules.rules[0].connections_max == 9


async def test_the_same_rules_under_a_new_number_are_not_adopted_again(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.format(5))
    async with Runs(file, database.pool) as runs, database.pool.acquire() as conn:
        first = runs.book.rules
        async with conn.transaction():  # the one between is never seen
            for text in (RULES.format(6), RULES.format(5)):
                bundle = make_bundle("rules.toml", {"rules.toml": text})
                await rule_sets.apply(conn, bundle, How.APPLY, applied_by="x")
        await until("the newest holds", lambda: runs.book.applied is not None and runs.book.applied.id == 3)
        assert (runs.book.rules, runs.adopted) == (first, [])
