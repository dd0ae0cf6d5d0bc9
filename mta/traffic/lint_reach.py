"""Rules, masks and plans that can never hold, because others stand in front of them or nothing asks for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from mta.model.masks import canonical, split_masks
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.mask_sets import can_fit, is_covered
from mta.traffic.rules import Rule, RuleSet, Scope, WarmUp, format_ranges

_ID_LAST = 2**31 - 1
_ALL_IDS = ((1, _ID_LAST),)
_Ranges = Sequence[tuple[int, int]]


def find_unreachable(rules: RuleSet, named: Mapping[str, str]) -> Iterator[Finding]:
    """All of this module, in the order of the file as far as that goes."""
    above = _Above()
    for rule in rules.rules:
        yield from _of_rule(rule, above)
        above.add(rule)
    yield from _unused(rules, named)
    yield from _warm_ups(rules)
    yield from _error_blocks(rules)


def is_for_everybody(rule: Rule) -> bool:
    """True when every host is its, so that strangers share what it counts."""
    return not rule.sites and not rule.domains and is_covered("*", rule.masks)


class _Above:
    """The masks of rules that stand above another, by what stands behind their last wildcard."""

    def __init__(self) -> None:
        self._by_tail: dict[str, list[tuple[str, Rule]]] = {}

    def add(self, rule: Rule) -> None:
        for mask in rule.masks:
            self._by_tail.setdefault(_tail(mask), []).append((mask, rule))

    def takers(self, mask: str) -> list[tuple[str, Rule]]:
        """Masks that may take all names of ``mask``, with their rules. One that ends in more takes a part at most."""
        tail = _tail(mask)
        return [found for at in range(len(tail) + 1) for found in self._by_tail.get(tail[at:], ())]


def _tail(mask: str) -> str:
    return re.split(r"[*?]", canonical(mask))[-1]


def _of_rule(rule: Rule, above: _Above) -> Iterator[Finding]:
    subject = f"rule {rule.name}"
    for kind, masks in (("mx", rule.masks), ("sites", split_masks(rule.sites)), ("domains", split_masks(rule.domains))):
        for mask in masks:
            if kind != "sites" and not can_fit(mask):
                what = f"{kind}: no name can ever fit {mask!r}: a name neither begins nor ends with a dot"
                yield Finding(Check.IMPOSSIBLE_MASK, Severity.ERROR, rule.origin, subject, what)
    dead = {mask: takers for mask in rule.masks if (takers := _taken_by(rule, mask, above)) is not None}
    names = {mask: ", ".join(f"{one.name} ({one.origin})" for one in takers) for mask, takers in dead.items()}
    if dead and len(dead) == len(set(rule.masks)):
        by = ", ".join(dict.fromkeys(names.values()))
        what = f"can never hold: {by} above it take all its hosts; move it above them, or delete it"
        yield Finding(Check.DEAD_RULE, Severity.ERROR, rule.origin, subject, what)
    else:
        for mask, by in names.items():
            what = (
                f"mask {mask} never fits anything: {by} above take all that it would fit; delete it, or move the rule"
            )
            yield Finding(Check.DEAD_MASK, Severity.WARNING, rule.origin, subject, what)
    if rule.scope is not Scope.PATH and is_for_everybody(rule):
        what = f"fits every host there is, and all of them share one count; write scope = {Scope.PATH.value!r}"
        yield Finding(Check.SHARED_CATCH_ALL, Severity.WARNING, rule.origin, subject, what)


def _taken_by(rule: Rule, mask: str, above: _Above) -> list[Rule] | None:
    """Rules above that together take all that ``mask`` fits, whatever the egress; None when something is left."""
    takers = [(taken, one) for taken, one in above.takers(mask) if _takes_as_much(one, rule)]
    used: dict[str, Rule] = {}
    for egress_id in _samples(rule.egress_ids, [one.egress_ids for _, one in takers]):
        here = [(taken, one) for taken, one in takers if one.holds_for(egress_id)]
        single = next(((taken, one) for taken, one in here if is_covered(mask, [taken])), None)
        if single is not None:
            used[single[1].name] = single[1]
        elif len(here) > 1 and is_covered(mask, [taken for taken, _ in here]):
            used.update((one.name, one) for _, one in here)
        else:
            return None
    return list(used.values())


def _samples(wanted: _Ranges, others: Sequence[_Ranges]) -> list[int]:
    """Egress ids out of ``wanted``, one at least of each stretch on which no range of ``others`` begins or ends."""
    edges = {first for ranges in others for first, _ in ranges} | {last + 1 for ranges in others for _, last in ranges}
    found: set[int] = set()
    for first, last in wanted or _ALL_IDS:
        found.add(first)
        found.update(edge for edge in edges if first <= edge <= last)
    return sorted(found)


def _takes_as_much(above: Rule, rule: Rule) -> bool:
    """True when sites and domains let nothing of ``rule`` pass by ``above``."""
    return _within(rule.sites, above.sites, are_names=False) and _within(rule.domains, above.domains, are_names=True)


def _within(narrow: str, wide: str, *, are_names: bool) -> bool:
    if not wide or narrow == wide:
        return True
    covers = split_masks(wide)
    return all(is_covered(mask, covers, are_names=are_names) for mask in split_masks(narrow) or ("*",))


def _unused(rules: RuleSet, named: Mapping[str, str]) -> Iterator[Finding]:
    """Providers and automations that a file describes and no rule names."""
    used = {f"provider:{rule.provider.name}" for rule in rules.rules if rule.provider is not None}
    used |= {f"automation:{one.name}" for rule in rules.rules for one in rule.automations}
    for owner, where in named.items():
        if owner in used:
            continue
        subject = owner.replace(":", " ", 1)
        if owner.startswith("provider:"):
            what = "no rule belongs to it, so its limits hold nothing; give its rules this provider, or delete it"
            yield Finding(Check.UNUSED_PROVIDER, Severity.WARNING, where, subject, what)
        else:
            what = "no rule has it among its automations, so it never fires; name it in a rule, or delete it"
            yield Finding(Check.UNUSED_AUTOMATION, Severity.WARNING, where, subject, what)


def _warm_ups(rules: RuleSet) -> Iterator[Finding]:
    known = {rule.name for rule in rules.rules} | {"*", rules.default.name}
    known |= {rule.provider.name for rule in rules.rules if rule.provider is not None}
    above: list[WarmUp] = []
    for plan in rules.warm_ups:
        subject = f"warm-up {plan.name}"
        for name, days in plan.ladders:
            if name not in known:
                what = f"ladder {name}: no rule and no provider has this name, so it never holds"
                yield Finding(Check.LADDER_UNKNOWN, Severity.WARNING, plan.origin, subject, what)
            elif any(later < earlier for earlier, later in itertools.pairwise(days)):
                what = f"ladder {name} goes down on the way; a ladder is meant to grow from day to day"
                yield Finding(Check.LADDER_UNKNOWN, Severity.NOTE, plan.origin, subject, what)
        taken = [one for one in above if _overlap(one.egress_ids, plan.egress_ids)]
        if taken:
            ids = format_ranges(_common(taken[0].egress_ids, plan.egress_ids))
            what = f"egress {ids} belong to warm-up {taken[0].name} ({taken[0].origin}), the first plan that names them"
            yield Finding(Check.WARM_UP_SHADOWED, Severity.WARNING, plan.origin, subject, what)
        above.append(plan)


def _common(one: _Ranges, other: _Ranges) -> list[tuple[int, int]]:
    both = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return [(first, last) for first, last in both if first <= last]


def _overlap(one: _Ranges, other: _Ranges) -> bool:
    return bool(_common(one, other))


def _error_blocks(rules: RuleSet) -> Iterator[Finding]:
    above: list[str] = []
    for block in rules.error_blocks:
        masks = split_masks(block.domains)
        if above and all(is_covered(mask, above) for mask in masks):
            what = "can never hold: blocks above it take all its domains; the first that fits wins"
            yield Finding(Check.ERROR_BLOCK_DEAD, Severity.ERROR, block.origin, f"error block {block.domains}", what)
        above += masks
