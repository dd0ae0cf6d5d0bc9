"""The schedule in named situations, in a modelled world: rules, hosts, paces, lanes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from mta.model.egress import EgressPool
from mta.model.site import Site
from mta.model.waiting import WaitReason
from mta.traffic.actions import Bounds
from mta.traffic.rules import Rule, Scope
from tests.support.schedule_model import A, egress, site
from tests.support.schedule_world import START_S, World, both, finish

# --- rules ----------------------------------------------------------------------------------------


def test_the_first_rule_whose_mask_fits_the_host_holds() -> None:
    narrow, wide = Rule("narrow", "*.a.test", connections_max=2), Rule("wide", "*.test", connections_max=5)
    for rules, expected in (([narrow, wide], 2), ([wide, narrow], 5)):
        world = World(rules, sites={"a.test": A})
        world.put("a.test", 500)
        finish(world)
        assert max(world.open_max.values()) == expected


def test_an_egress_outside_the_range_takes_the_next_rule() -> None:
    rules = [
        Rule("first", "*", egress_ids=((1, 1),), messages_per_connection_max=3),
        Rule("rest", "*", messages_per_connection_max=7),
    ]
    world = World(rules, sites={"a.test": A}, pools=[EgressPool("main", (egress(1), egress(2)))])
    world.put("a.test", 300)
    finish(world)
    per_session = Counter((sent.egress.id, sent.session) for sent in world.sent)
    assert max(times for (number, _), times in per_session.items() if number == 1) == 3
    assert max(times for (number, _), times in per_session.items() if number == 2) == 7


@pytest.mark.parametrize(
    ("scope", "expected"), [(Scope.PATH, [3, 3, 3, 3]), (Scope.EGRESS, [3, 3]), (Scope.SHARED, [3])]
)
def test_connections_are_counted_in_the_scope_of_the_rule(scope: Scope, expected: list[int]) -> None:
    pools = [EgressPool("main", (egress(1), egress(2)))]
    world = both(Rule("r", "*", scope=scope, connections_max=3), pools=pools)
    world.put("a.test", 400)
    world.put("b.test", 400)
    finish(world)
    assert sorted(most for key, most in world.open_max.items() if key.startswith("limit")) == expected


def test_connections_to_one_address_are_bounded_apart_from_their_total() -> None:
    hosts = site((10, "mx.a.test", ["192.0.2.1", "192.0.2.3", "192.0.2.5"]))
    world = World([Rule("r", "*", connections_max=8, connections_per_path_max=3)], sites={"a.test": hosts})
    world.put("a.test", 800)
    finish(world)
    assert world.open_max["limit r|1"] == 8
    assert max(most for key, most in world.open_max.items() if key.startswith("path")) == 3


# --- hosts ----------------------------------------------------------------------------------------


def test_equals_share_the_load_and_less_preferred_hosts_are_not_used() -> None:
    hosts = site(
        (10, "mx1.a.test", ["192.0.2.1"]), (10, "mx2.a.test", ["192.0.2.2"]), (20, "mx3.a.test", ["192.0.2.3"])
    )
    world = World([Rule("r", "*", connections_max=4)], sites={"a.test": hosts})
    world.put("a.test", 1_000)
    finish(world)
    counts = world.sent_by(lambda sent: sent.peer)
    assert set(counts) == {"192.0.2.1", "192.0.2.2"}
    assert min(counts.values()) > 400


def test_a_full_host_does_not_spill_to_the_less_preferred_one_but_a_failing_one_does() -> None:
    hosts = site((10, "mx1.a.test", ["192.0.2.1"]), (20, "mx2.a.test", ["192.0.2.2"]))
    rules = [Rule("r", "*", scope=Scope.PATH, connections_max=1)]
    world = World(rules, sites={"a.test": hosts})
    world.put("a.test", 200)
    finish(world)
    assert world.sent_by(lambda sent: sent.peer) == {"192.0.2.1": 200}

    world = World(rules, sites={"a.test": hosts})
    world.servers["192.0.2.1"].is_down = True
    world.put("a.test", 200)
    finish(world)
    assert world.sent_by(lambda sent: sent.peer) == {"192.0.2.2": 200}
    assert world.now_s < START_S + 10, "nobody waits for a dead host while another is alive"


def test_a_recovered_host_gets_its_mail_back_from_the_less_preferred_one() -> None:
    hosts = site((10, "mx1.a.test", ["192.0.2.1"]), (20, "mx2.a.test", ["192.0.2.2"]))
    world = World([Rule("r", "*", connections_max=3)], sites={"a.test": hosts})
    world.servers["192.0.2.1"].is_down = True
    for _ in range(400):
        world.put("a.test", 20)
        world.run(0.5)
        if world.now_s > START_S + 20:
            world.servers["192.0.2.1"].is_down = False
    finish(world)
    late = [sent.peer for sent in world.sent if sent.at_s > START_S + 120]
    assert late
    assert set(late) == {"192.0.2.1"}


def test_attempts_on_a_dead_path_thin_out_one_at_a_time_while_the_other_egress_goes_on() -> None:
    world = World(
        [Rule("r", "*", connections_max=5)],
        sites={"a.test": A},
        pools=[EgressPool("main", (egress(1), egress(2)))],
        bounds=Bounds(patience_s=1_000),
    )
    refused: list[float] = []
    world.servers["192.0.2.1"].message_s = 0.08
    real_opened = world._opened

    def only_the_second(child: object, connection: object) -> None:
        if connection.session.group.egress.id == 1 and not connection.is_over:  # type: ignore[attr-defined]
            refused.append(world.now_s)
            world._lost(child, connection, "CONNECT: refused", is_begun=False)  # type: ignore[arg-type]
        else:
            real_opened(child, connection)  # type: ignore[arg-type]

    world._opened = only_the_second  # type: ignore[method-assign, assignment]
    world.put("a.test", 6_000)
    finish(world)
    crowd = [at_s for at_s in refused if at_s < refused[0] + 1]
    later = [crowd[-1], *refused[len(crowd) :]]
    assert 1 < len(crowd) <= 5  # those that were under way when the first was refused
    gaps = [after - before for before, after in pairwise(later)]
    # Its turn comes round every second.
    assert all(least < gap < least + 3 for gap, least in zip(gaps, (4, 8, 16, 32), strict=True))
    assert world.sent_by(lambda sent: sent.egress.id) == {2: 6_000}
    assert world.now_s < START_S + 110


def test_a_dead_site_gives_its_recipients_back_as_attempts_when_patience_ends() -> None:
    world = World(sites={"a.test": A}, bounds=Bounds(patience_s=30.0), comes_back=False)
    world.servers["192.0.2.1"].is_down = True
    world.put("a.test", 500)
    world.run(60)
    assert world.states() == {"deferred": 500}
    assert all(action.is_attempt and "refused" in action.cause for _, action in world.given_back)
    assert min(at_s for at_s, _ in world.given_back) > START_S + 10
    assert max(at_s for at_s, _ in world.given_back) < START_S + 35
    assert len(world.opened) < 20


def test_after_a_failure_one_session_tries_before_the_crowd_follows() -> None:
    world = World([Rule("r", "*", connections_max=20)], sites={"a.test": A}, bounds=Bounds(patience_s=1_000))
    server = world.servers["192.0.2.1"]
    server.is_down, server.message_s = True, 0.5
    world.put("a.test", 1_000)
    world.run(2.0)
    first_crowd = len(world.opened)
    world.run(15.0)
    assert len(world.opened) <= first_crowd + 2
    server.is_down = False
    finish(world)
    assert world.open_max["limit r|1"] == 20


def test_a_server_that_takes_fewer_connections_than_the_rule_allows_is_used_to_the_full() -> None:
    world = World([Rule("r", "*", connections_max=20)], sites={"a.test": A})
    world.servers["192.0.2.1"].connections_max = 4
    world.put("a.test", 2_000)
    world.run(2)
    assert world.waits() == {WaitReason.WINDOW: 1}
    finish(world, 60)
    assert not any(action.is_attempt for _, action in world.given_back)


# --- small, slow, short ---------------------------------------------------------------------------


def test_a_small_site_gets_one_session_and_all_at_once() -> None:
    sites = {f"d{i}.test": site((10, f"mx{i}.test", [f"192.0.{i >> 8}.{i & 255}"])) for i in range(1_000)}
    world = World(sites=sites)
    for domain in sites:
        world.put(domain, 3)
    finish(world, 5)
    assert len(world.opened) == 1_000
    assert len(world.hand_outs) == 1_000


def test_a_slow_far_end_is_met_with_as_many_connections_as_the_rule_allows() -> None:
    world = World(
        [Rule("r", "*", connections_max=400)],
        sites={"a.test": A},
        bounds=Bounds(sessions_per_child_max=1_000, ready_per_lane_max=10_000),
    )
    world.servers["192.0.2.1"].message_s = 1.0
    world.put("a.test", 4_000)
    finish(world, 30)
    assert world.open_max["limit r|1"] == 400


def test_a_fast_site_is_given_full_batches_on_few_sessions() -> None:
    world = World([Rule("r", "*", connections_max=50)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 0.0005
    world.put("a.test", 200)
    world.run(1)
    world.put("a.test", 5_000)
    finish(world)
    assert len(world.opened) < 30
    sizes = [action.amount for _, action in world.hand_outs[-60:]]
    assert sum(sizes) / len(sizes) > 20


def test_a_large_site_does_not_wait_for_all_small_ones_before_each_batch() -> None:
    small = {f"s{n}.test": site((10, f"mx{n}.small.test", [f"192.0.2.{n}"])) for n in range(10, 250)}
    world = World([Rule("r", "*.a.test", connections_max=10)], sites={"a.test": A, **small})
    world.servers["192.0.2.1"].message_s = 0.0005
    world.put("a.test", 20_000)
    world.run(1)
    world.put("a.test", 5_000)
    seen = len(world.hand_outs)
    for name in small:
        world.put(name, 1)
    world.run(until=lambda: len(world.hand_outs) - seen > 300)
    handed = [action.lane.domain for _, action in world.hand_outs[seen:]]
    first = handed.index("a.test")
    assert handed[first : first + 5] == ["a.test"] * 5
    finish(world)


def test_sessions_of_one_message_go_side_by_side_up_to_the_limit() -> None:
    world = World([Rule("r", "*", connections_max=8, messages_per_connection_max=1)], sites={"a.test": A})
    world.put("a.test", 200)
    finish(world, 30)
    assert len(world.opened) == 200
    assert world.open_max["limit r|1"] == 8


def test_several_parts_reported_at_one_moment_do_not_spoil_the_pace() -> None:
    world = World([Rule("r", "*", connections_max=1)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 0.001
    world.put("a.test", 2_000, part=1)
    world.run(1)
    (session,) = world.schedule._connections.all()
    assert session.message_s == pytest.approx(0.001, rel=0.6)


def test_many_more_recipients_open_more_sessions_at_once() -> None:
    world = World([Rule("r", "*", connections_max=20)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 30.0
    world.put("a.test", 8)
    world.run(1)
    assert len(world.opened) == 1
    world.put("a.test", 500)
    world.run(0.01)
    assert len(world.opened) == 3  # each that is open allows two more to be opened
    world.run(0.5)
    assert len(world.opened) == 20


def test_what_a_session_gave_back_does_not_count_as_its_messages() -> None:
    world = World([Rule("r", "*", connections_max=1, messages_per_connection_max=10)], sites={"a.test": A})
    world.servers["192.0.2.1"].message_s = 1.0
    world.put("a.test", 40)
    world.run(1.7)
    world.pause(1)
    world.run(3)
    world.resume(1)
    finish(world)
    assert set(world.sent_by(lambda sent: sent.session).values()) == {10}


# --- lanes ----------------------------------------------------------------------------------------


def test_without_an_egress_recipients_wait_with_the_reason_and_go_back() -> None:
    pool = EgressPool("main", (egress(1, include_domains=("*.other.test",)),))
    world = World(sites={"a.test": A}, pools=[pool], comes_back=False)
    world.put("a.test", 5)
    world.run(1)
    (lane,) = world.schedule.lanes
    assert lane.wait is not None
    assert lane.wait.reason is WaitReason.NO_EGRESS
    assert "main" in lane.wait.detail
    world.run(700)
    assert world.states() == {"away": 5}


def test_a_site_that_no_egress_can_reach_is_deferred_with_the_cause() -> None:
    hosts = site((10, "mx.a.test", ["2001:db8::1"]))
    pool = EgressPool("main", (egress(1, source_ipv4="192.0.2.101"),))
    world = World(sites={"a.test": hosts}, pools=[pool], comes_back=False)
    world.put("a.test", 5)
    world.run(1)
    assert world.states() == {"deferred": 5}
    assert "no address" in world.given_back[0][1].cause


def test_what_comes_back_to_a_forgotten_lane_is_still_found() -> None:
    world = World(sites={"a.test": A})
    world.servers["192.0.2.1"].open_s = 10.0
    numbers = world.put("a.test", 3, delivery=7)
    world.run(1)
    world.schedule.forget_empty(world.now_s)
    assert not list(world.schedule.lanes)
    child = next(child for child in world.children.values() if child.connections)
    world._lost(child, next(iter(child.connections.values())), "CONNECT: refused", is_begun=False)
    again = world.put("a.test", 2, delivery=7)
    assert len(list(world.schedule.lanes)) == 1
    world.pause(7)
    assert {world.where[number] for number in numbers + again} == {"away"}
    assert world.schedule.ready_count == 0


def test_forgetting_never_splits_a_counter() -> None:
    world = both(Rule("r", "*", scope=Scope.SHARED, connections_max=2, messages_per_hour_max=2_400))
    for _ in range(30):
        world.put("a.test", 3)
        world.put("b.test", 3)
        world.run(0.07)
        world.schedule.forget_empty(world.now_s)
    finish(world)
    assert world.open_max["limit r"] == 2
    world.check_quotas()


def test_forgetting_keeps_open_sessions_in_use_and_spent_credits_spent() -> None:
    world = World([Rule("r", "*", messages_per_hour_max=120)], sites={"a.test": A})
    for _ in range(3):
        world.put("a.test", 3)
        world.run(2)
        world.schedule.forget_empty(world.now_s)
    assert len(world.opened) == 1
    child = next(child for child in world.children.values() if child.connections)
    world._lost(child, next(iter(child.connections.values())), "", is_begun=False)
    world.schedule.forget_empty(world.now_s)
    assert not world.schedule._groups
    world.put("a.test", 3)
    world.run(2)
    assert world.states() == {"done": 10, "ready": 2}


def test_a_failure_of_long_ago_takes_no_patience_from_a_new_one() -> None:
    world = World(sites={"a.test": A})
    server = world.servers["192.0.2.1"]
    server.is_down = True
    world.put("a.test", 1)
    world.run(until=lambda: any(session.is_trial for _, session in world.opened))
    world.pause(1)
    world.run(100)
    world.resume(1)
    world.run(1)
    assert world.states() == {"ready": 1}


def test_everything_is_forgotten_in_the_end() -> None:
    world = both(Rule("r", "*", connections_max=2, connections_per_path_max=1))
    world.put("a.test", 100)
    world.put("b.test", 100)
    finish(world)
    for child in world.children.values():
        for connection in list(child.connections.values()):
            world._lost(child, connection, "", is_begun=False)
    world.run(5_000)
    world.schedule.forget_empty(world.now_s)
    schedule = world.schedule
    assert not list(schedule.lanes)
    assert not schedule._groups
    assert not len(schedule._counters)
    assert schedule.next_due_s() == float("inf")
    assert len(schedule._turns.alarms) == 0


def test_waiting_costs_no_memory() -> None:
    """A lane that is woken again and again by one gate leaves nothing behind at the others."""
    world = both(Rule("r", "*", scope=Scope.SHARED, connections_max=1))
    world.servers["192.0.2.1"].message_s = 0.002
    world.put("b.test", 1)
    world.put("a.test", 4_000)
    world.run(3)
    assert len(world.hand_outs) > 20
    gates = {gate for lane in world.schedule.lanes for gate in lane.gates}
    assert all(gate.waiting <= 2 for gate in gates)
    assert len(world.schedule._turns.alarms._heap) < 100


# --- children -------------------------------------------------------------------------------------


def test_a_dead_child_loses_nothing_and_its_sessions_count_until_it_is_buried() -> None:
    world = World([Rule("r", "*", connections_max=6)], sites={"a.test": A}, children=2)
    world.put("a.test", 2_000)
    world.run(1)
    world.kill_child(1)
    finish(world)
    assert {session.child for _, session in world.opened} == {1, 2, 3}


def test_without_a_child_everything_waits_and_goes_when_one_comes() -> None:
    world = World(sites={"a.test": A}, children=0)
    world.put("a.test", 100)
    world.run(10)
    assert world.waits() == {WaitReason.SESSIONS: 1}
    world.add_child()
    finish(world, 20)


def test_sites_of_the_same_hosts_share_a_lane() -> None:
    again: Site = site((10, "mx.a.test", ["192.0.2.1"]))
    world = World(sites={"a.test": A, "b.test": again})
    assert world.lane("a.test") is world.lane("b.test")
