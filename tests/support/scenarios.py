"""Scenarios for tests of `mta.simulation`: small, and made of what a test wants to see."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mta.model.egress import Egress, EgressPool
from mta.simulation.scenario import DeliveryModel, ProviderModel, Scenario
from mta.traffic.rules import Rule, RuleSet

DAY_S = 86_400.0


def provider(name: str, share: float = 1.0, **more: object) -> ProviderModel:
    given: dict[str, object] = {"hosts": (f"mx.{name}.test",), "message_s": 0.05, **more}
    return ProviderModel(name=name, share=share, **given)  # type: ignore[arg-type]


def rule(name: str = "all", mx: str = "*", **limits: object) -> Rule:
    return Rule(name=name, mx=mx, **limits)  # type: ignore[arg-type]


def pool(egresses: int = 1) -> EgressPool:
    return EgressPool(
        "default", tuple(Egress(f"e{number}", number, f"e{number}.test") for number in range(1, egresses + 1))
    )


def scenario(
    rules: Sequence[Rule] | RuleSet,
    *providers: ProviderModel,
    recipients: int = 1_000,
    egresses: int = 1,
    delivery: dict[str, object] | None = None,
    **more: object,
) -> Scenario:
    """One delivery to all the providers, by their shares."""
    made = Scenario(
        name="test",
        rules=rules if isinstance(rules, RuleSet) else RuleSet(rules),
        pools=(pool(egresses),),
        providers=providers,
        deliveries=(DeliveryModel(name="one", recipients=recipients, **(delivery or {})),),  # type: ignore[arg-type]
        duration_s=7 * DAY_S,
    )
    return msgspec.structs.replace(made, **more)
