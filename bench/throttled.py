"""One site held to a trickle, with half of the recipients: do the others notice, and does memory stay flat?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from bench.content import content_of, row_of
from bench.far import SinkKind
from bench.usage import rss_mb
from bench.world import SUFFIX, BenchFailed, Plan, World, Zone, rule, standing
from mta.queue import deliveries
from mta.queue.part import Row

HOSTS_MAX: Final = 50
SAMPLE_EVERY_S: Final = 0.25
TRICKLE_PER_HOUR: Final = 600  # 50 in five minutes
_FREE_DELIVERED: Final = """
SELECT count(*), extract(epoch FROM max(l.at) - min(d.started_at))::float8
FROM mta.delivery_log l JOIN mta.delivery d ON d.id = l.delivery_id
WHERE l.delivery_id = $1 AND l.status = 1 AND l.site <> $2
"""
_TRICKLE_SITE: Final = f"mx0.{SUFFIX}"


class ThrottledOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Half of the recipients go to d0, alone on mx0; the rest to the other domains. ``hold_s``: watched after that."""

    recipients: int
    domains: int
    size_bytes: int
    children: int
    connections: int
    sink: SinkKind
    hold_s: float


class Megabytes(msgspec.Struct, frozen=True):
    """Resident memory of one process: when the first message is out, at most, and at the end."""

    start: float
    peak: float
    end: float


class Memory(msgspec.Struct, frozen=True):
    """Of the run with the throttled half, sampled four times a second."""

    master: Megabytes
    children: list[Megabytes]


class ThrottledFigures(msgspec.Struct, frozen=True):
    """The line of ``--json``. Rates are of the free half: with the throttled half beside it, and alone."""

    recipients: int
    domains: int
    sink: SinkKind
    free_messages_per_second: float
    alone_messages_per_second: float
    ratio_to_alone: float
    throttled_delivered: int
    pending: int
    rss_mb: Memory


async def throttled(options: ThrottledOptions, on_step: Callable[[str], None]) -> ThrottledFigures:
    """A warm-up, the free half alone, then both, each by a node newly started."""
    plan = Plan(
        sink=options.sink,
        rules=_rules(options.connections),
        zones=(Zone(SUFFIX, options.domains, min(HOSTS_MAX, options.domains), 1.5 / options.domains),),  # d0 on mx0
        children=options.children,
    )
    content = content_of(options.size_bytes)
    free = options.recipients // 2
    async with standing(plan, on_step) as world:
        on_step("warming up: the first log files of PostgreSQL cost more than those after them")
        warm_up = msgspec.structs.replace(options, recipients=max(2, options.recipients // 10))
        delivery_id = await world.fill(_rows(warm_up, is_alone=True), content)
        await _drain_free(world, delivery_id, warm_up.recipients // 2, 0.0)
        on_step(f"{free:,} recipients alone")
        delivery_id = await world.fill(_rows(options, is_alone=True), content)
        alone_s, _ = await _drain_free(world, delivery_id, free, 0.0)
        on_step(f"the same, and {options.recipients - free:,} more for a site that takes {TRICKLE_PER_HOUR} an hour")
        delivery_id = await world.fill(_rows(options, is_alone=False), content)
        free_s, memory = await _drain_free(world, delivery_id, free, options.hold_s)
        shown = await deliveries.show(world.conn, delivery_id)
    if shown.failed or shown.expired:
        raise BenchFailed(f"{shown.failed + shown.expired:,} failed")
    return ThrottledFigures(
        recipients=options.recipients,
        domains=options.domains,
        sink=options.sink,
        free_messages_per_second=round(free / free_s, 1),
        alone_messages_per_second=round(free / alone_s, 1),
        ratio_to_alone=round(alone_s / free_s, 3),
        throttled_delivered=shown.delivered - free,
        pending=shown.waiting,
        rss_mb=memory,
    )


async def _drain_free(world: World, delivery_id: int, free: int, hold_s: float) -> tuple[float, Memory]:
    """Seconds until the last of the free half was delivered, and the memory meanwhile and for ``hold_s`` after."""
    await world.node.start()
    await deliveries.start(world.conn, delivery_id)
    await world.wait(delivery_id, lambda delivered: delivered > 0)  # every process has its modules by then
    sampler = _Sampler(world)
    sampling = asyncio.create_task(sampler.run())
    try:
        seconds = 0.0

        async def is_over() -> bool:
            nonlocal seconds
            count, seconds = await world.conn.fetchrow(_FREE_DELIVERED, delivery_id, _TRICKLE_SITE)  # type: ignore[misc]
            return bool(count >= free)

        # The exact count costs a scan of the log, so the counter is asked first.
        await world.wait(delivery_id, lambda delivered: delivered >= free and is_over())
        await asyncio.sleep(hold_s)
    finally:
        sampling.cancel()
        await asyncio.wait([sampling])
    await world.node.stop()
    return seconds, sampler.memory()


class _Sampler:
    def __init__(self, world: World) -> None:
        self._world = world
        self._samples: dict[int, list[float]] = {}

    async def run(self) -> None:
        while True:
            for pid in [self._world.node.pid, *self._world.node.child_pids()]:
                self._samples.setdefault(pid, []).append(rss_mb(pid))
            await asyncio.sleep(SAMPLE_EVERY_S)

    def memory(self) -> Memory:
        master, *children = (
            Megabytes(round(seen[0], 1), round(max(seen), 1), round(seen[-1], 1)) for seen in self._samples.values()
        )
        return Memory(master, children)


def _rows(options: ThrottledOptions, *, is_alone: bool) -> Iterator[Row]:
    for i in range(options.recipients // 2):
        yield row_of(f"user{i}@d{1 + i % (options.domains - 1)}.{SUFFIX}", i)
        if not is_alone:
            yield row_of(f"user{i}@d0.{SUFFIX}", i)


def _rules(connections: int) -> str:
    trickle = rule("trickle", _TRICKLE_SITE, connections_max=2, messages_per_hour_max=TRICKLE_PER_HOUR)
    return trickle + rule("bench", "*", connections_max=connections)
