"""What a simulation says: a line for each provider, totals, what held each of them back and for how long.

Made of the account alone, so the same seed gives the same report, byte for byte.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mta.simulation.bottleneck import Cause
from mta.simulation.engine import Result
from mta.simulation.judge import Violation
from mta.simulation.tally import Row, Tally
from mta.traffic.rules import RuleSet

CAUSES_MAX: Final = 6  # of one provider
EVENTS_MAX: Final = 200


class Held(msgspec.Struct, frozen=True):
    """What held a site back, and for how many seconds. ``origin``: file and line of the figure, if a file has it.

    ``event``: name, target and whom it is on, of the traffic event that did, or that had lowered the figure.
    """

    rule: str
    limit: str
    value: int
    seconds: float
    origin: str
    event: str = ""


class SiteReport(msgspec.Struct, frozen=True):
    """A provider, with all its sites. Rates are messages a second, by steps of ``step_s`` of the report."""

    site: str
    sites: int
    recipients: int
    sent: int  # attempts
    delivered: int
    failed: int
    deferred: int  # attempts
    expired: int
    waiting: int  # without a final outcome at the end
    refused: int  # attempts that met a limit or a block of the provider
    blocks: int
    connections: int
    connections_most: int  # of one source address, at a time
    peak_per_s: float
    mean_per_s: float
    queue_max: int
    first_attempts_s: float  # when the last recipient was attempted for the first time
    done_s: float  # when the last outcome was
    held: list[Held]


class DeliveryReport(msgspec.Struct, frozen=True):
    delivery: str
    recipients: int
    waiting: int
    done_s: float


class Event(msgspec.Struct, frozen=True):
    """Something that an automation or an error block did."""

    at_s: float
    what: str


class Series(msgspec.Struct, frozen=True):
    """Attempts in each step, and how many had no final outcome at its end."""

    site: str
    attempts: list[int]
    queue: list[int]


class Report(msgspec.Struct, frozen=True):
    scenario: str
    seed: int
    nodes: int
    starts_unix_s: float
    recipients: int
    sent: int
    delivered: int
    failed: int
    deferred: int
    expired: int
    waiting: int
    ended_s: float
    step_s: float
    sites: list[SiteReport]
    deliveries: list[DeliveryReport]
    events: list[Event]
    events_count: int
    series: list[Series]
    violation_details: list[Violation]
    violations: int


def report(result: Result) -> Report:
    """Of a finished simulation."""
    tally, scenario = result.tally, result.scenario
    rows = tally.rows
    sites = [
        _site(row, tally, result, provider.blocks, provider.connections, provider.connections_most)
        for row, provider in zip(rows, result.providers, strict=True)
    ]
    return Report(
        scenario=scenario.name,
        seed=scenario.seed,
        nodes=scenario.nodes,
        starts_unix_s=scenario.starts_unix_s,
        recipients=sum(row.recipients for row in rows),
        sent=sum(row.attempts for row in rows),
        delivered=sum(row.delivered for row in rows),
        failed=sum(row.failed for row in rows),
        deferred=sum(row.deferred for row in rows),
        expired=sum(row.expired for row in rows),
        waiting=result.undone,
        ended_s=round(result.ended_s, 3),
        step_s=tally.step_s,
        sites=sites,
        deliveries=[
            DeliveryReport(errand.model.name, errand.model.recipients, errand.waiting, round(errand.done_s, 3))
            for errand in result.errands
        ],
        events=[Event(round(at_s, 3), what) for at_s, what in result.reactions.events[:EVENTS_MAX]],
        events_count=result.reactions.events_count,
        series=[Series(row.name, row.steps, row.queue) for row in rows],
        violation_details=result.judge.details,
        violations=result.judge.violations,
    )


def _site(row: Row, tally: Tally, result: Result, blocks: int, connections: int, connections_most: int) -> SiteReport:
    attempts = row.attempts
    return SiteReport(
        site=row.name,
        sites=row.sites,
        recipients=row.recipients,
        sent=attempts,
        delivered=row.delivered,
        failed=row.failed,
        deferred=row.deferred,
        expired=row.expired,
        waiting=row.left,
        refused=row.refused,
        blocks=blocks,
        connections=connections,
        connections_most=connections_most,
        peak_per_s=round(max(row.steps, default=0) / tally.step_s, 2),
        mean_per_s=round(attempts / (row.done_s or result.ended_s or 1.0), 2),
        queue_max=row.queue_most,
        first_attempts_s=round(row.first_done_s, 3),
        done_s=round(row.done_s, 3),
        held=causes_of(row, result.scenario.rules),
    )


def causes_of(row: Row, rules: RuleSet) -> list[Held]:
    """What held a row back, the longest first."""
    ordered = sorted(row.causes.items(), key=lambda item: (-item[1], item[0]))[:CAUSES_MAX]
    return [
        Held(cause.rule, cause.limit, cause.value, round(seconds, 2), origin_of(cause, rules), cause.event)
        for cause, seconds in ordered
    ]


def origin_of(cause: Cause, rules: RuleSet) -> str:
    """Where the figure stands; where that is not known, where its rule does. What an event has set stands nowhere."""
    if not cause.rule or cause.event:
        return ""
    if (origin := rules.origins.get((cause.rule, cause.limit))) is not None:
        return origin
    for rule in (*rules.rules, rules.default):
        if rule.name == cause.rule:
            return rule.origin
        if rule.provider is not None and f"provider:{rule.provider.name}" == cause.rule:
            return rule.provider.origin
    for plan in rules.warm_ups:
        if f"warmup:{plan.name}" == cause.rule:
            return plan.origin
    return ""
