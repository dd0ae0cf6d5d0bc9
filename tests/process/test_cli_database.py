"""Which database a command asks: --config, --dsn, the environment, in this order, in every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta.cli import main
from mta.cli.database import named_database
from mta.model.errors import BadInput
from tests.support.launch import ROOT, run

GONE = "postgresql://nobody@127.0.0.1:1/gone"


def ask(directory: Path, *arguments: str, expect: int = 0, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MTA_", "PG"))}
    done = run(arguments, {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}, directory)
    assert done.returncode == expect, (arguments, done.stdout, done.stderr)
    return done.stderr if expect else done.stdout


def settings(directory: Path, dsn: str, name: str = "mta.toml") -> str:
    path = directory / name
    path.write_text(f'[database]\ndsn = "{dsn}"\n' if dsn else "")
    return str(path)


@pytest.mark.parametrize("command", ["queue show", "delivery list", "monitor alerts", "db status", "traffic events"])
def test_each_way_works_and_the_order_is_one(dsn: str, tmp_path: Path, command: str) -> None:
    words, good, bad = command.split(), settings(tmp_path, dsn), settings(tmp_path, GONE, "bad.toml")
    silent = settings(tmp_path, "", "silent.toml")
    ask(tmp_path, *words, "--config", good)
    ask(tmp_path, *words, "--dsn", dsn)
    ask(tmp_path, *words, MTA_DATABASE_URL=dsn)
    ask(tmp_path, *words, MTA_CONFIG=good)
    # The one before wins over those that come after it.
    ask(tmp_path, *words, "--config", good, "--dsn", GONE, MTA_DATABASE_URL=GONE)
    ask(tmp_path, *words, "--dsn", dsn, MTA_DATABASE_URL=GONE, MTA_CONFIG=bad)
    ask(tmp_path, *words, MTA_DATABASE_URL=dsn, MTA_CONFIG=bad)
    ask(tmp_path, *words, "--config", silent, MTA_DATABASE_URL=dsn)
    assert "127.0.0.1" in ask(tmp_path, *words, "--config", bad, MTA_DATABASE_URL=dsn, expect=2)
    assert "--config with database.dsn" in ask(tmp_path, *words, expect=2)


def test_every_command_that_asks_a_database_takes_both_options(tmp_path: Path) -> None:
    app = main.build_app([])
    seen = 0
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for one in group.typer_instance.registered_commands:
            parameters = one.callback.__signature__.parameters if hasattr(one.callback, "__signature__") else {}
            if "dsn" in parameters:
                seen += 1
                assert "config" in parameters
    assert seen > 40
    assert "--config" in ask(tmp_path, "queue", "show", "--help")


def test_a_file_that_is_no_settings_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("no toml")
    assert "x.toml" in ask(tmp_path, "queue", "show", "--config", "x.toml", expect=2)
    assert "No such file" in ask(tmp_path, "queue", "show", "--config", "y.toml", expect=2)
    with pytest.raises(BadInput, match="is missing"):
        named_database("")
