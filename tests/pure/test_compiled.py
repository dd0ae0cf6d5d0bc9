"""The hot path, compiled and not: the same sources, and a way to choose."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

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


def _run(code: str, **environment: str) -> list[str]:
    """What it prints, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_the_sources_run_where_that_is_asked_for() -> None:
    modules = ("mta.smtp.dialogue", "mta.child.worker", "mta.master.collector")
    code = f"import asyncpg.protocol.protocol, {', '.join(modules)}\nfor m in {', '.join(modules)}: print(m.__file__)"
    said = _run(code, MTA_INTERPRETED="1")
    assert [Path(path) for path in said] == [ROOT / f"{module.replace('.', '/')}.py" for module in modules]


def test_a_child_does_not_load_what_only_a_terminal_needs() -> None:
    code = "import sys, mta.child.__main__\nprint(*(name for name in ('rich.console', 'attr') if name in sys.modules))"
    assert _run(code) == [""]
