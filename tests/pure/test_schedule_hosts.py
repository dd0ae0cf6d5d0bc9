"""Sessions keep to what was learnt of their hosts: at once, whoever learnt it, as far as no rule says otherwise."""

from __future__ import annotations

import pytest

from mta.model.egress import EgressPool
from mta.model.host import HostFact
from mta.model.waiting import WaitReason
from mta.traffic.explain_now import lane_now
from mta.traffic.host_facts import GROWS_S, LASTS_S, TRIAL_MESSAGES
from mta.traffic.rules import Rule, RuleSet, Tls
from tests.support.schedule_model import A, egress
from tests.support.schedule_world import UNIX_OFFSET_S, World, finish

HOST = "192.0.2.1"


def learn(world: World, fact: HostFact, value: int = 0) -> None:
    world.schedule.hosts.learn(HOST, fact, value, "it said so", "mx.a.test", world.now_s + UNIX_OFFSET_S)
    world.schedule.follow_hosts({HOST}, world.now_s)


def open_now(world: World) -> int:
    return sum(not session.is_over for session in world.schedule._connections.all())


def busy_world(**keys: object) -> World:
    world = World([Rule("r", "*", connections_max=10, **keys)], sites={"a.test": A})  # type: ignore[arg-type]
    world.servers[HOST].message_s = 0.5
    return world


def test_messages_a_session_hold_for_new_sessions_and_for_open_ones() -> None:
    world = busy_world()
    world.put("a.test", 400)
    world.run(3)
    learn(world, HostFact.MESSAGES_PER_SESSION, 10)
    before = {session.id for _, session in world.opened}
    finish(world)
    used: dict[int, int] = {}
    for sent in world.sent:
        used[sent.session] = used.get(sent.session, 0) + 1
    assert max(n for session, n in used.items() if session not in before) == 10
    assert max(n for session, n in used.items() if session in before) <= 16  # what they had in hand


def test_connections_hold_at_once_and_whoever_waits_says_so() -> None:
    world = busy_world()
    world.put("a.test", 2_000)
    world.run(5)
    assert open_now(world) == 10
    learn(world, HostFact.CONNECTIONS, 2)
    world.run(10)
    assert open_now(world) == 2
    lane = world.lane("a.test")
    assert lane.wait is not None
    assert lane.wait.reason in (WaitReason.HOST_CONNECTIONS, WaitReason.WINDOW)
    now = lane_now(world.schedule, world.rules, lane, world.now_s, world.now_s + UNIX_OFFSET_S)
    [fact] = now.facts
    assert (fact.fact, fact.value, fact.cause, fact.is_obeyed) == ("connections", 2, "it said so", True)
    finish(world)


def test_connections_are_counted_for_each_egress() -> None:
    world = World(
        [Rule("r", "*", connections_max=10)],
        sites={"a.test": A},
        pools=[EgressPool("main", (egress(1), egress(2)))],
    )
    world.servers[HOST].message_s = 0.5
    learn(world, HostFact.CONNECTIONS, 2)
    world.put("a.test", 1_000)
    world.run(10)
    assert open_now(world) == 4
    finish(world)


def test_connections_grow_back() -> None:
    world = busy_world()
    learn(world, HostFact.CONNECTIONS, 2)
    world.put("a.test", 20_000)
    for count in (3, 4):
        world.run(GROWS_S)
        for learnt in world.schedule.hosts.grow(world.now_s + UNIX_OFFSET_S):
            world.schedule.follow_hosts({learnt.host}, world.now_s)
        world.run(5)
        assert open_now(world) == count


def test_what_is_forgotten_holds_no_more() -> None:
    world = busy_world()
    learn(world, HostFact.CONNECTIONS, 1)
    world.put("a.test", 2_000)
    world.run(5)
    assert open_now(world) == 1
    world.schedule.hosts.forget(HOST, HostFact.CONNECTIONS)
    world.schedule.follow_hosts({HOST}, world.now_s)
    world.run(5)
    assert open_now(world) == 10


def test_a_rule_that_learns_nothing_obeys_nothing() -> None:
    world = busy_world(learn_hosts=False)
    learn(world, HostFact.CONNECTIONS, 1)
    learn(world, HostFact.MESSAGES_PER_SESSION, 1)
    world.put("a.test", 2_000)
    world.run(5)
    assert open_now(world) == 10


@pytest.mark.parametrize(
    ("tls", "is_given", "expected"),
    [
        (Tls.OPPORTUNISTIC, False, Tls.DISABLED),
        (Tls.OPPORTUNISTIC, True, Tls.OPPORTUNISTIC),
        (Tls.REQUIRED, False, Tls.REQUIRED),
        (Tls.VERIFIED, False, Tls.VERIFIED),
    ],
)
def test_tls_that_fails_is_left_out_only_where_it_is_opportunistic(tls: Tls, is_given: bool, expected: Tls) -> None:
    world = busy_world(tls=tls)
    origins = {("r", "tls"): "rules.toml:3"} if is_given else {}
    world.rules = RuleSet(world.rules.rules, origins=origins)
    world.schedule.set_rules(world.rules, world.now_s)
    learn(world, HostFact.NO_TLS)
    world.put("a.test", 1)
    world.run(1)
    assert [session.tls for _, session in world.opened] == [expected]
    world.schedule.set_rules(world.rules, world.now_s)  # a reload closes none that is as it should be
    assert world.sent


def test_a_session_that_did_without_it_ends_a_fact_whose_time_is_over() -> None:
    world = busy_world()
    learn(world, HostFact.NO_PIPELINING_BEHIND_END)
    world.now_s += LASTS_S[HostFact.NO_PIPELINING_BEHIND_END] + 1
    world.put("a.test", 60)
    world.run(1.5)
    sessions = [session for _, session in world.opened]
    assert [session.is_host_trial for session in sessions].count(True) == 1
    assert [session.obeyed.pipelines_behind_end for session in sessions].count(True) == 1
    finish(world)
    world.run(60)
    for session in sessions:
        if not session.is_over:
            world.schedule._connections.close(session)
    world.put("a.test", 1)
    world.run(60)
    assert [one.fact for one in world.schedule.take_forgotten()] == [HostFact.NO_PIPELINING_BEHIND_END]
    assert sessions[0].progress >= TRIAL_MESSAGES


def test_one_connection_too_many_is_no_failure_of_the_path() -> None:
    world = busy_world()
    world.put("a.test", 500)
    world.run(2)
    sessions = [session for _, session in world.opened]
    assert world.schedule.connections_beside(sessions[0], world.now_s) == len(sessions) - 1
    assert world.schedule.connections_beside(sessions[1], world.now_s) == len(sessions) - 2
    sessions[0].progress = 0
    world.schedule.session_closed(sessions[0].id, world.now_s, "451 too many")
    assert not sessions[0].path.is_failing(world.now_s)
