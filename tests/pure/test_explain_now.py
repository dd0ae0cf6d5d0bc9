"""What the schedule says of itself while it holds something back."""

from __future__ import annotations

import math
from collections import Counter

from mta.model.egress import EgressPool
from mta.model.site import MxHost, Site
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.explain_now import LaneNow, count_waiting, is_lane_of, lane_now, limit_rows
from mta.traffic.limits import Limits
from mta.traffic.rules import Provider, Rule, RuleSet, Scope
from tests.support.schedule_model import egress
from tests.support.schedule_world import UNIX_OFFSET_S, World

SITES = {"d.test": Site("mx.test", (MxHost("mx.test", 10, ("192.0.2.1",)),))}
TWO = EgressPool("main", (egress(1), egress(2)))


def said(world: World, rules: RuleSet | None = None, wanted: str = "mx.test") -> LaneNow:
    [lane] = [lane for lane in world.schedule.lanes if is_lane_of(lane, wanted)]
    return lane_now(world.schedule, rules or world.rules, lane, world.now_s, world.now_s + UNIX_OFFSET_S)


def test_an_hourly_limit_is_named_with_its_figures_and_the_time_at_which_it_lets_more_through() -> None:
    world = World([Rule("hourly", "*", messages_per_hour_max=120, origin="r.toml:3")], sites=SITES, comes_back=False)
    world.put("d.test", 45)
    world.run(60.0)
    told = said(world)
    [way] = told.egresses
    assert (told.state, told.reason, way.reason) == ("waits", *["rule-messages-per-hour"] * 2)
    assert (way.rule, way.origin) == ("hourly", "r.toml:3")
    assert told.waiting == 35
    figures = {row.span_s: row for row in told.limits}
    assert (figures[300].used, figures[300].most, figures[3600].used, figures[3600].most) == (10, 10, 10, 120)
    assert figures[300].limit == "messages_per_hour_max"
    # The time is the one at which it does go.
    at_unix_s = told.until_unix_s
    assert at_unix_s is not None
    assert at_unix_s - UNIX_OFFSET_S > world.now_s
    sent = len(world.sent)
    world.run(at_unix_s - UNIX_OFFSET_S - world.now_s - 0.1)
    assert len(world.sent) == sent
    world.run(5.0)
    assert len(world.sent) > sent


def test_the_line_of_the_value_itself_is_given_where_the_file_told_it() -> None:
    origins = {("hourly", "messages_per_hour_max"): "google.toml:7"}
    rule = Rule("hourly", "*", messages_per_hour_max=120, origin="r.toml:3")
    world = World([rule], sites=SITES, comes_back=False)
    world.put("d.test", 45)
    world.run(60.0)
    told = said(world, RuleSet([rule], origins=origins))
    assert told.egresses[0].origin == "google.toml:7"
    assert {row.origin for row in told.limits} == {"google.toml:7"}


def test_connections_at_their_limit_wait_for_an_event_and_busy_sessions_for_a_report() -> None:
    narrow = Rule("narrow", "*", connections_max=1, scope=Scope.SHARED)
    world = World([narrow], sites={**SITES, "e.test": other_site()}, comes_back=False)
    for server in world.servers.values():
        server.message_s = 2.0
    world.put("d.test", 400)
    world.run(1.0)
    world.put("e.test", 5)
    world.run(1.0)
    told = said(world, wanted="e.test")
    [way] = told.egresses
    assert (told.reason, way.reason) == ("rule-connections", "rule-connections")
    assert told.until_unix_s is None
    assert told.event == "when one of the open connections ends"
    assert [(row.what, row.used, row.most, row.holds >= 1) for row in told.limits] == [("connections", 1, 1, True)]


def other_site() -> Site:
    return Site("mx2.test", (MxHost("mx2.test", 10, ("192.0.2.2",)),))


def test_each_egress_has_its_own_reason() -> None:
    rules = [Rule("one", "*", ((1, 1),), messages_per_minute_max=5), Rule("two", "*", ((2, 2),))]
    world = World(rules, sites=SITES, pools=(TWO,), comes_back=False)
    world.put("d.test", 10)
    world.run(20.0)
    ends_unix_s = world.now_s + UNIX_OFFSET_S + 600
    effect = Effect("k", "stop", EffectKind.SUSPEND, Target.EGRESS, "e2", ends_unix_s, detail="why")
    world.schedule.set_effects([effect], world.now_s)
    world.put("d.test", 60)
    world.run(1.0)
    told = {way.egress: way for way in said(world).egresses}
    assert told["e1"].reason == "rule-messages"
    assert told["e1"].rule == "one"
    assert (told["e2"].reason, told["e2"].until_unix_s) == ("suspended", effect.until_unix_s)
    assert "why" in told["e2"].detail


def test_a_path_that_fails_says_what_the_server_did_and_when_it_is_tried_again() -> None:
    world = World([Rule("r", "*")], sites=SITES, comes_back=False)
    next(iter(world.servers.values())).is_down = True
    world.put("d.test", 10)
    world.run(2.0)
    [way] = said(world).egresses
    assert way.reason == "backoff"
    assert "refused" in way.detail
    assert way.peer == "192.0.2.1"
    assert way.until_unix_s is not None


def test_looking_changes_nothing() -> None:
    def play(*, looks: bool) -> list[tuple[float, int]]:
        provider = Provider(name="p", connections_max=3)
        rule = Rule("r", "*", connections_max=2, messages_per_minute_max=30, provider=provider)
        world = World([rule], sites=SITES, pools=(TWO,), comes_back=False)
        world.put("d.test", 300)
        for _ in range(40):
            world.run(5.0)
            if looks:
                said(world)
                for limit in world.schedule.limits():
                    list(limit_rows(limit, world.rules, world.now_s))
        return [(sent.at_s, sent.recipient) for sent in world.sent]

    assert play(looks=True) == play(looks=False)


def test_a_deliverys_recipients_are_counted_by_what_they_wait_for() -> None:
    world = World([Rule("r", "*", messages_per_minute_max=5)], sites=SITES, comes_back=False)
    world.put("d.test", 20, delivery=7)
    world.put("d.test", 10, delivery=8)
    world.run(10.0)
    counted: Counter[tuple[str, str]] = Counter()
    count_waiting(world.schedule.lanes, 7, counted)
    [((reason, site), waiting)] = counted.items()
    assert (reason, site) == ("rule-messages", "mx.test")
    assert 0 < waiting <= 20


def test_a_figure_that_an_event_has_lowered_says_what_stands_in_the_rule_and_which_event_it_was() -> None:
    rule = Rule("r", "*", messages_per_minute_max=30, connections_max=4, origin="r.toml:3")
    world = World([rule], sites=SITES, comes_back=False)
    world.put("d.test", 45)
    world.run(1.0)
    until_unix_s = world.now_s + UNIX_OFFSET_S + 600
    [counted_on] = {row.counted_on for row in said(world).limits}
    lowered = Effect(
        "k", "slow", EffectKind.LOWER, Target.RULE, counted_on, until_unix_s, Limits(messages_per_minute_max=5)
    )
    elsewhere = Effect("other", "stop", EffectKind.SUSPEND, Target.SITE, "mx.other.test", until_unix_s)
    world.schedule.set_effects([lowered, elsewhere], world.now_s)
    world.run(1.0)
    told = said(world)
    rows = {row.limit: row for row in told.limits}
    minute, connections = rows["messages_per_minute_max"], rows["connections_max"]
    assert (minute.most, minute.given, minute.because) == (5, 30, "slow")
    assert (connections.most, connections.given, connections.because) == (4, None, "")
    [effect] = told.effects
    assert (effect.key, effect.kind, effect.target, effect.on) == ("k", "lower", "rule", counted_on)
    assert (effect.limits, effect.until_unix_s) == ({"messages_per_minute_max": 5}, until_unix_s)


def test_a_suspension_without_a_reason_is_named_and_no_more() -> None:
    world = World([Rule("r", "*")], sites=SITES, comes_back=False)
    effect = Effect("k", "stop", EffectKind.SUSPEND, Target.EGRESS, "e1", math.inf)
    world.schedule.set_effects([effect], world.now_s)
    world.put("d.test", 5)
    world.run(1.0)
    told = said(world)
    assert told.detail == "egress e1: stop"
    assert [(one.name, one.until_unix_s) for one in told.effects] == [("stop", None)]
