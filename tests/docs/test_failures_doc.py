"""docs/failures.md against the code: categories, types, reasons, keys, the example."""

from __future__ import annotations

import re
from pathlib import Path

from mta.failure.codes import OUR_FAULT_TYPE, REASONS, TYPES
from mta.failure.qualify import STAGES, Qualifier
from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.model.outcome import Reason
from mta.settings.bounce_rules import BounceRuleTable, lint_bounce_rules, parse_bounce_rules

TEXT = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
PART = TEXT[TEXT.index("## Qualification") :].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    below = PART[PART.index(heading) :]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


def test_types_and_their_numbers() -> None:
    assert {row[0]: int(row[1]) for row in rows("### Types")} == {
        kind.name.lower().replace("_", " "): kind.value for kind in FailureType
    }


def test_categories_with_types_reasons_and_whose_fault() -> None:
    found = {row[0].strip("`"): row for row in rows("### Categories")}
    assert set(found) == {category.label for category in Category} - {"none"}
    for label, row in found.items():
        category = Category[label.upper()]
        kind = TYPES.get(category, OUR_FAULT_TYPE).name.lower().replace("_", " ")
        reason = REASONS.get(category, Reason.UNREACHABLE)
        assert row[2].partition(";")[0] == kind, label
        assert row[3] == f"`{reason.name.lower()}` ({reason.value})", label
        assert (row[4] == "yes") == (category in OUR_FAULT), label


def test_every_key_has_its_row() -> None:
    assert {row[0].strip("`") for row in rows("### Rules")} == set(BounceRuleTable.__struct_fields__)
    assert set(STAGES) <= set(re.findall(r"`(\w+)`", next(row[1] for row in rows("### Rules") if row[0] == "`stages`")))


def test_the_example_is_in_order() -> None:
    example = re.search(r"```toml\n(.*?)```", PART, re.DOTALL)
    assert example is not None
    rules = parse_bounce_rules({"example.toml": example[1]})
    assert lint_bounce_rules(rules) == []
    assert len(Qualifier(rules).rules) == 1
