"""The promises of the schedule, whatever servers, children and operators do.

`World` checks after every step that no limit of connections or messages per connection is exceeded, that every
recipient is in one place, and that no lane sleeps while it could go; here the storms are made.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.egress import EgressPool
from mta.model.host import HostFact
from mta.model.site import Site
from mta.traffic.actions import Bounds
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.limits import Limits
from mta.traffic.rules import NextMx, Provider, Rule, Scope
from tests.support.schedule_model import egress, site
from tests.support.schedule_world import UNIX_OFFSET_S, World

limits = st.one_of(st.none(), st.integers(1, 6))


def seldom(low: int, high: int) -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.none(), st.none(), st.integers(low, high))


rates = {
    "connections_per_second_max": seldom(1, 20),
    "connections_per_minute_max": seldom(2, 300),
    "connections_per_hour_max": seldom(30, 6_000),
    "messages_per_second_max": seldom(1, 50),
    "messages_per_minute_max": seldom(5, 1_000),
    "messages_per_day_max": seldom(2_000, 20_000),
    "bytes_per_minute_max": seldom(1_000, 1_000_000),
    "bytes_per_hour_max": seldom(200_000, 10_000_000),
}
providers = st.builds(
    Provider,
    name=st.sampled_from(["large", "small"]),
    scope=st.sampled_from([Scope.EGRESS, Scope.SHARED]),
    connections_max=limits,
    messages_per_hour_max=st.one_of(st.none(), st.integers(100, 6_000)),
    **rates,
)
rules = st.builds(
    Rule,
    provider=st.one_of(st.none(), providers),
    next_mx=st.sampled_from(NextMx),
    ramp_up_s=seldom(1, 20),
    domains=st.sampled_from(["", "", "d1.test", "d?.test"]),
    **rates,
    name=st.just(""),
    mx=st.sampled_from(["*.a.test", "*.b.test", "mx1.*", "mx2.*", "*"]),
    egress_ids=st.sampled_from([(), ((1, 1),), ((2, 3),)]),
    scope=st.sampled_from(Scope),
    connections_max=limits,
    connections_per_path_max=limits,
    messages_per_connection_max=st.one_of(st.none(), st.integers(1, 30)),
    messages_per_hour_max=st.one_of(st.none(), st.none(), st.integers(100, 6_000)),
)
hosts = st.tuples(
    st.sampled_from([10, 10, 20]),
    st.sampled_from(["mx1.a.test", "mx2.a.test", "mx1.b.test", "mx.c.test"]),
    st.sampled_from([("192.0.2.1",), ("192.0.2.2",), ("192.0.2.1", "192.0.2.3"), ("192.0.2.4", "2001:db8::4")]),
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    drawn = draw(st.lists(rules, max_size=4))
    # One provider has one set of figures, whoever names it.
    given = {rule.provider.name: rule.provider for rule in drawn if rule.provider}
    named = [
        Rule(**{**as_keys(rule), "name": f"rule{number}", "provider": rule.provider and given[rule.provider.name]})
        for number, rule in enumerate(drawn)
    ]
    sites: dict[str, Site] = {}
    for number in range(draw(st.integers(1, 5))):
        of_site = {name: (preference, name, peers) for preference, name, peers in draw(st.lists(hosts, min_size=1))}
        sites[f"d{number}.test"] = site(*of_site.values())
    weights = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    return World(
        named,
        sites=sites,
        pools=[
            EgressPool("main", tuple(egress(number, weight) for number, weight in enumerate(weights, 1))),
            EgressPool("other", (egress(1),)),
        ],
        children=draw(st.integers(1, 3)),
        bounds=Bounds(
            batch_recipients=draw(st.sampled_from([1, 7, 50])),
            sessions_per_child_max=draw(st.sampled_from([1, 3, 20])),
            ready_per_lane_max=draw(st.sampled_from([60, 1_000])),
        ),
        seed=draw(st.integers(0, 2**32)),
    )


def as_keys(rule: Rule) -> dict[str, object]:
    return {name: getattr(rule, name) for name in rule.__struct_fields__}


def stir(world: World) -> None:
    """One thing that may happen on any day."""
    rng = world.rng
    server = rng.choice(list(world.servers.values()))
    happenings: list[Callable[[], object]] = [
        lambda: world.put(
            rng.choice(list(world.sites)),
            rng.choice([1, 1, 3, 20, 200]),
            delivery=rng.randint(1, 3),
            weight=rng.choice([1, 8]),
            pool=rng.choice(["main", "other"]),
            part=rng.choice([1, 30, 256]),
        ),
        lambda: setattr(server, "is_down", not server.is_down),
        lambda: setattr(server, "refuse_odds", rng.choice([0.0, 0.3, 1.0])),
        lambda: setattr(server, "drop_odds", rng.choice([0.0, 0.1, 1.0])),
        lambda: setattr(server, "connections_max", rng.choice([1, 3, 10**9])),
        lambda: setattr(server, "message_s", rng.choice([0.001, 0.05, 1.0, 20.0])),
        lambda: setattr(server, "open_s", rng.choice([0.001, 0.2, 3.0])),
        lambda: world.kill_child(rng.choice(list(world.children))),
        lambda: world.drain_child(rng.choice(list(world.children))),
        lambda: world.pause(rng.randint(1, 3)),
        lambda: world.resume(rng.randint(1, 3)),
        lambda: world.schedule.forget_empty(world.now_s),
        lambda: world.schedule.set_rules(world.rules, world.now_s),
        lambda: world.schedule.set_effects(some_effects(world), world.now_s),
        lambda: learn_of_hosts(world),
    ]
    # Work comes more often than trouble.
    rng.choice(happenings + 6 * happenings[:1])()
    world.run(rng.choice([0.0, 0.004, 0.1, 1.0, 30.0, 400.0]))


def some_effects(world: World) -> list[Effect]:
    """Events of all kinds, on things that are in use."""
    rng = world.rng
    effects = []
    for number in range(rng.choice([0, 1, 3])):
        kind, target = rng.choice(
            [
                (EffectKind.SUSPEND, Target.PATH),
                (EffectKind.SUSPEND, Target.RULE),
                (EffectKind.SUSPEND, Target.SITE),
                (EffectKind.SUSPEND, Target.EGRESS),
                (EffectKind.LOWER, Target.RULE),
                (EffectKind.LOWER, Target.PROVIDER),
                (EffectKind.NO_TLS, Target.PATH),
            ]
        )
        keys = [limit.key for limit in world.schedule.limits() if limit.key.startswith("provider:")]
        on = {
            Target.PATH: f"1|{rng.choice(list(world.servers))}",
            Target.RULE: rng.choice([limit.key for limit in world.schedule.limits()] or ["none"]),
            Target.PROVIDER: rng.choice(keys or ["none"]),
            Target.SITE: rng.choice(list(world.sites.values())).key,
            Target.EGRESS: rng.choice(["e1", "e2"]),
        }[target]
        limits = Limits(
            connections_max=rng.choice([None, 1]),
            messages_per_minute_max=rng.choice([None, 1, 30]),
            connections_per_minute_max=rng.choice([None, 1]),
            bytes_per_hour_max=rng.choice([None, 50_000]),
        )
        until_s = world.now_s + UNIX_OFFSET_S + rng.choice([0.5, 20.0, 900.0])
        effects.append(Effect(str(number), "storm", kind, target, on, until_s, limits))
    return effects


def learn_of_hosts(world: World) -> None:
    """A host is seen to take little, or what was known of it is forgotten, or time has gone by."""
    rng, hosts = world.rng, world.schedule.hosts
    host = rng.choice(list(world.servers))
    unix_s = world.now_s + UNIX_OFFSET_S
    fact = rng.choice([HostFact.CONNECTIONS, HostFact.MESSAGES_PER_SESSION, HostFact.NO_TLS])
    changed = {host}
    match rng.choice(["learn", "learn", "forget", "grow", "end"]):
        case "learn":
            hosts.learn(host, fact, rng.choice([1, 2, 5]), "seen", "mx", unix_s)
        case "forget":
            hosts.forget(host, fact)
        case "grow":
            changed = {one.host for one in hosts.grow(unix_s + 1e5)}
        case "end":
            changed = {one.host for one in hosts.end_over(unix_s + 1e6)}
    world.schedule.follow_hosts(changed, world.now_s)


def calm(world: World) -> None:
    """Faults stop: from here on everything must be sent, sooner or later."""
    for server in world.servers.values():
        server.is_down, server.refuse_odds, server.drop_odds, server.connections_max = False, 0.0, 0.0, 10**9
        server.message_s, server.open_s = 0.01, 0.05
    world.schedule.set_effects([], world.now_s)
    for delivery in (1, 2, 3):
        world.resume(delivery)
    world.run(400_000, until=lambda: set(world.states()) <= {"done"})
    world.check_all_done()
    world.check_quotas()
    world.run(10)
    world.schedule.forget_empty(world.now_s)


# docs/performance.md tells how to try ten thousand.
EXAMPLES = int(os.environ.get("MTA_EXAMPLES", "60"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(), st.integers(1, 40))
def test_limits_hold_and_all_is_sent_when_the_storm_is_over(world: World, happenings: int) -> None:
    for _ in range(happenings):
        stir(world)
    calm(world)
