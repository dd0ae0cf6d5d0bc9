"""MX rules: which limits hold for a host of a site, and on what they are counted.

Rules are tried in the order of their file; the first whose mask fits the *MX host name* (never the
recipient's domain) and whose range holds the egress wins (campaign-mta §3.1). Where none does,
``DEFAULT_RULE`` holds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence

import msgspec

from mta.model.masks import canonical_name, compile_masks, covers, split_masks
from mta.model.timeouts import SessionTimeouts

# Host names come from strangers' DNS: what is remembered of them is bounded.
_CACHED_MATCHES_MAX = 50_000
_EGRESS_ID_LAST = 2**31 - 1


class Tls(enum.StrEnum):
    """What a rule asks of STARTTLS (RFC 3207)."""

    DISABLED = "disabled"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"


class Scope(enum.StrEnum):
    """On what ``connections_max`` and ``messages_per_hour_max`` of a rule are counted."""

    PATH = "path"  # for each egress and each peer address
    EGRESS = "egress"  # for each egress, over all hosts the rule covers
    SHARED = "shared"  # once, over all egresses and all hosts the rule covers


class Rule(msgspec.Struct, frozen=True):
    """One rule. A limit of None is no limit.

    ``name`` is the identity of its counters: they outlive a reload as long as the name stays.
    ``mx`` is one mask, or several with commas between. ``egress_ids`` are inclusive ranges.
    """

    name: str
    mx: str
    egress_ids: tuple[tuple[int, int], ...] = ()  # empty: all
    scope: Scope = Scope.EGRESS
    connections_max: int | None = None  # open at a time, counted as scope says
    connections_per_path_max: int | None = None  # open at a time for one egress and one peer address
    messages_per_connection_max: int | None = None
    messages_per_hour_max: int | None = None  # attempts, counted as scope says; see HourlyQuota
    tls: Tls = Tls.OPPORTUNISTIC
    pipelining: bool = True  # use it where it is offered
    chunking: bool = True
    timeouts: SessionTimeouts = SessionTimeouts()
    origin: str = ""  # "file:line"

    @property
    def masks(self) -> tuple[str, ...]:
        return split_masks(self.mx)

    def holds_for(self, egress_id: int) -> bool:
        """True when the egress is in the rule's range."""
        return not self.egress_ids or any(first <= egress_id <= last for first, last in self.egress_ids)


# Counted by path, because one total over every small host in the world would help nobody. The
# figures are the default row of peers §5c.
DEFAULT_RULE = Rule(
    name="default",
    mx="*",
    scope=Scope.PATH,
    connections_max=10,
    messages_per_connection_max=100,
    origin="built in",
)


def limit_key(rule: Rule, egress: int | str, peer: str) -> str:
    """The name of the counter that an attempt through ``egress`` (its id) to ``peer`` uses.

    Stable over restarts and nodes, so it may be stored. ``|`` stands in no rule name.
    """
    if rule.scope is Scope.SHARED:
        return rule.name
    if rule.scope is Scope.EGRESS:
        return f"{rule.name}|{egress}"
    return path_key(rule, egress, peer)


def path_key(rule: Rule, egress: int | str, peer: str) -> str:
    """The name of the counter of ``connections_per_path_max``, whatever the rule's scope."""
    return f"{rule.name}|{egress}|{peer}"


class RuleSet:
    """Rules in order. Immutable but for a cache of matches; a reload makes a new one."""

    def __init__(self, rules: Iterable[Rule] = (), default: Rule = DEFAULT_RULE) -> None:
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.default = default
        self._compiled: tuple[tuple[Rule, re.Pattern[str]], ...] = tuple(
            (rule, compile_masks(rule.masks)) for rule in self.rules
        )
        self._matches: dict[tuple[str, int], Rule] = {}

    def __len__(self) -> int:
        return len(self.rules)

    def match(self, mx_host: str, egress_id: int) -> Rule:
        """The rule that holds for a host through an egress. O(1) when asked before."""
        key = (mx_host, egress_id)
        rule = self._matches.get(key)
        if rule is None:
            rule = self._find(canonical_name(mx_host), egress_id)
            if len(self._matches) >= _CACHED_MATCHES_MAX:
                self._matches.clear()
            self._matches[key] = rule
        return rule

    def _find(self, name: str, egress_id: int) -> Rule:
        for rule, fits in self._compiled:
            if fits.fullmatch(name) and rule.holds_for(egress_id):
                return rule
        return self.default

    def fitting(self, mx_host: str) -> list[Rule]:
        """The rules whose mask fits, in order, whatever their range."""
        name = canonical_name(mx_host)
        return [rule for rule, fits in self._compiled if fits.fullmatch(name)]

    def explain_match(self, mx_host: str, egress_id: int) -> list[tuple[Rule, str]]:
        """Every rule in order, each with why it does or does not hold here; last the default, if it is what holds."""
        name = canonical_name(mx_host)
        chosen: Rule | None = None
        verdicts = []
        for rule, fits in self._compiled:
            if not fits.fullmatch(name):
                why = f"its mask {rule.mx} does not fit {name}"
            elif not rule.holds_for(egress_id):
                why = f"its mask fits, but egress {egress_id} is not in its range {format_ranges(rule.egress_ids)}"
            elif chosen is not None:
                why = f"it would fit, but rule {chosen.name} stands above it"
            else:
                chosen = rule
                why = f"holds: the first whose mask fits ({rule.mx}) and whose range includes egress {egress_id}"
            verdicts.append((rule, why))
        if chosen is None:
            verdicts.append((self.default, "holds: no rule fits"))
        return verdicts


def format_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """``1, 3-5``; ``all`` for none."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges) or "all"


def _uncovered(wanted: Sequence[tuple[int, int]], given: Iterable[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The part of ``wanted`` that no range of ``given`` holds; an empty sequence of ranges means all."""
    left = list(wanted) or [(1, _EGRESS_ID_LAST)]
    for ranges in given:
        for first, last in ranges or [(1, _EGRESS_ID_LAST)]:
            rest = []
            for low, high in left:
                if low < first:
                    rest.append((low, min(high, first - 1)))
                if high > last:
                    rest.append((max(low, last + 1), high))
            left = rest
    return left


def first_unreachable(rules: Sequence[Rule]) -> tuple[Rule, Rule] | None:
    """The first rule that can never hold, with the first rule above it that takes its hosts; None when all can."""
    above: list[tuple[Rule, re.Pattern[str]]] = []
    for rule in rules:
        takers: list[Rule] = []
        is_dead = True
        for mask in rule.masks:
            wider = [other for other, fits in above if covers(fits, mask)]
            takers += wider
            if _uncovered(rule.egress_ids, [other.egress_ids for other in wider]):
                is_dead = False
                break
        if is_dead and takers:
            return rule, takers[0]
        above.append((rule, compile_masks(rule.masks)))
    return None
