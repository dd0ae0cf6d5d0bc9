"""From a full queue to an empty one: messages a second, and what each costs whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import msgspec

from bench.far import SinkKind, smtp_source_messages_per_second
from bench.usage import children_of, cpu_seconds, peak_rss_mb
from bench.world import SUFFIX, BenchFailed, Plan, World, content_of
from mta.queue import deliveries
from mta.queue.audit import audit
from mta.queue.part import Row


class DrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``connections`` is the total over all MX hosts; each domain has a host of its own, up to 50."""

    recipients: int
    size_bytes: int
    children: int
    connections: int
    sink: SinkKind
    domains: int


class CpuMicroseconds(msgspec.Struct, frozen=True):
    """CPU time a message."""

    master: float
    children: float
    postgres: float
    sink: float


class PeakMegabytes(msgspec.Struct, frozen=True):
    """Peak resident memory: of the master, of the largest child, of the largest process of PostgreSQL (with the
    shared buffers that it touched)."""

    master: float
    child: float
    postgres: float


class DrainFigures(msgspec.Struct, frozen=True):
    """The line of ``--json``. ``smtp_source``: None where Postfix's tools are absent."""

    recipients: int
    size_bytes: int
    children: int
    connections: int
    domains: int
    sink: SinkKind
    seconds: float
    messages_per_second: float
    cpu_us_per_message: CpuMicroseconds
    rss_mb: PeakMegabytes
    append_recipients_per_second: float
    smtp_source_messages_per_second: float | None
    ratio_to_smtp_source: float | None


async def drain(options: DrainOptions, on_step: Callable[[str], None]) -> DrainFigures:
    """Fill, start, wait, measure. BenchFailed when a message was not delivered exactly once by our books."""
    plan = Plan(
        sink=options.sink,
        rules=_rules(options.connections),
        domains=options.domains,
        hosts=min(50, options.domains),
        children=options.children,
    )
    async with World(plan, on_step) as world:
        on_step(f"filling the queue with {options.recipients:,} recipients")
        began_s = time.monotonic()
        delivery_id = await world.fill(_rows(options), content_of(options.size_bytes))
        appended_s = time.monotonic() - began_s
        await world.node.start()
        on_step("draining it")
        postmaster = world.postgres.postmaster_pid()
        assert postmaster is not None
        who = world.node.pid, postmaster, world.far_end.pids
        before, began_s = cpu_seconds(*who), time.monotonic()
        await deliveries.start(world.conn, delivery_id)
        await world.wait_finished(delivery_id)
        seconds, used = time.monotonic() - began_s, cpu_seconds(*who).since(before)
        rss = PeakMegabytes(
            master=round(peak_rss_mb([world.node.pid]), 1),
            child=round(peak_rss_mb(world.node.child_pids()), 1),
            postgres=round(peak_rss_mb([postmaster, *children_of(postmaster)]), 1),
        )
        await world.node.stop()
        await _check(world, delivery_id, options.recipients)
        on_step("smtp-source, against the same far end")
        source = await asyncio.to_thread(
            smtp_source_messages_per_second,
            world.far_end.port,
            connections=options.connections,
            messages=options.recipients,
            size_bytes=options.size_bytes,
        )
    us = 1e6 / options.recipients
    rate = options.recipients / seconds
    return DrainFigures(
        **msgspec.structs.asdict(options),
        seconds=round(seconds, 3),
        messages_per_second=round(rate, 1),
        cpu_us_per_message=CpuMicroseconds(
            round(used.master * us, 2),
            round(used.children * us, 2),
            round(used.postgres * us, 2),
            round(used.sink * us, 2),
        ),
        rss_mb=rss,
        append_recipients_per_second=round(options.recipients / appended_s, 1),
        smtp_source_messages_per_second=None if source is None else round(source, 1),
        ratio_to_smtp_source=None if source is None else round(rate / source, 3),
    )


def _rows(options: DrainOptions) -> Iterator[Row]:
    for i in range(options.recipients):
        yield f"user{i}@d{i % options.domains}.{SUFFIX}", None, ["Ann", f"V-{i:08d}"]


def _rules(connections: int) -> str:
    return f'[[rule]]\nname = "bench"\nmx = "*"\nscope = "shared"\nconnections_max = {connections}\n'


async def _check(world: World, delivery_id: int, recipients: int) -> None:
    shown = await deliveries.show(world.conn, delivery_id)
    audited = await audit(world.conn, delivery_id)
    if shown.delivered != recipients or not audited.is_clean:
        raise BenchFailed(f"{shown.delivered:,} of {recipients:,} delivered, {shown.failed:,} failed; {audited}")
