"""docs/operating.md tells of every event, key, wait, status, reason, exit code and command that there is."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mta.cli.main import EXIT_NOT_DONE, MODULES, build_app
from mta.cli.run import FENCED_EXIT
from mta.master.drain import DRAIN_S, RECORD_S
from mta.model.outcome import Reason, Status
from mta.model.waiting import WaitReason
from mta.queue import connection_string
from mta.settings import config
from mta.settings.dkim import DkimTable

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operating.md").read_text()
SHIPPED = (ROOT / "config" / "mta.toml").read_text()
DOCUMENTS = sorted((ROOT / "docs").glob("*.md")) + [path for path in [ROOT / "README.md"] if path.is_file()]
SECTIONS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##+ |\Z)", TEXT, re.MULTILINE | re.DOTALL))


@functools.cache
def events() -> tuple[tuple[str, str, str], ...]:
    """(where, level, event) of every line that the program may log."""
    return tuple(_events())


def _events() -> Iterator[tuple[str, str, str]]:
    for path in sorted((ROOT / "mta").rglob("*.py")):
        text = path.read_text()
        if not re.search(r"\b(_?log|logger)\s*\.", text):
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log" | "_log" | "logger"), attr=level), args=[said, *_]
                ):
                    assert isinstance(said, ast.Constant), f"{path.name}:{node.lineno}: an event is a fixed text"
                    yield f"{path.name}:{node.lineno}", level, said.value


def rows(section: str) -> dict[str, str]:
    """First cell (without backticks) -> whole row, of the tables in a section."""
    return {
        row.split("|")[1].strip().strip("`"): row for row in re.findall(r"^\|.*\|$", SECTIONS[section], re.MULTILINE)
    }


def test_events_are_found_at_all() -> None:
    assert len(events()) > 20


@pytest.mark.parametrize(
    ("level", "section"),
    [("error", "Errors"), ("exception", "Errors"), ("critical", "Errors"), ("warning", "Warnings")],
)
def test_each_event_that_somebody_must_act_on_has_its_row(level: str, section: str) -> None:
    told = rows(section)
    missing = [(where, event) for where, found, event in events() if found == level and event not in told]
    assert missing == []


def test_every_other_event_is_mentioned() -> None:
    missing = [(where, event) for where, _, event in events() if f"`{event}`" not in TEXT]
    assert missing == []


def test_no_event_is_described_that_is_never_logged() -> None:
    logged = {event for _, _, event in events()}
    described = (rows("Errors").keys() | rows("Warnings").keys()) - {"event", "---"}
    assert described <= logged


def test_every_key_is_explained_here_or_in_the_shipped_file() -> None:
    unknown = []
    for table, kind in config._TABLES.items():
        for key in kind.__struct_fields__:
            section = re.search(rf"^\[{table}\]\n(.*?)(?=^\[|\Z)", SHIPPED, re.MULTILINE | re.DOTALL)
            is_shipped = section is not None and re.search(rf"^(?:# )?{key} =", section[1], re.MULTILINE)
            if not is_shipped and f"`{table}.{key}`" not in TEXT:
                unknown.append(f"{table}.{key}")
    for name, kind in (("egress", config._EgressTable), ("dkim", DkimTable)):
        of_array = kind.__struct_fields__
        unknown += [f"{name}.{key}" for key in of_array if not re.search(rf"^# {key} =", SHIPPED, re.MULTILINE)]
    assert unknown == []


def test_keys_that_are_spoken_of_exist() -> None:
    named = re.findall(r"`((?:node|database|master|children|dns|smtp|signing|rules)\.\w+)`", TEXT)
    assert len(named) >= 8
    for name in named:
        table, key = name.split(".")
        assert key in config._TABLES[table].__struct_fields__, name


def test_every_reason_to_wait_has_its_row() -> None:
    assert set(rows("Why something waits")) - {"reason", "---"} == {reason.value for reason in WaitReason}


@pytest.mark.parametrize(("kind", "title"), [(Status, "status"), (Reason, "reason")])
def test_every_number_in_the_log_has_its_name(kind: type[Status] | type[Reason], title: str) -> None:
    tables = re.split(r"\n\n", SECTIONS["What became of a recipient"])
    table = next(table for table in tables if table.startswith(f"| {title} |"))
    named = {int(number): name for number, name in re.findall(r"^\| (\d+) \| ([\w ]+) \|", table, re.MULTILINE)}
    assert named == {one.value: one.name.lower().replace("_", " ") for one in kind}
    if kind is Status:
        finals = {int(number) for number in re.findall(r"^\| (\d+) \| [\w ]+ \| yes \|", table, re.MULTILINE)}
        assert finals == {status.value for status in Status if status.is_final}


def test_exit_codes_are_those_of_the_program() -> None:
    told = rows("Exit codes")
    assert set(told) - {"code", "---"} == {"0", "1", str(EXIT_NOT_DONE), str(FENCED_EXIT)}
    assert "declared dead" in told[str(FENCED_EXIT)]


def test_figures_are_those_of_the_program() -> None:
    assert f"up to {DRAIN_S / 60:.0f} minutes" in SECTIONS["Start, stop, reload"]
    assert f"waits {RECORD_S:.0f} s to record" in SECTIONS["Start, stop, reload"]
    master = config.MasterSettings()
    assert f"`lease_s`\n({master.lease_s:.0f} s)" in SECTIONS["The database is away"]
    assert master.lease_s + master.take_over_after_s == 60
    assert "`lease_s` and `take_over_after_s` (together a minute by default)" in SECTIONS["A dead node"]


def test_every_parameter_of_a_connection_string_has_its_row() -> None:
    told = set(re.findall(r"`([a-z_]+)`", SECTIONS["Connection strings"]))
    assert connection_string.PARAMETERS - {"database"} <= told  # asyncpg's own word for dbname


def command_lines() -> list[tuple[str, str]]:
    """(document, line) for each ``mta ...`` in a code span or block; what follows a ``#`` is a comment."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks if "─" not in block for line in block.splitlines()]  # no pictures
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in [*lines, *spans]:
            match = re.match(r"\s*(?:\S*bin/)?mta((?: [^#|]+)?)", line)
            if match and re.match(r"\s*(?:\S*bin/)?mta [a-z]", line):
                found.append((path.name, match[1].strip()))
    return found


@functools.cache
def _root() -> Any:
    return typer.main.get_command(build_app([]))


@pytest.mark.parametrize(("document", "line"), sorted(set(command_lines())))
def test_each_command_in_the_documents_can_be_typed(document: str, line: str) -> None:
    words = line.split()
    assert words[0] in MODULES, f"{document}: mta {line}"
    command = _root()
    # Typer may bring a click of its own, so a group is known by what it has.
    while (commands := getattr(command, "commands", None)) and words and words[0] in commands:
        command, words = commands[words[0]], words[1:]
    if commands and words and re.fullmatch(r"[a-z][a-z-]+", words[0]):
        pytest.fail(f"{document}: mta {line}: {command.name} has no command {words[0]}")
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, f"{document}: mta {line}"
