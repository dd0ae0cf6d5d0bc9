"""Which traffic events that are in force concern a forecast, and which cannot be told in one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from mta.model.egress import Egress, EgressPool
from mta.simulation.forecast import DeliveryLoad, SiteLoad
from mta.traffic.effects import EffectKind, Target
from mta.traffic.events import TrafficEvent
from mta.traffic.rules import RuleSet

NAMED_MAX: Final = 10  # of each sort
APART_MAX: Final = 200  # domains that are held back, those with the most recipients first


class Standing(NamedTuple):
    """What was made of the events in force. ``said``: of each sort how many and which, for the answer."""

    in_force: list[TrafficEvent]
    said: list[str]


def apart(recipients: Mapping[str, int], events: Iterable[TrafficEvent]) -> frozenset[str]:
    """Domains that an event holds back: their recipients are counted for themselves."""
    held = {event.on for event in events if event.target is Target.DOMAIN and event.kind is EffectKind.SUSPEND}
    waiting = sorted(held & recipients.keys(), key=lambda domain: (-recipients[domain], domain))
    return frozenset(waiting[:APART_MAX])


def standing(
    events: Iterable[TrafficEvent],
    deliveries: Sequence[DeliveryLoad],
    sites: Sequence[SiteLoad],
    recipients: Mapping[str, int],
    *,
    rules: RuleSet,
    pools: Sequence[EgressPool],
) -> Standing:
    """``recipients``: by domain, all that wait."""
    egresses = {egress.id: egress for pool in pools for egress in pool.egresses}.values()
    known = _known(deliveries, sites, recipients, rules, egresses)
    kept: list[TrafficEvent] = []
    left_out: dict[str, list[TrafficEvent]] = {}
    others = 0
    names = {pool.name for pool in pools}
    domains = {delivery.domain for delivery in deliveries}
    for event in events:
        if not _concerns(event, known):
            others += 1
        elif why := _why_not(event, names, domains):
            left_out.setdefault(why, []).append(event)
        else:
            kept.append(event)
    said = [f"traffic events in force besides the rules, {_named(kept)}"] if kept else []
    said += [f"traffic events left out, {why}, {_named(found)}" for why, found in left_out.items()]
    if others:
        said.append(f"traffic events in force that concern nothing of this, {others:,} (mta traffic events)")
    return Standing(kept, said)


def _known(
    deliveries: Sequence[DeliveryLoad],
    sites: Sequence[SiteLoad],
    recipients: Collection[str],
    rules: RuleSet,
    egresses: Collection[Egress],
) -> dict[Target, set[str]]:
    """By target, all names that matter; of limits their first part, the name of the rule or the provider."""
    known: dict[Target, set[str]] = {
        Target.EGRESS: {egress.name for egress in egresses},
        Target.SITE: {load.site.key for load in sites},
        Target.DOMAIN: set(recipients),
        Target.DELIVERY: {str(delivery.delivery_id) for delivery in deliveries},
        Target.TENANT: {delivery.tenant for delivery in deliveries},
        Target.PATH: set(),
        Target.RULE: set(),
        Target.PROVIDER: set(),
        Target.ADDRESS: set(),
    }
    for load in sites:
        domain_class = rules.domain_class(load.domain)
        for host in load.site.hosts:
            for egress in egresses:
                rule = rules.match(host.name, egress.id, load.site.key, domain_class)
                known[Target.RULE].add(rule.name)
                if rule.provider is not None:
                    known[Target.PROVIDER].add(f"provider:{rule.provider.name}")
                known[Target.PATH].update(f"{egress.id}|{peer}" for peer in host.addresses)
    return known


def _concerns(event: TrafficEvent, known: Mapping[Target, Collection[str]]) -> bool:
    is_counted = event.target in (Target.RULE, Target.PROVIDER)
    return (event.on.partition("|")[0] if is_counted else event.on) in known[event.target]


def _why_not(event: TrafficEvent, pools: Collection[str], domains: Collection[str]) -> str:
    """Why it is not played; empty: it is."""
    if event.kind is EffectKind.CANCEL:
        return "as what it takes out of the queue is not there any more"
    if event.kind is EffectKind.NO_TLS:
        return "as whether a path is encrypted costs no time here"
    if event.kind is EffectKind.POOL and event.pool not in pools:
        return "as their pool is not in the settings"
    if event.target is Target.DOMAIN and event.on not in domains:
        return f"as no more than {APART_MAX} domains are held back apart"
    return ""


def _named(events: Sequence[TrafficEvent]) -> str:
    shown = ", ".join(f"{event.kind} {event.target} {event.on} ({event.name})" for event in events[:NAMED_MAX])
    return f"{len(events):,}: {shown}" + (f" and {len(events) - NAMED_MAX:,} more" if len(events) > NAMED_MAX else "")
