"""Which rule holds for each host of a site, on what its limits are counted, and who may carry the mail."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from mta.model.egress import Egress, EgressPool
from mta.model.site import Site
from mta.traffic.egress import EgressChooser
from mta.traffic.limits import LIMIT_KEYS, SLICES_PER_HOUR, Limits
from mta.traffic.rules import Rule, RuleSet, Scope

_COUNTED_ON = {
    Scope.PATH: "each egress and peer address",
    Scope.EGRESS: "each egress, over all hosts of this rule",
    Scope.SHARED: "all egresses and all hosts of this rule together",
}


class LimitExplained(msgspec.Struct, frozen=True):
    """One limit of a rule: its key, its value, on what it is counted, what follows from it, and file:line."""

    limit: str
    value: int
    counted_on: str
    note: str = ""
    origin: str = ""


class PassedOver(msgspec.Struct, frozen=True):
    """A rule above the one that holds. ``fits_mask``: only its range of egresses kept it from holding."""

    rule: str
    why: str
    fits_mask: bool


class RuleExplained(msgspec.Struct, frozen=True):
    """A rule as it holds for one host: for which egresses, why, and what was passed over before it."""

    rule: Rule
    egresses: tuple[str, ...]
    why: str
    limits: tuple[LimitExplained, ...]
    passed_over: tuple[PassedOver, ...]


class HostExplained(msgspec.Struct, frozen=True):
    """An MX host with its rules: one, unless ranges of egresses tell them apart."""

    name: str
    preference: int
    addresses: tuple[str, ...]
    rules: tuple[RuleExplained, ...]


class EgressExplained(msgspec.Struct, frozen=True):
    """An egress of the pool: whether it may carry the domain, and how much of it."""

    name: str
    id: int
    helo: str
    is_eligible: bool
    why: str
    share_percent: float


class SiteExplained(msgspec.Struct, frozen=True):
    """All of it, for one domain and one pool."""

    domain: str
    site: str
    pool: str
    egresses: tuple[EgressExplained, ...]
    hosts: tuple[HostExplained, ...]


def explain_site(domain: str, site: Site, rules: RuleSet, pool: EgressPool) -> SiteExplained:
    """What holds for mail to ``domain``, served by ``site``, through ``pool``; by the very code that decides."""
    eligible = EgressChooser(pool).eligible(domain)
    return SiteExplained(
        domain=domain,
        site=site.key,
        pool=pool.name,
        egresses=tuple(_egress(egress, eligible, domain) for egress in pool.egresses),
        hosts=tuple(
            HostExplained(
                host.name,
                host.preference,
                host.addresses,
                _rules(host.name, site.key, rules.domain_class(domain), rules, eligible or pool.egresses),
            )
            for host in site.hosts
        ),
    )


def _egress(egress: Egress, eligible: tuple[Egress, ...], domain: str) -> EgressExplained:
    is_eligible = egress in eligible
    if not is_eligible:
        included = EgressChooser(EgressPool("", (msgspec.structs.replace(egress, exclude_domains=()),))).eligible(
            domain
        )
        why = (
            f"{domain} fits a mask of exclude_domains ({', '.join(egress.exclude_domains)})"
            if included
            else f"{domain} fits no mask of include_domains ({', '.join(egress.include_domains)})"
        )
    elif egress.include_domains or egress.exclude_domains:
        why = "its masks let the domain pass"
    else:
        why = "it has no masks"
    share = 100 * egress.weight / sum(other.weight for other in eligible) if is_eligible else 0.0
    return EgressExplained(egress.name, egress.id, egress.helo, is_eligible, why, round(share, 1))


def _rules(
    mx_host: str, site: str, domain_class: str, rules: RuleSet, egresses: tuple[Egress, ...]
) -> tuple[RuleExplained, ...]:
    by_rule: dict[str, list[Egress]] = {}
    for egress in egresses:
        by_rule.setdefault(rules.match(mx_host, egress.id, site, domain_class).name, []).append(egress)
    fitting = rules.fitting(mx_host, site, domain_class)
    explained = []
    for users in by_rule.values():
        rule = rules.match(mx_host, users[0].id, site, domain_class)
        verdicts = rules.explain_match(mx_host, users[0].id, site, domain_class)
        at = next(i for i, (candidate, _) in enumerate(verdicts) if candidate is rule)
        explained.append(
            RuleExplained(
                rule=rule,
                egresses=tuple(egress.name for egress in users),
                why=verdicts[at][1],
                limits=explain_limits(rule, rules.origins) + explain_provider(rule, rules.origins),
                passed_over=tuple(
                    PassedOver(candidate.name, why, candidate in fitting) for candidate, why in verdicts[:at]
                ),
            )
        )
    return tuple(explained)


_NOTES = {
    "messages_per_connection_max": "then a new one",
    "ramp_up_s": "seconds between one more connection and the next, beside those that are open",
    "connections_per_second_max": "begun, whatever becomes of them",
    "connections_per_minute_max": "begun, whatever becomes of them",
    "connections_per_hour_max": "begun, whatever becomes of them",
    "messages_per_second_max": "attempts count",
    "messages_per_minute_max": "attempts count",
    "messages_per_day_max": "attempts count",
}


def explain_limits(rule: Rule, origins: Mapping[tuple[str, str], str] | None = None) -> tuple[LimitExplained, ...]:
    """The limits that the rule sets, none for those it leaves open. ``origins``: those of its rule set."""
    counted_on = {"connections_per_path_max": _COUNTED_ON[Scope.PATH], "messages_per_connection_max": "each connection"}
    return _explained(rule, rule.name, lambda key: counted_on.get(key, _COUNTED_ON[rule.scope]), origins or {})


def explain_provider(rule: Rule, origins: Mapping[tuple[str, str], str] | None = None) -> tuple[LimitExplained, ...]:
    """The limits of the rule's provider, which hold besides its own."""
    provider = rule.provider
    if provider is None:
        return ()
    where = "all egresses" if provider.scope is Scope.SHARED else "each egress"
    counted_on = f"{where}, over all that goes to provider {provider.name}"
    return _explained(provider, f"provider:{provider.name}", lambda _: counted_on, origins or {})


def _explained(
    limits: Limits, name: str, counted_on: Callable[[str], str], origins: Mapping[tuple[str, str], str]
) -> tuple[LimitExplained, ...]:
    found = []
    for key in LIMIT_KEYS:
        value: int | None = getattr(limits, key)
        if value is None:
            continue
        note = _NOTES.get(key, "")
        if key == "messages_per_hour_max":
            note = f"at most {max(1, value // SLICES_PER_HOUR):,} in any 5 minutes; attempts count"
        found.append(LimitExplained(key, value, counted_on(key), note, origins.get((name, key), "")))
    return tuple(found)
