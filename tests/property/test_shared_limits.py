"""Limits hold for one to eight nodes together, whatever becomes of the nodes; and they are used.

Twice over generated rules: in the simulation, whose judge counts what truly left, in the modelled mix of providers; and
in a world of nodes that die, come back, lose answers and hear of new rules one after the other. The code that decides
and the ledger are the real ones. ``MTA_EXAMPLES=10000`` tries so many in the place of a few.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mta.simulation.engine import simulate
from mta.simulation.scenario import ProviderModel
from mta.traffic.rules import Provider, Rule, RuleSet, Scope
from tests.support.nodes_world import Nodes
from tests.support.scenarios import provider, scenario
from tests.support.schedule_model import A, B, site

EXAMPLES = int(os.environ.get("MTA_EXAMPLES", "15"))
EAGER = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="MTA_EXAMPLES" not in os.environ,  # the same storms each time, unless many are asked for
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    # Most of a storm comes from its seed: making it smaller takes minutes and shows little.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
NAMES = ("alpha", "beta", "gamma")
SCOPES = st.sampled_from(list(Scope))


@st.composite
def rules(draw: st.DrawFn, name: str) -> Rule:
    """A rule of a provider with any of its limits, loose and tight."""
    limits = {
        key: value
        for key, value in {
            "connections_max": draw(st.none() | st.integers(1, 12)),
            "connections_per_minute_max": draw(st.none() | st.integers(2, 60)),
            "messages_per_connection_max": draw(st.none() | st.integers(1, 30)),
            "messages_per_second_max": draw(st.none() | st.integers(1, 20)),
            "messages_per_minute_max": draw(st.none() | st.integers(5, 300)),
            "messages_per_hour_max": draw(st.none() | st.integers(60, 5_000)),
            "bytes_per_minute_max": draw(st.none() | st.integers(200_000, 20_000_000)),
        }.items()
        if value is not None
    }
    return Rule(name=name, mx=f"mx.{name}.test", scope=draw(SCOPES), **limits)  # type: ignore[arg-type]


@st.composite
def providers(draw: st.DrawFn, name: str) -> ProviderModel:
    return provider(
        name,
        draw(st.floats(0.1, 1.0)),
        message_s=draw(st.sampled_from([0.005, 0.05, 0.8])),
        failed_percent=draw(st.sampled_from([0.0, 5.0])),
        deferred_percent=draw(st.sampled_from([0.0, 10.0])),
    )


@EAGER
@given(data=st.data())
def test_no_limit_is_exceeded_by_any_number_of_nodes(data: st.DataObject) -> None:
    names = NAMES[: data.draw(st.integers(1, 3), label="providers")]
    made = scenario(
        RuleSet([data.draw(rules(name), label=name) for name in names]),
        *(data.draw(providers(name)) for name in names),
        recipients=data.draw(st.integers(20, 200), label="recipients"),
        egresses=data.draw(st.integers(1, 3), label="egresses"),
        nodes=data.draw(st.integers(1, 8), label="nodes"),
        seed=data.draw(st.integers(1, 1_000), label="seed"),
        duration_s=1_200.0,
    )
    assert simulate(made).judge.violations == 0


# --- nodes in trouble -----------------------------------------------------------------------------

SITES = {"a.test": A, "b.test": B, "c.test": site((10, "mx1.c.test", ["192.0.2.1"]), (20, "mx2.c.test", ["192.0.2.3"]))}


def seldom(low: int, high: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.none() | st.integers(low, high)


figures = {
    "connections_max": seldom(1, 12),
    "connections_per_second_max": seldom(1, 10),
    "connections_per_minute_max": seldom(2, 100),
    "messages_per_second_max": seldom(1, 40),
    "messages_per_minute_max": seldom(2, 300),
    "messages_per_hour_max": seldom(12, 3_000),
    "messages_per_day_max": seldom(50, 5_000),
    "bytes_per_minute_max": seldom(2_000, 500_000),
}
of_rule = figures | {"connections_per_path_max": seldom(1, 6), "messages_per_connection_max": seldom(1, 30)}
MASKS = ("*.a.test", "*.b.test", "mx1.*", "*")


@st.composite
def rule_sets(draw: st.DrawFn, scopes: tuple[Scope, ...]) -> list[Rule]:
    """Several with the same names, masks and scopes are versions of one another."""
    shared = draw(st.builds(Provider, name=st.just("large"), scope=st.just(Scope.SHARED), **figures))
    return [
        Rule(
            name=f"rule{at}",
            mx=MASKS[at],
            scope=scope,
            provider=shared if at % 2 else None,
            **{key: draw(value) for key, value in of_rule.items()},
        )
        for at, scope in enumerate(scopes)
    ]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Nodes, list[list[Rule]]]:
    scopes = tuple(draw(st.lists(SCOPES, min_size=1, max_size=len(MASKS))))
    versions = draw(st.lists(rule_sets(scopes), min_size=1, max_size=3))
    egresses = st.sampled_from([(1,), (1,), (1, 2), (2,), (2, 3)])
    made = Nodes(
        versions[0],
        sites=SITES,
        egresses=draw(st.lists(egresses, min_size=1, max_size=8)),
        seed=draw(st.integers(0, 2**32)),
    )
    return made, versions


def stir(nodes: Nodes, versions: list[list[Rule]]) -> None:
    rng = nodes.rng
    node = rng.choice(nodes.nodes)
    is_running = node.is_running
    happenings: list[Callable[[], object]] = []
    if is_running:
        server = rng.choice(list(node.world.servers.values()))
        happenings += 5 * [
            lambda: node.world.put(
                rng.choice(list(SITES)),
                rng.choice([1, 5, 50, 400]),
                delivery=rng.randint(1, 3),
                part=rng.choice([1, 50]),
            )
        ]
        happenings += [
            lambda: nodes.kill(node),
            lambda: nodes.exchange(node, is_answered=False),
            # The database is away for this node, not for so long that its lease ends.
            lambda: setattr(node, "exchanges_at_s", nodes.now_s + rng.uniform(1.0, 12.0)),
            lambda: setattr(server, "message_s", rng.choice([0.001, 0.05, 0.7])),
            lambda: setattr(server, "drop_odds", rng.choice([0.0, 0.1])),
            lambda: nodes.reload(rng.choice(versions)),
        ]
    else:
        happenings += 3 * [lambda: nodes.start(node)]
    rng.choice(happenings)()
    nodes.run(rng.choice([0.0, 0.1, 0.7, 3.0, 20.0, 90.0]))


@EAGER
@given(worlds(), st.integers(1, 40))
def test_limits_hold_while_nodes_die_and_come_back_and_rules_change(
    made: tuple[Nodes, list[list[Rule]]], happenings: int
) -> None:
    nodes, versions = made
    for _ in range(happenings):
        stir(nodes, versions)
    nodes.check()
