"""Recorded history under other rules: what would have been sent when, and which refusals would not have happened.

The model, which every answer states: a recipient was there to be sent when it was first attempted, not earlier; a site
takes from each egress as much in a minute as it ever accepted in one minute while it refused others for going too
fast, and everything where it never refused; what is refused is tried again by the classic schedule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from mta.model.egress import EgressPool
from mta.model.site import MxHost, Site
from mta.simulation.engine import Result, simulate
from mta.simulation.forecast import Pace
from mta.simulation.report import Held, Report, Series, causes_of, report
from mta.simulation.scenario import DeliveryModel, NodeModel, ProviderModel, Scenario
from mta.traffic.retry import CLASSIC
from mta.traffic.rules import RuleSet

MINUTE_S: Final = 60
SLICES_MAX: Final = 500  # of the demand over time
SLICE_S_MIN: Final = 1
AFTERWARDS_S: Final = 2.0 * 86_400  # it may take so much longer than it took

ASSUMPTIONS: Final = (
    "a recipient was there to be sent when it was first attempted, not earlier: other rules can only send it later",
    "a site takes from each egress as many in a minute as it ever accepted in a minute while it refused others for "
    "going too fast; where it never refused it takes everything",
    "what is refused is tried again by the classic retry schedule (an hour later)",
    "connections are not recorded: a refusal for their number counts as one for going too fast",
)


class Lines(NamedTuple):
    """Attempts at a site through an egress in one second of Unix time; ``fresh``: of recipients not attempted yet."""

    second: int
    site: str
    egress: str
    attempts: int
    fresh: int
    refused: int
    failed: int
    domain: str


class Recorded(msgspec.Struct, frozen=True):
    """What happened at a site."""

    site: str
    recipients: int
    attempts: int
    refused: int
    failed: int
    peak_per_minute: int
    accepted_per_minute: int | None  # the most while it refused, of one egress; None: it never refused
    last_s: float  # since the beginning


class SiteReplay(msgspec.Struct, frozen=True):
    """Of a site: what was recorded, and what the rules would have made of it. Times are seconds since the beginning."""

    site: str
    recipients: int
    recorded_attempts: int
    recorded_refusals: int
    attempts: int
    refusals: int
    refusals_avoided: int
    recorded_last_s: float
    done_s: float
    recorded_peak_per_minute: int
    peak_per_minute: float
    accepted_per_minute: int | None
    held: list[Held]


class Replay(msgspec.Struct, frozen=True):
    began_unix_s: float
    recipients: int
    recorded_attempts: int
    recorded_refusals: int
    attempts: int
    refusals: int
    refusals_avoided: int
    recorded_last_s: float
    done_s: float
    waiting: int
    sites: list[SiteReplay]
    step_s: float
    series: list[Series]  # what would have been sent when
    assumptions: list[str]
    violations: int


def recorded(lines: Iterable[Lines]) -> dict[str, Recorded]:
    """By site. ``lines`` are in the order of time."""
    by_site: dict[str, list[Lines]] = {}
    for line in lines:
        by_site.setdefault(line.site, []).append(line)
    began_s = min((own[0].second for own in by_site.values()), default=0)
    return {site: _recorded(site, own, began_s) for site, own in by_site.items()}


def _recorded(site: str, lines: Sequence[Lines], began_s: int) -> Recorded:
    refused = sum(line.refused for line in lines)
    return Recorded(
        site=site,
        recipients=sum(line.fresh for line in lines),
        attempts=sum(line.attempts for line in lines),
        refused=refused,
        failed=sum(line.failed for line in lines),
        peak_per_minute=_most_in_a_minute((line.second, line.attempts) for line in lines),
        accepted_per_minute=_accepted(lines) if refused else None,
        last_s=float(lines[-1].second - began_s),
    )


def _accepted(lines: Sequence[Lines]) -> int:
    """The most that one egress got accepted in a minute in which others of it were refused."""
    most = 1
    for egress in {line.egress for line in lines if line.refused}:
        own = [line for line in lines if line.egress == egress]
        window: deque[Lines] = deque()
        accepted = refused = 0
        for line in own:
            window.append(line)
            accepted += line.attempts - line.refused
            refused += line.refused
            while window[0].second <= line.second - MINUTE_S:
                old = window.popleft()
                accepted -= old.attempts - old.refused
                refused -= old.refused
            if refused:
                most = max(most, accepted)
    return most


def _most_in_a_minute(counts: Iterable[tuple[int, int]]) -> int:
    window: deque[tuple[int, int]] = deque()
    held = most = 0
    for second, count in counts:
        window.append((second, count))
        held += count
        while window[0][0] <= second - MINUTE_S:
            held -= window.popleft()[1]
        most = max(most, held)
    return most


def scenario_of(
    lines: Sequence[Lines],
    hosts: Mapping[str, Mapping[str, Sequence[str]]],
    paces: Mapping[str, Pace],
    *,
    rules: RuleSet,
    pool: EgressPool,
    node: NodeModel,
    nodes: int,
) -> Scenario:
    """The demand and the far side of the record. Sites without a known host had no connection: they are left out."""
    told = recorded(line for line in lines if line.site in hosts)
    began_s = min(line.second for line in lines)
    span_s = max(line.second for line in lines) - began_s + 1
    slice_s = max(SLICE_S_MIN, -(-span_s // SLICES_MAX))
    demand: dict[int, dict[str, int]] = {}
    domains: dict[str, str] = {}
    for line in lines:
        domains.setdefault(line.site, line.domain)
        if line.fresh and line.site in told:
            counts = demand.setdefault((line.second - began_s) // slice_s, {})
            counts[line.site] = counts.get(line.site, 0) + line.fresh
    return Scenario(
        name="replay",
        starts_unix_s=float(began_s),
        duration_s=span_s + AFTERWARDS_S,
        rules=rules,
        pools=(pool,),
        providers=tuple(
            _provider(told[site], hosts[site], domains[site], paces.get(site, Pace())) for site in sorted(told)
        ),
        deliveries=tuple(
            DeliveryModel(
                name=f"slice {at}",
                recipients=sum(counts.values()),
                start_s=float(at * slice_s),
                pool=pool.name,
                retry=CLASSIC,
                counts=tuple(sorted(counts.items())),
            )
            for at, counts in sorted(demand.items())
        ),
        node=node,
        nodes=nodes,
    )


def _provider(told: Recorded, hosts: Mapping[str, Sequence[str]], domain: str, pace: Pace) -> ProviderModel:
    # Which host is preferred is not in the log: all that were used count as equals.
    known = tuple(MxHost(name, 10, tuple(addresses)) for name, addresses in sorted(hosts.items()))
    return ProviderModel(
        name=told.site,
        share=0.0,
        hosts=(),
        domains=(domain,),
        site=Site(told.site, known),
        message_s=pace.message_s,
        connect_s=pace.connect_s,
        failed_percent=100.0 * told.failed / told.attempts if told.attempts else 0.0,
        messages_per_minute_max=told.accepted_per_minute,
    )


def replay(lines: Sequence[Lines], scenario: Scenario) -> Replay:
    """Plays what `scenario_of` made, and holds it against the record."""
    result = simulate(scenario)
    told = report(result)
    before = recorded(line for line in lines if line.site in {provider.name for provider in scenario.providers})
    sites = _sites(result, told, before)
    return Replay(
        began_unix_s=scenario.starts_unix_s,
        recipients=told.recipients,
        recorded_attempts=sum(site.recorded_attempts for site in sites),
        recorded_refusals=sum(site.recorded_refusals for site in sites),
        attempts=told.sent,
        refusals=sum(site.refusals for site in sites),
        refusals_avoided=sum(site.refusals_avoided for site in sites),
        recorded_last_s=max((site.recorded_last_s for site in sites), default=0.0),
        done_s=told.ended_s,
        waiting=told.waiting,
        sites=sites,
        step_s=told.step_s,
        series=told.series,
        assumptions=list(ASSUMPTIONS),
        violations=told.violations,
    )


def _sites(result: Result, told: Report, before: Mapping[str, Recorded]) -> list[SiteReplay]:
    found = []
    for row, site in zip(result.tally.rows, told.sites, strict=True):
        own = before[row.name]
        found.append(
            SiteReplay(
                site=row.name,
                recipients=row.recipients,
                recorded_attempts=own.attempts,
                recorded_refusals=own.refused,
                attempts=site.sent,
                refusals=site.refused,
                refusals_avoided=own.refused - site.refused,
                recorded_last_s=own.last_s,
                done_s=site.done_s,
                recorded_peak_per_minute=own.peak_per_minute,
                peak_per_minute=round(_peak_per_minute(row.steps, told.step_s), 1),
                accepted_per_minute=own.accepted_per_minute,
                held=causes_of(row, result.scenario.rules),
            )
        )
    return sorted(found, key=lambda site: (-site.recorded_refusals, -site.recipients, site.site))


def _peak_per_minute(steps: Sequence[int], step_s: float) -> float:
    """The fullest minute, by whole steps; of longer steps their mean."""
    length = max(1, int(MINUTE_S // step_s))
    held = most = 0
    for at, count in enumerate(steps):
        held += count - (steps[at - length] if at >= length else 0)
        most = max(most, held)
    return most * MINUTE_S / (length * step_s)
