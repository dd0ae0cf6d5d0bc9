"""The real program in a process of its own, as an operator types it; see `tests.support.launch`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.launch import COLUMNS, ROOT, run, run_on_terminal


class Cli:
    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory

    def run(self, *arguments: str, expect: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MTA_DATABASE_URL": self.dsn, "PYTHONPATH": str(ROOT), "COLUMNS": COLUMNS}
        done = run(arguments, environment, self.directory, stdin)
        assert done.returncode == expect, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def on_terminal(self, *arguments: str, expect: int = 0, columns: int = 80, typed: str = "") -> list[str]:
        """The lines that it shows on a terminal so wide, its standard error among them."""
        environment = {**os.environ, "MTA_DATABASE_URL": self.dsn, "PYTHONPATH": str(ROOT)}
        done = run_on_terminal(arguments, environment, self.directory, columns=columns, typed=typed)
        assert done.returncode == expect, (arguments, done.returncode, done.stdout)
        assert "Traceback" not in done.stdout
        return done.stdout.splitlines()

    def json(self, *arguments: str, expect: int = 0, stdin: str | None = None) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect, stdin=stdin).stdout)

    def create(self, *more: str) -> str:
        (self.directory / "body.txt").write_text("Hello {{first}}")
        options = (
            "--name",
            "Spring",
            "--subject",
            "Hi {{first}}",
            "--from",
            "Shop <news@shop.example>",
            "--text",
            "body.txt",
        )
        return str(self.json("delivery", "create", *options, *more)["id"])
