"""Counters: one for each key, exact under reloads, dropped only when they know nothing."""

from __future__ import annotations

import random

import pytest

from mta.traffic.counters import Counters, Limit
from mta.traffic.rules import Rule, RuleSet, Scope
from tests.support.schedule_model import egress

T = 1_800_000_000.0


def counters(*rules: Rule) -> Counters:
    return Counters(RuleSet(rules), T)


def test_each_scope_has_its_keys() -> None:
    for scope, expected in ((Scope.PATH, 14), (Scope.EGRESS, 2), (Scope.SHARED, 1)):
        rule = Rule("r", "*", scope=scope)
        books = counters(rule)
        assert len({books.limit(rule, number, f"192.0.2.{peer}") for number in (1, 2) for peer in range(7)}) == expected


def test_what_is_needed_or_remembers_something_is_not_forgotten() -> None:
    rule = Rule("r", "*", scope=Scope.PATH, messages_per_hour_max=120, connections_per_path_max=2)
    books = counters(rule)
    needed, spent, idle = (books.limit(rule, number, "192.0.2.1") for number in (1, 2, 3))
    assert spent.quota is not None
    spent.quota.take(1)
    spent.quota.report(1, T)
    path, failing = books.path(egress(1), "192.0.2.1"), books.path(egress(2), "192.0.2.1")
    failing.backoff.failed(0.0)
    room = books.path_room(rule, 1, "192.0.2.1")
    assert room is not None
    books.forget({needed, path, room}, 1.0)
    assert books.limit(rule, 1, "192.0.2.1") is needed
    assert books.limit(rule, 2, "192.0.2.1") is spent
    assert books.limit(rule, 3, "192.0.2.1") is not idle
    assert books.path(egress(1), "192.0.2.1") is path
    assert books.path(egress(2), "192.0.2.1") is failing
    assert books.path_room(rule, 1, "192.0.2.1") is room
    books.forget(set(), 5_000.0)
    assert len(books) == 0


@pytest.mark.parametrize("seed", range(20))
def test_at_the_time_told_there_is_a_credit(seed: int) -> None:
    """Whatever the offset between the clocks: else an alarm would ring too early for ever."""
    rng = random.Random(seed)
    limit = Limit("r", Rule("r", "*", messages_per_hour_max=12), T + rng.random() * 1e6)
    now_s = rng.random() * 1e5
    for _ in range(50):
        assert limit.credits(now_s) == 1
        assert limit.quota is not None
        limit.quota.take(1)
        now_s += rng.random()
        limit.report(limit.quota, 1, now_s)
        assert limit.credits(now_s) == 0
        now_s = limit.credits_at_s(now_s)


def test_credits_survive_a_change_of_scope_in_both_directions() -> None:
    def rule(scope: Scope) -> Rule:
        return Rule("r", "*", scope=scope, messages_per_hour_max=1_200)

    wide, narrow = rule(Scope.SHARED), rule(Scope.PATH)
    books = counters(narrow)
    for number, used in ((1, 10), (2, 20)):
        books.load_credits([(f"r|{number}|192.0.2.1", int(T // 10), used)], 0.0)
    books.adopt(RuleSet([wide]))
    assert books.limit(wide, 1, "192.0.2.1").credits(0.0) == 70
    books.adopt(RuleSet([narrow]))
    assert books.limit(narrow, 1, "192.0.2.1").credits(0.0) == 70
    assert books.limit(narrow, 3, "192.0.2.9").credits(0.0) == 70


def test_a_rule_that_is_gone_keeps_its_credits_in_case_it_comes_back() -> None:
    rule = Rule("r", "*", messages_per_hour_max=1_200)
    books = counters(rule)
    books.load_credits([("r|1", int(T // 10), 60)], 0.0)
    books.adopt(RuleSet([]))
    books.adopt(RuleSet([rule]))
    assert books.limit(rule, 1, "192.0.2.1").credits(0.0) == 40
