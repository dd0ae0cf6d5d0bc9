"""What setup.py compiles, and what a file imports, read from the sources."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


@cache
def listed() -> tuple[str, ...]:
    """The modules that setup.py compiles."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COMPILED":
            return tuple(ast.literal_eval(node.value))
    raise AssertionError("setup.py lists nothing")


@cache
def imported_by(name: str) -> frozenset[str]:
    """Files of the project that a file imports, directly or through others; as it is named from the root."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for one in _imports(waiting.pop()) - found:
            found.add(one)
            waiting.append(one)
    return frozenset(found)


@cache
def _imports(name: str) -> frozenset[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    stems = [module.replace(".", "/") for module in modules if module.startswith(("mta.", "tests."))]
    files = [f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]
    return frozenset(file for file in files if (ROOT / file).is_file())
