"""What replies lead to: the automations and error blocks of the rules, carried out in the modelled world.

The counting is the real one (`mta.traffic.adaptation`, `mta.failure.patterns`), and so is what limits and the intake
make of it (`Schedule.set_effects`, `mta.traffic.holds`). Here is what the master does between the two: the book of
events, and the look at it when something may be due, each second at most. What is in force at the start goes the same
ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from mta.failure.patterns import ReplyPatterns, Wanted
from mta.model.site import Site
from mta.simulation.backlog import Errand, Place
from mta.smtp.envelope import Stage
from mta.traffic.adaptation import ERROR_BLOCK_NAME, Adaptation, whom_in
from mta.traffic.automations import Automation
from mta.traffic.effects import Effect, EffectKind, Target, spread
from mta.traffic.egress import EgressChooser
from mta.traffic.events import TrafficEvent
from mta.traffic.holds import Holds
from mta.traffic.rules import Rule, RuleSet, limit_key
from mta.traffic.sessions import Session

TICK_S: Final = 1.0
_LATE_S: Final = 0.001  # a look for what is due at a time is so much later, as fractions of Unix time are rounded
EVENTS_MAX: Final = 10_000  # told of; more are carried out and counted all the same
_REPLY: Final = re.compile(r"(\d{3}) (?:([245]\.\d{1,3}\.\d{1,3}) )?(.*)", re.DOTALL)


class Obeys(Protocol):
    """A node: what is in force reaches its schedule."""

    def obey(self, effects: Sequence[Effect]) -> None: ...

    def hold(self, errand: Errand, until_s: float) -> None: ...

    def take_in_anew(self, sites: frozenset[str]) -> None: ...


class Reactions:
    """One for all nodes, as events are shared between them. Times are seconds since the start.

    ``wants_look``: something was counted or came into force since the last look; else nothing is due before
    ``next_due_s``.
    """

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
        self._rules = rules
        self._egresses = {egress.id: egress for chooser in pools.values() for egress in chooser.pool.egresses}
        self._holds = Holds(pools)
        self._holds.set_rules(rules)
        self._held: dict[int, Effect] = {}  # errand -> by what
        self._apart: frozenset[str] = frozenset()  # domains that errands have for themselves
        self._counted: list[str] = []  # keys of all limits that there can be
        self.nodes: list[Obeys] = []
        self.places: list[Place] = []
        self.errands: list[Errand] = []
        self.events: list[tuple[float, str]] = []
        self.events_count = 0
        self.wants_look = False
        self.next_due_s = math.inf

    def _take(self, rules: RuleSet) -> None:
        numbers: dict[str, int] = {}
        for rule in (*rules.rules, rules.default):
            for automation in rule.automations:
                if automation.name not in numbers:
                    numbers[automation.name] = len(self._automations)
                    self._automations.append(automation)
            self._of_rule[rule.name] = frozenset(numbers[automation.name] for automation in rule.automations)

    # --- what is in force -----------------------------------------------------------------------

    def begin(self, in_force: Iterable[TrafficEvent]) -> None:
        """These are in force at the start, as far as they are not over. Nodes, places and errands are known by now."""
        self._apart = frozenset(errand.model.domain for errand in self.errands if errand.model.domain)
        self._in_force.update((event.key, event) for event in in_force if event.until_unix_s > self._starts_unix_s)
        self.tell(self.nodes)
        self._set_due(0.0)

    def tell(self, nodes: list[Obeys]) -> None:
        """From now on these obey, beginning with what is in force now."""
        self.nodes = nodes
        if self._in_force:
            self._obey(0.0)

    def chooser(self, asked: EgressChooser, site: Site, domain_class: str) -> EgressChooser:
        """The pool that mail to a site leaves from."""
        return self._holds.chooser(asked, site, domain_class)

    def held(self, errand: Errand) -> Effect | None:
        """What keeps anything of it from being begun."""
        return self._held.get(errand.id) if self._held else None

    def held_until_s(self, errand: Errand) -> float:
        """Until when nothing of it is begun; not after now: it goes on."""
        effect = self.held(errand)
        return -math.inf if effect is None else self._until_s(effect, errand)

    def _until_s(self, effect: Effect, errand: Errand) -> float:
        return min(effect.until_unix_s - self._starts_unix_s, errand.valid_until_s)

    # --- what comes -----------------------------------------------------------------------------

    def replied(
        self, session: Session, domain: str, errand: Errand | None, reply: str, messages: int, stage: str, now_s: float
    ) -> None:
        """So many messages of an errand (None: a connection) met this reply."""
        numbers = self._of_rule.get(session.hop.rule.name)
        if not numbers:
            return
        match = _REPLY.fullmatch(reply)
        code, enhanced, text = (int(match[1]), match[2] or "", match[3]) if match else (0, "", reply)
        for number in self._patterns.match(code, enhanced, text, Stage[stage]):
            if number in numbers:
                if errand is None:
                    whom = whom_in(session)
                else:
                    whom = whom_in(session, domain, errand.model.tenant, errand.delivery_id)
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
        """Error rates, limits that grow back, what is over."""
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
        self.wants_look = False
        self._set_due(now_s)

    def _set_due(self, now_s: float) -> None:
        due_unix_s = self._adaptation.next_due_unix_s(self._in_force.values(), 2 * TICK_S)
        self.next_due_s = max(due_unix_s - self._starts_unix_s + _LATE_S, now_s + TICK_S)

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
        for event in self._in_force.values():
            effect = event.effect
            if event.target is Target.DOMAIN and event.on not in self._apart:
                # Those of a site are of one domain, so what holds the domain holds the site.
                effects += [
                    msgspec.structs.replace(effect, target=Target.SITE, on=place.site.key)
                    for place in self.places
                    if place.domain == event.on
                ]
            else:
                effects.append(effect)
        moved = self._holds.set_effects(effects).sites
        self._hold(now_s)
        told = list(spread(effects, self._all_counted, self._egresses))
        for node in self.nodes:
            node.obey(told)
            if moved:
                node.take_in_anew(moved)

    def _hold(self, now_s: float) -> None:
        before, self._held = self._held, {}
        for errand in self.errands:
            domain = errand.model.domain
            effects = [self._holds.delivery(errand.delivery_id, errand.model.tenant), self._holds.domain(domain)]
            held = max((one for one in effects if one is not None), key=lambda one: one.until_unix_s, default=None)
            if held is not None and self._until_s(held, errand) > now_s:
                self._held[errand.id] = held
        for errand in self.errands:
            if errand.id in self._held and errand.id not in before:
                for node in self.nodes:
                    node.hold(errand, self.held_until_s(errand))

    def _all_counted(self) -> list[str]:
        """In the model all hosts are known, so all limits are too, before anything is sent."""
        if not self._counted:
            rules = self._rules
            self._counted = [
                limit_key(rules.match(host.name, egress_id, place.site.key, domain_class), egress_id, peer)
                for place in self.places
                for domain_class in [rules.domain_class(place.domain)]
                for host in place.site.hosts
                for peer in host.addresses
                for egress_id in self._egresses
            ]
        return self._counted


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
