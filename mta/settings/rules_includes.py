"""Which files a rules file consists of: itself, and what it includes, from the disk or from a stored bundle.

A file may include others at its top (``include = [...]``: they come before its own tables) and in the place of a rule
(``[[rule]]`` with ``include`` alone). Names are relative to the file that gives them.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from mta.model.errors import BadInput
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import FILE_BYTES_MAX, TomlSource, decode, read_whole, shown

DEPTH_MAX: Final = 8
FILES_MAX: Final = 200
BUNDLE_BYTES_MAX: Final = 8 * 1024 * 1024


class Shelf(Protocol):
    """Where files are."""

    def read(self, name: str) -> TomlSource: ...

    def matching(self, pattern: str) -> list[str]: ...


class Disk:
    """Files below (or beside) the directory of the root. ``texts`` collects what was read, by name."""

    def __init__(self, root: Path) -> None:
        self._directory = root.parent
        self._root = root
        self.texts: dict[str, str] = {}
        self._bytes = 0

    def read(self, name: str) -> TomlSource:
        path = self._root if name == self._root.name else self._directory / name
        content = read_whole(path, FILE_BYTES_MAX)[0]
        self._bytes += len(content)
        if self._bytes > BUNDLE_BYTES_MAX:
            raise BadInput(str(path), f"all rules files together are larger than {BUNDLE_BYTES_MAX:,} bytes")
        text = decode(content, str(path))
        self.texts[name] = text
        return TomlSource(text, str(path))

    def matching(self, pattern: str) -> list[str]:
        found = self._directory.glob(pattern)
        return sorted(posixpath.normpath(path.relative_to(self._directory).as_posix()) for path in found)


class Stored:
    """Texts that were read earlier."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def read(self, name: str) -> TomlSource:
        if name not in self._texts:
            raise BadInput(name, "is not among the stored files")
        return TomlSource(self._texts[name], name)

    def matching(self, pattern: str) -> list[str]:
        return sorted(name for name in self._texts if _fits(name, pattern))


def _fits(name: str, pattern: str) -> bool:
    # As Path.glob: a star does not reach over a slash.
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


class Tables:
    """Every file that was read, each once, and the order in which its rules stand."""

    def __init__(self, shelf: Shelf, root: str) -> None:
        self._shelf = shelf
        self._chain: list[str] = []
        self._seen: dict[str, str] = {}  # name -> who included it first
        self.sources: list[TomlSource] = []  # included ones before those that include them
        self.rules: list[tuple[TomlSource, KeyPath, object]] = []
        self._read(root, "")

    def _read(self, name: str, where: str) -> None:
        if name in self._chain:
            chain = " -> ".join([*self._chain[self._chain.index(name) :], name])
            raise BadInput(where, f"include: a loop: {chain}")
        if name in self._seen:
            raise BadInput(where, f"include: {name} is included at {self._seen[name]} already")
        if len(self._chain) >= DEPTH_MAX:
            raise BadInput(where, f"include: more than {DEPTH_MAX} files deep: {' -> '.join([*self._chain, name])}")
        if len(self._seen) >= FILES_MAX:
            raise BadInput(where, f"include: more than {FILES_MAX} files")
        self._seen[name] = where
        try:
            source = self._shelf.read(name)
        except BadInput as error:
            if where and ("cannot be opened" in error.what or "not among" in error.what):
                raise BadInput(where, f"include: {error}") from None
            raise
        self._chain.append(name)
        given = source.table.get("include", [])
        self._include(source, ("include",), given, name)
        self._read_rules(source, name)
        self._chain.pop()
        self.sources.append(source)

    def _read_rules(self, source: TomlSource, name: str) -> None:
        tables = source.table.get("rule", [])
        if not isinstance(tables, list):
            raise source.fault(("rule",), "expected an array of tables; write [[rule]], with two brackets")
        for i, table in enumerate(tables):
            if isinstance(table, dict) and "include" in table:
                if len(table) > 1:
                    raise source.fault(("rule", i, "include"), "stands alone: a [[rule]] is one rule, or other files")
                self._include(source, ("rule", i, "include"), table["include"], name)
            else:
                self.rules.append((source, ("rule", i), table))

    def _include(self, source: TomlSource, path: KeyPath, given: object, name: str) -> None:
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list):
            raise source.fault(path, f"{shown(given)} is not allowed; expected a file's name, or an array of names")
        for i, pattern in enumerate(patterns):
            at = path if isinstance(given, str) else (*path, i)
            if not isinstance(pattern, str) or not pattern or pattern.startswith("/") or "\0" in pattern:
                raise source.fault(
                    at,
                    f"{shown(pattern)} is not allowed; expected a name relative to this file: 'rules/*.toml'",
                )
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(name), pattern))
            for found in self._shelf.matching(wanted) if any(c in pattern for c in "*?[") else [wanted]:
                self._read(found, source.where(at))
