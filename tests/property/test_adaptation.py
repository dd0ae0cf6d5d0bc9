"""Recovery never flaps: under any rain of replies, limits rise by one step an interval, and fall only for a reply."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.traffic.adaptation import Adaptation, Whom
from mta.traffic.automations import Act, Automation, Recovery, ReplyMatch
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits
from mta.traffic.rules import Rule, RuleSet

T = 1_800_000_000.0
WHOM = Whom(1, "e1", "192.0.2.1", "mx.a.test", "r|1")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 500),
    st.one_of(st.none(), st.floats(0.01, 0.99)),
    st.integers(1, 50),
    st.integers(5, 300),
    st.floats(1, 100),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_limits_rise_step_by_step_within_the_rule_and_fall_only_for_a_reply(
    most: int, factor: float | None, value: int, interval_s: int, percent: float, replies: int, seed: int
) -> None:
    rng = random.Random(seed)
    automation = Automation(
        name="a",
        match=ReplyMatch(("4",)),
        act=Act.LOWER,
        replies=replies,
        within_s=120,
        for_s=rng.choice([10, 200, 1_000]),
        factor=factor,
        limits=Limits() if factor is not None else Limits(connections_max=value),
    )
    rule = Rule(
        "r",
        "*",
        connections_max=most,
        automations=(automation,),
        recovery=Recovery(interval_s=interval_s, step_percent=percent),
    )
    held: dict[str, TrafficEvent] = {}
    adaptation = Adaptation(RuleSet([rule]), held.get)
    step = max(1, int(most * percent / 100))
    before, rose_s, now_s = most, -1e9, T
    for _ in range(600):
        now_s += rng.choice([0.3, 1.0, interval_s / 2, interval_s * 3])
        came = rng.random() < 0.03
        if came:
            found = adaptation.matched(automation, rule, WHOM, rng.choice([1, 5]), "421 no", now_s)
            held.update({event.key: event for event in found})
        grown = adaptation.due(list(held.values()), now_s)
        held.update({event.key: event for event in grown})
        for key in [key for key, event in held.items() if event.until_unix_s <= now_s]:
            del held[key]
        lowered = [event.limits.connections_max for event in held.values()]
        now = min([most, *(limit for limit in lowered if limit is not None)])
        assert 1 <= now <= most
        if now > before:
            assert now - before <= step
            assert now_s - rose_s >= interval_s - 1e-3
            rose_s = now_s
        elif now < before:
            assert came
        before = now
