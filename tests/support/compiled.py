"""What setup.py compiles, and what a file imports, read from the sources.

Printed by ``python -m tests.support.compiled`` for the Makefile: what decides whether to compile again. It needs no
package, as it is asked before there is one.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """The modules that setup.py compiles, by the library that they become."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "GROUPS":
            return {name: tuple(modules) for name, modules in ast.literal_eval(node.value).items()}
    raise AssertionError("setup.py lists nothing")


@cache
def listed() -> tuple[str, ...]:
    return tuple(name for group in groups().values() for name in group)


@cache
def followed() -> tuple[str, ...]:
    """The sources that decide what is compiled: those listed, and the modules of ours that they import.

    mypyc writes into its C what it knows of an imported module, compiled or not: the value of a constant, the type
    that a field must have. Taken from an older state of that module, it would be wrong without a word. What nothing
    listed imports decides nothing.
    """
    return tuple(sorted({*listed(), *(one for name in listed() for one in imported_by(name))}))


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


if __name__ == "__main__":
    print(*followed())
