"""What differs between two sets of rules, each value with its places."""

from __future__ import annotations

import random

import pytest

from mta.settings.rules_file import parse_bundle
from mta.traffic.rules import RuleSet
from mta.traffic.rules_diff import Change, ChangeKind, _longest_rise, diff_rules

OLD = """\
[defaults]
messages_per_connection_max = 100
[[provider]]
name = "p"
total = { connections_max = 5 }
[[automation]]
name = "busy"
pattern = "busy"
act = "suspend"
for_s = 60
[[rule]]
name = "a"
mx = "*.a.example"
provider = "p"
connections_max = 5
[[rule]]
name = "b"
mx = "*.b.example"
automations = ["busy"]
[[rule]]
name = "c"
mx = "*.c.example"
timeouts = { idle_s = 9 }
[[error_block]]
domain = "x.example"
"""


def read(text: str, name: str = "f") -> RuleSet:
    return parse_bundle(name, {name: text})


def changes(new: str, old: str = OLD) -> list[Change]:
    return diff_rules(read(old, "old"), read(new, "new"))


def test_a_set_does_not_differ_from_itself_nor_from_itself_with_remarks() -> None:
    assert changes(OLD) == []
    assert changes("# a remark\n\n" + OLD) == []


def test_a_value_has_both_its_places() -> None:
    assert changes(OLD.replace("connections_max = 5\n[[rule]]", "connections_max = 7\n[[rule]]")) == [
        Change(ChangeKind.CHANGED, "rule a", "connections_max", 5, 7, "old:15", "new:15")
    ]
    assert changes(OLD.replace("idle_s = 9", "idle_s = 8")) == [
        Change(ChangeKind.CHANGED, "rule c", "timeouts.idle_s", 9.0, 8.0, "old:23", "new:23")
    ]


def test_what_a_default_changes_is_told_of_for_each_rule_it_reaches() -> None:
    text = OLD.replace("messages_per_connection_max = 100", "messages_per_connection_max = 50")
    assert [(c.subject, c.old, c.new, c.old_where) for c in changes(text)] == [
        (f"rule {name}", 100, 50, "old:2") for name in "abc"
    ]


def test_recipients_a_transaction_are_a_value_as_any_other() -> None:
    text = OLD.replace(
        "timeouts = { idle_s = 9 }\n", "timeouts = { idle_s = 9 }\nrecipients_per_transaction_max = 100\n"
    )
    assert changes(text) == [
        Change(ChangeKind.CHANGED, "rule c", "recipients_per_transaction_max", 1, 100, "default", "new:24")
    ]


def test_what_goes_away_falls_back_to_its_default() -> None:
    assert changes(OLD.replace("timeouts = { idle_s = 9 }\n", "")) == [
        Change(ChangeKind.CHANGED, "rule c", "timeouts.idle_s", 9.0, 5.0, "old:23", "default")
    ]


def test_things_that_come_and_go_and_move() -> None:
    rules = {name: f'[[rule]]\nname = "{name}"\nmx = "{name}"\n' for name in "abcdz"}
    before = "".join(rules[name] for name in "abcd")
    after = "".join(rules[name] for name in "dabz")
    assert changes(after, before) == [
        Change(ChangeKind.MOVED, "rule d", "", "below c", "first", "old:10", "new:1"),
        Change(ChangeKind.ADDED, "rule z", new="z", new_where="new:10"),
        Change(ChangeKind.REMOVED, "rule c", old="c", old_where="old:7"),
    ]


def test_providers_automations_and_blocks_are_told_of_once() -> None:
    text = OLD.replace("total = { connections_max = 5 }", "total = { connections_max = 6 }")
    text = text.replace("for_s = 60", "for_s = 61").replace('domain = "x.example"', 'domain = "y.example"')
    assert [(c.kind.value, c.subject, c.key, c.old, c.new, c.old_where) for c in changes(text)] == [
        ("changed", "provider p", "connections_max", 5, 6, "old:5"),
        ("changed", "automation busy", "for_s", 60, 61, "old:6"),
        ("added", "error block y.example", "", None, None, ""),
        ("removed", "error block x.example", "", None, None, "old:24"),
    ]


def test_belonging_to_a_provider_and_having_automations_are_values() -> None:
    text = OLD.replace('provider = "p"\n', "").replace('automations = ["busy"]\n', "")
    assert [(c.subject, c.key, c.old, c.new) for c in changes(text) if c.kind is ChangeKind.CHANGED] == [
        ("rule a", "provider", "p", ""),
        ("rule b", "automations", ["busy"], []),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_is_a_longest_rise(seed: int) -> None:
    numbers = random.Random(seed).sample(range(100), 12)
    stayed = _longest_rise(numbers)
    kept = [number for index, number in enumerate(numbers) if index in stayed]
    assert kept == sorted(kept)
    longest = 0
    for picked in range(1 << len(numbers)):
        if bin(picked).count("1") > longest:
            some = [number for index, number in enumerate(numbers) if picked >> index & 1]
            if some == sorted(some):
                longest = len(some)
    assert len(kept) == longest
