"""docs/rules.md tells of every check of the linter, and of none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from mta.cli.rules_lint import LOG_LINES_MAX
from mta.traffic.findings import Check, Severity

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "rules.md").read_text()
SECTION = TEXT.partition("## Checking, comparing, applying")[2]
ROWS = dict(re.findall(r"^\| `([\w-]+)` \| .* \| (\w+) \|$", SECTION, re.MULTILINE))
SOURCES = "".join(path.read_text() for path in [*ROOT.glob("mta/traffic/lint*.py"), ROOT / "mta/cli/rules_lint.py"])


def test_every_check_has_its_row_and_the_reverse() -> None:
    assert list(ROWS) == [check.value for check in Check]


def test_every_check_is_made_and_as_bad_as_it_is_said_to_be() -> None:
    for check in Check:
        assert f"Check.{check.name}," in SOURCES, check
        assert Severity(ROWS[check.value])
        if f"Check.{check.name}, Severity." in SOURCES:
            assert f"Check.{check.name}, Severity.{ROWS[check.value].upper()}" in SOURCES


def test_the_bound_of_the_log_is_that_of_the_program() -> None:
    assert f"({LOG_LINES_MAX:,} lines at most" in SECTION
