from __future__ import annotations

import pytest

from mta.traffic.rules import (
    DEFAULT_RULE,
    Rule,
    RuleSet,
    Scope,
    Tls,
    first_unreachable,
    format_ranges,
    limit_key,
    path_key,
)

GOOGLE = Rule("google", "*.google.com, *.googlemail.com", messages_per_connection_max=50)
YAHOO = Rule("yahoo", "*.yahoo.example", egress_ids=((1, 3), (7, 7)))
REST = Rule("rest", "*")


def test_the_first_rule_that_fits_the_mx_host_wins() -> None:
    rules = RuleSet([GOOGLE, REST])
    assert rules.match("alt1.gmail-smtp-in.l.google.com", 1) is GOOGLE
    assert rules.match("ALT1.aspmx.l.GoogleMail.com.", 1) is GOOGLE
    assert rules.match("mx.example.com", 1) is REST


def test_order_decides() -> None:
    assert RuleSet([REST, GOOGLE]).match("mx.google.com", 1) is REST


@pytest.mark.parametrize(("egress_id", "rule"), [(1, YAHOO), (3, YAHOO), (4, REST), (7, YAHOO), (8, REST)])
def test_outside_its_range_matching_goes_on_to_the_next_rule(egress_id: int, rule: Rule) -> None:
    assert RuleSet([YAHOO, REST]).match("a.mx.yahoo.example", egress_id) is rule


def test_the_documented_default_holds_when_nothing_fits() -> None:
    rule = RuleSet([GOOGLE]).match("mx.example.com", 1)
    assert rule is DEFAULT_RULE
    assert rule.scope is Scope.PATH
    assert rule.tls is Tls.OPPORTUNISTIC


def test_the_cache_of_matches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.traffic.rules._CACHED_MATCHES_MAX", 10)
    rules = RuleSet([GOOGLE])
    for i in range(100):
        assert rules.match(f"mx{i}.google.com", 1) is GOOGLE
    assert len(rules._matches) <= 10


def test_each_rule_says_why_it_holds_or_not() -> None:
    verdicts = RuleSet([GOOGLE, YAHOO, REST, Rule("late", "a.*")]).explain_match("a.mx.yahoo.example", 5)
    reasons = {rule.name: why for rule, why in verdicts}
    assert "does not fit a.mx.yahoo.example" in reasons["google"]
    assert "egress 5 is not in its range 1-3, 7" in reasons["yahoo"]
    assert reasons["rest"].startswith("holds")
    assert "rule rest stands above" in reasons["late"]


def test_the_default_explains_itself() -> None:
    assert RuleSet([GOOGLE]).explain_match("mx.example", 1)[-1] == (DEFAULT_RULE, "holds: no rule fits")


@pytest.mark.parametrize(
    ("scope", "keys"),
    [(Scope.PATH, 14), (Scope.EGRESS, 2), (Scope.SHARED, 1)],
)
def test_two_egresses_and_seven_peers_share_as_many_counters_as_the_scope_says(scope: Scope, keys: int) -> None:
    rule = Rule("r", "*", scope=scope)
    assert len({limit_key(rule, e, f"192.0.2.{p}") for e in (1, 2) for p in range(7)}) == keys


def test_paths_have_a_counter_whatever_the_scope() -> None:
    assert path_key(Rule("r", "*", scope=Scope.SHARED), 1, "2001:db8::1") == "r|1|2001:db8::1"


def test_ranges_read_as_they_are_written() -> None:
    assert format_ranges(((1, 1), (3, 5))) == "1, 3-5"
    assert format_ranges(()) == "all"


def test_a_rule_below_a_wider_one_is_found_dead() -> None:
    assert first_unreachable([REST, GOOGLE]) == (GOOGLE, REST)
    assert first_unreachable([GOOGLE, YAHOO, REST]) is None


def test_a_rule_is_dead_when_the_ranges_above_leave_it_nothing() -> None:
    low, high = Rule("low", "*.example", ((1, 5),)), Rule("high", "*.example", ((6, 10),))
    inside, beyond = Rule("inside", "mx.example", ((4, 8),)), Rule("beyond", "mx.example", ((4, 11),))
    assert first_unreachable([low, high, inside]) == (inside, low)
    assert first_unreachable([low, high, beyond]) is None
    assert first_unreachable([low, high, Rule("all", "*.example")]) is None


def test_a_rule_lives_while_one_of_its_masks_does() -> None:
    assert first_unreachable([Rule("a", "*.a.example"), Rule("ab", "x.a.example, x.b.example")]) is None
