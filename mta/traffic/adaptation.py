"""From replies to events: how many matches in what time lead to what, and how it passes.

Pure: the clock is handed in, and so are the events that are in force, which others keep, store and share. What is
remembered here is only how many replies of each kind came lately; a restart forgets that, and no event.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from mta.traffic import recovery as growth
from mta.traffic.automations import Act, Automation, ErrorBlock, Recovery
from mta.traffic.effects import EffectKind, Target, effect_key
from mta.traffic.error_rates import DomainFigures, ErrorRates, OthersFigures
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.sessions import Session

COUNTS_MAX: Final = 20_000  # (automation, target) pairs that are remembered, those that matched last
BLOCKS_KEPT: Final = 20_000  # domains of which it is known which block they are under
DETAIL_CHARS_MAX: Final = 500
ERROR_BLOCK: Final = ErrorBlock(origin="built in")
ERROR_BLOCK_NAME: Final = "error-rate-block"
ERRORS_TOLD_MIN: Final = 10  # fewer make no block, as far as a database has some tens of nodes
DOMAINS_TOLD_MAX: Final = 1_000
ANSWER_S: Final = 40.0  # within it each node has looked twice: it has seen what is asked for, and told its figures
_NO_OTHERS: Final = OthersFigures()
# An event that is in force already is prolonged when that moves its end by so much of its length, not for every reply.
_WORTH_TELLING: Final = 1 / 60
_KINDS: Final = {
    Act.SUSPEND: EffectKind.SUSPEND,
    Act.LOWER: EffectKind.LOWER,
    Act.BACKOFF: EffectKind.BACKOFF,
    Act.NO_TLS: EffectKind.NO_TLS,
    Act.POOL: EffectKind.POOL,
    Act.HOLD: EffectKind.SUSPEND,
}


class Whom(NamedTuple):
    """Where a reply came from, and whom it met. ``rule_key`` and ``provider_key``: of the limits; empty: none."""

    egress_id: int
    egress: str
    peer: str
    site: str
    rule_key: str
    provider_key: str = ""
    domain: str = ""
    tenant: str = ""
    delivery_id: int = 0

    def on(self, target: Target) -> str:
        """How an effect on ``target`` names it; empty: it is not known."""
        return {
            Target.PATH: f"{self.egress_id}|{self.peer}",
            Target.RULE: self.rule_key,
            Target.PROVIDER: self.provider_key,
            Target.EGRESS: self.egress,
            Target.SITE: self.site,
            Target.DOMAIN: self.domain,
            Target.TENANT: self.tenant,
            Target.DELIVERY: str(self.delivery_id) if self.delivery_id else "",
        }[target]


class _Matches:
    """When replies of one kind came: in the last ``within_s`` seconds, exactly."""

    __slots__ = ("times", "total", "untold")

    def __init__(self) -> None:
        self.times: deque[tuple[float, int]] = deque()
        self.total = 0
        self.untold = 0  # since an event told of them

    def add(self, now_s: float, replies: int, within_s: int, enough: int) -> int:
        times = self.times
        if times and times[-1][0] <= now_s - within_s:
            self.untold = 0  # they led to nothing
        self.untold += replies
        times.append((now_s, replies))
        self.total += replies
        # More than are needed are not kept: the latest tell all.
        while times and (times[0][0] <= now_s - within_s or self.total - times[0][1] >= enough):
            self.total -= times.popleft()[1]
        return self.total


class Adaptation:
    """Counts replies and errors. ``in_force`` finds the event of a key, if there is one."""

    def __init__(self, rules: RuleSet, in_force: Callable[[str], TrafficEvent | None]) -> None:
        self._rules = rules
        self._in_force = in_force
        self._matches: OrderedDict[tuple[str, Target, str], _Matches] = OrderedDict()
        self._rates = ErrorRates()
        self._others: dict[str, OthersFigures] = {}  # by domain
        self._told: dict[str, float] = {}  # domain -> since when other nodes can know of its errors here
        self._nodes = 1  # that live
        self._blocks: dict[str, ErrorBlock | None] = {}  # by domain
        self._recoveries = _recoveries_of(rules)

    def set_rules(self, rules: RuleSet) -> None:
        """A reload. What was counted stays counted."""
        self._rules = rules
        self._blocks.clear()
        self._recoveries = _recoveries_of(rules)

    # --- replies ------------------------------------------------------------------------------

    def matched(
        self, automation: Automation, rule: Rule, whom: Whom, replies: int, sample: str, now_unix_s: float
    ) -> list[TrafficEvent]:
        """Replies that an automation of the rule waits for have come: the events that begin or go on by that."""
        on = whom.on(automation.target)
        if not on:
            return []
        counted = (automation.name, automation.target, on)
        matches = self._matches.get(counted)
        if matches is None:
            matches = self._matches[counted] = _Matches()
            if len(self._matches) > COUNTS_MAX:
                self._matches.popitem(last=False)
        self._matches.move_to_end(counted)
        if matches.add(now_unix_s, replies, automation.within_s, automation.replies) < automation.replies:
            return []
        found = self._fired(automation, rule, on, matches.untold, sample, now_unix_s)
        if found:
            matches.untold = 0
        return found

    def _fired(
        self, automation: Automation, rule: Rule, on: str, replies: int, sample: str, now_unix_s: float
    ) -> list[TrafficEvent]:
        found = []
        before = self._in_force(effect_key(automation.name, automation.target, on))
        event = _event(automation, rule, on, sample, now_unix_s)
        if before is not None:
            is_told = event.until_unix_s - before.until_unix_s < automation.for_s * _WORTH_TELLING
            if is_told and not before.step:
                return []
            event = msgspec.structs.replace(
                event, began_unix_s=before.began_unix_s, replies=before.replies, base=before.base or event.base
            )
            # An operator may have given it a longer time.
            event = msgspec.structs.replace(event, until_unix_s=max(event.until_unix_s, before.until_unix_s))
        found.append(msgspec.structs.replace(event, replies=event.replies + replies))
        if automation.act is Act.BACKOFF and self._in_force(_recovering_key(automation.name, on)) is not None:
            found += self._after_backoff(found[0], rule, found[0].until_unix_s)
        return found

    # --- error rates --------------------------------------------------------------------------

    def counted(self, domain: str, messages: int, errors: int, now_unix_s: float) -> TrafficEvent | None:
        """Attempts of a recipient domain and how many of them were errors of it: the block that follows, if any.

        Attempts are those in a session; where there was none to be had, the backoff of paths says when there may be.
        What ends badly while the domain is blocked was under way already; after the block it is counted from nothing.
        Where there are other nodes, their figures count too, and no block is decided before they could tell them.
        """
        block = self._block_of(domain)
        if block is None:
            return None
        if errors and self._in_force(effect_key(ERROR_BLOCK_NAME, Target.DOMAIN, domain)) is not None:
            self._rates.forget(domain)
            return None
        messages, errors = self._rates.count(domain, messages, errors, block.within_s, now_unix_s)
        return self._block(domain, block, messages, errors, now_unix_s)

    def _block(
        self, domain: str, block: ErrorBlock, messages: int, errors: int, now_unix_s: float
    ) -> TrafficEvent | None:
        others = self._others.get(domain, _NO_OTHERS)
        messages, errors = messages + others.messages, errors + others.errors
        if messages < block.messages_min or errors * 100 < block.error_percent * messages:
            return None
        if self._nodes > 1 and now_unix_s - self._told.get(domain, math.inf) < ANSWER_S:
            return None
        self._rates.forget(domain)
        over = f", over {others.nodes + 1} nodes" if others.nodes else ""
        return TrafficEvent(
            key=effect_key(ERROR_BLOCK_NAME, Target.DOMAIN, domain),
            name=ERROR_BLOCK_NAME,
            kind=EffectKind.SUSPEND,
            target=Target.DOMAIN,
            on=domain,
            began_unix_s=now_unix_s,
            until_unix_s=now_unix_s + block.for_s,
            replies=errors,
            detail=f"{errors:,} of {messages:,} messages failed or were deferred in {_span(block.within_s)}{over}",
            automation=ERROR_BLOCK_NAME,
        )

    def figures(self, now_unix_s: float) -> list[DomainFigures]:
        """What other nodes must know: domains with errors here, and those that others tell of; the worst first."""
        found = [
            one
            for one in self._rates.figures(self._within_s, self._others, ERRORS_TOLD_MIN, now_unix_s)
            if self._in_force(effect_key(ERROR_BLOCK_NAME, Target.DOMAIN, one.domain)) is None
        ]
        return sorted(found, key=lambda one: -one.errors)[:DOMAINS_TOLD_MAX]

    def exchanged(
        self, told: Iterable[DomainFigures], others: Mapping[str, OthersFigures], nodes: int, now_unix_s: float
    ) -> list[TrafficEvent]:
        """The nodes have added up their figures: the blocks that follow. ``told``: by this one. ``nodes`` live."""
        told = list(told)
        self._told = {one.domain: self._told.get(one.domain, now_unix_s) for one in told}
        self._others = dict(others)
        self._nodes = nodes
        found = []
        for one in told:
            block = self._block_of(one.domain)
            if block is not None:
                messages, errors = self._rates.count(one.domain, 0, 0, block.within_s, now_unix_s)
                event = self._block(one.domain, block, messages, errors, now_unix_s)
                found += [] if event is None else [event]
        return found

    def _within_s(self, domain: str) -> int | None:
        block = self._block_of(domain)
        return None if block is None else block.within_s

    def _block_of(self, domain: str) -> ErrorBlock | None:
        if not self._rules.error_blocks:
            return ERROR_BLOCK
        if domain not in self._blocks:
            if len(self._blocks) >= BLOCKS_KEPT:
                self._blocks.clear()
            self._blocks[domain] = self._rules.error_block(domain)
        return self._blocks[domain]

    # --- time ---------------------------------------------------------------------------------

    def due(self, in_force: Iterable[TrafficEvent], now_unix_s: float, margin_s: float = 0.0) -> list[TrafficEvent]:
        """Events that go on by a step: limits that grow back, and what follows a backoff that is about to end.

        ``margin_s``: what ends within it is looked at now, before whoever keeps the events lets it go.
        """
        found = []
        for event in in_force:
            recovery = self._recoveries.get(event.rule, Recovery())
            if event.kind is EffectKind.LOWER and event.automation:
                if (grown := growth.next_step(event, recovery, now_unix_s)) is not None:
                    found.append(grown)
            elif event.kind is EffectKind.BACKOFF and event.automation:
                key = _recovering_key(event.name, event.on)
                if event.until_unix_s - now_unix_s <= margin_s and self._in_force(key) is None:
                    rule = self._rule(event.rule)
                    if rule is not None:
                        found += self._after_backoff(event, rule, event.until_unix_s)
        return found

    def next_due_unix_s(self, in_force: Iterable[TrafficEvent], margin_s: float = 0.0) -> float:
        """When the first of these goes on by a step (see `due`) or is over; inf: never, as it stands."""
        found = math.inf
        for event in in_force:
            found = min(found, event.until_unix_s)
            if not event.automation:
                continue
            if event.kind is EffectKind.LOWER:
                recovery = self._recoveries.get(event.rule, Recovery())
                found = min(found, growth.next_step_unix_s(event, recovery))
            elif event.kind is EffectKind.BACKOFF and self._in_force(_recovering_key(event.name, event.on)) is None:
                found = min(found, event.until_unix_s - margin_s)
        return found

    def _after_backoff(self, event: TrafficEvent, rule: Rule, begins_unix_s: float) -> list[TrafficEvent]:
        """From the twin set the limits grow back as well."""
        if rule.backoff is None:
            return []
        base = growth.base_of(rule, rule.backoff)
        lasts_s = growth.steps(rule.backoff, base, rule.recovery) * rule.recovery.interval_s
        if not lasts_s:
            return []
        return [
            msgspec.structs.replace(
                event,
                key=_recovering_key(event.name, event.on),
                name=_recovering(event.name),
                kind=EffectKind.LOWER,
                limits=rule.backoff,
                base=base,
                step=0,
                until_unix_s=begins_unix_s + lasts_s,
            )
        ]

    def _rule(self, name: str) -> Rule | None:
        return next((rule for rule in (*self._rules.rules, self._rules.default) if rule.name == name), None)


def _span(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def _event(automation: Automation, rule: Rule, on: str, sample: str, now_unix_s: float) -> TrafficEvent:
    """What an automation brings about now."""
    limits = base = Limits()
    until_s = now_unix_s + automation.for_s
    if automation.act is Act.LOWER:
        own: Limits = rule if automation.target is Target.RULE or rule.provider is None else rule.provider
        limits = automation.limits if automation.factor is None else growth.lowered_by(own, automation.factor)
        base = growth.base_of(own, limits)
        # Not before an interval is over: a limit that has just grown, and is lowered, must not grow at once again.
        until_s = max(until_s, now_unix_s + rule.recovery.interval_s)
        until_s += growth.steps(limits, base, rule.recovery) * rule.recovery.interval_s
    return TrafficEvent(
        key=effect_key(automation.name, automation.target, on),
        name=automation.name,
        kind=_KINDS[automation.act],
        target=automation.target,
        on=on,
        began_unix_s=now_unix_s,
        until_unix_s=until_s,
        limits=limits,
        base=base,
        pool=automation.pool,
        detail=sample[:DETAIL_CHARS_MAX],
        automation=automation.name,
        rule=rule.name,
    )


def _recovering(name: str) -> str:
    return f"{name} (recovering)"


def _recovering_key(name: str, on: str) -> str:
    return effect_key(_recovering(name), Target.RULE, on)


def _recoveries_of(rules: RuleSet) -> dict[str, Recovery]:
    return {rule.name: rule.recovery for rule in (*rules.rules, rules.default)}


def whom_in(session: Session, domain: str = "", tenant: str = "", delivery_id: int = 0) -> Whom:
    """Of a reply in a session."""
    group, hop = session.group, session.hop
    provider = next((limit.key for limit in hop.limits if limit.key.startswith("provider:")), "")
    return Whom(
        egress_id=group.egress.id,
        egress=group.egress.name,
        peer=hop.peer,
        site=group.site.key,
        rule_key=hop.limit.key,
        provider_key=provider,
        domain=domain,
        tenant=tenant,
        delivery_id=delivery_id,
    )
