"""Hands replies and error rates to the automations, and what they bring about to the event book.

Children look for what automations wait for and report what they found; refusals of whole sessions are looked at here.
Owned by the master's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import asyncpg
import msgspec

from mta.failure.patterns import ReplyPatterns, Wanted
from mta.master.books import DeliveryBook, LeasedPart
from mta.master.children import Children
from mta.master.error_rates import RateExchange
from mta.master.events import EventBook
from mta.master.refusals import RefusedPaths
from mta.smtp.envelope import Stage
from mta.traffic.adaptation import Adaptation, Whom, whom_in
from mta.traffic.automations import Automation
from mta.traffic.effects import Target
from mta.traffic.events import TrafficEvent
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.schedule import Schedule
from mta.traffic.sessions import Session
from mta.wire import OpenFailed, Pattern, Patterns, Report

TICK_S: Final = 1.0
_BY_DELIVERY: Final = (Target.DELIVERY, Target.TENANT)


class Adapter:
    """What the automations of a rule set need to know, and where their events go."""

    def __init__(
        self,
        rules: RuleSet,
        schedule: Schedule[LeasedPart],
        events: EventBook,
        deliveries: Mapping[int, DeliveryBook],
        children: Children,
        pool: asyncpg.Pool,
        node: str,
    ) -> None:
        self._schedule = schedule
        self._events = events
        self._deliveries = deliveries
        self._children = children
        self._adaptation = Adaptation(rules, events.find)
        self._rates = RateExchange(pool, node, self._adaptation, self._put, events.now_unix_s)
        self._refused_paths = RefusedPaths(pool, node, schedule)
        self._version = 0
        self._take(rules)

    def set_rules(self, rules: RuleSet) -> None:
        """A reload, after the schedule has heard of it: children look for other things from now on."""
        self._adaptation.set_rules(rules)
        self._take(rules)
        for child in self._children.living.values():
            open_ = self._schedule.sessions_of(child.number)
            sessions = [(session.id, self.automations_of(session.hop.rule)) for session in open_]
            child.tell(msgspec.structs.replace(self.frame, sessions=sessions))
            child.flush()

    def _take(self, rules: RuleSet) -> None:
        self._version += 1
        self._automations: list[Automation] = []
        numbers: dict[str, int] = {}
        self._of_rule: dict[str, tuple[int, ...]] = {}
        for rule in (*rules.rules, rules.default):
            for automation in rule.automations:
                if automation.name not in numbers:
                    numbers[automation.name] = len(self._automations)
                    self._automations.append(automation)
            self._of_rule[rule.name] = tuple(numbers[automation.name] for automation in rule.automations)
        self.frame = Patterns(self._version, [_pattern(automation) for automation in self._automations])
        self._patterns = ReplyPatterns(
            Wanted(one.codes, one.enhanced, one.pattern, one.stages) for one in self.frame.patterns
        )

    def automations_of(self, rule: Rule) -> tuple[int, ...]:
        """The numbers, in the frame, of what the automations of a rule wait for."""
        return self._of_rule.get(rule.name, ())

    # --- what came ----------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """What a child has found in replies."""
        if report.patterns_version != self._version:
            return
        for one in report.matched:
            session = self._schedule.session(one.session)
            if session is not None:
                book = self._deliveries.get(one.delivery_id)
                whom = whom_in(session, one.domain, "" if book is None else book.sender_domain, one.delivery_id)
                self._matched(session, one.automation, whom, one.replies, one.sample)

    def not_opened(self, failed: OpenFailed) -> None:
        """A session was refused, or could not be had. Before the schedule hears of its end."""
        session = self._schedule.session(failed.session)
        if session is None:
            return
        numbers = self.automations_of(session.hop.rule)
        sample = f"{failed.stage}: {failed.cause}"
        for number in self._patterns.match(failed.code, failed.enhanced, failed.text, Stage[failed.stage], numbers):
            self._matched(session, number, whom_in(session), 1, sample)

    def _matched(self, session: Session, number: int, whom: Whom, replies: int, sample: str) -> None:
        automation, rule = self._automations[number], session.hop.rule
        now_unix_s = self._events.now_unix_s()
        self._put(self._adaptation.matched(automation, rule, whom, replies, sample, now_unix_s))

    def attempted(self, rates: Mapping[str, list[int]]) -> None:
        """By recipient domain: [messages attempted, of them failed or deferred]."""
        now_unix_s = self._events.now_unix_s()
        for domain, (messages, errors) in rates.items():
            block = self._adaptation.counted(domain, messages, errors, now_unix_s)
            if block is not None:
                self._put([block])

    # --- events -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Limits grow back, error rates are added up over all nodes, and refused paths are told of."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rates.run())
            tasks.create_task(self._refused_paths.run())
            await self._grow_back()

    async def _grow_back(self) -> None:
        """Step by step."""
        while True:
            await asyncio.sleep(TICK_S)
            due = self._adaptation.due(self._events.in_force(), self._events.now_unix_s(), 2 * TICK_S)
            self._put(due)

    def _put(self, events: list[TrafficEvent]) -> None:
        if events:
            self._events.put(events)


def _pattern(automation: Automation) -> Pattern:
    match, target = automation.match, automation.target
    return Pattern(
        match.codes, match.enhanced, match.pattern, match.stages, target in _BY_DELIVERY, target is Target.DOMAIN
    )
