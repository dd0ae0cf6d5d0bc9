"""Generated rules, providers and loads on one to eight nodes: the judge of the simulation counts what truly left.

The real traffic code decides, the real ledger shares the limits out. ``MTA_EXAMPLES=10000`` tries so many instead.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta.simulation.engine import simulate
from mta.simulation.scenario import ProviderModel
from mta.traffic.rules import Rule, RuleSet, Scope
from tests.support.scenarios import provider, scenario

EXAMPLES = int(os.environ.get("MTA_EXAMPLES", "15"))
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


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
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
