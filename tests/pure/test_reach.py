"""Few addresses and few sessions of a site until it takes mail; then as many as there is work for."""

from __future__ import annotations

from collections import Counter

from mta.model.egress import EgressPool
from mta.traffic.actions import Bounds
from mta.traffic.reach import AttemptBudget
from mta.traffic.rules import Rule
from tests.support.schedule_model import A, egress, site
from tests.support.schedule_world import START_S, World, finish

HOSTILE = site(*((10, f"mx{host}.a.test", [f"198.51.{host}.{n}" for n in range(1, 9)]) for host in range(16)))


def peers_of(world: World) -> Counter[str]:
    return Counter(session.hop.peer for _, session in world.opened)


def test_one_recipient_of_a_hostile_domain_calls_five_addresses_an_attempt() -> None:
    world = World(sites={"a.test": HOSTILE}, comes_back=False)
    for server in world.servers.values():
        server.is_down = True
    world.put("a.test", 1)
    world.run(120)
    assert len(peers_of(world)) == 5
    assert len(world.opened) <= 20  # each again after 4, 8 and 16 s
    assert world.states() == {"deferred": 1}
    assert len({session.hop.mx_host for _, session in world.opened}) >= 3


def test_the_next_attempt_tries_others() -> None:
    world = World(sites={"a.test": HOSTILE})
    for server in world.servers.values():
        server.is_down = True
    world.put("a.test", 1)
    world.run(120)
    first = set(peers_of(world))
    world.run(1_900)
    again = set(peers_of(world)) - first
    assert len(again) == 5


def test_a_site_that_ends_every_session_is_opened_twice_an_attempt() -> None:
    world = World(sites={"a.test": HOSTILE}, comes_back=False)
    peers: list[str] = []

    def greet_and_leave(child: object, connection: object) -> None:
        session = connection.session  # type: ignore[attr-defined]
        peers.append(session.hop.peer)
        world.schedule.session_opened(session.id, world.now_s)
        world._lost(child, connection, "421 not you", is_begun=False)  # type: ignore[arg-type]

    world._opened = greet_and_leave  # type: ignore[method-assign, assignment]
    world.put("a.test", 1)
    world.run(120)
    assert len(set(peers)) == 2
    assert world.states() == {"deferred": 1}


def test_all_egresses_together_open_one_connection_until_the_site_answers() -> None:
    pool = EgressPool("main", tuple(egress(number) for number in range(1, 5)))
    world = World([Rule("r", "*", connections_max=20)], sites={"a.test": A}, pools=[pool])
    world.servers["192.0.2.1"].open_s = 2.0
    world.put("a.test", 2_000)
    world.run(0.9)
    assert len(world.opened) == 1
    finish(world)
    assert len(world.opened) > 20


def test_a_dead_site_gets_no_second_connection_while_the_first_is_not_answered() -> None:
    world = World([Rule("r", "*", connections_max=20)], sites={"a.test": A}, comes_back=False)
    server = world.servers["192.0.2.1"]
    server.open_s, server.is_down = 30.0, True
    world.put("a.test", 500)
    world.run(14)
    assert len(world.opened) == 1


def test_a_backup_host_is_tried_in_the_same_attempt_though_the_first_has_many_addresses() -> None:
    first = [f"198.51.100.{n}" for n in range(1, 41)]
    world = World(sites={"a.test": site((10, "mx1.a.test", first), (20, "mx2.a.test", ["203.0.113.1"]))})
    for peer in first:
        world.servers[peer].is_down = True
    world.put("a.test", 20)
    world.run(5)
    assert world.states() == {"done": 20}
    assert len(peers_of(world)) <= 4


def test_both_families_of_a_host_are_tried_in_one_attempt() -> None:
    of_four = [f"198.51.100.{n}" for n in range(1, 21)]
    of_six = [f"2001:db8::{n}" for n in range(1, 21)]
    world = World(sites={"a.test": site((10, "mx.a.test", [*of_four, *of_six]))})
    for peer in of_four:
        world.servers[peer].is_down = True
    world.put("a.test", 20)
    world.run(5)
    assert world.states() == {"done": 20}


def test_a_lone_host_is_tried_at_five_of_its_addresses() -> None:
    addresses = [f"198.51.100.{n}" for n in range(1, 41)]
    world = World(sites={"a.test": site((10, "mx.a.test", addresses))}, comes_back=False)
    for peer in addresses:
        world.servers[peer].is_down = True
    world.put("a.test", 1)
    world.run(120)
    assert len(peers_of(world)) == 5


def test_dead_addresses_among_many_keep_none_of_the_good_ones_from_being_used() -> None:
    addresses = [f"198.51.100.{n}" for n in range(1, 21)]
    world = World([Rule("r", "*", connections_max=40)], sites={"a.test": site((10, "mx.a.test", addresses))}, seed=3)
    for peer in addresses[:8]:
        world.servers[peer].is_down = True
    for peer in addresses[8:]:
        world.servers[peer].message_s = 0.2
    world.put("a.test", 4_000)
    finish(world, 600)
    good = {peer: n for peer, n in world.sent_by(lambda sent: sent.peer).items() if n}
    assert len(good) == 12
    assert world.now_s < START_S + 60


def test_a_smaller_bound_is_kept() -> None:
    world = World(sites={"a.test": HOSTILE}, comes_back=False, bounds=Bounds(addresses_per_attempt_max=2))
    for server in world.servers.values():
        server.is_down = True
    world.put("a.test", 1)
    world.run(120)
    assert len(peers_of(world)) == 2


def test_a_budget_counts_addresses_not_failures() -> None:
    budget = AttemptBudget(2, 2)
    for _ in range(3):
        budget.tried["192.0.2.1"] = "mx.a.test"
    assert not budget.is_spent
    budget.tried["192.0.2.2"] = "mx.a.test"
    assert budget.is_spent
    assert budget.is_used_up_by("mx.a.test", "192.0.2.3")
    assert not budget.is_used_up_by("mx.a.test", "2001:db8::1")
    assert not budget.is_used_up_by("mx2.a.test", "192.0.2.3")
