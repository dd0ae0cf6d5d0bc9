"""A hundred thousand domains with one recipient each beside one large site: what does each take from the other?

Three runs, each by a node newly started, so that nothing is known of any domain: the large site alone, the long tail
alone, and both. The tail sends one message a session. In the run of both, only the time counts in which both had
something to send.

What CPU share explains: with both, the machine has so much CPU time a second; the tail's messages take of it what
they take alone, and what is left, divided by what a message to the large site takes alone, is the rate that the large
site could have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from bench.content import content_of, row_of, rows_over
from bench.far import SinkKind
from bench.receiver import ReceiverOptions
from bench.usage import CpuMicroseconds, PeakMegabytes
from bench.world import Plan, World, Zone, rule, standing
from mta.queue import deliveries
from mta.queue.part import Row

WARM_UP_RECIPIENTS: Final = 200
_LARGE, _TAIL = "large.bench.test", "tail.bench.test"
_STARTED: Final = "SELECT started_at FROM mta.delivery WHERE id = $1"
_LAST: Final = "SELECT max(at) FROM mta.delivery_log WHERE delivery_id = $1"
_WITHIN: Final = "SELECT count(*) FROM mta.delivery_log WHERE delivery_id = $1 AND at > $2 AND at <= $3 AND status = 1"


class LongtailOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``large`` and ``domains`` are numbers of messages; connections: to the large site, and to the whole tail."""

    large: int
    domains: int
    hosts: int
    size_bytes: int
    children: int
    connections: int
    tail_connections: int
    sink: SinkKind


class LongtailFigures(LongtailOptions, frozen=True, kw_only=True):
    """The line of ``--json``: what was asked for, and what came.

    ``large_explained``: the large site's rate that CPU share alone would leave it.
    """

    tail_alone_messages_per_second: float
    tail_messages_per_second: float
    large_alone_messages_per_second: float
    large_messages_per_second: float
    large_explained_messages_per_second: float
    large_ratio_to_explained: float
    tail_share_of_cpu: float
    window_seconds: float
    large_cpu_us_per_message: CpuMicroseconds
    tail_cpu_us_per_message: CpuMicroseconds
    both_cpu_us_per_message: CpuMicroseconds
    rss_mb: PeakMegabytes


class _Both(msgspec.Struct, frozen=True):
    """Of the run with both: messages within ``seconds``, the CPU time that all messages took."""

    seconds: float
    large: int
    tail: int
    cpu_s_per_second: float
    cpu: CpuMicroseconds
    rss: PeakMegabytes


async def longtail(options: LongtailOptions, on_step: Callable[[str], None]) -> LongtailFigures:
    """BenchFailed when a message was not delivered exactly once by our books."""
    rules = rule("tail", f"*.{_TAIL}", connections_max=options.tail_connections, messages_per_connection_max=1)
    rules += rule("large", f"*.{_LARGE}", connections_max=options.connections)
    plan = Plan(
        sink=options.sink,
        manner=ReceiverOptions(processes=2),
        rules=rules,
        zones=(Zone(_LARGE, 1, 1), Zone(_TAIL, options.domains, min(options.hosts, options.domains))),
        children=options.children,
        sessions_max=options.connections + options.tail_connections,
    )
    content = content_of(options.size_bytes)
    async with standing(plan, on_step) as world:
        on_step(f"the large site alone: {options.large:,} messages")
        delivery_id = await world.fill(rows_over(options.large, 1, _LARGE), content)
        await _start(world, content)
        alone = await world.drain(delivery_id, options.large)
        await world.check(delivery_id, options.large)
        await world.node.stop()
        on_step(f"the long tail alone: {options.domains:,} domains")
        delivery_id = await world.fill(_tail_rows(options.domains), content)
        await _start(world, content)
        tail = await world.drain(delivery_id, options.domains)
        await world.check(delivery_id, options.domains)
        await world.node.stop()
        on_step("both")
        both = await _both(world, options, content)
    large_cpu_s = alone.cpu.total / options.large
    tail_cpu_s = tail.cpu.total / options.domains
    tail_rate = both.tail / both.seconds
    explained = max(0.0, both.cpu_s_per_second - tail_rate * tail_cpu_s) / large_cpu_s
    return LongtailFigures(
        **msgspec.structs.asdict(options),
        tail_alone_messages_per_second=tail.rate(options.domains),
        tail_messages_per_second=round(tail_rate, 1),
        large_alone_messages_per_second=alone.rate(options.large),
        large_messages_per_second=round(both.large / both.seconds, 1),
        large_explained_messages_per_second=round(explained, 1),
        large_ratio_to_explained=round(both.large / both.seconds / explained, 3) if explained else 0.0,
        tail_share_of_cpu=round(tail_rate * tail_cpu_s / both.cpu_s_per_second, 3),
        window_seconds=round(both.seconds, 3),
        large_cpu_us_per_message=alone.cpu_us(options.large),
        tail_cpu_us_per_message=tail.cpu_us(options.domains),
        both_cpu_us_per_message=both.cpu,
        rss_mb=both.rss,
    )


async def _both(world: World, options: LongtailOptions, content: bytes) -> _Both:
    large_id = await world.fill(rows_over(options.large, 1, _LARGE), content)
    tail_id = await world.fill(_tail_rows(options.domains), content)
    await _start(world, content)
    read = world.stopwatch()
    # Both at one moment: a short tail alone could be through before the other begins.
    async with world.conn.transaction():
        await deliveries.start(world.conn, large_id)
        await deliveries.start(world.conn, tail_id)
    # The one that is through first ends the window; CPU time is read then.
    ids = {large_id: options.large, tail_id: options.domains}
    await world.wait_any(ids)
    window = read()
    for delivery_id, recipients in ids.items():
        await world.wait(delivery_id, recipients.__le__)
    used, rss = read(), world.peak_memory()
    await world.node.stop()
    for delivery_id, recipients in ids.items():
        await world.check(delivery_id, recipients)
    begin = max([await world.conn.fetchval(_STARTED, delivery_id) for delivery_id in ids])
    end = min([await world.conn.fetchval(_LAST, delivery_id) for delivery_id in ids])
    seconds = (end - begin).total_seconds()
    large, tail = [await world.conn.fetchval(_WITHIN, delivery_id, begin, end) for delivery_id in ids]
    messages = options.large + options.domains
    return _Both(seconds, large, tail, window.cpu.total / window.seconds, used.cpu_us(messages), rss)


async def _start(world: World, content: bytes) -> None:
    """A node that knows nobody yet but the large site's host."""
    await world.node.start()
    await world.warm_up(rows_over(WARM_UP_RECIPIENTS, 1, _LARGE), content)


def _tail_rows(domains: int) -> Iterator[Row]:
    return (row_of(f"user@d{number}.{_TAIL}", number) for number in range(domains))
