"""docs/simulation.md names every key of a scenario with its default, and every shipped scenario."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from mta.cli import forecast
from mta.settings.scenario_file import TABLES
from mta.simulation.standing import APART_MAX
from mta.traffic import surplus

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "simulation.md").read_text()
ROWS = {
    key: default.strip()
    for key, default in re.findall(r"^\| `([a-z_.]+)` \|([^|]*)\|", TEXT, re.MULTILINE)
    if not key.endswith(".toml")
}


def keys() -> dict[str, Any]:
    """Every key, and its default where there is one."""
    found: dict[str, Any] = {}
    for table, kind in TABLES.items():
        for field in msgspec.structs.fields(kind):
            found[f"{table}.{field.name}" if table else field.name] = field.default
    return found


def test_every_key_of_a_scenario_has_its_row_and_no_other() -> None:
    assert set(ROWS) == set(keys())


def test_defaults_are_those_of_the_code() -> None:
    for key, default in keys().items():
        told = ROWS[key]
        if isinstance(default, bool):
            assert told == str(default).lower(), key
        elif isinstance(default, int | float):
            assert float(told) == default, key
        elif isinstance(default, str) and told.endswith("..."):
            assert default.startswith(told.removesuffix("...").strip()), key
        elif isinstance(default, str):
            assert told == default, key


def test_every_shipped_scenario_is_explained() -> None:
    named = set(re.findall(r"^\| `([\w-]+\.toml)` \|", TEXT, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "config" / "scenarios").glob("*.toml")}


def test_figures_are_those_of_the_program() -> None:
    assert f"the {forecast.LOOKUPS_MAX:,} largest\ndomains" in TEXT
    assert f"took {forecast.BUSY_ATTEMPTS} messages or more" in TEXT
    assert f"assumed elsewhere: {forecast.DEFAULT_MESSAGE_S:g} s a message" in TEXT
    assert f"only the {APART_MAX} domains" in TEXT
    assert f"up to {surplus.DELAY_S_MAX / 60:g}\nminutes after the end" in TEXT
    assert forecast.LOOKBACK.total_seconds() == 6 * 3_600
