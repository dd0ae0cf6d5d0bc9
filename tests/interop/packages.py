"""Servers of npm and of Go's modules: fetched at a fixed version into the store, run as they are."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from tests.interop.layer import STORE
from tests.interop.remote import RemoteServer

FETCH_S: Final = 900


def _run(command: Sequence[str], folder: Path, **environment: str) -> None:
    subprocess.run(
        command,
        check=True,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=FETCH_S,
    )


class NpmServer(RemoteServer):
    """A package of npm, run by ``node``. Nothing that it would compile is: ``--ignore-scripts``."""

    package: ClassVar[str]
    pinned: ClassVar[str]

    @property
    def folder(self) -> Path:
        return STORE / "npm" / self.name

    @property
    def module(self) -> Path:
        return self.folder / "node_modules" / self.package

    @property
    def is_installed(self) -> bool:
        return (self.module / "package.json").is_file()

    def install(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "package.json").write_text("{}\n")
        _run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"{self.package}@{self.pinned}"],
            self.folder,
        )

    def version(self) -> str:
        return f"{json.loads((self.module / 'package.json').read_text())['version']} (npm)"


class GoServer(RemoteServer):
    """A program of a Go module. ``replace`` as its own go.mod has it: it does not count for who requires it."""

    package: ClassVar[str]
    pinned: ClassVar[str]
    replace: ClassVar[tuple[str, ...]] = ()

    @property
    def program(self) -> Path:
        return STORE / "bin" / self.name

    @property
    def is_installed(self) -> bool:
        return self.program.is_file()

    def install(self) -> None:
        folder = STORE / "go" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "go.mod").write_text(
            "module interop\n\ngo 1.24\n" + "".join(f"replace {one}\n" for one in self.replace)
        )
        settings = {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        _run(["go", "get", "-tool", f"{self.package}@{self.pinned}"], folder, **settings)
        self.program.parent.mkdir(parents=True, exist_ok=True)
        _run(["nice", "go", "build", "-p", "1", "-o", str(self.program), self.package], folder, **settings)

    def version(self) -> str:
        return f"{self.pinned.removeprefix('v')} (Go)"
