"""The schedule where several sites and egresses want the same thing: connections, credits, a path, a child."""

from __future__ import annotations

from collections import Counter

import pytest

from mta.model.egress import EgressPool
from mta.model.waiting import WaitReason
from mta.traffic.actions import Bounds
from mta.traffic.quota import BUCKET_S
from mta.traffic.rules import Rule, Scope
from tests.support.schedule_model import A, egress, site
from tests.support.schedule_world import START_S, UNIX_OFFSET_S, World, both, finish

# --- shared resources -----------------------------------------------------------------------------


def test_lanes_of_one_site_share_the_session_that_tries_a_path_again() -> None:
    pools = [EgressPool("main", (egress(1),)), EgressPool("other", (egress(1),))]
    world = World(sites={"a.test": A}, pools=pools)
    world.servers["192.0.2.1"].is_down = True
    world.put("a.test", 1, pool="main")
    world.run(0.5)
    world.put("a.test", 3, pool="other")
    world.servers["192.0.2.1"].is_down = False
    finish(world, 10)
    assert len(world.opened) == 2


def test_a_trial_that_has_nothing_left_to_try_with_makes_way() -> None:
    world = sites_of_one_address()
    server = world.servers["192.0.2.1"]
    server.is_down = True
    world.put("a.test", 1, delivery=1)
    world.run(1)
    server.is_down, server.open_s = False, 2.0
    world.put("b.test", 1, delivery=2)
    world.run(until=lambda: any(session.is_trial for _, session in world.opened))
    world.pause(1)
    world.run(6)
    assert world.states()["done"] == 1


def sites_of_one_address() -> World:
    return World(sites={"a.test": A, "b.test": site((10, "mx.b.test", ["192.0.2.1"]))})


def test_all_who_wait_for_a_path_go_when_its_trial_has_succeeded() -> None:
    world = sites_of_one_address()
    world.servers["192.0.2.1"].is_down = True
    world.put("a.test", 1)
    world.run(1)
    world.put("b.test", 1)
    world.servers["192.0.2.1"].is_down = False
    finish(world, 5)


def test_who_waits_for_a_path_is_not_forgotten_when_its_trial_fails_and_the_next_in_line_leaves() -> None:
    world = World(
        sites={f"{name}.test": site((10, f"mx.{name}.test", ["192.0.2.1"])) for name in "abc"}, comes_back=False
    )
    server = world.servers["192.0.2.1"]
    server.is_down = True
    world.put("a.test", 1, delivery=1)
    world.run(1)
    server.open_s = 2.0
    world.run(until=lambda: any(session.is_trial for _, session in world.opened))
    world.put("b.test", 1, delivery=2)
    world.put("c.test", 1, delivery=3)
    world.run(0.1)
    trial = next(session for _, session in world.opened if session.is_trial)
    child = world.children[trial.child]
    world.pause(1)
    world._lost(child, child.connections[trial.id], "CONNECT: refused", is_begun=False)
    world.pause(2)
    server.is_down = False
    world.run(15)
    assert world.states() == {"away": 2, "done": 1}


def test_who_waits_for_credits_that_are_all_in_flight_goes_when_they_return() -> None:
    world = both(Rule("r", "*", scope=Scope.SHARED, messages_per_hour_max=60))
    world.servers["192.0.2.1"].message_s = 1.0
    world.put("a.test", 5)
    world.run(0.1)
    world.put("b.test", 5)
    world.run(330)
    world.check_all_done()


def test_an_idle_session_of_another_site_is_closed_for_a_shared_limit() -> None:
    world = both(Rule("r", "*", scope=Scope.SHARED, connections_max=1))
    world.put("a.test", 3)
    world.run(5)
    assert world.schedule.sessions_count == 1
    world.put("b.test", 3)
    finish(world, 5)


def test_a_busy_session_yields_to_a_site_that_has_none() -> None:
    world = both(Rule("r", "*", scope=Scope.SHARED, connections_max=2))
    world.put("a.test", 4_000)
    world.run(1)
    world.put("b.test", 4_000)
    world.run(15)
    counts = world.sent_by(lambda sent: sent.peer)
    assert min(counts["192.0.2.1"], counts["192.0.2.2"]) > 400
    finish(world)


def test_more_sites_than_sessions_all_have_their_turn() -> None:
    sites = {f"d{i}.test": site((10, f"mx{i}.test", [f"192.0.2.{i}"])) for i in range(1, 41)}
    world = World(sites=sites, children=2, bounds=Bounds(sessions_per_child_max=3))
    for domain in sites:
        world.put(domain, 30)
    finish(world, 120)
    assert max(Counter(session.child for _, session in world.opened).values()) >= 15


def test_weights_hold_for_messages_when_all_egresses_are_busy() -> None:
    pool = EgressPool("main", (egress(1, 5), egress(2, 5), egress(3, 1)))
    world = World([Rule("r", "*", connections_max=3)], sites={"a.test": A}, pools=[pool])
    world.put("a.test", 11_000)
    world.run(until=lambda: len(world.sent) >= 10_000)
    share = {number: times / len(world.sent) for number, times in world.sent_by(lambda sent: sent.egress.id).items()}
    assert share[1] == pytest.approx(0.455, abs=0.03)
    assert share[2] == pytest.approx(0.455, abs=0.03)
    assert share[3] == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize("egresses", [2, 4])
def test_several_egresses_carry_a_site_at_the_same_time(egresses: int) -> None:
    """Each has two connections of its own to it: twice the egresses, half the time."""

    def took_s(amount: int) -> float:
        pool = EgressPool("main", tuple(egress(number) for number in range(1, amount + 1)))
        world = World([Rule("r", "*", connections_max=2)], sites={"a.test": A}, pools=[pool])
        world.servers["192.0.2.1"].message_s = 0.05
        world.put("a.test", 4_000)
        finish(world, 200)
        return world.now_s - START_S

    assert took_s(egresses) < 1.1 * took_s(1) / egresses


def test_where_an_egress_is_excluded_the_others_take_over_in_proportion() -> None:
    pool = EgressPool("main", (egress(1, 5), egress(2, 5, exclude_domains=("a.test",)), egress(3, 1)))
    world = World([Rule("r", "*", connections_max=3)], sites={"a.test": A}, pools=[pool])
    world.put("a.test", 6_000)
    finish(world)
    counts = world.sent_by(lambda sent: sent.egress.id)
    assert counts[2] == 0
    assert counts[1] / 6_000 == pytest.approx(5 / 6, abs=0.03)


def test_an_egress_whose_sessions_are_stuck_does_not_hold_up_the_others() -> None:
    pool = EgressPool("main", (egress(1), egress(2)))
    rules = [Rule("stuck", "*", egress_ids=((1, 1),), connections_max=2), Rule("good", "*", connections_max=2)]
    hosts = site((10, "mx.a.test", ["192.0.2.1", "2001:db8::1"]))
    pool = EgressPool("main", (egress(1, source_ipv4="192.0.2.101"), egress(2, source_ipv6="2001:db8::101")))
    world = World(rules, sites={"a.test": hosts}, pools=[pool])
    world.servers["192.0.2.1"].message_s = 500.0
    world.put("a.test", 2_000)
    world.run(60)
    assert world.sent_by(lambda sent: sent.egress.id)[2] > 1_900


def test_a_small_delivery_is_not_stuck_behind_a_large_one_at_the_same_site() -> None:
    world = World([Rule("r", "*", connections_max=2)], sites={"a.test": A})
    world.put("a.test", 5_000, delivery=1)
    world.run(1)
    small = set(world.put("a.test", 20, delivery=2, weight=8))
    world.run(until=lambda: small <= {sent.recipient for sent in world.sent})
    assert world.now_s < START_S + 3


# --- hourly limits --------------------------------------------------------------------------------


def test_sixty_an_hour_go_five_in_each_slice_by_one_session_at_a_time() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=60, connections_max=20)], sites={"a.test": A})
    world.put("a.test", 100)
    world.run(7_200)
    world.check_quotas()
    assert len(world.sent) >= 90
    assert world.open_max["limit r|1"] == 1
    assert len(world.opened) < 30


def test_an_hour_is_used_up_and_never_exceeded_wherever_it_begins() -> None:
    pools = [EgressPool("main", (egress(1), egress(2)))]
    world = both(Rule("r", "*", messages_per_hour_max=240), pools=pools)
    world.put("a.test", 1_000)
    world.put("b.test", 1_000)
    world.run(3 * 3_600)
    world.check_quotas()
    for number in (1, 2):
        times = [sent.at_s for sent in world.sent if sent.egress.id == number]
        assert 220 <= world.most_in(3_600, times) <= 240
        assert len(times) >= 3 * 220


def test_no_more_sessions_are_opened_than_the_credits_are_worth() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=600)], sites={"a.test": A})
    world.put("a.test", 500)
    world.run(60)
    assert len(world.sent) == 50
    assert len(world.opened) <= 6


def test_a_site_held_to_a_trickle_keeps_little_in_memory_and_the_rest_is_due_at_its_pace() -> None:
    world = both(Rule("r", "*.a.test", messages_per_hour_max=600), comes_back=False)
    world.put("a.test", 3_000)
    world.put("b.test", 3_000)
    world.run(20)
    assert world.sent_by(lambda sent: sent.peer) == {"192.0.2.1": 50, "192.0.2.2": 3_000}
    assert world.schedule.ready_count <= 75
    due = [action.due_in_s for _, action in world.given_back]
    assert not any(action.is_attempt for _, action in world.given_back)
    assert 5 <= min(due) <= max(due) <= 900


def test_what_waits_too_long_returns_to_the_queue_without_an_attempt() -> None:
    world = World(
        [Rule("r", "*", messages_per_hour_max=12)],
        sites={"a.test": A},
        bounds=Bounds(message_age_s=600.0),
        comes_back=False,
    )
    world.put("a.test", 40)
    world.run(599)
    assert world.states() == {"ready": 38, "done": 2}
    world.run(3)
    assert world.states() == {"away": 38, "done": 2}
    assert not any(action.is_attempt for _, action in world.given_back)


def test_only_what_is_old_returns() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=12)], sites={"a.test": A}, comes_back=False)
    world.put("a.test", 30)
    world.run(400)
    young = world.put("a.test", 10)
    world.run(210)
    assert world.states() == {"ready": 10, "away": 28, "done": 2}
    assert {world.where[number] for number in young} == {"ready"}
    world.run(400)
    assert world.states().get("ready", 0) == 0


def test_one_limit_for_several_sites_serves_all_of_them() -> None:
    world = both(Rule("r", "*", scope=Scope.SHARED, messages_per_hour_max=120))
    world.put("a.test", 40)
    world.put("b.test", 40)
    world.run(1_500)
    world.check_quotas()
    counts = world.sent_by(lambda sent: sent.peer)
    assert min(counts.values()) >= 15


def test_credits_of_an_earlier_run_are_used_up() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=120)], sites={"a.test": A})
    bucket = int((START_S + UNIX_OFFSET_S) // BUCKET_S)
    world.schedule.load_credits(
        [("r|1", bucket - 1, 4), ("r|1", bucket, 5), ("gone|1", bucket, 9), ("r|2", bucket, 10)], world.now_s
    )
    world.put("a.test", 30)
    world.run(200)
    assert len(world.sent) == 1
    assert world.waits() == {WaitReason.RULE_MESSAGES_PER_HOUR: 1}


def test_credits_of_what_comes_back_from_a_lost_session_are_free_again() -> None:
    """Also when the session's end is reported first."""
    world = World([Rule("r", "*", messages_per_hour_max=1_200)], sites={"a.test": A})
    world.servers["192.0.2.1"].open_s = 2.0
    world.put("a.test", 100)
    world.run(0.5)
    for session in list(world.schedule._connections.all()):
        assert session.in_flight
        connection = world.children[session.child].connections[session.id]
        queued = len(connection.queue)
        world._forget(session)
        world.schedule.session_closed(session.id, world.now_s, "")
        connection.is_over = True
        world._give_back_queue(world.children[session.child], connection)
        assert queued
    finish(world)
    assert world.now_s < START_S + 60
    assert not any(session.is_over for session in world.schedule._connections.all())
