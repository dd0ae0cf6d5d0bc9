"""When a delivery will be done, what holds it up, and what raising that would gain.

The forecast itself is a simulation (`mta.simulation.engine`) of the backlog under the rules, the pools and the traffic
events as they are, with providers that take what is sent at the pace that was measured or is assumed. What a raised
limit would gain, or an event that were not, is told by the coarse way (`mta.simulation.flow`): as a part of the time,
so that what the coarse way leaves out does not count.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.model.egress import EgressPool
from mta.model.site import Site
from mta.simulation.bottleneck import SESSIONS, Cause, main_cause
from mta.simulation.engine import Result, simulate
from mta.simulation.flow import FlowSite, flow
from mta.simulation.report import origin_of
from mta.simulation.scenario import DeliveryModel, NodeModel, ProviderModel, Scenario
from mta.traffic.events import TrafficEvent
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import Rule, RuleSet

BOTTLENECKS_MAX: Final = 5
SITES_MAX: Final = 1_000  # of the answer, those that are done last
DEFAULT_MESSAGE_S: Final = 0.05
DEFAULT_CONNECT_S: Final = 0.15


class Pace(msgspec.Struct, frozen=True):
    """How a site takes mail: seconds a message on one connection, parts of attempts in percent."""

    message_s: float = DEFAULT_MESSAGE_S
    connect_s: float = DEFAULT_CONNECT_S
    failed_percent: float = 0.0
    deferred_percent: float = 0.0
    is_measured: bool = False


class SiteLoad(msgspec.Struct, frozen=True):
    """What waits for one site: recipients by name of a delivery. ``domain``: one of those that it serves."""

    site: Site
    domain: str
    counts: dict[str, int]
    pace: Pace = Pace()


class DeliveryLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery, or what of it is due at one time. ``is_wanted``: the forecast is for it.

    As traffic events name it: ``delivery_id`` (below 0: it has none), ``tenant``, and the one ``domain`` of all its
    recipients where events hold that back.
    """

    name: str
    is_wanted: bool
    pool: str
    weight: int = 1
    priority: int = 2
    start_s: float = 0.0
    retry: RetrySchedule
    validity_s: float  # from the start of the forecast on
    message_bytes: int = 40_000
    delivery_id: int = -1
    tenant: str = ""
    domain: str = ""


class Bottleneck(msgspec.Struct, frozen=True):
    """``rule`` is empty where no rule holds it up; ``origin`` is "file:line" of the figure.

    ``event``: name, target and whom it is on, of the traffic event that holds it up or has lowered the figure; then the
    figure is not the file's.
    """

    rule: str
    limit: str
    value: int
    origin: str
    event: str = ""


class SiteForecast(msgspec.Struct, frozen=True):
    site: str
    recipients: int
    finish_at: datetime.datetime
    seconds: float
    bottleneck: Bottleneck


class Gain(msgspec.Struct, frozen=True):
    """A bottleneck with the sites that it holds up, and how much sooner all would be done if its value were doubled, or
    without its event where it has one."""

    rule: str
    limit: str
    value: int
    origin: str
    sites: list[str]
    gain_s: float
    next_bottleneck: Bottleneck | None
    event: str = ""


class Forecast(msgspec.Struct, frozen=True):
    """``seconds`` from the time it was made at. ``waiting``: recipients that will not be done in their validity."""

    made_at: datetime.datetime
    finish_at: datetime.datetime
    seconds: float
    first_attempts_at: datetime.datetime
    recipients: int
    waiting: int
    sites: list[SiteForecast]
    sites_count: int
    bottlenecks: list[Gain]
    assumptions: list[str]


def scenario_of(
    deliveries: Sequence[DeliveryLoad],
    sites: Sequence[SiteLoad],
    *,
    rules: RuleSet,
    pools: Sequence[EgressPool],
    node: NodeModel,
    nodes: int,
    starts_unix_s: float,
    credits_used: Sequence[tuple[str, int, int]] = (),
    in_force: Sequence[TrafficEvent] = (),
) -> Scenario:
    """The world as it is, as a scenario. Its providers are the sites, by key. ``in_force``: traffic events."""
    counts: dict[str, list[tuple[str, int]]] = {}
    for load in sites:
        for name, count in load.counts.items():
            counts.setdefault(name, []).append((load.site.key, count))
    return Scenario(
        name="forecast",
        starts_unix_s=starts_unix_s,
        duration_s=max(delivery.validity_s for delivery in deliveries) + 1.0,
        rules=rules,
        pools=tuple(pools),
        providers=tuple(_provider(load) for load in sites),
        deliveries=tuple(
            DeliveryModel(
                name=delivery.name,
                recipients=sum(count for _, count in counts[delivery.name]),
                start_s=delivery.start_s,
                weight=delivery.weight,
                priority=delivery.priority,
                pool=delivery.pool,
                retry=delivery.retry,
                validity_s=max(1.0, delivery.validity_s - delivery.start_s),
                message_bytes=delivery.message_bytes,
                counts=tuple(counts[delivery.name]),
                delivery_id=delivery.delivery_id,
                tenant=delivery.tenant,
                domain=delivery.domain,
            )
            for delivery in deliveries
            if delivery.name in counts
        ),
        node=node,
        nodes=nodes,
        until=tuple(delivery.name for delivery in deliveries if delivery.is_wanted and delivery.name in counts),
        credits_used=tuple(credits_used),
        in_force=tuple(in_force),
    )


def _provider(load: SiteLoad) -> ProviderModel:
    pace = load.pace
    return ProviderModel(
        name=load.site.key,
        share=0.0,
        hosts=(),
        domains=(load.domain,),
        site=load.site,
        connect_s=pace.connect_s,
        message_s=pace.message_s,
        failed_percent=pace.failed_percent,
        deferred_percent=pace.deferred_percent,
    )


def forecast(scenario: Scenario, assumptions: Sequence[str] = ()) -> Forecast:
    """Plays what `scenario_of` made."""
    result = simulate(scenario)
    wanted = [errand for errand in result.errands if errand.model.name in scenario.until]
    seconds = max((errand.done_s for errand in wanted), default=0.0)
    waiting = sum(errand.waiting + errand.expired for errand in wanted)
    if waiting:
        seconds = result.ended_s
    sites = _sites(result)
    return Forecast(
        made_at=_time(scenario, 0.0),
        finish_at=_time(scenario, seconds),
        seconds=round(seconds, 3),
        first_attempts_at=_time(scenario, max((errand.first_done_s for errand in wanted), default=0.0)),
        recipients=sum(errand.model.recipients for errand in wanted),
        waiting=waiting,
        sites=sites[:SITES_MAX],
        sites_count=len(sites),
        bottlenecks=_gains(scenario, result, sites, seconds),
        assumptions=list(assumptions),
    )


def _time(scenario: Scenario, seconds: float) -> datetime.datetime:
    at = datetime.datetime.fromtimestamp(scenario.starts_unix_s, datetime.UTC)
    return at + datetime.timedelta(seconds=round(seconds, 3))


def _sites(result: Result) -> list[SiteForecast]:
    """Of the wanted deliveries, the last first."""
    scenario = result.scenario
    done: dict[str, float] = {}
    counts: dict[str, int] = {}
    for errand in result.errands:
        if errand.model.name in scenario.until:
            for name, count in errand.model.counts:
                counts[name] = counts.get(name, 0) + count
    for at, row in enumerate(result.tally.rows):
        if row.name in counts:
            times = [errand.done_by.get(at, 0.0) for errand in result.errands if errand.model.name in scenario.until]
            done[row.name] = result.ended_s if row.left and not max(times, default=0.0) else max(times, default=0.0)
    causes = {row.name: main_cause(row.causes) for row in result.tally.rows}
    found = [
        SiteForecast(
            name, counts[name], _time(scenario, seconds), round(seconds, 3), _named(causes[name], scenario.rules)
        )
        for name, seconds in done.items()
    ]
    return sorted(found, key=lambda site: (-site.seconds, -site.recipients, site.site))


def _named(cause: Cause, rules: RuleSet) -> Bottleneck:
    return Bottleneck(cause.rule, cause.limit, cause.value, origin_of(cause, rules), cause.event)


def _gains(scenario: Scenario, result: Result, sites: list[SiteForecast], seconds: float) -> list[Gain]:
    """For what holds up those that are done last."""
    by_limit: dict[tuple[str, str, str], tuple[Bottleneck, list[str]]] = {}
    for site in sites:
        held = site.bottleneck
        _, names = by_limit.setdefault((held.rule, held.limit, held.event), (held, []))
        names.append(site.site)
    base = flow(scenario)
    base_s = _flow_end(scenario, base)
    gains = []
    for held, names in list(by_limit.values())[:BOTTLENECKS_MAX]:
        changed = _doubled(scenario, held)
        gain_s, following = 0.0, None
        if changed is not None and base_s > 0.0:
            after = flow(changed)
            gain_s = seconds * max(0.0, 1.0 - _flow_end(changed, after) / base_s)
            following = _next(after, names, held, scenario.rules)
        told = (held.rule, held.limit, held.value, held.origin, names, round(gain_s, 1), following, held.event)
        gains.append(Gain(*told))
    return gains


def _flow_end(scenario: Scenario, sites: list[FlowSite]) -> float:
    wanted = {name for model in scenario.deliveries if model.name in scenario.until for name, _ in model.counts}
    return min(scenario.duration_s, max((site.done_s for site in sites if site.name in wanted), default=0.0))


def _next(after: list[FlowSite], names: list[str], held: Bottleneck, rules: RuleSet) -> Bottleneck | None:
    """What holds up the last of these sites then, if it is something else."""
    of_these = [site for site in after if site.name in set(names)]
    if not of_these:
        return None
    cause = max(of_these, key=lambda site: site.done_s).cause
    if not cause.event and (cause.rule, cause.limit, "") == (held.rule, held.limit, held.event):
        return Bottleneck(cause.rule, cause.limit, cause.value, held.origin)
    return _named(cause, rules)


def _doubled(scenario: Scenario, held: Bottleneck) -> Scenario | None:
    """The scenario with twice of what holds it up (of a ramp, half), or without the event that does; None where that is
    no figure of ours, or an event that is not in force yet."""
    if held.event:
        left = tuple(event for event in scenario.in_force if event.key != held.event)
        return None if len(left) == len(scenario.in_force) else msgspec.structs.replace(scenario, in_force=left)
    if held.limit == SESSIONS.limit:
        node = msgspec.structs.replace(scenario.node, sessions_max=2 * scenario.node.sessions_max)
        return msgspec.structs.replace(scenario, node=node)
    if not held.rule or held.limit not in Rule.__struct_fields__ or held.limit == "quiet_hours":
        return None
    rules = scenario.rules
    changed = RuleSet(
        [_raised(rule, held) for rule in rules.rules],
        _raised(rules.default, held),
        warm_ups=rules.warm_ups,
        error_blocks=rules.error_blocks,
        origins=rules.origins,
    )
    return msgspec.structs.replace(scenario, rules=changed)


def _raised(rule: Rule, held: Bottleneck) -> Rule:
    if rule.name == held.rule:
        value = getattr(rule, held.limit)
        return msgspec.structs.replace(rule, **{held.limit: _twice(held.limit, value)})
    provider = rule.provider
    if provider is not None and f"provider:{provider.name}" == held.rule:
        value = getattr(provider, held.limit)
        return msgspec.structs.replace(
            rule, provider=msgspec.structs.replace(provider, **{held.limit: _twice(held.limit, value)})
        )
    return rule


def _twice(limit: str, value: int | None) -> int | None:
    if value is None:
        return None
    return max(1, value // 2) if limit == "ramp_up_s" else 2 * value
