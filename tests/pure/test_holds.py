"""What events hold back at the intake, and from which pool something leaves."""

from __future__ import annotations

import math

import msgspec
import pytest

from mta.master.holds import PUT_OFF_FEW_S_MAX, PUT_OFF_S_MAX, put_off_s
from mta.model.egress import Egress, EgressPool
from mta.model.site import MxHost, Site
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.egress import EgressChooser
from mta.traffic.holds import Holds
from mta.traffic.rules import Rule, RuleSet

NOW = 1_000_000.0
SITE = Site("mx.test", (MxHost("mx.test", 10, ("192.0.2.1",)), MxHost("spare.test", 20, ("192.0.2.2",))))


def chooser(name: str, egress_id: int) -> EgressChooser:
    return EgressChooser(EgressPool(name, (Egress(name, egress_id, f"{name}.example"),)))


DEFAULT, OTHER = chooser("default", 1), chooser("other", 2)


@pytest.fixture
def holds() -> Holds:
    return Holds({"default": DEFAULT, "other": OTHER})


def effect(target: Target, on: str, *, kind: EffectKind = EffectKind.SUSPEND, **more: object) -> Effect:
    given: dict[str, object] = {"key": f"{target} {on} {more}", "name": "x", "until_unix_s": NOW + 60, **more}
    return Effect(kind=kind, target=target, on=on, **given)  # type: ignore[arg-type]


def test_each_is_found_by_what_it_is_on(holds: Holds) -> None:
    domain, tenant = effect(Target.DOMAIN, "a.test"), effect(Target.TENANT, "a.test")
    own, path = effect(Target.DELIVERY, "7"), effect(Target.PATH, "1|192.0.2.1")
    changes = holds.set_effects([domain, tenant, own, path])
    assert (changes.domains, changes.released, changes.sites) == ({"a.test"}, set(), set())
    assert changes.has_deliveries
    assert (holds.domain("a.test"), holds.domain("b.test")) == (domain, None)
    assert (holds.delivery(7, ""), holds.delivery(8, "a.test"), holds.delivery(8, "b.test")) == (own, tenant, None)
    assert holds.delivery(8, "") is None
    changes = holds.set_effects([tenant, own])
    assert (changes.domains, changes.released, changes.has_deliveries) == (set(), {"a.test"}, False)
    assert holds.set_effects([]).has_deliveries


def test_of_several_the_longest_counts_and_one_more_is_no_change(holds: Holds) -> None:
    short, long = (effect(Target.DOMAIN, "a.test", until_unix_s=until) for until in (NOW + 1, math.inf))
    holds.set_effects([long, short])
    assert holds.domain("a.test") is long
    assert holds.set_effects([short]) == (set(), set(), set(), False, set())
    assert holds.domain("a.test") is short


def test_lowered_limits_and_backoff_hold_nothing_back_here(holds: Holds) -> None:
    for kind in (EffectKind.LOWER, EffectKind.BACKOFF, EffectKind.NO_TLS):
        assert holds.set_effects([effect(Target.DOMAIN, "a.test", kind=kind)]) == (set(), set(), set(), False, set())


def test_a_rule_names_the_pool_of_its_hosts(holds: Holds) -> None:
    assert holds.chooser(DEFAULT, SITE, "") is DEFAULT
    elsewhere = Rule(name="elsewhere", mx="mx.test", egress_ids=((1, 1),), pool="other")
    holds.set_rules(RuleSet([elsewhere]))
    assert holds.chooser(DEFAULT, SITE, "") is OTHER
    # By the first egress of the delivery's own pool, and by the most preferred host.
    assert holds.chooser(chooser("third", 3), SITE, "").pool.name == "third"
    assert holds.chooser(DEFAULT, Site("spare.test", SITE.hosts[1:]), "") is DEFAULT
    holds.set_rules(RuleSet([Rule(name="nowhere", mx="*", pool="unknown")]))
    assert holds.chooser(DEFAULT, SITE, "") is DEFAULT


def test_an_event_goes_before_the_rule_and_says_what_moves(holds: Holds) -> None:
    holds.set_rules(RuleSet([Rule(name="elsewhere", mx="*", pool="other")]))
    back = effect(Target.SITE, "mx.test", kind=EffectKind.POOL, pool="default")
    assert holds.set_effects([back]).sites == {"mx.test"}
    assert holds.chooser(DEFAULT, SITE, "") is DEFAULT
    assert holds.set_effects([back]).sites == set()
    unknown = effect(Target.SITE, "mx.test", kind=EffectKind.POOL, pool="unknown")
    assert holds.set_effects([unknown]).sites == {"mx.test"}
    assert holds.chooser(DEFAULT, SITE, "") is OTHER


@pytest.mark.parametrize(
    ("until_s", "recipients", "expected_s"),
    [
        (100.0, 50, 100.0),
        (-5.0, 50, 0.0),
        (math.inf, 50, PUT_OFF_S_MAX),
        (100_000.0, 50, PUT_OFF_S_MAX),
        (100.0, 3, PUT_OFF_FEW_S_MAX),
        (10.0, 3, 10.0),
    ],
)
def test_put_off_until_the_end_but_never_for_too_long(until_s: float, recipients: int, expected_s: float) -> None:
    assert put_off_s(NOW + until_s, NOW, recipients) == expected_s


def test_whom_an_operator_takes_out_is_asked_by_address_in_any_case_and_by_domain() -> None:
    holds = Holds({})
    assert not holds.cancels
    whole = effect(Target.DOMAIN, "a.test", kind=EffectKind.CANCEL)
    one = effect(Target.ADDRESS, "ann@b.test", kind=EffectKind.CANCEL)
    assert holds.set_effects([whole, one]).cancelled == {"a.test", "b.test"}
    assert holds.cancelled("x@a.test", "a.test") is whole
    assert holds.cancelled("Ann@b.test", "b.test") is one
    assert holds.cancelled("bob@b.test", "b.test") is None
    # What lasts longer is looked through once more; what is as it was is not.
    longer = msgspec.structs.replace(one, until_unix_s=one.until_unix_s + 5)
    assert holds.set_effects([whole, longer]).cancelled == {"b.test"}
    assert holds.set_effects([]).cancelled == set()
