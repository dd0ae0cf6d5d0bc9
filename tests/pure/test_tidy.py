"""The rules of the house, each with what to do instead."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 600
FILE_LINES_AIM = 500
FUNCTION_LINES_MAX = 70
# Over the aim, with the reason why one file is better than two.
LONG_FILES = {
    "mta/master/daemon.py": "one run from start to drain; its tasks share the lease and the journal's lock",
    "mta/child/worker.py": "one process: orders, turns and faults share its books",
    "mta/sink/dialogue.py": "the server's half of a session; its state table would have to be shared",
    "mta/sink/nameserver.py": "one server, over UDP and TCP; its faults must be beside its answers",
    "mta/traffic/connections.py": "the sessions of a group and all that may open, wake or close them",
    "mta/traffic/schedule.py": "what may go where: lanes, their turns, and what leaves them, under one clock",
    "mta/traffic/limit.py": "the one place where everything meets that may hold a message",
    "tests/pure/test_lint.py": "one finding after another against one way to ask",
    "mta/smtp/dialogue.py": "one state machine, whose table stands above it",
    "tests/support/schedule_world.py": "one world; what it checks reads all that it does",
    "tests/process/test_resolver.py": "one scenario after another against one name server",
}
_SPOKEN_IN = ("mta/cli/", "bench/")  # where print is the way to speak
_SUFFIXES = {".py", ".sql", ".md", ".toml", ".txt", ".service", ".yml", ".yaml", ".cfg", ".sh", ""}
# Put together here, so that this file keeps its own rules.
_MACHINE_PATHS = re.compile("|".join(rf"(?<![\w.]){'/' + name}/" for name in ("work", "tmp", "root", "home")))
_INDEX_HOSTS = re.compile("|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "--" + "(extra-)?index" + "-url")))
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u26ff\u2705\u274c\u2728\ufe0f]")
_LATER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b(?P<rest>.*)")


@cache
def tracked() -> tuple[Path, ...]:
    """Text files of the project: those of git, with what is not ignored; in an export without git, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        tops = ("mta", "tests", "docs", "config", "systemd", "bench")
        files = [path for top in tops for path in (ROOT / top).rglob("*") if "__pycache__" not in path.parts]
    return tuple(sorted(path for path in files if path.is_file() and path.suffix in _SUFFIXES))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def sources() -> tuple[tuple[str, str, ast.Module], ...]:
    """(name, text, syntax tree) of every Python file."""
    found = []
    for path in tracked():
        if path.suffix == ".py":
            text = path.read_text()
            found.append((named(path), text, ast.parse(text)))
    assert found, "no Python file was found: the rules would hold of nothing"
    return tuple(found)


@cache
def found_nodes() -> dict[type[ast.AST], list[tuple[str, Any]]]:
    """(name of the file, node) of all Python files, by the kind of node: one walk for all who look for some."""
    found = defaultdict(list)
    for name, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler | ast.Call):
                found[type(node)].append((name, node))
    return found


@cache
def texts() -> tuple[tuple[str, str], ...]:
    return tuple((named(path), path.read_text(errors="replace")) for path in tracked())


def places_that_fit(pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """File and line, and what fits there; no pattern goes beyond a line."""
    for name, text in texts():
        for match in pattern.finditer(text):
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}", match


def test_a_file_is_short_enough_to_be_read_at_one_sitting() -> None:
    sizes = {name: len(text.splitlines()) for name, text, _ in sources()}
    assert {name: size for name, size in sizes.items() if size > FILE_LINES_MAX} == {}, (
        f"over {FILE_LINES_MAX} lines: find the second idea in it, and give that a module of its own"
    )
    over = {name: size for name, size in sizes.items() if size > FILE_LINES_AIM and name not in LONG_FILES}
    assert over == {}, f"over {FILE_LINES_AIM} lines: split it, or enter it in LONG_FILES with the reason"


def test_exceptions_from_the_aim_are_files_that_exist() -> None:
    assert set(LONG_FILES) <= {name for name, _, _ in sources()}, "gone: take it out of LONG_FILES"


def test_a_function_fits_on_a_screen() -> None:
    long = {
        f"{name}:{node.lineno} {node.name}": size
        for name, node in found_nodes()[ast.FunctionDef] + found_nodes()[ast.AsyncFunctionDef]
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}, "too long: name its steps, and make each a function"


def test_no_error_is_swallowed() -> None:
    swallowed = [
        f"{name}:{node.lineno}"
        for name, node in found_nodes()[ast.ExceptHandler]
        if _catches_all(node.type) and _does_nothing(node.body)
    ]
    assert swallowed == [], "name the errors that are expected, say why they do not matter; let the others end the unit"


def _catches_all(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(one is None or (isinstance(one, ast.Name) and one.id in {"Exception", "BaseException"}) for one in names)


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(one, ast.Pass | ast.Continue) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in body
    )


def test_only_the_command_line_prints() -> None:
    printed = [
        f"{name}:{node.lineno}"
        for name, node in found_nodes()[ast.Call]
        if name.startswith("mta/") and not name.startswith(_SPOKEN_IN)
        if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printed == [], "log it with structlog, or return it to who asked"


def test_every_module_says_what_it_is_in_charge_of() -> None:
    silent = [
        name
        for name, _, tree in sources()
        if name.startswith(("mta/", "bench/")) and ast.get_docstring(tree, clean=False) is None
    ]
    assert silent == [], "a package's docstring tells its duty, what it owns, what it guarantees and never does"


def test_each_package_has_an_init_file() -> None:
    packages = {Path(name).parent for name, _, _ in sources() if name.startswith("mta/")}
    bare = [package.as_posix() for package in packages if not (ROOT / package / "__init__.py").is_file()]
    assert bare == [], "add __init__.py with the package's story"


def test_what_is_left_for_later_has_a_reason() -> None:
    bare = [where for where, match in places_that_fit(_LATER) if len(match["rest"].split()) < 5]
    assert bare == [], "do it now, or say in a sentence what is missing and why it can wait"


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (_MACHINE_PATHS, "take the path from the settings, from tmp_path, or relative to the file"),
        (_INDEX_HOSTS, "leave the choice of the package index to the machine's own configuration"),
        (_EMOJI, "say it in words"),
    ],
    ids=["paths of one machine", "package index hosts", "emoji"],
)
def test_nothing_of_the_kind_is_written_down(pattern: re.Pattern[str], instead: str) -> None:
    found = [f"{where}: {match[0]}" for where, match in places_that_fit(pattern)]
    assert found == [], f"instead: {instead}"
