"""Traffic events that are in force when a forecast is made: they hold, end and grow back as at a node."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from mta.model.egress import Egress, EgressPool
from mta.model.site import MxHost, Site
from mta.simulation.engine import simulate
from mta.simulation.flow import flow
from mta.simulation.forecast import DeliveryLoad, Forecast, Pace, SiteLoad, forecast, scenario_of
from mta.simulation.scenario import NodeModel, Scenario
from mta.simulation.standing import apart, standing
from mta.traffic import recovery, surplus
from mta.traffic.automations import Recovery
from mta.traffic.effects import EffectKind, Target, effect_key
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits
from mta.traffic.retry import CLASSIC
from mta.traffic.rules import Provider, Rule, RuleSet, Scope
from tests.support.scenarios import rule

NOW_S = 1_780_000_000.0
HOUR_S = 3_600.0
POOLS = tuple(
    EgressPool(name, (Egress(host, id_, f"{host}.test"),))
    for name, host, id_ in (("default", "e1", 1), ("spare", "s1", 10))
)


def load(name: str, recipients: int, *, delivery: str = "mine", hosts: int = 1) -> SiteLoad:
    key = f"mx.{name}.test"
    found = tuple(MxHost(f"{'b' * at}{key}", 10 + at, (f"192.0.2.{len(name) + at}",)) for at in range(hosts))
    return SiteLoad(Site(key, found), f"{name}.test", {delivery: recipients}, Pace(message_s=0.05))


def delivery(name: str = "mine", **more: Any) -> DeliveryLoad:
    given: dict[str, Any] = {"is_wanted": True, "pool": "default", "retry": CLASSIC, "validity_s": 5 * 86_400.0, **more}
    return DeliveryLoad(name=name, **given)


def event(kind: EffectKind, target: Target, on: str, for_s: float = HOUR_S, **more: Any) -> TrafficEvent:
    given = {"name": "by hand", "began_unix_s": NOW_S - 60, "until_unix_s": NOW_S + for_s, **more}
    return TrafficEvent(key=effect_key(given["name"], target, on), kind=kind, target=target, on=on, **given)


def suspend(target: Target, on: str, for_s: float = HOUR_S, **more: Any) -> TrafficEvent:
    return event(EffectKind.SUSPEND, target, on, for_s, **more)


def made(
    rules: list[Rule], *sites: SiteLoad, events: tuple[TrafficEvent, ...] = (), loads: tuple[DeliveryLoad, ...] = ()
) -> Scenario:
    return scenario_of(
        loads or (delivery(delivery_id=7, tenant="sender.test"),),
        sites,
        rules=RuleSet(rules),
        pools=POOLS,
        node=NodeModel(),
        nodes=1,
        starts_unix_s=NOW_S,
        in_force=events,
    )


def told(*given: Any, **more: Any) -> Forecast:
    return forecast(made(*given, **more))


RULES = [rule("r", connections_max=4)]
HOLDING = [
    (Target.SITE, "mx.a.test"),
    (Target.EGRESS, "e1"),
    (Target.PATH, "1|192.0.2.1"),
    (Target.RULE, "r"),
    (Target.RULE, "r|1"),
    (Target.DELIVERY, "7"),
    (Target.TENANT, "sender.test"),
]


@pytest.mark.parametrize(("target", "on"), HOLDING)
def test_what_is_suspended_goes_on_when_that_is_over_and_the_event_is_what_holds_it_up(target: Target, on: str) -> None:
    free = told(RULES, load("a", 2_000))
    held = told(RULES, load("a", 2_000), events=(suspend(target, on),))
    assert free.seconds < 60
    # What memory has no room for comes back from the queue up to a quarter of an hour later, as at a node.
    late_s = 10 if target in (Target.DELIVERY, Target.TENANT) else surplus.DELAY_S_MAX + 60
    assert HOUR_S + free.seconds - 5 < held.seconds < HOUR_S + free.seconds + late_s
    (site,) = held.sites
    assert (site.bottleneck.limit, site.bottleneck.event) == ("suspended", f"by hand {target} {on}")
    assert site.bottleneck.origin == ""
    (gain,) = held.bottlenecks
    assert gain.event == site.bottleneck.event
    assert gain.gain_s == pytest.approx(held.seconds - free.seconds, rel=0.05)
    assert gain.next_bottleneck is not None
    assert (gain.next_bottleneck.limit, gain.next_bottleneck.event) == ("connections_max", "")


@pytest.mark.parametrize(
    "given",
    [
        suspend(Target.SITE, "mx.b.test"),
        suspend(Target.DELIVERY, "8"),
        suspend(Target.TENANT, "another.test"),
        suspend(Target.EGRESS, "s1"),
        suspend(Target.DOMAIN, "elsewhere.test"),
        suspend(Target.SITE, "mx.a.test", for_s=-1),
        event(EffectKind.LOWER, Target.RULE, "r", for_s=-1, limits=Limits(connections_max=1)),
        event(EffectKind.NO_TLS, Target.PATH, "1|192.0.2.1"),
    ],
)
def test_an_event_of_something_else_or_that_is_over_changes_nothing(given: TrafficEvent) -> None:
    assert told(RULES, load("a", 2_000), events=(given,)) == told(RULES, load("a", 2_000))


@pytest.mark.parametrize("on", ["r", "r|1"])
@pytest.mark.parametrize("scope", [Scope.EGRESS, Scope.SHARED, Scope.PATH])
def test_a_lowered_limit_makes_it_longer_in_proportion(scope: Scope, on: str) -> None:
    on = {"r": "r", "r|1": "r|1|192.0.2.1" if scope is Scope.PATH else "r|1"}[on]
    if scope is Scope.SHARED:
        on = "r"
    rules = [rule("r", connections_max=8, messages_per_minute_max=1_200, scope=scope)]
    free = told(rules, load("a", 4_800))
    lowered = event(EffectKind.LOWER, Target.RULE, on, for_s=math.inf, limits=Limits(messages_per_minute_max=400))
    slow = told(rules, load("a", 4_800), events=(lowered,))
    # So many at once, then so many a minute.
    assert slow.seconds / free.seconds == pytest.approx((4_800 / 400 - 1) / (4_800 / 1_200 - 1), rel=0.05)
    (gain,) = slow.bottlenecks
    assert (gain.rule, gain.limit, gain.value) == ("r", "messages_per_minute_max", 400)
    assert (gain.event, gain.origin) == (f"by hand rule {on}", "")
    assert gain.gain_s == pytest.approx(slow.seconds - free.seconds, rel=0.1)
    assert gain.next_bottleneck is not None
    assert (gain.next_bottleneck.value, gain.next_bottleneck.event) == (1_200, "")


def test_a_figure_of_an_event_that_lowers_nothing_is_the_rules_own() -> None:
    rules = [rule("r", messages_per_minute_max=600)]
    loose = event(EffectKind.LOWER, Target.RULE, "r", for_s=math.inf, limits=Limits(messages_per_minute_max=900))
    beside, free = (told(rules, load("a", 3_000), events=events) for events in ((loose,), ()))
    assert (beside.seconds, beside.sites) == (free.seconds, free.sites)


def test_a_providers_lowered_limit_holds_for_its_sites_together() -> None:
    house = Provider(name="house", connections_max=8)
    rules = [rule("r", provider=house)]
    lowered = event(EffectKind.LOWER, Target.PROVIDER, "provider:house", math.inf, limits=Limits(connections_max=2))
    free, slow = (told(rules, load("a", 4_000), load("bc", 4_000), events=events) for events in ((), (lowered,)))
    assert slow.seconds / free.seconds == pytest.approx(4, rel=0.1)
    assert slow.bottlenecks[0].event == "by hand provider provider:house"


def test_a_limit_that_an_automation_has_lowered_grows_back_step_by_step_and_what_an_operator_has_does_not() -> None:
    how = Recovery(interval_s=60, step_percent=10.0)
    rules = [rule("r", connections_max=8, messages_per_minute_max=600, recovery=how)]
    low, base = Limits(messages_per_minute_max=60), Limits(messages_per_minute_max=600)
    until_s = recovery.steps(low, base, how) * how.interval_s
    assert until_s == 9 * 60
    more: dict[str, Any] = {"limits": low, "base": base, "rule": "r"}
    by_automation = event(EffectKind.LOWER, Target.RULE, "r|1", until_s, automation="calmer", name="calmer", **more)
    by_hand = event(EffectKind.LOWER, Target.RULE, "r|1", until_s, **more)
    grows, stays, free = (made(rules, load("a", 4_400), events=one) for one in ((by_automation,), (by_hand,), ()))
    result = simulate(grows)
    steps = [(at_s, what.rpartition(" ")[2]) for at_s, what in result.reactions.events if "grows back" in what]
    assert [figure for _, figure in steps] == [str(60 * at) for at in range(2, 11)]
    assert [at_s for at_s, _ in steps] == pytest.approx([60 * at for at in range(9)], abs=1.1)
    ends = [simulate(one).errands[0].done_s for one in (grows, stays, free)]
    # What was put off at the low pace comes no sooner, as at a node.
    assert ends[1] > ends[0] > 1.4 * ends[2]
    # 120, 180, ... 600 a minute make 3,240 in nine minutes; the rest at 600 a minute, where the first come at once.
    coarse = [flow(one)[0].done_s for one in (grows, stays, free)]
    assert coarse[0] == pytest.approx(until_s + (4_400 - 3_240) / 10, rel=0.1)
    assert coarse[1] == pytest.approx(until_s + (4_400 - 540 - 600) / 10, rel=0.1)
    assert coarse[2] == pytest.approx((4_400 - 600) / 10, rel=0.15)
    named = told(rules, load("a", 1_500), events=(by_automation,)).bottlenecks[0]
    assert (named.event, named.limit) == ("calmer rule r|1", "messages_per_minute_max")


def test_the_twin_set_for_backoff_holds_and_then_the_limits_grow_back() -> None:
    twin = Limits(connections_max=1)
    rules = [rule("r", connections_max=5, backoff=twin, recovery=Recovery(interval_s=60, step_percent=20.0))]
    given = event(EffectKind.BACKOFF, Target.RULE, "r|1", 300, automation="back off", name="back off", rule="r")
    result = simulate(made(rules, load("a", 24_000), events=(given,)))
    said = [what for _, what in result.reactions.events]
    assert any(what.startswith("back off (recovering): lower rule r|1") for what in said)
    # 20 a second for each connection: 6,000 in five minutes with one, then 2, 3, 4 for a minute each, then 5.
    assert result.errands[0].done_s == pytest.approx(300 + 180 + (24_000 - 6_000 - 9 * 1_200) / 100, rel=0.1)
    named = told(rules, load("a", 4_000), events=(given,)).bottlenecks[0]
    assert (named.rule, named.limit, named.value, named.event) == ("r", "connections_max", 1, "back off rule r|1")


def test_another_pool_carries_a_site_while_the_event_lasts() -> None:
    rules = [rule("wide", egress_ids=((10, 10),), connections_max=8), rule("r", connections_max=2)]
    moved = event(EffectKind.POOL, Target.SITE, "mx.a.test", for_s=math.inf, pool="spare")
    free, wide = (told(rules, load("a", 8_000), events=events) for events in ((), (moved,)))
    assert free.seconds / wide.seconds == pytest.approx(4, rel=0.1)
    briefly = msgspec.structs.replace(moved, until_unix_s=NOW_S + wide.seconds / 2)
    half = told(rules, load("a", 8_000), events=(briefly,))
    assert half.seconds == pytest.approx((wide.seconds + free.seconds) / 2, rel=0.1)
    (coarse,) = flow(made(rules, load("a", 8_000), events=(briefly,)))
    assert coarse.done_s == pytest.approx(half.seconds, rel=0.1)


def test_where_a_path_is_suspended_the_next_host_is_used() -> None:
    given = suspend(Target.PATH, "1|192.0.2.1", math.inf)
    held = made(RULES, load("a", 2_000, hosts=2), events=(given,))
    free = told(RULES, load("a", 2_000, hosts=2))
    assert forecast(held).seconds == pytest.approx(free.seconds, rel=0.1)
    assert flow(held)[0].done_s == pytest.approx(free.seconds, rel=0.15)


def test_a_domain_that_is_held_back_waits_and_others_of_its_site_do_not() -> None:
    site = load("a", 1_000)
    site.counts["mine at held.test"] = 500
    loads = (delivery(delivery_id=7), delivery("mine at held.test", delivery_id=7, domain="held.test"))
    given = (suspend(Target.DOMAIN, "held.test"),)
    result = simulate(made(RULES, site, events=given, loads=loads))
    rest, held = result.errands
    assert rest.done_s < 60
    assert HOUR_S < held.done_s < HOUR_S + 60
    assert held.done_s - HOUR_S > 500 * 0.05 / 4 / 2
    seen = told(RULES, site, events=given, loads=loads)
    assert seen.recipients == 1_500
    assert seen.bottlenecks[0].event == "by hand domain held.test"


def test_another_delivery_that_is_held_leaves_its_part_of_the_limits_to_this_one() -> None:
    site = load("a", 4_000)
    site.counts["other"] = 4_000
    loads = (delivery(delivery_id=7), delivery("other", delivery_id=8, is_wanted=False))
    beside = told(RULES, site, loads=loads)
    alone = told(RULES, site, loads=loads, events=(suspend(Target.DELIVERY, "8"),))
    assert alone.seconds < 0.65 * beside.seconds
    assert alone.bottlenecks[0].event == ""


@pytest.mark.parametrize(("target", "on"), [(Target.SITE, "mx.a.test"), (Target.DELIVERY, "7")])
def test_what_is_suspended_until_somebody_ends_that_will_not_be_done_in_time(target: Target, on: str) -> None:
    given = suspend(target, on, math.inf)
    held = told(RULES, load("a", 2_000), load("bc", 100), events=(given,))
    assert held.waiting == (2_000 if target is Target.SITE else 2_100)
    assert held.seconds == pytest.approx(5 * 86_400, rel=0.001)
    assert held.bottlenecks[0].event == given.key
    assert held.bottlenecks[0].gain_s == pytest.approx(5 * 86_400, rel=0.01)


# --- which events are played ----------------------------------------------------------------------


def test_what_does_not_concern_it_or_cannot_be_told_is_counted_and_named() -> None:
    mine = suspend(Target.SITE, "mx.a.test")
    events = [
        mine,
        suspend(Target.SITE, "mx.elsewhere.test"),
        event(EffectKind.LOWER, Target.RULE, "another", limits=Limits(connections_max=1)),
        event(EffectKind.NO_TLS, Target.PATH, "1|192.0.2.1"),
        event(EffectKind.POOL, Target.SITE, "mx.a.test", pool="gone"),
        suspend(Target.DOMAIN, "a.test"),
    ]
    found = standing(events, [delivery()], [load("a", 10)], {"a.test": 10}, rules=RuleSet(RULES), pools=POOLS)
    assert found.in_force == [mine]
    assert found.said == [
        "traffic events in force besides the rules, 1: suspend site mx.a.test (by hand)",
        "traffic events left out, as whether a path is encrypted costs no time here, 1: "
        "no-tls path 1|192.0.2.1 (by hand)",
        "traffic events left out, as their pool is not in the settings, 1: pool site mx.a.test (by hand)",
        "traffic events left out, as no more than 200 domains are held back apart, 1: suspend domain a.test (by hand)",
        "traffic events in force that concern nothing of this, 2 (mta traffic events)",
    ]


def test_domains_that_are_held_back_are_counted_apart_the_largest_first() -> None:
    recipients = {f"d{number}.test": 1 + number for number in range(300)}
    events = [suspend(Target.DOMAIN, domain) for domain in (*recipients, "unknown.test")]
    found = apart(recipients, events)
    assert len(found) == 200
    assert "d299.test" in found
    assert "d99.test" not in found
