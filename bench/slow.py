"""A far end that takes a second to answer each message: thousands of connections, each of them nearly always idle.

`smtp-sink` can do this too (``-W .:1``), but keeps its timers in a list that it walks for each of them: with 4,000
connections a message costs it some 400 µs, five times what it costs the sender, and it is the limit. So the receiver
is the one to measure against.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from bench.content import content_of, rows_over
from bench.far import SinkKind
from bench.receiver import ReceiverOptions
from bench.usage import CpuMicroseconds, PeakMegabytes
from bench.world import SUFFIX, BenchFailed, Plan, Zone, rule, standing
from mta.queue import deliveries

DELAY_S: Final = 1.0
HOSTS: Final = 50
# The window that is measured, as shares of what is settled: after the ramp, and before the end runs dry.
WINDOW: Final = (0.3, 0.8)


class SlowOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``connections`` is the total over all hosts; ideal are so many messages a second."""

    recipients: int
    size_bytes: int
    children: int
    connections: int
    sink: SinkKind


class SlowFigures(SlowOptions, frozen=True, kw_only=True):
    """The line of ``--json``: what was asked for, and what came. Rates and CPU time are those of the window."""

    window_seconds: float
    messages_per_second: float
    ideal_messages_per_second: float
    ratio_to_ideal: float
    seconds: float
    cpu_us_per_message: CpuMicroseconds
    rss_mb: PeakMegabytes


async def slow(options: SlowOptions, on_step: Callable[[str], None]) -> SlowFigures:
    """BenchFailed when it was over before there was a steady state, or when something was not delivered once."""
    recipients = options.recipients
    plan = Plan(
        sink=options.sink,
        manner=ReceiverOptions(processes=2, dot_delay_s=DELAY_S),
        rules=rule(
            "bench",
            "*",
            connections_max=options.connections,
            tls="disabled",
            # Told to wait, smtp-sink forgets its answer when the next command stands behind the dot already.
            pipelining=options.sink is not SinkKind.SMTP_SINK,
        ),
        zones=(Zone(SUFFIX, HOSTS, HOSTS),),
        children=options.children,
        sessions_max=options.connections,
    )
    async with standing(plan, on_step) as world:
        on_step(f"filling the queue with {recipients:,} recipients")
        delivery_id = await world.fill(rows_over(recipients, HOSTS, SUFFIX), content_of(options.size_bytes))
        await world.node.start()
        on_step(f"draining it over {options.connections:,} connections")
        read_all = world.stopwatch()
        await deliveries.start(world.conn, delivery_id)
        first = await world.wait(delivery_id, lambda settled: settled >= recipients * WINDOW[0])
        read_window = world.stopwatch()
        await world.wait(delivery_id, lambda settled: settled >= recipients * WINDOW[1])
        # Sessions that began together are answered together: over whole periods each of them counts as often.
        await asyncio.sleep(DELAY_S - read_window().seconds % DELAY_S)
        last = await world.wait(delivery_id, lambda _: True)
        window = read_window()
        await world.wait(delivery_id, lambda settled: settled >= recipients)
        seconds, rss = read_all().seconds, world.peak_memory()
        await world.node.stop()
        await world.check(delivery_id, recipients)
    world.check_taken(recipients)
    if last == first:
        raise BenchFailed("it was over before there was anything to measure; ask for more recipients")
    rate, ideal = window.rate(last - first), options.connections / DELAY_S
    return SlowFigures(
        **msgspec.structs.asdict(options),
        window_seconds=round(window.seconds, 3),
        messages_per_second=rate,
        ideal_messages_per_second=ideal,
        ratio_to_ideal=round(rate / ideal, 3),
        seconds=round(seconds, 3),
        cpu_us_per_message=window.cpu_us(last - first),
        rss_mb=rss,
    )
