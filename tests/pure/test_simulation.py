"""Scenarios played by the real schedule: the same seed the same report, nobody lost, providers as described."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta.simulation.dice import Chances, Dice, Latency
from mta.simulation.engine import World, apportion, simulate
from mta.simulation.judge import Judge
from mta.simulation.picture import picture
from mta.simulation.report import Report, report
from mta.simulation.scenario import Block, DeliveryModel, Outage, OutageKind, Scenario
from mta.traffic.automations import Act, Automation, ReplyMatch
from mta.traffic.effects import Target
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import QuietHours, Rule, RuleSet, Scope, WarmUp
from tests.support.scenarios import pool, provider, rule, scenario

QUICK = RetrySchedule(first_count=50, first_period_s=600, then_period_s=3_600)


def played(made: Scenario) -> Report:
    return report(simulate(made))


def site(told: Report, name: str) -> Any:
    return next(one for one in told.sites if one.site == name)


MIXED = scenario(
    [rule("a", "mx.a.test", connections_max=4, messages_per_minute_max=900), rule("rest", connections_max=6)],
    provider("a", 3, failed_percent=1.0),
    provider("b", 1, greylist_s=300, deferred_percent=2.0),
    provider("tail", 2, sites=40, falloff=1.0, hosts=("mx{n}.tail.test",)),
    recipients=4_000,
    egresses=2,
    delivery={"retry": QUICK},
)


def test_the_same_seed_gives_the_same_report_byte_for_byte() -> None:
    first, second = msgspec.json.encode(played(MIXED)), msgspec.json.encode(played(MIXED))
    assert first == second
    assert msgspec.json.encode(played(msgspec.structs.replace(MIXED, seed=2))) != first


def test_every_recipient_has_one_end_and_every_attempt_is_told() -> None:
    told = played(MIXED)
    assert told.recipients == told.delivered + told.failed + told.expired + told.waiting == 4_000
    assert told.waiting == 0
    for one in told.sites:
        assert one.sent == one.delivered + one.failed + one.deferred
        assert one.recipients == one.delivered + one.failed
    assert told.violations == 0
    assert site(told, "tail").sites == 40


def test_a_rate_limit_takes_its_time_and_is_named_as_what_held_it_back() -> None:
    # 600 at once, then 600 each minute: 1,800 take two minutes and a little.
    limited = RuleSet([rule("slow", messages_per_minute_max=600)], origins={("slow", "messages_per_minute_max"): "f:3"})
    told = played(scenario(limited, provider("a"), recipients=1_800))
    assert 120 < told.ended_s < 140
    held = site(told, "a").held[0]
    assert (held.rule, held.limit, held.value, held.origin) == ("slow", "messages_per_minute_max", 600, "f:3")


def test_a_site_that_is_bound_by_connections_goes_at_their_pace() -> None:
    told = played(
        scenario([rule("few", connections_max=5)], provider("a", message_s=0.1, spread=0.0), recipients=5_000)
    )
    assert told.ended_s == pytest.approx(100, rel=0.03)
    assert site(told, "a").held[0].limit == "connections_max"
    assert site(told, "a").connections_most == 5


# --- providers ------------------------------------------------------------------------------------


def test_who_is_greylisted_is_accepted_at_the_next_attempt() -> None:
    told = played(scenario([rule()], provider("a", greylist_s=300), recipients=200, delivery={"retry": QUICK}))
    assert (told.delivered, told.deferred) == (200, 200)
    assert 300 <= told.ended_s < 360  # put off by a 4yz, they go again within minutes, and then by the schedule


def test_a_retry_that_comes_too_early_for_a_greylist_is_deferred_again() -> None:
    told = played(scenario([rule()], provider("a", greylist_s=900), recipients=100, delivery={"retry": QUICK}))
    assert (told.delivered, told.deferred) == (100, 200)


def test_what_exceeds_the_providers_own_rate_is_refused_and_goes_later() -> None:
    told = played(
        scenario([rule()], provider("a", messages_per_minute_max=100), recipients=300, delivery={"retry": QUICK})
    )
    assert told.delivered == 300
    assert site(told, "a").refused >= 200
    assert told.violations == 0  # of our rules: they allowed it
    obeying = played(
        scenario(
            [rule("obeys", messages_per_minute_max=95)],
            provider("a", messages_per_minute_max=100),
            recipients=300,
        )
    )
    assert site(obeying, "a").refused == 0


@pytest.mark.parametrize("kind", list(OutageKind))
def test_an_outage_holds_up_its_provider_only(kind: OutageKind) -> None:
    away = Outage(5.0, 900.0, kind)
    told = played(
        scenario(
            [rule(connections_max=2)],
            provider("away", outages=(away,)),
            provider("well"),
            recipients=4_000,
            delivery={"retry": QUICK},
        )
    )
    assert told.delivered == 4_000
    assert site(told, "away").done_s > 905
    assert site(told, "well").done_s < 100
    assert any(held.limit == "paths fail" for held in site(told, "away").held)


def test_who_goes_on_too_fast_is_blocked_for_a_time() -> None:
    block = Block(refusals=50, within_s=60, for_s=1_200)
    told = played(
        scenario(
            [rule()],
            provider("a", messages_per_minute_max=100, block=block),
            recipients=1_000,
            delivery={"retry": QUICK},
        )
    )
    assert site(told, "a").blocks >= 1
    assert told.delivered == 1_000
    assert told.ended_s > 1_200


def test_a_provider_that_ends_connections_after_some_messages_gets_them_on_the_next() -> None:
    told = played(scenario([rule(connections_max=2)], provider("a", messages_per_connection_max=7), recipients=500))
    assert (told.delivered, told.deferred) == (500, 0)
    assert site(told, "a").connections >= 500 / 7


def test_recipients_expire_with_their_delivery() -> None:
    told = played(
        scenario(
            [rule("slow", messages_per_minute_max=60)],
            provider("a"),
            recipients=1_000,
            delivery={"validity_s": 300.0},
        )
    )
    assert told.expired > 0
    assert told.delivered + told.expired == 1_000
    assert told.ended_s == pytest.approx(300, abs=5)


def test_recipients_that_are_appended_over_time_do_not_wait_before() -> None:
    told = played(scenario([rule()], provider("a"), recipients=960, delivery={"start_s": 100.0, "over_s": 960.0}))
    assert told.delivered == 960
    assert site(told, "a").queue_max < 100
    assert 1_000 < told.ended_s < 1_080


def test_no_queue_is_shorter_than_empty_where_several_providers_share_what_is_appended() -> None:
    providers = [provider(name) for name in "abcd"]
    told = played(scenario([rule()], *providers, recipients=997, delivery={"over_s": 3_000.0}))
    assert told.delivered == 997
    assert min(min(series.queue) for series in told.series) == 0


def test_a_small_delivery_is_not_stuck_behind_a_large_one() -> None:
    made = scenario([rule(connections_max=4)], provider("a"))
    deliveries = (
        DeliveryModel(name="large", recipients=20_000),
        DeliveryModel(name="small", recipients=200, start_s=10.0),
    )
    told = played(msgspec.structs.replace(made, deliveries=deliveries))
    done = {one.delivery: one.done_s for one in told.deliveries}
    assert done["small"] < 30
    assert done["large"] > 200


# --- the judge ------------------------------------------------------------------------------------


def judge(*rules: Rule, starts_unix_s: float = 0.0) -> Judge:
    return Judge(RuleSet(rules), starts_unix_s, Dice(1))


def test_the_judge_finds_what_is_over_a_limit_in_any_period() -> None:
    seen = judge(rule("r", messages_per_minute_max=10))
    docket = seen.docket("mx.a.test", 1, "mx.a.test", "", "192.0.2.1")
    for at_s, messages in ((0.0, 6), (59.0, 4), (60.0, 6)):
        left = seen.handed(docket, messages, messages, 100, at_s)
        seen.reported(docket, messages, 0, 100, at_s, at_s, left=left)
    assert seen.violations == 0
    left = seen.handed(docket, 1, 1, 100, 100.0)
    seen.reported(docket, 1, 0, 100, 100.0, 100.0, left=left)
    assert [(one.limit, one.found, one.allowed) for one in seen.details] == [("messages in 60 s", 11, 10)]


def test_what_came_back_unattempted_does_not_count() -> None:
    seen = judge(rule("r", messages_per_minute_max=10))
    docket = seen.docket("mx.a.test", 1, "mx.a.test", "", "192.0.2.1")
    for at in range(40):
        left = seen.handed(docket, 10, 10, 100, float(at))
        seen.reported(docket, 0, 10, 100, float(at), float(at), left=left)
    assert seen.violations == 0


def test_the_judge_counts_connections_messages_on_them_and_quiet_hours() -> None:
    quiet = QuietHours(spans=((0, 60),))
    seen = judge(
        rule(
            "r",
            connections_max=1,
            connections_per_minute_max=2,
            messages_per_connection_max=5,
            ramp_up_s=10,
            quiet_hours=quiet,
        )
    )
    docket = seen.docket("mx.a.test", 1, "mx.a.test", "", "192.0.2.1")
    seen.opened(docket, 0.0)
    seen.opened(docket, 1.0)
    seen.closed(docket)
    seen.closed(docket)
    seen.opened(docket, 2.0)
    seen.handed(docket, 6, 6, 100, 3.0)
    assert [one.limit for one in seen.details] == [
        "ramp up",
        "connections open",
        "connections begun in 60 s",
        "messages on a connection",
        "quiet hours",
    ]


def test_a_schedule_that_broke_the_rules_would_be_found() -> None:
    made = scenario([rule("wide", connections_max=10)], provider("a"), recipients=2_000)
    world = World(made)
    # The judge has stricter rules than the schedule: all that the schedule does beyond them it must find.
    world.judge._rules = RuleSet([rule("wide", connections_max=3, messages_per_second_max=20)])
    told = report(world.run())
    assert told.violations > 100
    assert {one.limit for one in told.violation_details} >= {"connections open", "messages in 1 s"}


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "connections_max": st.integers(1, 8),
        "connections_per_path_max": st.integers(1, 4),
        "connections_per_minute_max": st.integers(2, 60),
        "messages_per_connection_max": st.integers(1, 40),
        "messages_per_second_max": st.integers(1, 50),
        "messages_per_minute_max": st.integers(20, 900),
        "messages_per_hour_max": st.integers(600, 30_000),
        "bytes_per_minute_max": st.integers(200_000, 50_000_000),
        "scope": st.sampled_from(list(Scope)),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(LIMITS, min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_no_limit_is_ever_exceeded_whatever_rules_and_providers(
    limits: list[dict[str, Any]], egresses: int, seed: int, is_rough: bool
) -> None:
    rules = [rule(f"r{at}", f"mx.p{at}.test", **one) for at, one in enumerate(limits)]
    more: dict[str, Any] = {}
    if is_rough:
        more = {"messages_per_connection_max": 9, "deferred_percent": 5.0, "outages": (Outage(3.0, 20.0),)}
    providers = [provider(f"p{at}", at + 1, message_s=0.02, **more) for at in range(len(limits))]
    made = scenario(
        [*rules, rule("rest")],
        *providers,
        recipients=400,
        egresses=egresses,
        seed=seed,
        delivery={"retry": QUICK, "message_bytes": 20_000},
    )
    told = played(made)
    assert told.violations == 0, told.violation_details
    assert told.waiting == 0 or told.ended_s > 3_600


@pytest.mark.parametrize("nodes", [2, 5])
def test_nodes_that_share_limits_keep_them_together(nodes: int) -> None:
    limits = {"connections_max": 12, "messages_per_minute_max": 1_200, "connections_per_minute_max": 200}
    made = scenario(
        [rule("shared", "mx.a.test", scope=Scope.SHARED, **limits), rule("own", connections_max=6)],
        provider("a", 2),
        provider("b", 1),
        recipients=6_000,
        egresses=2,
        nodes=nodes,
    )
    told = played(made)
    assert told.violations == 0, told.violation_details
    assert told.delivered == 6_000
    # 4,000 at 1,200 a minute: nodes that wait for one another take little longer than one alone.
    assert site(told, "a").done_s < 1.5 * site(played(msgspec.structs.replace(made, nodes=1)), "a").done_s


# --- automations ----------------------------------------------------------------------------------


def test_an_automation_lowers_the_rate_before_the_block_and_lets_it_grow_back() -> None:
    slower = Automation(
        name="too-fast",
        match=ReplyMatch(codes=("450",), pattern="slow down"),
        replies=5,
        within_s=60,
        act=Act.LOWER,
        factor=0.5,
        for_s=120,
    )
    block = Block(refusals=300, within_s=60, for_s=3_600)
    limited = {"connections_max": 8, "messages_per_minute_max": 1_200}
    strict = provider("a", messages_per_minute_max=700, block=block, message_s=0.02)
    more: dict[str, Any] = {"recipients": 6_000, "delivery": {"retry": QUICK}}
    careless = played(scenario([rule("r", **limited)], strict, **more))
    adaptive = played(scenario([rule("r", **limited, automations=(slower,))], strict, **more))
    assert site(careless, "a").blocks > 0
    assert site(adaptive, "a").blocks == 0
    assert adaptive.deferred < careless.deferred / 3
    assert any("lower rule r|1" in event.what for event in adaptive.events)
    assert any("grows back" in event.what for event in adaptive.events)
    assert adaptive.violations == 0


def test_a_suspended_site_waits_and_goes_on() -> None:
    pause = Automation(
        name="pause", match=ReplyMatch(pattern="come back"), act=Act.SUSPEND, target=Target.SITE, for_s=600
    )
    told = played(
        scenario(
            [rule("r", automations=(pause,))],
            provider("a", deferred_percent=1.0, deferred_reply="451 come back in a while"),
            recipients=300,
            delivery={"retry": QUICK},
        )
    )
    assert told.delivered == 300
    assert told.ended_s > 600
    assert any(event.what.endswith("is over") for event in told.events)


def test_a_domain_where_nearly_all_fails_is_blocked() -> None:
    told = played(
        scenario(
            [rule("r", connections_max=4)], provider("bad", failed_percent=97.0), provider("good"), recipients=4_000
        )
    )
    assert any(event.what.startswith("error-rate-block: suspend domain bad.example") for event in told.events)
    assert site(told, "bad").done_s > 10_800
    assert site(told, "good").done_s < 600


# --- warm-up --------------------------------------------------------------------------------------


def test_a_new_address_keeps_to_its_plan_and_nothing_waits_for_it() -> None:
    plan = WarmUp(name="new", egress_ids=((2, 2),), starts_unix_s=1_767_571_200, ladders=(("*", (50, 100)),))
    rules = RuleSet([rule(connections_max=10)], warm_ups=[plan])
    told = played(scenario(rules, provider("a"), recipients=3_000, pools=(pool(2),)))
    assert told.violations == 0
    assert told.delivered == 3_000
    assert told.ended_s < 60


# --- dice and picture -----------------------------------------------------------------------------


def test_dice_are_even_and_chances_come_as_often_as_they_should() -> None:
    dice = Dice(7)
    drawn = [dice.below(10) for _ in range(20_000)]
    assert all(1_850 < drawn.count(side) < 2_150 for side in range(10))
    chances = Chances(0.03, dice)
    assert 800 < sum(chances.hits(5) for _ in range(6_000)) < 1_000
    assert Chances(0.0, dice).hits(10**9) == 0
    assert Chances(1.0, dice).hits(7) == 7
    latency = Latency(0.1, 0.5, dice)
    assert sum(latency.draw() for _ in range(20_000)) / 20_000 == pytest.approx(0.1, rel=0.02)
    assert Latency(0.1, 0.0, dice).draw(3) == pytest.approx(0.3)


def test_portions_are_whole_and_add_up() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0, 2, 5]) == [0, 2, 5]
    assert sum(apportion(1_234_567, [1 / n for n in range(1, 500)])) == 1_234_567


def test_the_picture_is_a_closed_drawing_of_every_provider() -> None:
    drawn = picture(played(MIXED))
    root = ET.fromstring(drawn)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "tail"} <= set(texts)
    assert drawn.count("http") == 1  # the name space: nothing is fetched from anywhere
