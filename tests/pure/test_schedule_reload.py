"""New rules while sending: they hold at once, and what was used stays used."""

from __future__ import annotations

from collections import Counter
from typing import cast

from mta.traffic.rules import Rule, RuleSet, Scope
from tests.support.schedule_model import A
from tests.support.schedule_world import World, both, finish


def reload(world: World, *rules: Rule) -> None:
    world.rules = RuleSet(rules)
    world.schedule.set_rules(world.rules, world.now_s)


def test_a_reload_that_tightens_connections_holds_at_once() -> None:
    world = World([Rule("r", "*", connections_max=10)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 0.2
    world.put("a.test", 4_000)
    world.run(3)
    assert world.open_now["limit r|1"] == 10
    opened = len(world.opened)
    reload(world, Rule("r", "*", connections_max=3))
    world.run(2)
    assert len(world.opened) == opened
    assert world.open_now["limit r|1"] == 3
    reload(world, Rule("r", "*", connections_max=6))
    world.run(3)
    assert world.open_now["limit r|1"] == 6


def test_connections_open_under_a_renamed_rule_count_under_the_new_one() -> None:
    world = World([Rule("old", "*", connections_max=4)], sites={"a.test": A})
    world.put("a.test", 4_000)
    world.run(2)
    opened = len(world.opened)
    reload(world, Rule("new", "*", connections_max=4))
    world.open_now.clear()
    world.open_now["limit new|1"] = 4
    world.run(2)
    assert len(world.opened) == opened
    finish(world)


def test_a_reload_keeps_spent_credits_and_holds_the_new_limit_at_once() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=1_200)], sites={"a.test": A})
    world.put("a.test", 400)
    world.run(20)
    assert len(world.sent) == 100
    reload(world, Rule("r", "*", messages_per_hour_max=600))
    world.run(200)
    assert len(world.sent) == 100
    reload(world, Rule("r", "*", messages_per_hour_max=2_400))
    world.put("a.test", 200)
    world.run(20)
    assert len(world.sent) == 200


def test_a_rule_gains_and_loses_its_hourly_limit_with_messages_in_flight() -> None:
    world = World([Rule("r", "*", connections_max=2)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 0.5
    world.put("a.test", 400)
    world.run(5)
    before = len(world.sent)
    reload(world, Rule("r", "*", connections_max=2, messages_per_hour_max=120))
    world.run(100)
    assert len(world.sent) - before <= 10 + 2 * 2, "ten in a slice, and what was in flight"
    reload(world, Rule("r", "*", connections_max=2))
    world.run(5)
    reload(world, Rule("r", "*", connections_max=2, messages_per_hour_max=120))
    finish(world, 100_000)


def test_credits_stay_spent_when_a_rule_changes_its_scope() -> None:
    world = both(Rule("r", "*", scope=Scope.PATH, messages_per_hour_max=1_200))
    world.put("a.test", 300)
    world.put("b.test", 300)
    world.run(20)
    assert len(world.sent) == 200
    reload(world, Rule("r", "*", scope=Scope.SHARED, messages_per_hour_max=3_000))
    world.run(20)
    assert len(world.sent) == 250
    reload(world, Rule("r", "*", scope=Scope.EGRESS, messages_per_hour_max=3_600))
    world.put("a.test", 200)
    world.run(20)
    assert len(world.sent) == 300


def test_fewer_messages_per_connection_hold_for_open_sessions_too() -> None:
    world = World([Rule("r", "*", connections_max=1)], sites={"a.test": A})
    world.put("a.test", 1_000)
    world.run(3)
    reload(world, Rule("r", "*", connections_max=1, messages_per_connection_max=10))
    at_s = world.now_s
    finish(world)
    later = Counter(sent.session for sent in world.sent if sent.at_s > at_s + 1.5)
    assert max(later.values()) == 10


def test_sessions_in_clear_end_when_a_rule_requires_tls() -> None:
    world = World([Rule("r", "*", connections_max=2)], sites={"a.test": A})
    world.put("a.test", 2_000)
    world.run(2)
    before = {session.id for session in world.schedule._connections.all()}
    reload(world, Rule("r", "*", connections_max=2, tls=cast("object", "required")))  # type: ignore[arg-type]
    world.run(3)
    assert not before & {session.id for session in world.schedule._connections.all()}
    finish(world)
