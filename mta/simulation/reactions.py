"""What replies lead to: the automations and error blocks of the rules, carried out in the modelled world.

The counting is the real one (`mta.traffic.adaptation`, `mta.failure.patterns`), and so is what limits make of it
(`Schedule.set_effects`). Here is what the master does between the two: the book of events, and the look at it each
second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from mta.failure.patterns import ReplyPatterns, Wanted
from mta.simulation.backlog import Errand
from mta.smtp.envelope import Stage
from mta.traffic.adaptation import ERROR_BLOCK_NAME, Adaptation, whom_in
from mta.traffic.automations import Automation
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.egress import EgressChooser
from mta.traffic.events import TrafficEvent
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.sessions import Session

TICK_S: Final = 1.0
EVENTS_MAX: Final = 10_000  # told of; more are carried out and counted all the same
_REPLY: Final = re.compile(r"(\d{3}) (?:([245]\.\d{1,3}\.\d{1,3}) )?(.*)", re.DOTALL)


class Obeys(Protocol):
    """A node: what is in force reaches its schedule."""

    def obey(self, effects: Sequence[Effect]) -> None: ...

    def hold(self, errand: Errand, until_s: float) -> None: ...


class Reactions:
    """One for all nodes, as events are shared between them. Times are seconds since the start."""

    def __init__(self, rules: RuleSet, pools: dict[str, EgressChooser], starts_unix_s: float) -> None:
        self._starts_unix_s = starts_unix_s
        self._pools = pools
        self._in_force: dict[str, TrafficEvent] = {}
        self._adaptation = Adaptation(rules, self._in_force.get)
        self._automations: list[Automation] = []
        self._of_rule: dict[str, frozenset[int]] = {}
        self._take(rules)
        given = [one.match for one in self._automations]
        self._patterns = ReplyPatterns(Wanted(one.codes, one.enhanced, one.pattern, one.stages) for one in given)
        self._rates: dict[str, list[int]] = {}  # domain -> [messages, errors] since the last look
        self._site_pools: dict[str, EgressChooser] = {}
        self._held: dict[int, float] = {}  # errand -> until when
        self.nodes: list[Obeys] = []
        self.sites_of: dict[str, list[str]] = {}  # recipient domain -> keys of its sites
        self.errands: list[Errand] = []
        self.events: list[tuple[float, str]] = []
        self.events_count = 0
        self.wants_look = False  # something is in force, or counted and not looked at

    def _take(self, rules: RuleSet) -> None:
        numbers: dict[str, int] = {}
        for rule in (*rules.rules, rules.default):
            for automation in rule.automations:
                if automation.name not in numbers:
                    numbers[automation.name] = len(self._automations)
                    self._automations.append(automation)
            self._of_rule[rule.name] = frozenset(numbers[automation.name] for automation in rule.automations)

    # --- what is in force -----------------------------------------------------------------------

    def chooser(self, asked: EgressChooser, site: str) -> EgressChooser:
        """The pool that mail to a site leaves from."""
        return self._site_pools.get(site, asked) if self._site_pools else asked

    def held_until_s(self, errand: Errand) -> float:
        """Until when nothing of it is begun; not after now: it goes on."""
        return self._held.get(errand.id, -math.inf) if self._held else -math.inf

    # --- what comes -----------------------------------------------------------------------------

    def replied(
        self, session: Session, domain: str, errand: int, reply: str, messages: int, stage: str, now_s: float
    ) -> None:
        """So many messages (or a connection) met this reply."""
        numbers = self._of_rule.get(session.hop.rule.name)
        if not numbers:
            return
        match = _REPLY.fullmatch(reply)
        code, enhanced, text = (int(match[1]), match[2] or "", match[3]) if match else (0, "", reply)
        for number in self._patterns.match(code, enhanced, text, Stage[stage]):
            if number in numbers:
                whom = whom_in(session, domain, "sender", errand)
                rule: Rule = session.hop.rule
                unix_s = now_s + self._starts_unix_s
                self._put(
                    self._adaptation.matched(self._automations[number], rule, whom, messages, reply, unix_s), now_s
                )

    def attempted(self, domain: str, messages: int, delivered: int) -> None:
        """So many messages to a recipient domain have an outcome."""
        rate = self._rates.get(domain)
        if rate is None:
            rate = self._rates[domain] = [0, 0]
            self.wants_look = True
        rate[0] += messages
        rate[1] += messages - delivered

    def look(self, now_s: float) -> None:
        """Once a second: error rates, limits that grow back, what is over."""
        unix_s = now_s + self._starts_unix_s
        rates, self._rates = self._rates, {}
        for domain, (messages, errors) in rates.items():
            block = self._adaptation.counted(domain, messages, errors, unix_s)
            if block is not None:
                self._put([block], now_s)
        if self._in_force:
            self._put(self._adaptation.due(list(self._in_force.values()), unix_s, 2 * TICK_S), now_s)
            over = [event for event in self._in_force.values() if event.until_unix_s <= unix_s]
            for event in over:
                del self._in_force[event.key]
                self._tell(now_s, f"{event.name} on {event.target} {event.on} is over")
            if over:
                self._obey(now_s)
        self.wants_look = bool(self._in_force)

    # --- events ---------------------------------------------------------------------------------

    def _put(self, events: list[TrafficEvent], now_s: float) -> None:
        if not events:
            return
        self.wants_look = True
        is_changed = False
        for event in events:
            before = self._in_force.get(event.key)
            self._in_force[event.key] = event
            is_changed = is_changed or before is None or before.effect != event.effect
            if before is None or before.step != event.step:
                self._tell(now_s, _said(event, now_s + self._starts_unix_s))
        if is_changed:
            self._obey(now_s)

    def _tell(self, now_s: float, what: str) -> None:
        self.events_count += 1
        if len(self.events) < EVENTS_MAX:
            self.events.append((now_s, what))

    def _obey(self, now_s: float) -> None:
        effects: list[Effect] = []
        self._site_pools.clear()
        self._held.clear()
        for event in self._in_force.values():
            effect = event.effect
            until_s = event.until_unix_s - self._starts_unix_s
            if event.target is Target.DOMAIN:
                # A site of the model serves one domain, so what holds the domain holds the site.
                effects += [
                    msgspec.structs.replace(effect, target=Target.SITE, on=site)
                    for site in self.sites_of.get(event.on, ())
                ]
            elif event.target in (Target.DELIVERY, Target.TENANT):
                self._hold(event, until_s)
            elif event.kind is EffectKind.POOL:
                if event.pool in self._pools:
                    self._site_pools[event.on] = self._pools[event.pool]
            else:
                effects.append(effect)
        for node in self.nodes:
            node.obey(effects)

    def _hold(self, event: TrafficEvent, until_s: float) -> None:
        """All deliveries of a scenario have one sender."""
        for errand in self.errands:
            if event.target is Target.TENANT or event.on == str(errand.id):
                until_s = min(until_s, errand.valid_until_s)
                self._held[errand.id] = until_s
                for node in self.nodes:
                    node.hold(errand, until_s)


def _said(event: TrafficEvent, unix_s: float) -> str:
    for_s = f" for {event.until_unix_s - unix_s:.0f} s" if event.until_unix_s < math.inf else ""
    if event.step:
        return f"{event.name}: {event.on} grows back, step {event.step}: {_figures(event)}"
    figures = f" to {_figures(event)}" if event.kind is EffectKind.LOWER else ""
    why = event.detail if event.name == ERROR_BLOCK_NAME else f"after {event.detail!r}"
    return f"{event.name}: {event.kind} {event.target} {event.on}{figures}{for_s}, {why}"


def _figures(event: TrafficEvent) -> str:
    given = {key: value for key, value in msgspec.structs.asdict(event.limits).items() if value is not None}
    return ", ".join(f"{key} {value:,}" for key, value in given.items())
