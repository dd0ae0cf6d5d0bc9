"""What is wrong with rules that could be loaded all the same: every rule resolved, every pattern tried.

`lint_rules` needs the rules only. `lint_place` needs to know the node they are for; `mta.traffic.lint_replies.cover`
runs a corpus of replies over them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from mta.model.egress import Egress
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.lint_limits import find_idle_limits
from mta.traffic.lint_reach import find_unreachable
from mta.traffic.lint_replies import find_reply_faults
from mta.traffic.rules import RuleSet, WarmUp, format_ranges

_ORDER = {severity: place for place, severity in enumerate(Severity)}


def lint_rules(rules: RuleSet, named: Mapping[str, str] = MappingProxyType({})) -> list[Finding]:
    """All that can be said of a set of rules by itself.

    ``named``: the place of each ``provider:NAME`` and ``automation:NAME`` of its texts, used or not.
    """
    found = [*find_unreachable(rules, named), *find_idle_limits(rules), *find_reply_faults(rules)]
    return in_order(found)


def lint_place(rules: RuleSet, egresses: Iterable[Egress], pools: Iterable[str]) -> list[Finding]:
    """What rules name that is not there where they are to be used: egresses, pools."""
    return in_order([*_pools(rules, set(pools)), *_egress_ids(rules, {egress.id for egress in egresses})])


def lint_addresses(egresses: Iterable[Egress], where: str, fault: Callable[[str], str]) -> list[Finding]:
    """Source addresses that cannot be used. ``where``: the file that gives them; ``fault`` tries an address."""
    found = []
    for egress in egresses:
        for address in (egress.source_ipv4, egress.source_ipv6):
            if address is not None and (said := fault(address)):
                what = f"egress address {address} is not owned by this machine ({said}); nothing can leave by it"
                found.append(Finding(Check.ADDRESS_NOT_HERE, Severity.WARNING, where, f"egress {egress.name}", what))
    return found


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By file and line, without repeats: the same check about the same subject at the same place counts once."""
    unique = {(one.check, one.where, one.subject, one.what): one for one in findings}
    return sorted(unique.values(), key=lambda one: (*_place(one.where), _ORDER[one.severity], one.check, one.subject))


def _place(where: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*):(\d+)", where)
    return (match[1], int(match[2])) if match else (where, 0)


def _pools(rules: RuleSet, pools: set[str]) -> Iterator[Finding]:
    known = f"known: {', '.join(sorted(pools))}"
    for rule in rules.rules:
        if rule.pool and rule.pool not in pools:
            where = rules.origins.get((rule.name, "pool"), rule.origin)
            what = f"pool: no pool is named {rule.pool!r}, so its mail waits for ever; {known}"
            yield Finding(Check.POOL_UNKNOWN, Severity.ERROR, where, f"rule {rule.name}", what)
        for automation in rule.automations:
            if automation.pool and automation.pool not in pools:
                subject = f"automation {automation.name} of rule {rule.name}"
                what = f"pool: no pool is named {automation.pool!r}; {known}"
                yield Finding(Check.POOL_UNKNOWN, Severity.ERROR, automation.origin, subject, what)


def _egress_ids(rules: RuleSet, ids: set[int]) -> Iterator[Finding]:
    known = f"those of the settings: {', '.join(map(str, sorted(ids)))}"
    for rule in rules.rules:
        if rule.egress_ids and not any(rule.holds_for(one) for one in ids):
            where = rules.origins.get((rule.name, "egress_ids"), rule.origin)
            what = f"egress_ids {format_ranges(rule.egress_ids)}: no egress has such an id, so it never holds; {known}"
            yield Finding(Check.EGRESS_UNKNOWN, Severity.WARNING, where, f"rule {rule.name}", what)
    for plan in rules.warm_ups:
        if not any(_is_in(plan, one) for one in ids):
            what = f"egress_ids {format_ranges(plan.egress_ids)}: no egress has such an id; {known}"
            yield Finding(Check.EGRESS_UNKNOWN, Severity.WARNING, plan.origin, f"warm-up {plan.name}", what)


def _is_in(plan: WarmUp, egress_id: int) -> bool:
    return any(first <= egress_id <= last for first, last in plan.egress_ids)
