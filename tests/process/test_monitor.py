"""``mta monitor`` beside a real daemon and a real far end: its figures are the far end's, its causes the true ones."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mta.master.control import NoDaemon, ask
from mta.model.errors import BadInput
from mta.queue import monitor, slow
from mta.queue.monitor import Bucket
from mta.traffic.diagnosis import Cause, CauseKind, NodeFacts, diagnose
from tests.support.cli import Cli
from tests.support.content import content_json
from tests.support.node import Node, World
from tests.support.outcomes import queue_says, value
from tests.support.postgres import Database

ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]
SITES = dict(zip(("ok", "hourly", "slow", "refusing", "large"), ADDRESSES, strict=True))
ZONES: dict[str, object] = {f"mx-{name}.test": {"A": [address]} for name, address in SITES.items()} | {
    f"*.{name}.test": {"MX": [(10, f"mx-{name}.test")]} for name in SITES
}
SCRIPT = """
[[rule]]
step = "rcpt"
recipient = "*.refusing.test"
code = 451
text = "4.7.1 your reputation is poor"

[[rule]]
step = "dot"
recipient = "*.slow.test"
delay_ms = 900

[[rule]]
step = "dot"
recipient = "*.large.test"
delay_ms = 100
"""
RULES = """
[[rule]]
name = "hourly"
mx = "mx-hourly.test"
messages_per_hour_max = 120

[[rule]]
name = "one"
mx = "*"
scope = "path"
connections_max = 1
"""


def to(site: str, count: int) -> list[str]:
    return [f"u{n}@d{n % 3}.{site}.test" for n in range(count)]


async def causes(node: Node, world: World, delivery: int) -> list[Cause]:
    told: NodeFacts | None = None
    try:
        said = await asyncio.to_thread(ask, node.directory / "journal", "slow", delivery=delivery)
        told = msgspec.convert(said, NodeFacts)
    except (NoDaemon, BadInput):
        pass  # none is there: what the database knows is told
    async with world.database.pool.acquire() as conn:
        return diagnose(await slow.facts(conn, delivery, told))


async def names_first(node: Node, world: World, delivery: int, cause: CauseKind, share: float = 0.0) -> Cause:
    """Waits until the diagnosis names this cause first: a moment after the start nothing is slow yet."""
    last: list[Cause] = []

    async def does() -> bool:
        last[:] = await causes(node, world, delivery)
        return last[0].kind is cause and last[0].share >= share

    try:
        await queue_says(f"{cause.value} is named first", does, wait_s=20.0)
    except AssertionError:
        raise AssertionError(f"{cause.value} is not named first, but {last}") from None
    return last[0]


async def test_causes_of_slowness_are_named_as_they_are_provoked(tmp_path: Path, database: Database) -> None:
    zones = {**ZONES, "silent.test": {"fault": "silent"}}
    async with World(tmp_path, database, zones, sink_addresses=ADDRESSES, script=SCRIPT) as world:
        node = world.node(rules=RULES, children=2)
        await node.start()

        limited = await world.deliver(to("hourly", 200))
        cause = await names_first(node, world, limited, CauseKind.RULE, share=0.9)
        assert "rule hourly: 10 messages in 5 minutes" in cause.what

        refused = await world.deliver(to("refusing", 60))
        cause = await names_first(node, world, refused, CauseKind.REPUTATION)
        assert "4.7.1 your reputation is poor" in cause.what
        assert "mx-refusing.test" in cause.what

        waiting = await world.deliver(to("slow", 40))
        cause = await names_first(node, world, waiting, CauseKind.RECEIVER)

        text = "\n".join(["large " * 12] * 1_200)
        large = await world.deliver(to("large", 200), content=content_json(text=text))
        cause = await names_first(node, world, large, CauseKind.SIZE)
        assert "kB" in cause.what

        nowhere = await world.deliver(to("ok", 5), egress_pool="nowhere")
        cause = await names_first(node, world, nowhere, CauseKind.EGRESS)
        assert "pool nowhere is not configured" in cause.what

        unresolved = await world.deliver([f"u{n}@silent.test" for n in range(20)])
        await names_first(node, world, unresolved, CauseKind.DNS)

        blocked = await world.deliver(to("ok", 30), start=False)
        async with world.database.pool.acquire() as other, other.transaction():
            await other.execute("LOCK TABLE mta.delivery_stats IN EXCLUSIVE MODE")
            await begins(world, blocked)
            await names_first(node, world, blocked, CauseKind.DATABASE)
        await world.wait_for(blocked)

        stopped = await world.deliver(to("ok", 20), start=False)
        cause = await names_first(node, world, stopped, CauseKind.STATE)
        assert "editing" in cause.what

        told = Cli(database.dsn, tmp_path).run("monitor", "slow", str(limited), "--config", str(node.config)).stdout
        assert "1. rule (" in told
        pids = node.child_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await names_first(node, world, limited, CauseKind.NO_CHILD)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        await node.kill()
        await value(world, "UPDATE mta.node SET alive_until = now() - interval '1 s'")
        await names_first(node, world, limited, CauseKind.NO_NODE)


async def begins(world: World, delivery: int) -> None:
    """Starts a delivery without a look at its counters, which are locked."""
    async with world.database.pool.acquire() as conn:
        await conn.execute(
            "UPDATE mta.delivery SET state = 'running', started_at = now(), valid_until = now() + validity"
            " WHERE id = $1",
            delivery,
        )


async def test_throughput_is_what_the_far_end_received(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, ZONES, sink_addresses=ADDRESSES, script=SCRIPT) as world:
        node = world.node(rules=RULES, children=2)
        await node.start()
        good = await world.deliver([*to("ok", 300), "rcpt-550@d.ok.test", "dot-550@d.ok.test"])
        await world.deliver(to("refusing", 60))
        await world.wait_for(good)

        async def all_are_refused() -> bool:
            async with database.pool.acquire() as conn:
                return len(await monitor.errors(conn, minimum=20)) == 3

        await queue_says("all are refused", all_are_refused)
        async with database.pool.acquire() as conn:
            width_s, buckets = await monitor.throughput(conn, 1)
            lines = await conn.fetch(
                "SELECT sum(bytes) FILTER (WHERE status = 1) AS good, sum(bytes) FILTER (WHERE status <> 1) AS bad,"
                " count(*) FILTER (WHERE status <> 1 AND bytes > 0) AS written FROM mta.delivery_log"
            )
        accepted = world.record().accepted
        assert _by_bucket(accepted, width_s, lambda one: 1) == _of(buckets, lambda one: one.delivered)
        received_bytes = _by_bucket(accepted, width_s, lambda one: one.size_bytes)
        assert received_bytes == _of(buckets, lambda one: one.bytes_delivered)
        assert sum(bucket.failed for bucket in buckets) == 2
        assert sum(bucket.deferred for bucket in buckets) == 60
        # Of what was refused, one had its content sent.
        assert lines[0]["written"] == 1
        assert (lines[0]["good"], lines[0]["bad"]) == (
            sum(bucket.bytes_delivered for bucket in buckets),
            sum(bucket.bytes_other for bucket in buckets),
        )
        cli = Cli(database.dsn, tmp_path)
        told = cli.json("monitor", "throughput")
        assert sum(bucket["delivered"] for bucket in told["buckets"]) == 300
        assert cli.json("monitor", "errors")["paths"] == []
        paths = cli.json("monitor", "errors", "--min", "20")["paths"]
        assert {path["domain"]: path["errors"] for path in paths} == {f"d{n}.refusing.test": 20 for n in range(3)}
        assert {(path["egress"], path["code"], path["enhanced"]) for path in paths} == {("default", 451, "4.7.1")}
        drilled = cli.json("monitor", "errors", "--egress", "default")
        assert sum(path["attempted"] for path in drilled["paths"]) == 362
        assert sum(path["refused"] for path in drilled["paths"]) == 62
        assert "your reputation is poor" in cli.run("monitor", "errors", "--domain", "d0.refusing.test").stdout
        assert cli.json("monitor", "check", "--outcomes-min", "1", "--success-min", "100")["alerts"] != []
        assert cli.json("monitor", "check", "--outcomes-min", "1", "--success-min", "100")["alerts"] == []
        kinds = sorted(alert["kind"] for alert in cli.json("monitor", "alerts")["alerts"])
        assert kinds == ["low-success", "our-fault"]
        assert "must be one of 1, 3, 24" in cli.run("monitor", "throughput", "--hours", "2", expect=2).stderr


async def test_minutes_stay_those_of_the_log_when_processes_die(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, ZONES, sink_addresses=ADDRESSES) as world:
        node = world.node(children=2)
        await node.start()
        delivery = await world.deliver([*to("ok", 4_000), *to("large", 2_000)])
        await world.wait_for(delivery, lambda shown: shown.delivered >= 500)
        node.kill_child()
        await world.wait_for(delivery, lambda shown: shown.delivered >= 1_500)
        await node.kill()
        await node.start()
        await world.wait_for(delivery, lambda shown: shown.delivered + shown.in_doubt >= 6_000)
        assert await node.stop() == 0
        figures = "sum(delivered), sum(deferred), sum(in_doubt), sum(bytes_delivered), sum(bytes_other)"
        counted = await value(world, f"SELECT array[{figures}]::bigint[] FROM mta.traffic_minute")
        of_status = "count(*) FILTER (WHERE status = {})"
        lines = await value(
            world,
            f"SELECT array[{of_status.format(1)}, {of_status.format(10)}, {of_status.format(11)},"
            " sum(bytes) FILTER (WHERE status = 1), coalesce(sum(bytes) FILTER (WHERE status <> 1), 0)]::bigint[]"
            " FROM mta.delivery_log",
        )
        assert counted == lines


def _by_bucket(accepted: list[Any], width_s: int, figure: Callable[[Any], int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for one in accepted:
        found[int(one.unix_s // width_s)] += figure(one)
    return found


def _of(buckets: list[Bucket], figure: Callable[[Bucket], int]) -> Counter[int]:
    width_s = int((buckets[1].begins_at - buckets[0].begins_at).total_seconds())
    return Counter({int(one.begins_at.timestamp()) // width_s: figure(one) for one in buckets if figure(one)})
