"""Scenario files: the shipped ones play without a violation; a wrong one is refused with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mta.model.errors import BadInput
from mta.settings.scenario_file import load_scenario
from mta.simulation.engine import simulate
from mta.simulation.report import report

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "config" / "scenarios").glob("*.toml"))
GOOD = """
name = "good"
rules_text = '''
[[rule]]
name = "all"
mx = "*"
connections_max = 5
'''

[[egress]]
name = "one"
id = 1

[[provider]]
name = "a"
share = 1
hosts = ["mx.a.example"]
block = { refusals = 3 }
outage = [{ from_s = 1, for_s = 2, kind = "silent" }]

[[delivery]]
name = "d"
recipients = 10
retry = { first_count = 2, first_period_s = 60, then_period_s = 600 }
"""


def load(directory: Path, text: str) -> object:
    path = directory / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


def test_a_file_is_read_with_all_that_it_says(tmp_path: Path) -> None:
    made = load_scenario((tmp_path / "scenario.toml", (tmp_path / "scenario.toml").write_text(GOOD))[0])
    assert made.rules.rules[0].connections_max == 5
    assert made.providers[0].outages[0].for_s == 2
    assert made.providers[0].block is not None
    assert made.providers[0].block.refusals == 3
    assert made.deliveries[0].retry.first_period_s == 60
    assert made.pools[0].name == "default"


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("share = 1", "share = -1", "share: -1 is not allowed"),
        ("share = 1", "share = 0", "above 0"),
        ("share = 1", "shares = 1", "unknown key; did you mean 'share'?"),
        ("recipients = 10", "recipients = 0", "from 1 to"),
        ('hosts = ["mx.a.example"]', "hosts = []", "at least one MX host"),
        ('hosts = ["mx.a.example"]', 'hosts = ["mx.a.example"]\nsites = 3', "write {n}"),
        ('hosts = ["mx.a.example"]', 'hosts = ["mx.{m}.example"]', "is no name"),
        ('kind = "silent"', 'kind = "deaf"', "one of 'refused', 'silent'"),
        ("recipients = 10", 'recipients = 10\npool = "other"', "no pool is named 'other'"),
        ("recipients = 10", 'recipients = 10\nonly = ["b"]', "no provider is named 'b'"),
        ("recipients = 10", 'recipients = 10\nstart_s = "soon"', "expected a number"),
        ("first_count = 2", "first_counts = 2", "first_count"),
        ("block = { refusals = 3 }", 'block = { reply = "no" }', "is no refusal"),
        ("share = 1", 'share = 1\nrefusal = "250 ok"', "is no refusal"),
        ('name = "good"', 'name = "good"\nstarts_at = 2026-01-01T00:00:00', "no time zone"),
        ('name = "good"', 'name = "good"\nrules = "x.toml"', "one of them"),
        ("connections_max = 5", "connections_max = 0", "connections_max"),
        ("[[egress]]", "[egress]", "two brackets"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, was: str, becomes: str, says: str) -> None:
    assert was in GOOD
    text = GOOD.replace(was, becomes, 1)
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    last = becomes.rpartition("\n")[2]
    # Rules that stand in the scenario have lines of their own, behind that at which they begin.
    wrong = "rules_text" if was.startswith("connections_max") else "hosts" if "write {n}" in says else last
    assert f"scenario.toml:{text[: text.index(wrong)].count(chr(10)) + 1}" in caught.value.where


def test_a_scenario_without_deliveries_or_rules_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="delivery"):
        load(tmp_path, GOOD[: GOOD.index("[[delivery]]")])
    with pytest.raises(BadInput, match="give rules"):
        load(tmp_path, re.sub(r"rules_text = '''.*?'''", "", GOOD, flags=re.DOTALL))
    with pytest.raises(BadInput, match="cannot be opened"):
        load(tmp_path, re.sub(r"rules_text = '''.*?'''", 'rules = "absent.toml"', GOOD, flags=re.DOTALL))


def test_the_shipped_scenarios_are_those_that_the_document_names() -> None:
    assert {path.stem for path in SHIPPED} == {
        "block-and-recover",
        "day-5m",
        "greylisting",
        "outage",
        "throttled-provider",
        "warm-up",
    }
    day = load_scenario(ROOT / "config" / "scenarios" / "day-5m.toml")
    assert day.recipients == 5_000_000


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_scenario_ends_without_a_violation(path: Path) -> None:
    """With a part of its recipients; `mta simulate` plays all of them."""
    whole = load_scenario(path)
    part = max(1, whole.recipients // 10_000)
    deliveries = tuple(msgspec.structs.replace(one, recipients=one.recipients // part) for one in whole.deliveries)
    told = report(simulate(msgspec.structs.replace(whole, deliveries=deliveries)))
    assert told.violations == 0, told.violation_details
    assert told.waiting == 0
    assert told.delivered > 0.97 * told.recipients
