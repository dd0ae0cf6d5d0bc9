"""docs/architecture.md speaks of what is there: packages, functions, tables, figures."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
LIFE = SECTIONS["The life of one recipient"]
PURE_PACKAGES = {"bounces", "model", "smtp", "message", "failure", "traffic", "simulation"}
BESIDE_THE_LIFE = {"bounces", "simulation"}


def code_names(text: str) -> list[str]:
    """What stands in backticks and begins with the package's name."""
    return sorted(set(re.findall(r"`(mta(?:\.\w+)+)`", text)) - {"mta.toml"})


def resolve(name: str) -> Any:
    """The module, class, function, method or constant of this name; LookupError when there is none."""
    words = name.split(".")
    for split in range(len(words), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(words[:split]))
        except ModuleNotFoundError:
            continue
        for word in words[split:]:
            if not hasattr(found, word):
                raise LookupError(f"{name}: {found!r} has no {word}")
            found = getattr(found, word)
        return found
    raise LookupError(name)


def floors() -> list[tuple[set[str], bool]]:
    """Rows of the table of floors, top first: the packages, and whether they are called pure."""
    rows = re.findall(r"^\| (`\w+`(?: · `\w+`)*) \| (pure|) ?\|", SECTIONS["Floors"], re.MULTILINE)
    return [(set(re.findall(r"\w+", packages)), bool(pure)) for packages, pure in rows]


@pytest.mark.parametrize("name", code_names(TEXT))
def test_each_name_of_the_code_exists(name: str) -> None:
    resolve(name)


def test_the_life_of_a_recipient_names_functions_at_each_step() -> None:
    steps = re.split(r"^\d+\. ", LIFE, flags=re.MULTILINE)[1:]
    assert len(steps) >= 12
    for step in steps:
        assert any(callable(resolve(name)) for name in code_names(step)), f"names no function: {step[:60]!r}"


def test_the_life_of_a_recipient_goes_through_every_storey_but_the_command_line() -> None:
    visited = {name.split(".")[1] for name in code_names(LIFE)}
    not_pure = {"queue", "dns", "wire", "master", "child", "session", "outcomes"}
    assert visited >= PURE_PACKAGES - BESIDE_THE_LIFE | not_pure


def test_floors_are_those_that_the_linter_enforces() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    linted = [{re.sub(r"[\s()]|mta\.", "", name) for name in row.split("|")} for row in layers]
    assert [packages for packages, _ in floors()] == linted
    forbidden = next(contract for contract in contracts if contract["type"] == "forbidden")
    called_pure = {package for packages, is_pure in floors() if is_pure for package in packages}
    assert called_pure == {name.removeprefix("mta.") for name in forbidden["source_modules"]} == PURE_PACKAGES


def test_every_package_stands_on_a_floor() -> None:
    packages = {path.parent.name for path in (ROOT / "mta").glob("*/__init__.py")}
    documented = {package for row, _ in floors() for package in row}
    assert packages <= documented
    assert documented - packages <= {"demo"}


def test_every_table_is_explained() -> None:
    schema = "".join(path.read_text() for path in sorted((ROOT / "mta" / "queue" / "schema").glob("*.sql")))
    tables = set(re.findall(r"^CREATE TABLE mta\.(\w+)", schema, re.MULTILINE)) - {"delivery_log_default"}
    section = SECTIONS["The data, and why it looks like that"]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert documented == tables | {"schema_migration"}  # which migrate makes for itself


def test_figures_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(mta[\w.]+)` \| (\d+) \|", SECTIONS["Figures that stand in the code"], re.MULTILINE)
    assert len(rows) >= 6
    assert {name: float(value) for name, value in rows} == {name: float(resolve(name)) for name, _ in rows}
