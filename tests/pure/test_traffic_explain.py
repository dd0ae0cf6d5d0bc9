from __future__ import annotations

from mta.model.egress import Egress, EgressPool
from mta.model.site import MxHost, Site
from mta.traffic.explain import explain_limits, explain_site
from mta.traffic.rules import DEFAULT_RULE, Provider, Rule, RuleSet, Scope

SITE = Site("mx1.example", (MxHost("mx1.example", 10, ("192.0.2.1",)), MxHost("mx.other.example", 20, ("192.0.2.2",))))
POOL = EgressPool(
    "p",
    (
        Egress("a", 1, "a.example", weight=5),
        Egress("b", 2, "b.example", weight=5, exclude_domains=("*.test",)),
        Egress("c", 3, "c.example", include_domains=("*.test",)),
        Egress("d", 4, "d.example", include_domains=("*.com",)),
    ),
)


def test_who_may_carry_a_domain_is_said_with_its_share_and_why() -> None:
    found = {e.name: e for e in explain_site("x.test", SITE, RuleSet(), POOL).egresses}
    assert [(e.name, e.is_eligible, e.share_percent) for e in found.values()] == [
        ("a", True, 83.3),
        ("b", False, 0.0),
        ("c", True, 16.7),
        ("d", False, 0.0),
    ]
    assert "exclude_domains (*.test)" in found["b"].why
    assert "include_domains (*.com)" in found["d"].why


def test_each_host_has_its_rule_and_ranges_tell_egresses_apart() -> None:
    rules = RuleSet([Rule("other", "*.other.example"), Rule("old", "mx1.*", ((1, 2),)), Rule("rest", "*")])
    first, second = explain_site("x.test", SITE, rules, POOL).hosts
    assert [(r.rule.name, r.egresses) for r in first.rules] == [("old", ("a",)), ("rest", ("c",))]
    assert [(p.rule, p.fits_mask) for p in first.rules[1].passed_over] == [("other", False), ("old", True)]
    assert [(r.rule.name, r.egresses) for r in second.rules] == [("other", ("a", "c"))]


def test_without_rules_the_default_explains_itself() -> None:
    (held,) = explain_site("x.test", SITE, RuleSet(), POOL).hosts[0].rules
    assert held.rule is DEFAULT_RULE
    assert held.why == "holds: no rule fits"


def test_rules_are_explained_even_where_no_egress_may_carry_the_domain() -> None:
    pool = EgressPool("p", (Egress("d", 4, "d.example", include_domains=("*.com",)),))
    explained = explain_site("x.test", SITE, RuleSet(), pool)
    assert not explained.egresses[0].is_eligible
    assert explained.hosts[0].rules[0].egresses == ("d",)


def test_limits_say_what_they_are_counted_on() -> None:
    rule = Rule(
        "r",
        "*",
        scope=Scope.SHARED,
        connections_max=1,
        connections_per_path_max=2,
        messages_per_connection_max=3,
        messages_per_hour_max=10_000,
        messages_per_day_max=50_000,
        bytes_per_hour_max=7,
        ramp_up_s=5,
    )
    limits = {limit.limit: limit for limit in explain_limits(rule, {("r", "connections_max"): "google.toml:7"})}
    assert limits["connections_max"].counted_on == "all egresses and all hosts of this rule together"
    assert limits["connections_max"].origin == "google.toml:7"
    assert limits["connections_per_path_max"].counted_on == "each egress and peer address"
    assert limits["messages_per_connection_max"].value == 3
    assert limits["messages_per_hour_max"].note == "at most 833 in any 5 minutes; attempts count"
    assert {"messages_per_day_max", "bytes_per_hour_max", "ramp_up_s"} <= limits.keys()
    assert explain_limits(Rule("r", "*")) == ()


def test_a_providers_limits_stand_beside_those_of_the_rule() -> None:
    provider = Provider(name="p", connections_max=4, scope=Scope.SHARED)
    rules = RuleSet(
        [Rule("r", "*", connections_max=9, provider=provider)], origins={("provider:p", "connections_max"): "f:1"}
    )
    [held] = explain_site("x.test", SITE, rules, POOL).hosts[0].rules
    assert [(one.value, one.origin) for one in held.limits] == [(9, ""), (4, "f:1")]
    assert held.limits[1].counted_on == "all egresses, over all that goes to provider p"


def test_rules_that_look_at_site_or_domain_are_told_as_they_hold() -> None:
    rules = RuleSet([Rule("site", "*", sites="mx1.example"), Rule("domain", "*", domains="*.test"), Rule("rest", "*")])
    by_site = explain_site("x.test", SITE, rules, POOL).hosts[0].rules
    assert [held.rule.name for held in by_site] == ["site"]
    other = Site("other.example", SITE.hosts)
    assert [held.rule.name for held in explain_site("x.test", other, rules, POOL).hosts[0].rules] == ["domain"]
    [held] = explain_site("x.example", other, rules, POOL).hosts[0].rules
    assert held.rule.name == "rest"
    assert [(passed.rule, passed.fits_mask) for passed in held.passed_over] == [("site", False), ("domain", False)]
