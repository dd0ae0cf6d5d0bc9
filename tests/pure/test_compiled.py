"""The hot path, compiled and not: the same sources, and a way to choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mta import is_compiled
from tests.support.compiled import followed, groups, imported_by, listed
from tests.support.hot_tests import EXERCISED_BY, hot_tests

ROOT = Path(__file__).parents[2]


def test_what_is_listed_is_there() -> None:
    assert [name for name in list(listed()) if not (ROOT / name).is_file()] == []


def test_all_of_it_is_compiled_or_nothing() -> None:
    compiled = [name for name in list(listed()) if list((ROOT / name).parent.glob(f"{Path(name).stem}.cpython-*.so"))]
    assert compiled in ([], list(listed()))
    if os.environ.get("MTA_INTERPRETED") != "1":
        assert is_compiled() == bool(compiled)


def test_a_library_imports_from_none_that_imports_from_it() -> None:
    """Each is loaded with those that it calls: in a circle, one would call what is not there yet."""
    of = {module: library for library, modules in groups().items() for module in modules}
    imports = {(of[one], of[other]) for one in of for other in imported_by(one) if other in of and of[one] != of[other]}
    assert [pair for pair in imports if pair[::-1] in imports] == []


def test_compiling_follows_what_is_listed_and_what_that_imports_and_nothing_else() -> None:
    assert set(listed()) < set(followed())
    assert "mta/model/waiting.py" in followed()  # its words stand in the C of mta/traffic/waits.py
    assert [name for name in followed() if name.startswith(("mta/cli/", "mta/demo/", "mta/keeper/", "mta/sink/"))] == []


def test_each_compiled_module_is_exercised_by_tests_that_run_both_ways() -> None:
    assert set(EXERCISED_BY) == set(listed()), "enter what is compiled in tests/support/hot_tests.py, with its tests"
    assert [name for name in hot_tests() if not (ROOT / name).is_file()] == []
    unrelated = [
        f"{test}: {module}"
        for module, tests in EXERCISED_BY.items()
        for test in tests
        if module not in imported_by(f"tests/{test}.py") and not test.startswith("process/")  # these start the programs
    ]
    assert unrelated == [], "the test does not import, not even through others, what it is to exercise"


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
