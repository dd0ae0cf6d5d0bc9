"""The hot path, compiled and not: the same sources, and a way to choose."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mta import is_compiled

ROOT = Path(__file__).parents[2]


def _listed() -> list[str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    (value,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COMPILED"
    ]
    return list(ast.literal_eval(value))


def test_what_is_listed_is_there() -> None:
    assert [name for name in _listed() if not (ROOT / name).is_file()] == []


def test_all_of_it_is_compiled_or_nothing() -> None:
    compiled = [name for name in _listed() if list((ROOT / name).parent.glob(f"{Path(name).stem}.cpython-*.so"))]
    assert compiled in ([], _listed())
    if os.environ.get("MTA_INTERPRETED") != "1":
        assert is_compiled() == bool(compiled)


@pytest.mark.parametrize("module", ["mta.smtp.dialogue", "mta.child.worker", "mta.master.collector"])
def test_the_sources_run_where_that_is_asked_for(module: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", f"import {module} as m, asyncpg.protocol.protocol; print(m.__file__)"],
        env={**os.environ, "MTA_INTERPRETED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip().endswith(".py")
