"""Which rule holds for each host of a site, on what its limits are counted, and who may carry the mail."""

from __future__ import annotations

import msgspec

from mta.model.egress import Egress, EgressPool
from mta.model.site import Site
from mta.traffic.egress import EgressChooser
from mta.traffic.limits import SLICES_PER_HOUR
from mta.traffic.rules import Rule, RuleSet, Scope

_COUNTED_ON = {
    Scope.PATH: "each egress and peer address",
    Scope.EGRESS: "each egress, over all hosts of this rule",
    Scope.SHARED: "all egresses and all hosts of this rule together",
}


class LimitExplained(msgspec.Struct, frozen=True):
    """One limit of a rule: its key, its value, on what it is counted, and what follows from it."""

    limit: str
    value: int
    counted_on: str
    note: str = ""


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
                host.name, host.preference, host.addresses, _rules(host.name, rules, eligible or pool.egresses)
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


def _rules(mx_host: str, rules: RuleSet, egresses: tuple[Egress, ...]) -> tuple[RuleExplained, ...]:
    by_rule: dict[str, list[Egress]] = {}
    for egress in egresses:
        by_rule.setdefault(rules.match(mx_host, egress.id).name, []).append(egress)
    fitting = rules.fitting(mx_host)
    explained = []
    for users in by_rule.values():
        rule = rules.match(mx_host, users[0].id)
        verdicts = rules.explain_match(mx_host, users[0].id)
        at = next(i for i, (candidate, _) in enumerate(verdicts) if candidate is rule)
        explained.append(
            RuleExplained(
                rule=rule,
                egresses=tuple(egress.name for egress in users),
                why=verdicts[at][1],
                limits=explain_limits(rule),
                passed_over=tuple(
                    PassedOver(candidate.name, why, candidate in fitting) for candidate, why in verdicts[:at]
                ),
            )
        )
    return tuple(explained)


def explain_limits(rule: Rule) -> tuple[LimitExplained, ...]:
    """The limits that the rule sets, none for those it leaves open."""
    found = []
    if rule.connections_max is not None:
        found.append(LimitExplained("connections_max", rule.connections_max, _COUNTED_ON[rule.scope]))
    if rule.connections_per_path_max is not None:
        found.append(LimitExplained("connections_per_path_max", rule.connections_per_path_max, _COUNTED_ON[Scope.PATH]))
    if rule.messages_per_connection_max is not None:
        found.append(
            LimitExplained(
                "messages_per_connection_max", rule.messages_per_connection_max, "each connection", "then a new one"
            )
        )
    if rule.messages_per_hour_max is not None:
        a_slice = max(1, rule.messages_per_hour_max // SLICES_PER_HOUR)
        found.append(
            LimitExplained(
                "messages_per_hour_max",
                rule.messages_per_hour_max,
                _COUNTED_ON[rule.scope],
                f"at most {a_slice:,} in any 5 minutes; attempts count",
            )
        )
    return tuple(found)
