"""What a campaign looks like: a few providers, many small domains, long signed HTML over TLS, and refusals."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from bench.content import NEWSLETTER_FIELDS, newsletter_of, newsletter_row_of
from bench.far import SinkKind
from bench.openssl import Dkim
from bench.receiver import ReceiverOptions, Taken
from bench.usage import CpuMicroseconds, PeakMegabytes
from bench.world import BenchFailed, Plan, World, Zone, rule, standing
from mta.queue import deliveries
from mta.queue.part import Row

PROVIDERS: Final = 12
SMALL_DOMAINS: Final = 500
PROVIDERS_SHARE: Final = 0.7  # of the recipients
PERMANENT: Final = 0.01
TEMPORARY: Final = 0.05
RETRY_AFTER_S: Final = 2
WARM_UP_RECIPIENTS: Final = 500
_PROVIDERS, _SMALL = "providers.bench.test", "small.bench.test"


class MixOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``connections`` is that of each provider; all the small domains together have five times as many."""

    recipients: int
    size_bytes: int
    children: int
    connections: int
    dkim: Dkim = Dkim.RSA2048


class MixFigures(MixOptions, frozen=True, kw_only=True):
    """The line of ``--json``: what was asked for, and what came.

    ``seconds`` is until the last retry was settled; the rate is of all messages until most of those that were not
    deferred were: 90 % of all recipients. ``deferrals`` counts attempts.
    """

    sink: SinkKind
    seconds: float
    messages_per_second: float
    mbytes_per_second: float
    cpu_us_per_message: CpuMicroseconds
    rss_mb: PeakMegabytes
    delivered: int
    failed: int
    deferrals: int
    taken: Taken


async def mix(options: MixOptions, on_step: Callable[[str], None]) -> MixFigures:
    """BenchFailed unless each recipient has one outcome, by our books and by the receiver's count."""
    recipients = options.recipients
    rules = rule("providers", f"*.{_PROVIDERS}", connections_max=options.connections * PROVIDERS, tls="required")
    rules += rule("small", "*", connections_max=options.connections * 5, tls="required")
    plan = Plan(
        sink=SinkKind.RECEIVER,
        manner=ReceiverOptions(processes=2, tls=True, permanent=PERMANENT, temporary=TEMPORARY),
        rules=rules,
        zones=(Zone(_PROVIDERS, PROVIDERS, PROVIDERS), Zone(_SMALL, SMALL_DOMAINS, SMALL_DOMAINS)),
        children=options.children,
        dkim=options.dkim,
    )
    content, retry = newsletter_of(options.size_bytes), _retry()
    async with standing(plan, on_step) as world:
        await world.node.start()
        on_step("warming up")
        await world.warm_up(_rows(WARM_UP_RECIPIENTS, "warm"), content, fields=NEWSLETTER_FIELDS, retry=retry)
        before = await _shown_total(world)
        on_step(f"filling the queue with {recipients:,} recipients")
        delivery_id = await world.fill(_rows(recipients, "user"), content, fields=NEWSLETTER_FIELDS, retry=retry)
        on_step("draining it")
        read = world.stopwatch()
        await deliveries.start(world.conn, delivery_id)
        most = await world.wait(delivery_id, lambda settled: settled >= recipients * 0.9)
        most_s = read().seconds
        await world.wait(delivery_id, lambda settled: settled >= recipients)
        used, rss = read(), world.peak_memory()
        await world.node.stop()
        shown = await deliveries.show(world.conn, delivery_id)
        await world.check(delivery_id, recipients - shown.failed)
    world.check_taken(before + shown.delivered)
    if not recipients * PERMANENT * 0.5 - 10 <= shown.failed <= recipients * PERMANENT * 1.5 + 10:
        raise BenchFailed(f"{shown.failed:,} of {recipients:,} failed, where {PERMANENT:.0%} are refused for ever")
    rate = most / most_s
    return MixFigures(
        **msgspec.structs.asdict(options),
        sink=SinkKind.RECEIVER,
        seconds=round(used.seconds, 3),
        messages_per_second=round(rate, 1),
        mbytes_per_second=round(rate * options.size_bytes / 1e6, 2),
        cpu_us_per_message=used.cpu_us(recipients),
        rss_mb=rss,
        delivered=shown.delivered,
        failed=shown.failed,
        deferrals=shown.deferrals,
        taken=world.taken(),
    )


async def _shown_total(world: World) -> int:
    """Messages that went out until now."""
    return sum([shown.delivered for shown in await deliveries.list_deliveries(world.conn)])


def _retry() -> str:
    schedule = {
        "first_count": 100,
        "first_period_s": RETRY_AFTER_S,
        "then_period_s": RETRY_AFTER_S,
        "greylist_s": RETRY_AFTER_S,
    }
    return msgspec.json.encode(schedule).decode()


def _rows(recipients: int, name: str) -> Iterator[Row]:
    """Domains in shares of 1, 1/2, 1/3, ... (Zipf's law), among the providers and among the small ones."""
    chance = random.Random(1)
    providers, small = _zipf(PROVIDERS), _zipf(SMALL_DOMAINS)
    for number in range(recipients):
        sums, suffix = (providers, _PROVIDERS) if chance.random() < PROVIDERS_SHARE else (small, _SMALL)
        domain = bisect.bisect(sums, chance.random() * sums[-1])
        yield newsletter_row_of(f"{name}{number}@d{min(domain, len(sums) - 1)}.{suffix}", number)


def _zipf(count: int) -> list[float]:
    return list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
