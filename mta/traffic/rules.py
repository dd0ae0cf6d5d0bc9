"""MX rules: which limits hold for a host of a site, and on what they are counted.

Rules are tried in the order of their file; the first whose mask fits the *MX host name* (never the
recipient's domain) and whose range holds the egress wins (campaign-mta §3.1). Where none does,
``DEFAULT_RULE`` holds.
"""

from __future__ import annotations

import datetime
import enum
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mta.model.masks import canonical_name, compile_masks, covers, split_masks
from mta.model.timeouts import SessionTimeouts
from mta.traffic.automations import Automation, ErrorBlock, Recovery
from mta.traffic.limits import Limits
from mta.traffic.retry import RetrySchedule

# Host names come from strangers' DNS: what is remembered of them is bounded.
_CACHED_MATCHES_MAX = 50_000
_EGRESS_ID_LAST = 2**31 - 1


class Tls(enum.StrEnum):
    """What a rule asks of STARTTLS (RFC 3207)."""

    DISABLED = "disabled"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"
    VERIFIED = "verified"  # required, with a certificate for the host's name by an authority that we trust


class Scope(enum.StrEnum):
    """On what the limits of a rule are counted, but those of a path or a connection."""

    PATH = "path"  # for each egress and each peer address
    EGRESS = "egress"  # for each egress, over all hosts the rule covers
    SHARED = "shared"  # once, over all egresses and all hosts the rule covers


class NextMx(enum.StrEnum):
    """When a less preferred host of a site is used."""

    WHEN_FAILING = "when-failing"  # every host that is preferred to it cannot be reached
    WHEN_FULL = "when-full"  # also when they only are at a limit
    NEVER = "never"


class Provider(Limits, frozen=True):
    """Limits over everything that several rules send to one provider, besides those of each rule.

    ``connections_per_path_max`` and ``messages_per_connection_max`` are not counted here; they belong to a rule.
    """

    name: str
    scope: Scope = Scope.EGRESS  # never PATH
    origin: str = ""


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """A plan for new source addresses: how many messages each may send a day to each provider, day by day.

    What exceeds a day's figure leaves from the other egresses of the pool; where there are none that are warm, the
    plan does not hold anything up. ``ladders``: by provider or rule name; "*" for all others. After the last day of a
    ladder the address is warm.
    """

    name: str
    egress_ids: tuple[tuple[int, int], ...]
    starts_unix_s: int  # 00:00 UTC of the first day
    ladders: tuple[tuple[str, tuple[int, ...]], ...]
    origin: str = ""


class QuietHours(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the day at which nothing is begun: minutes since midnight in ``zone``, each (from, to), to excluded.

    A span whose end is not after its start reaches over midnight.
    """

    spans: tuple[tuple[int, int], ...]
    zone: str = "UTC"

    def ends_at(self, unix_s: float) -> float:
        """When it is not quiet any more; ``unix_s`` itself when it is not quiet then."""
        at_s = unix_s
        for _ in range(2 * len(self.spans)):  # spans may follow one another
            until_s = self._end_of_span(at_s)
            if until_s <= at_s:
                break
            at_s = until_s
        return at_s

    def _end_of_span(self, unix_s: float) -> float:
        local = datetime.datetime.fromtimestamp(unix_s, zoneinfo.ZoneInfo(self.zone))
        minute = local.hour * 60 + local.minute
        for start, end in self.spans:
            if start < end:
                is_inside, days = start <= minute < end, 0
            else:
                is_inside, days = minute >= start or minute < end, int(minute >= start)
            if is_inside:
                day = (local + datetime.timedelta(days=days)).date()
                over = datetime.datetime(day.year, day.month, day.day, end // 60 % 24, end % 60, tzinfo=local.tzinfo)
                return over.timestamp()
        return unix_s


class Rule(Limits, frozen=True):
    """One rule. A limit of None is no limit.

    ``name`` is the identity of its counters: they outlive a reload as long as the name stays.
    ``mx``, ``sites`` and ``domains`` are one mask, or several with commas between; all of the three must fit.
    ``egress_ids`` are inclusive ranges.
    """

    name: str
    mx: str
    egress_ids: tuple[tuple[int, int], ...] = ()  # empty: all
    scope: Scope = Scope.EGRESS
    tls: Tls = Tls.OPPORTUNISTIC
    pipelining: bool = True  # use it where it is offered
    chunking: bool = False
    learn_hosts: bool = True  # what hosts were seen to do is kept and obeyed
    recipients_per_transaction_max: int = 1  # of simulated deliveries; a message has one of its own
    timeouts: SessionTimeouts = SessionTimeouts()
    origin: str = ""  # "file:line"
    sites: str = ""  # masks of the site's key; empty: all
    domains: str = ""  # masks of the recipient's domain; empty: all
    provider: Provider | None = None
    port: int | None = None  # None: that of the settings
    helo: str = ""  # empty: that of the egress
    next_mx: NextMx = NextMx.WHEN_FAILING
    pool: str = ""  # the egress pool of what goes to its hosts; empty: that of the delivery
    retry: RetrySchedule | None = None  # None: that of the delivery
    quiet_hours: QuietHours | None = None
    mta_sts: bool = True  # a domain's policy is honoured (RFC 8461)
    dane: bool = True  # TLSA records are honoured, where the resolver validates (RFC 7672)
    backoff: Limits | None = None  # what holds instead of the rule's own limits while it is in backoff
    automations: tuple[Automation, ...] = ()
    recovery: Recovery = Recovery()

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
    """Rules in order. Immutable but for caches of matches; a reload makes a new one.

    ``origins``: (name of a rule, or ``provider:`` and that of a provider; key) -> "file:line" of every value that a
    file gives, wherever it was inherited from.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        default: Rule = DEFAULT_RULE,
        *,
        warm_ups: Iterable[WarmUp] = (),
        error_blocks: Iterable[ErrorBlock] = (),
        origins: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.rules: tuple[Rule, ...] = tuple(rules)
        self.default = default
        self.warm_ups: tuple[WarmUp, ...] = tuple(warm_ups)
        self.error_blocks: tuple[ErrorBlock, ...] = tuple(error_blocks)
        self.origins: Mapping[tuple[str, str], str] = origins or {}
        self._compiled: tuple[_Compiled, ...] = tuple(_Compiled(rule) for rule in self.rules)
        # Rules that look at the recipient's domain: which of them fit it is all that is remembered of a domain.
        self._by_domain: tuple[_Compiled, ...] = tuple(one for one in self._compiled if one.domains is not None)
        self.has_sites = any(one.sites is not None for one in self._compiled)
        self._blocks = tuple((block, compile_masks(split_masks(block.domains))) for block in self.error_blocks)
        self._index, self._others = _index(self._compiled)
        self._matches: dict[tuple[str, str, str, int], Rule] = {}
        self._classes: dict[str, str] = {}
        self._fitting: tuple[tuple[str, str, str], list[Rule]] = (("", "", ""), [])  # of what was asked for last

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def domain_masks(self) -> tuple[tuple[str, str], ...]:
        """What `domain_class` depends on: of two sets with equal ones, the classes are equal too."""
        return tuple((one.rule.name, one.rule.domains) for one in self._by_domain)

    def domain_class(self, domain: str) -> str:
        """What rules tell apart about a recipient's domain: names of the rules whose ``domains`` fit, ``|`` between.

        Empty for most. It says all that a match needs, so it keeps its meaning when the rules change.
        """
        if not self._by_domain:
            return ""
        found = self._classes.get(domain)
        if found is None:
            name = canonical_name(domain)
            found = "|".join(
                one.rule.name for one in self._by_domain if one.domains is not None and one.domains.fullmatch(name)
            )
            if len(self._classes) >= _CACHED_MATCHES_MAX:
                self._classes.clear()
            self._classes[domain] = found
        return found

    def match(self, mx_host: str, egress_id: int, site: str = "", domain_class: str = "") -> Rule:
        """The rule that holds for a host of a site through an egress. O(1) when asked before."""
        key = (mx_host, site if self.has_sites else "", domain_class, egress_id)
        rule = self._matches.get(key)
        if rule is None:
            rule = self._find(mx_host, site, domain_class, egress_id)
            if len(self._matches) >= _CACHED_MATCHES_MAX:
                self._matches.clear()
            self._matches[key] = rule
        return rule

    def _find(self, mx_host: str, site: str, domain_class: str, egress_id: int) -> Rule:
        # A host is asked for through each egress in turn, and its masks say the same each time.
        asked = (mx_host, site, domain_class)
        if self._fitting[0] != asked:
            name = canonical_name(mx_host)
            fitting = [one.rule for one in self._candidates(name) if self._fits(one, name, site, domain_class)]
            self._fitting = (asked, fitting)
        return next((rule for rule in self._fitting[1] if rule.holds_for(egress_id)), self.default)

    def _candidates(self, name: str) -> list[_Compiled]:
        """In order, all rules but those that certainly do not fit: nearly every mask is ``*.`` and a domain."""
        numbers = set(self._others)
        at = name.find(".")
        while at >= 0:
            numbers.update(self._index.get(name[at + 1 :], ()))
            at = name.find(".", at + 1)
        return [self._compiled[number] for number in sorted(numbers)]

    def _fits(self, one: _Compiled, name: str, site: str, domain_class: str) -> bool:
        if not one.mx.fullmatch(name) or (one.sites is not None and not one.sites.fullmatch(site)):
            return False
        return one.domains is None or one.rule.name in domain_class.split("|")

    def error_block(self, domain: str) -> ErrorBlock | None:
        """The first block whose masks fit a recipient domain."""
        name = canonical_name(domain)
        return next((block for block, fits in self._blocks if fits.fullmatch(name)), None)

    def warm_up(self, egress_id: int) -> WarmUp | None:
        """The plan of a source address, if it has one."""
        for plan in self.warm_ups:
            if any(first <= egress_id <= last for first, last in plan.egress_ids):
                return plan
        return None

    def fitting(self, mx_host: str, site: str = "", domain_class: str = "") -> list[Rule]:
        """The rules whose masks fit, in order, whatever their range."""
        name = canonical_name(mx_host)
        return [one.rule for one in self._compiled if self._fits(one, name, site, domain_class)]

    def explain_match(
        self, mx_host: str, egress_id: int, site: str = "", domain_class: str = ""
    ) -> list[tuple[Rule, str]]:
        """Every rule in order, each with why it does or does not hold here; last the default, if it is what holds."""
        name = canonical_name(mx_host)
        chosen: Rule | None = None
        verdicts = []
        for one in self._compiled:
            rule = one.rule
            if not one.mx.fullmatch(name):
                why = f"its mask {rule.mx} does not fit {name}"
            elif one.sites is not None and not one.sites.fullmatch(site):
                why = f"its mask fits, but the site {site or '(not given)'} does not fit {rule.sites}"
            elif not self._fits(one, name, site, domain_class):
                why = f"its mask fits, but the recipient's domain does not fit {rule.domains}"
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


def _index(rules: Sequence[_Compiled]) -> tuple[dict[str, list[int]], list[int]]:
    """Numbers of the rules by the domain behind ``*.`` in their masks; and of those with a mask of another kind."""
    by_domain: dict[str, list[int]] = {}
    others = []
    for number, one in enumerate(rules):
        domains = [canonical_name(mask[2:]) for mask in one.rule.masks if mask.startswith("*.")]
        if len(domains) < len(one.rule.masks) or any("*" in domain or "?" in domain for domain in domains):
            others.append(number)
        else:
            for domain in domains:
                by_domain.setdefault(domain, []).append(number)
    return by_domain, others


class _Compiled:
    """A rule with its masks made ready. ``sites`` and ``domains``: None fits all."""

    __slots__ = ("domains", "mx", "rule", "sites")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.mx = compile_masks(rule.masks)
        self.sites = compile_masks(split_masks(rule.sites)) if rule.sites else None
        self.domains = compile_masks(split_masks(rule.domains)) if rule.domains else None


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


def _takes_as_much(above: Rule, rule: Rule) -> bool:
    """True when sites and domains do not let anything of ``rule`` pass by ``above``."""
    return above.sites in ("", rule.sites) and above.domains in ("", rule.domains)


def first_unreachable(rules: Sequence[Rule]) -> tuple[Rule, Rule] | None:
    """The first rule that can never hold, with the first rule above it that takes its hosts; None when all can."""
    above: list[tuple[Rule, re.Pattern[str]]] = []
    for rule in rules:
        takers: list[Rule] = []
        is_dead = True
        for mask in rule.masks:
            wider = [other for other, fits in above if covers(fits, mask) and _takes_as_much(other, rule)]
            takers += wider
            if _uncovered(rule.egress_ids, [other.egress_ids for other in wider]):
                is_dead = False
                break
        if is_dead and takers:
            return rule, takers[0]
        above.append((rule, compile_masks(rule.masks)))
    return None
