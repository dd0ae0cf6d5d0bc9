"""From a full queue to an empty one: messages a second, and what each costs whom."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import msgspec

from bench.content import content_of, rows_over
from bench.far import SinkKind, smtp_source_messages_per_second
from bench.openssl import Dkim, signs_per_second
from bench.peers import PostfixFigures, postfix
from bench.receiver import ReceiverOptions
from bench.usage import CpuMicroseconds, PeakMegabytes
from bench.world import SUFFIX, Plan, Zone, rule, standing


class DrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``connections`` is the total over all MX hosts; each domain has a host of its own, up to 50."""

    recipients: int
    size_bytes: int
    children: int
    connections: int
    sink: SinkKind
    domains: int
    tls: bool = False
    dkim: Dkim = Dkim.NONE
    peers: bool = False


class DrainFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``. None where what it takes is not installed here, or was not asked for.

    ``smtp_source`` and ``postfix`` send to the same far end, without TLS and without signatures.
    ``openssl``: signatures a second of one core; the ratio is of our messages to those of all cores.
    """

    recipients: int
    size_bytes: int
    children: int
    connections: int
    domains: int
    sink: SinkKind
    tls: bool
    dkim: Dkim
    seconds: float
    messages_per_second: float
    mbytes_per_second: float
    cpu_us_per_message: CpuMicroseconds
    rss_mb: PeakMegabytes
    append_recipients_per_second: float
    smtp_source_messages_per_second: float | None
    ratio_to_smtp_source: float | None
    openssl_signs_per_second: float | None
    ratio_to_openssl: float | None
    postfix: PostfixFigures | None
    ratio_to_postfix: float | None


async def drain(options: DrainOptions, on_step: Callable[[str], None]) -> DrainFigures:
    """Fill, start, wait, measure. BenchFailed when a message was not delivered exactly once by our books."""
    recipients = options.recipients
    plan = Plan(
        sink=options.sink,
        manner=ReceiverOptions(processes=2, tls=options.tls),
        rules=rule("bench", "*", connections_max=options.connections, tls="required" if options.tls else "disabled"),
        zones=(Zone(SUFFIX, options.domains, min(50, options.domains)),),
        children=options.children,
        dkim=options.dkim,
    )
    content = content_of(options.size_bytes)
    async with standing(plan, on_step) as world:
        on_step(f"filling the queue with {recipients:,} recipients")
        began_s = time.monotonic()
        delivery_id = await world.fill(rows_over(recipients, options.domains, SUFFIX), content)
        appended_s = time.monotonic() - began_s
        await world.node.start()
        on_step("warming up, then draining it")
        await world.warm_up(rows_over(min(1_000, recipients), options.domains, SUFFIX), content)
        used = await world.drain(delivery_id, recipients)
        rss = world.peak_memory()
        await world.node.stop()
        await world.check(delivery_id, recipients)
        rate = recipients / used.seconds
        on_step("smtp-source, against the same far end")
        source = await asyncio.to_thread(
            smtp_source_messages_per_second,
            world.far_end.port,
            connections=options.connections,
            messages=recipients,
            size_bytes=options.size_bytes,
        )
        peer = None
        if options.peers:
            peer = await postfix(
                world.far_end.port,
                connections=options.connections,
                messages=recipients,
                size_bytes=options.size_bytes,
                on_step=on_step,
            )
    signs = None
    if options.dkim is not Dkim.NONE:
        on_step("openssl speed, on one core")
        signs = await asyncio.to_thread(signs_per_second, options.dkim)
    given = msgspec.structs.asdict(options)
    del given["peers"]
    return DrainFigures(
        **given,
        seconds=round(used.seconds, 3),
        messages_per_second=round(rate, 1),
        mbytes_per_second=round(rate * options.size_bytes / 1e6, 2),
        cpu_us_per_message=used.cpu_us(recipients),
        rss_mb=rss,
        append_recipients_per_second=round(recipients / appended_s, 1),
        smtp_source_messages_per_second=None if source is None else round(source, 1),
        ratio_to_smtp_source=None if source is None else round(rate / source, 3),
        openssl_signs_per_second=signs,
        ratio_to_openssl=None if signs is None else round(rate / signs / len(os.sched_getaffinity(0)), 3),
        postfix=peer,
        ratio_to_postfix=None if peer is None else round(rate / peer.drain_messages_per_second, 2),
    )
