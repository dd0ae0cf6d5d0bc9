"""From replies to events: thresholds at their edges, each act, error-rate blocks, and how limits grow back."""

from __future__ import annotations

import msgspec
import pytest

from mta.traffic.adaptation import Adaptation, Whom
from mta.traffic.automations import Act, Automation, ErrorBlock, Recovery, ReplyMatch
from mta.traffic.effects import EffectKind, Target
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits
from mta.traffic.recovery import steps
from mta.traffic.rules import Provider, Rule, RuleSet

T = 1_800_000_000.0
WHOM = Whom(3, "e3", "192.0.2.1", "mx.a.test", "r|3", "provider:p|3", "a.test", "shop.example", 7)


class Book:
    """Keeps events as the daemon does: by key, until they are over."""

    def __init__(self, rule: Rule, **rules: object) -> None:
        self.rule = rule
        self.held: dict[str, TrafficEvent] = {}
        self.rules = RuleSet([rule], **rules)  # type: ignore[arg-type]
        self.adaptation = Adaptation(self.rules, self.held.get)

    def put(self, events: list[TrafficEvent]) -> list[TrafficEvent]:
        self.held.update({event.key: event for event in events})
        return events

    def came(self, at_s: float, replies: int = 1, whom: Whom = WHOM, number: int = 0) -> list[TrafficEvent]:
        automation = self.rule.automations[number]
        return self.put(self.adaptation.matched(automation, self.rule, whom, replies, "421 4.7.0 no", T + at_s))

    def tick(self, at_s: float) -> list[TrafficEvent]:
        found = self.put(self.adaptation.due(list(self.held.values()), T + at_s, 2.0))
        for event in [event for event in self.held.values() if event.until_unix_s <= T + at_s]:
            del self.held[event.key]
        return found


def automation(act: Act = Act.SUSPEND, **keys: object) -> Automation:
    given: dict[str, object] = {"name": "a", "match": ReplyMatch(("4",)), "act": act, "for_s": 600, **keys}
    return Automation(**given)  # type: ignore[arg-type]


def rule(*automations: Automation, **limits: object) -> Rule:
    return Rule("r", "*", automations=automations, **limits)  # type: ignore[arg-type]


# --- thresholds -----------------------------------------------------------------------------------


def test_it_takes_as_many_replies_as_are_asked_for() -> None:
    book = Book(rule(automation(replies=3, within_s=60)))
    assert not book.came(0)
    assert not book.came(10)
    (event,) = book.came(20)
    assert (event.kind, event.target, event.on) == (EffectKind.SUSPEND, Target.RULE, "r|3")
    assert event.until_unix_s == T + 620
    assert event.detail == "421 4.7.0 no"


def test_several_at_once_count_as_several() -> None:
    book = Book(rule(automation(replies=3)))
    assert not book.came(0, replies=2)
    assert book.came(0, replies=1)
    assert Book(rule(automation(replies=3))).came(0, replies=50)


def test_the_first_must_not_have_left_the_window() -> None:
    for last, fires in ((59.9, True), (60.0, False)):
        book = Book(rule(automation(replies=3, within_s=60)))
        book.came(0)
        book.came(30)
        assert bool(book.came(last)) is fires


def test_each_target_is_counted_apart() -> None:
    book = Book(rule(automation(replies=2, target=Target.PATH)))
    other = WHOM._replace(peer="192.0.2.2")
    assert not book.came(0)
    assert not book.came(0, whom=other)
    (event,) = book.came(1)
    assert event.on == "3|192.0.2.1"


@pytest.mark.parametrize(
    ("target", "on"),
    [
        (Target.PATH, "3|192.0.2.1"),
        (Target.RULE, "r|3"),
        (Target.PROVIDER, "provider:p|3"),
        (Target.EGRESS, "e3"),
        (Target.SITE, "mx.a.test"),
        (Target.DOMAIN, "a.test"),
        (Target.TENANT, "shop.example"),
        (Target.DELIVERY, "7"),
    ],
)
def test_every_target_is_named_as_effects_name_it(target: Target, on: str) -> None:
    (event,) = Book(rule(automation(target=target))).came(0)
    assert event.on == on


def test_a_target_that_is_not_known_brings_nothing_about() -> None:
    book = Book(rule(automation(target=Target.TENANT)))
    assert not book.came(0, whom=WHOM._replace(tenant=""))


def test_a_further_reply_prolongs_what_is_in_force() -> None:
    book = Book(rule(automation(for_s=600)))
    book.came(0)
    assert not book.came(5)  # not worth telling
    (event,) = book.came(300)
    assert (event.began_unix_s, event.until_unix_s) == (T, T + 900)
    assert event.replies == 3  # the one that was not told of alone, too


def test_what_an_operator_has_given_a_longer_time_keeps_it() -> None:
    book = Book(rule(automation(for_s=600)))
    (event,) = book.came(0)
    book.put([msgspec.structs.replace(event, until_unix_s=T + 9_000)])
    book.came(300)
    assert book.held[event.key].until_unix_s == T + 9_000


def test_memory_of_replies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.traffic.adaptation.COUNTS_MAX", 100)
    book = Book(rule(automation(replies=2, target=Target.SITE)))
    for number in range(1_000):
        book.came(number, whom=WHOM._replace(site=f"mx{number}"))
    assert len(book.adaptation._matches) == 100


# --- acts -----------------------------------------------------------------------------------------


def test_a_factor_lowers_every_limit_that_is_set_and_none_below_one() -> None:
    given = rule(
        automation(Act.LOWER, factor=0.3),
        connections_max=10,
        messages_per_minute_max=2,
        messages_per_connection_max=50,
        ramp_up_s=5,
    )
    (event,) = Book(given).came(0)
    assert event.kind is EffectKind.LOWER
    assert event.limits == Limits(connections_max=3, messages_per_minute_max=1)
    assert event.base == Limits(connections_max=10, messages_per_minute_max=2)


def test_a_provider_is_lowered_by_its_own_figures() -> None:
    given = Rule(
        "r",
        "*",
        connections_max=4,
        provider=Provider("p", connections_max=40),
        automations=(automation(Act.LOWER, factor=0.5, target=Target.PROVIDER),),
    )
    (event,) = Book(given).came(0)
    assert (event.on, event.limits.connections_max) == ("provider:p|3", 20)


@pytest.mark.parametrize(
    ("act", "keys", "kind", "target"),
    [
        (Act.NO_TLS, {"target": Target.PATH}, EffectKind.NO_TLS, Target.PATH),
        (Act.POOL, {"target": Target.SITE, "pool": "slow"}, EffectKind.POOL, Target.SITE),
        (Act.HOLD, {"target": Target.DELIVERY}, EffectKind.SUSPEND, Target.DELIVERY),
        (Act.BACKOFF, {}, EffectKind.BACKOFF, Target.RULE),
    ],
)
def test_every_other_act_is_its_effect(act: Act, keys: dict[str, object], kind: EffectKind, target: Target) -> None:
    (event,) = Book(rule(automation(act, **keys), backoff=Limits(connections_max=1))).came(0)
    assert (event.kind, event.target, event.pool) == (kind, target, keys.get("pool", ""))


# --- growing back ---------------------------------------------------------------------------------


def test_a_lowered_limit_grows_back_step_by_step_and_then_the_event_is_over() -> None:
    given = rule(
        automation(Act.LOWER, limits=Limits(connections_max=2), for_s=100),
        connections_max=10,
        recovery=Recovery(interval_s=10, step_percent=20),
    )
    book = Book(given)
    (event,) = book.came(0)
    assert event.until_unix_s == T + 100 + 4 * 10
    seen = []
    for second in range(145):
        book.tick(second)
        held = book.held.get(event.key)
        seen.append(held.limits.connections_max if held else None)
    changes = [(at, value) for at, value in enumerate(seen) if at == 0 or seen[at - 1] != value]
    assert changes == [(0, 2), (100, 4), (110, 6), (120, 8), (130, 10), (140, None)]


def test_a_reply_while_it_grows_lowers_it_again() -> None:
    given = rule(
        automation(Act.LOWER, limits=Limits(connections_max=2), for_s=100),
        connections_max=10,
        recovery=Recovery(interval_s=10, step_percent=20),
    )
    book = Book(given)
    (event,) = book.came(0)
    for second in range(116):
        book.tick(second)
    assert book.held[event.key].limits.connections_max == 6
    book.came(116)
    held = book.held[event.key]
    assert (held.limits.connections_max, held.step, held.until_unix_s) == (2, 0, T + 116 + 140)


def test_who_comes_late_takes_one_step_and_the_rest_later() -> None:
    given = rule(
        automation(Act.LOWER, limits=Limits(connections_max=2), for_s=100),
        connections_max=10,
        recovery=Recovery(interval_s=10, step_percent=20),
    )
    book = Book(given)
    (event,) = book.came(0)
    book.tick(135)
    assert book.held[event.key].limits.connections_max == 4
    assert not book.tick(144)
    book.tick(145)
    assert book.held[event.key].limits.connections_max == 6


def test_after_a_backoff_the_limits_grow_from_the_twin_set() -> None:
    given = rule(
        automation(Act.BACKOFF, for_s=100),
        connections_max=10,
        backoff=Limits(connections_max=1, messages_per_minute_max=6),
        recovery=Recovery(interval_s=10, step_percent=50),
    )
    book = Book(given)
    (backoff,) = book.came(0)
    for second in range(100):
        book.tick(second)
    (recovering,) = [event for event in book.held.values() if event.key != backoff.key]
    assert recovering.kind is EffectKind.LOWER
    assert recovering.limits == Limits(connections_max=1, messages_per_minute_max=6)
    assert recovering.base == Limits(connections_max=10, messages_per_minute_max=60)
    for second in range(100, 141):
        book.tick(second)
    assert not book.held


def test_events_of_operators_do_not_grow() -> None:
    book = Book(rule(connections_max=10))
    made = TrafficEvent(
        key="k",
        name="by hand",
        kind=EffectKind.LOWER,
        target=Target.RULE,
        on="r|3",
        began_unix_s=T,
        until_unix_s=T + 100,
        limits=Limits(connections_max=1),
    )
    book.put([made])
    assert not any(book.tick(second) for second in range(99))


def test_steps_are_counted_to_the_limit_that_needs_most() -> None:
    recovery = Recovery(interval_s=10, step_percent=10)
    assert steps(Limits(connections_max=1), Limits(connections_max=3), recovery) == 2
    low, full = (
        Limits(connections_max=90, messages_per_minute_max=10),
        Limits(connections_max=100, messages_per_minute_max=100),
    )
    assert steps(low, full, recovery) == 9
    assert steps(full, full, recovery) == 0


# --- error-rate block (campaign-mta §12 row 17) ---------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "errors", "blocks"),
    [(299, 299, False), (300, 270, True), (300, 300, True), (300, 269, False), (300, 267, False), (1_000, 899, False)],
)
def test_a_domain_is_blocked_from_300_messages_and_90_percent_on(messages: int, errors: int, blocks: bool) -> None:
    adaptation = Book(rule()).adaptation
    found = None
    for number in range(messages):
        # The good ones first, so that the rate is highest at the end.
        found = adaptation.counted("bad.test", 1, int(number >= messages - errors), T + number / 1_000) or found
        assert adaptation.counted("good.test", 1, 0, T) is None
    assert (found is not None) is blocks
    if found is not None:
        assert (found.kind, found.target, found.on) == (EffectKind.SUSPEND, Target.DOMAIN, "bad.test")
        assert found.until_unix_s - found.began_unix_s == 3 * 3_600


def test_after_a_block_a_domain_is_counted_from_nothing() -> None:
    adaptation = Book(rule()).adaptation
    assert adaptation.counted("bad.test", 300, 300, T)
    assert adaptation.counted("bad.test", 299, 299, T + 10_800) is None
    assert adaptation.counted("bad.test", 1, 1, T + 10_801)


def test_what_is_older_than_the_time_does_not_count() -> None:
    adaptation = Book(rule()).adaptation
    assert adaptation.counted("bad.test", 299, 299, T) is None
    assert adaptation.counted("bad.test", 1, 1, T + 3_601) is None
    assert adaptation.counted("bad.test", 298, 298, T + 3_602) is None


def test_a_special_domain_has_its_own_figures_and_others_may_have_none() -> None:
    blocks = [ErrorBlock(domains="vip.test", messages_min=10, error_percent=50.0, for_s=60)]
    adaptation = Book(rule(), error_blocks=blocks).adaptation
    found = adaptation.counted("vip.test", 10, 5, T)
    assert found is not None
    assert found.until_unix_s == T + 60
    assert adaptation.counted("other.test", 9_000, 9_000, T) is None


def test_memory_of_domains_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.traffic.error_rates.DOMAINS_MAX", 100)
    adaptation = Book(rule()).adaptation
    for number in range(500):
        adaptation.counted(f"d{number}.test", 1, 1, T)
    assert len(adaptation._rates) == 100
