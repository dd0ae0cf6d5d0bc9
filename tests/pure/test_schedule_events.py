"""What events do to the schedule: suspensions, lowered limits, the twin set, and shares with other nodes."""

from __future__ import annotations

import math

from mta.model.egress import EgressPool
from mta.model.waiting import WaitReason
from mta.traffic.effects import Effect, EffectKind, Target, effect_key
from mta.traffic.limits import Limits
from mta.traffic.rules import Provider, Rule, Scope, Tls
from tests.support.schedule_model import A, B, egress, site
from tests.support.schedule_world import START_S, UNIX_OFFSET_S, World, both, finish


def effect(kind: EffectKind, target: Target, on: str, for_s: float = math.inf, **limits: int) -> Effect:
    until_s = START_S + UNIX_OFFSET_S + for_s
    return Effect(effect_key("test", target, on), "test", kind, target, on, until_s, Limits(**limits), detail="421 no")


def put_in_force(world: World, *effects: Effect) -> None:
    world.schedule.set_effects(effects, world.now_s)


def test_a_suspended_site_waits_and_others_go_on() -> None:
    world = both(Rule("r", "*"))
    put_in_force(world, effect(EffectKind.SUSPEND, Target.SITE, A.key, for_s=120))
    world.put("a.test", 10)
    world.put("b.test", 10)
    world.run(60)
    assert world.sent_by(lambda sent: sent.domain) == {"b.test": 10}
    lane = world.lane("a.test")
    assert lane.wait is not None
    assert lane.wait.reason is WaitReason.SUSPENDED
    assert "421 no" in lane.wait.detail
    assert abs(lane.wait.until - (START_S + 120)) < 0.01
    finish(world, 70)


def test_each_target_is_left_alone_and_nothing_else() -> None:
    pool = EgressPool("main", (egress(1), egress(2)))
    for target, on, spared in (
        (Target.EGRESS, "e1", lambda sent: sent.egress.name == "e2"),
        (Target.RULE, "r|1", lambda sent: sent.egress.name == "e2"),
        (Target.PATH, "1|192.0.2.1", lambda sent: (sent.egress.name, sent.peer) != ("e1", "192.0.2.1")),
    ):
        two = site((10, "mx1.a.test", ["192.0.2.1"]), (10, "mx2.a.test", ["192.0.2.2"]))
        world = World([Rule("r", "*")], sites={"a.test": two}, pools=[pool])
        put_in_force(world, effect(EffectKind.SUSPEND, target, on))
        world.put("a.test", 200)
        finish(world, 60)
        assert all(spared(sent) for sent in world.sent), target


def test_a_suspension_in_full_flight_ends_what_is_begun_and_begins_nothing() -> None:
    world = both(Rule("r", "*"))
    world.put("a.test", 5_000)
    world.run(1)
    put_in_force(world, effect(EffectKind.SUSPEND, Target.RULE, "r|1"))
    world.run(2)
    sent = len(world.sent)
    world.run(20)
    assert len(world.sent) == sent
    put_in_force(world)
    finish(world, 300)


def test_a_limit_that_is_lowered_holds_at_once_and_until_the_event_is_gone() -> None:
    world = both(Rule("r", "*", connections_max=10))
    world.put("a.test", 8_000)
    world.run(1)
    put_in_force(world, effect(EffectKind.LOWER, Target.RULE, "r|1", connections_max=1, messages_per_minute_max=30))
    before = len(world.sent)
    world.run(0.2)
    (limit,) = world.schedule.limits()
    assert limit.sessions - limit.closing <= 1
    world.run(59)
    assert len(world.sent) - before <= 30 + 200  # those that were in flight
    at = len(world.sent)
    world.run(300)
    assert len(world.sent) - at <= 6 * 30
    put_in_force(world)
    finish(world, 1_200)  # what went back to the queue meanwhile is due within a quarter of an hour


def test_an_event_never_raises_a_limit() -> None:
    world = both(Rule("r", "*", connections_max=2))
    put_in_force(world, effect(EffectKind.LOWER, Target.RULE, "r|1", connections_max=50))
    world.put("a.test", 1_000)
    finish(world)
    assert world.open_max["limit r|1"] <= 2


def test_in_backoff_the_twin_set_holds() -> None:
    world = both(Rule("r", "*", connections_max=10, messages_per_minute_max=600, backoff=Limits(connections_max=1)))
    put_in_force(world, effect(EffectKind.BACKOFF, Target.RULE, "r|1"))
    world.put("a.test", 9_000)
    world.run(30)
    assert world.open_max["limit r|1"] == 1
    assert len(world.sent) > 600  # it has no limit of messages of its own
    put_in_force(world)
    finish(world)
    assert world.open_max["limit r|1"] > 1


def test_a_provider_is_lowered_for_all_its_rules() -> None:
    provider = Provider("large", scope=Scope.SHARED)
    world = World([Rule(name, f"mx.{name}.test", provider=provider) for name in "ab"], sites={"a.test": A, "b.test": B})
    put_in_force(world, effect(EffectKind.LOWER, Target.PROVIDER, "provider:large", messages_per_minute_max=10))
    world.put("a.test", 50)
    world.put("b.test", 50)
    world.run(50)
    assert len(world.sent) == 10


def test_tls_that_does_not_work_is_left_out_where_it_may_be() -> None:
    for tls, expected in ((Tls.OPPORTUNISTIC, Tls.DISABLED), (Tls.REQUIRED, Tls.REQUIRED)):
        world = both(Rule("r", "*", tls=tls))
        put_in_force(world, effect(EffectKind.NO_TLS, Target.PATH, "1|192.0.2.1"))
        world.put("a.test", 1)
        world.run(1)
        assert world.opened[0][1].tls is expected


# --- shares ---------------------------------------------------------------------------------------

KEYS = [("r", "c"), ("r", "m60")]


def shared() -> World:
    return both(Rule("r", "*", scope=Scope.SHARED, connections_max=10, messages_per_minute_max=600))


def test_a_node_never_exceeds_its_share() -> None:
    world = shared()
    world.schedule.set_shares({("r", "c"): 2, ("r", "m60"): 50}, world.now_s)
    world.put("a.test", 2_000)
    world.run(55)
    assert len(world.sent) == 50
    assert world.open_max["limit r"] <= 2
    assert world.waits() == {WaitReason.SHARE: 1}
    world.schedule.set_shares({("r", "c"): 2, ("r", "m60"): 400}, world.now_s)
    world.run(5)
    assert len(world.sent) == 400
    world.schedule.set_shares(None, world.now_s)
    finish(world, 900)
    world.check_quotas()


def test_without_a_share_nothing_is_begun_and_the_wish_is_told() -> None:
    world = shared()
    world.schedule.set_shares({}, world.now_s)
    world.put("a.test", 100)
    world.run(5)
    assert not world.opened
    wanted = {held.kind: held for held in world.schedule.shares_wanted(world.now_s)}
    assert wanted["m60"].wanted == 600
    assert wanted["m60"].held == 0
    assert wanted["c"].wanted >= 1
    world.schedule.set_shares({("r", "c"): 1, ("r", "m60"): 600}, world.now_s)
    finish(world, 60)
    held = {held.kind: held for held in world.schedule.shares_wanted(world.now_s)}
    assert held["m60"].held == 100


def test_who_waits_too_long_for_a_share_goes_back_and_is_sent_later() -> None:
    world = shared()
    # Nothing of the messages: the pace at which the lane could be through with them is nought.
    world.schedule.set_shares({("r", "c"): 2}, world.now_s)
    world.put("a.test", 200)
    world.run(2 * world.bounds.message_age_s)
    assert not world.sent
    world.schedule.set_shares(None, world.now_s)
    finish(world, 900)


def test_what_no_other_node_uses_is_not_shared() -> None:
    world = World([Rule("r", "*", connections_max=5)], sites={"a.test": A})
    world.schedule.set_shares({}, world.now_s, common_egresses=[7])
    world.put("a.test", 100)
    finish(world, 60)
    assert not world.schedule.shares_wanted(world.now_s)


def test_a_share_of_connections_that_shrinks_closes_what_is_over_it() -> None:
    world = shared()
    world.schedule.set_shares(dict.fromkeys(KEYS, 600), world.now_s)
    world.servers["192.0.2.1"].message_s = 0.5
    world.put("a.test", 400)
    world.run(3)
    assert world.open_now["limit r"] > 2
    world.schedule.set_shares({("r", "c"): 2, ("r", "m60"): 600}, world.now_s)
    world.run(10)
    assert world.open_now["limit r"] <= 2
