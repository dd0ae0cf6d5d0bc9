"""Forecasts and replays: what holds a delivery up, what raising it gains, and what other rules would have avoided."""

from __future__ import annotations

from typing import Any

import pytest

from mta.model.site import MxHost, Site
from mta.simulation.engine import simulate
from mta.simulation.flow import flow
from mta.simulation.forecast import DeliveryLoad, Forecast, Pace, SiteLoad, forecast, scenario_of
from mta.simulation.replay import Lines, recorded, replay
from mta.simulation.replay import scenario_of as replay_of
from mta.simulation.scenario import NodeModel
from mta.traffic.retry import CLASSIC
from mta.traffic.rules import Rule, RuleSet, Scope
from tests.support.scenarios import pool, provider, rule, scenario

NOW_S = 1_780_000_000


def load(name: str, recipients: int, **pace: Any) -> SiteLoad:
    host = f"mx.{name}.test"
    site = Site(host, (MxHost(host, 10, (f"192.0.2.{len(name)}",)),))
    return SiteLoad(site, f"{name}.test", {"mine": recipients}, Pace(**pace))


def looked_ahead(rules: list[Rule] | RuleSet, *sites: SiteLoad, others: dict[str, int] | None = None) -> Forecast:
    loads = [DeliveryLoad(name="mine", is_wanted=True, pool="default", retry=CLASSIC, validity_s=5 * 86_400.0)]
    if others:
        loads.append(DeliveryLoad(name="other", is_wanted=False, pool="default", retry=CLASSIC, validity_s=86_400.0))
        for site in sites:
            site.counts.update({"other": others.get(site.domain, 0)})
    made = scenario_of(
        loads,
        sites,
        rules=rules if isinstance(rules, RuleSet) else RuleSet(rules),
        pools=[pool()],
        node=NodeModel(),
        nodes=1,
        starts_unix_s=NOW_S,
    )
    return forecast(made, ["as measured"])


def test_the_end_the_bottleneck_and_what_twice_as_much_would_gain() -> None:
    rules = RuleSet(
        [rule("slow", "mx.slow.test", messages_per_minute_max=600, connections_max=3), rule("rest")],
        origins={("slow", "messages_per_minute_max"): "rules.toml:4"},
    )
    told = looked_ahead(rules, load("slow", 6_000), load("fast", 500))
    assert told.recipients == 6_500
    assert 9 * 60 < told.seconds < 10.5 * 60  # 600 at once, then nine minutes
    assert told.finish_at.timestamp() == pytest.approx(NOW_S + told.seconds, abs=0.01)
    assert [site.site for site in told.sites] == ["mx.slow.test", "mx.fast.test"]
    assert told.sites[0].bottleneck.origin == "rules.toml:4"
    first = told.bottlenecks[0]
    assert (first.rule, first.limit, first.value) == ("slow", "messages_per_minute_max", 600)
    assert first.sites == ["mx.slow.test"]
    assert first.gain_s == pytest.approx(told.seconds / 2, rel=0.15)
    assert first.next_bottleneck is not None
    assert told.assumptions == ["as measured"]


def test_the_next_bottleneck_is_what_binds_when_the_first_is_raised() -> None:
    # 80 a second through 4 connections; 50 a second by the minute: doubled, the connections bind.
    limited = [rule("slow", messages_per_minute_max=3_000, connections_max=4)]
    told = looked_ahead(limited, load("slow", 30_000))
    (gain,) = [one for one in told.bottlenecks if one.limit == "messages_per_minute_max"]
    assert gain.next_bottleneck is not None
    assert gain.next_bottleneck.limit == "connections_max"
    assert gain.gain_s == pytest.approx(told.seconds * (1 - 50 / 80), rel=0.3)


def test_a_delivery_that_shares_its_limits_is_done_later() -> None:
    alone = looked_ahead([rule(connections_max=4)], load("a", 4_000))
    beside = looked_ahead([rule(connections_max=4)], load("a", 4_000), others={"a.test": 4_000})
    assert beside.recipients == 4_000
    assert beside.seconds > 1.6 * alone.seconds


def test_what_will_not_be_done_in_its_validity_is_told() -> None:
    told = looked_ahead([rule(messages_per_day_max=100)], load("a", 1_000))
    assert told.bottlenecks[0].limit == "messages_per_day_max"
    assert told.seconds == pytest.approx(5 * 86_400, rel=0.01)


@pytest.mark.parametrize(
    ("limits", "recipients"),
    [
        ({"connections_max": 5, "messages_per_connection_max": 20}, 20_000),
        ({"messages_per_second_max": 100}, 4_000),
        ({"messages_per_second_max": 20}, 2_000),
        ({"messages_per_minute_max": 600}, 2_000),
        ({"messages_per_hour_max": 6_000}, 8_000),
        ({"connections_max": 8, "messages_per_minute_max": 3_000, "scope": Scope.SHARED}, 9_000),
    ],
)
def test_the_coarse_way_agrees_with_the_schedule_itself(limits: dict[str, Any], recipients: int) -> None:
    made = scenario([rule("r", **limits)], provider("a"), recipients=recipients)
    real_s = simulate(made).errands[0].first_done_s
    (coarse,) = flow(made)
    assert coarse.recipients == recipients
    assert coarse.done_s == pytest.approx(real_s, rel=0.1)
    assert coarse.cause.limit in limits


# --- replay ---------------------------------------------------------------------------------------


def history(accepted_per_minute: int, minutes: int, refused_per_minute: int) -> list[Lines]:
    """A site that takes so many a minute and refuses the rest, evenly over each minute."""
    found = []
    for second in range(minutes * 60):
        accepted = accepted_per_minute * (second % 60 + 1) // 60 - accepted_per_minute * (second % 60) // 60
        refused = refused_per_minute * (second % 60 + 1) // 60 - refused_per_minute * (second % 60) // 60
        found.append(
            Lines(NOW_S + second, "mx.a.test", "e1", accepted + refused, accepted + refused, refused, 0, "a.test")
        )
    return found


HOSTS = {"mx.a.test": {"mx.a.test": ["192.0.2.1"]}}


def replayed(lines: list[Lines], *rules: Rule) -> Any:
    made = replay_of(lines, HOSTS, {}, rules=RuleSet(rules), pool=pool(), node=NodeModel(), nodes=1)
    return replay(lines, made)


def test_the_record_tells_what_a_site_accepts() -> None:
    told = recorded(history(300, 10, 120))["mx.a.test"]
    assert (told.attempts, told.refused, told.accepted_per_minute) == (4_200, 1_200, 300)
    assert recorded(history(300, 5, 0))["mx.a.test"].accepted_per_minute is None


def test_rules_that_keep_below_what_it_accepts_avoid_its_refusals() -> None:
    lines = history(300, 10, 120)
    told = replayed(lines, rule("obeys", messages_per_minute_max=290))
    assert told.recorded_refusals == 1_200
    assert told.refusals == 0
    assert told.refusals_avoided == 1_200
    assert told.waiting == 0
    assert told.done_s > told.recorded_last_s  # it takes longer, as it goes slower
    assert told.sites[0].peak_per_minute <= 290
    assert told.assumptions


def test_rules_that_allow_as_much_as_before_meet_the_refusals_again() -> None:
    told = replayed(history(300, 10, 120), rule("same"))
    assert told.refusals >= 900
    assert told.sites[0].held is not None


def test_where_nothing_was_refused_nothing_is_avoided() -> None:
    told = replayed(history(300, 3, 0), rule("same"))
    assert (told.recorded_refusals, told.refusals, told.refusals_avoided) == (0, 0, 0)
    assert told.attempts == told.recipients == 900
    assert told.violations == 0
