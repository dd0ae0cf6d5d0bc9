"""The README is true: commands, targets, options and links that it names exist."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from bench.__main__ import app as bench_app
from mta.cli.main import build_app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
_CODE = re.compile(r"`([^`\n]+)`|^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def lines_of_code(text: str) -> list[str]:
    """Every line of a code block, and every piece of code in a sentence."""
    return [line.strip() for one, block in _CODE.findall(text) for line in (one or block).splitlines() if line.strip()]


def commands_named(program: str) -> list[list[str]]:
    found = []
    for line in lines_of_code(README) + lines_of_code(CHANGELOG):
        words = shlex.split(line.removeprefix(".venv/bin/"))
        if words[: len(program.split())] == program.split():
            found.append(words[len(program.split()) :])
    return found


def unknown_in(root: click.Command, words: list[str]) -> str | None:
    """The first word that is no command, or no option of the command before it."""
    command = root
    for word in words:
        if word.startswith("-"):
            names = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
            if word not in names:
                return word
        elif hasattr(command, "commands") and (word in command.commands or not command.invoke_without_command):
            if word not in command.commands:
                return word
            command = command.commands[word]
    return None


@functools.cache
def root() -> Any:
    return typer.main.get_command(build_app([]))


@pytest.mark.parametrize("words", commands_named("mta"), ids=" ".join)
def test_a_command_that_is_named_exists_with_its_options(words: list[str]) -> None:
    assert unknown_in(root(), words) is None


@pytest.mark.parametrize("words", commands_named("python -m bench"), ids=" ".join)
def test_a_bench_that_is_named_exists(words: list[str]) -> None:
    assert unknown_in(typer.main.get_command(bench_app), words) is None


def test_the_makefile_has_the_targets_that_are_named_and_explains_each() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(_TARGET.findall(makefile))
    named = {words[0] for words in commands_named("make")}
    assert {"setup", "demo", "test", "bench"} <= targets
    assert named <= targets
    explained = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert explained == targets


def test_a_word_that_is_no_command_would_be_noticed() -> None:
    assert unknown_in(root(), ["delivery", "launch"]) == "launch"
    assert unknown_in(root(), ["demo", "--quickly"]) == "--quickly"


def test_links_lead_somewhere() -> None:
    for text in (README, CHANGELOG):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / target).exists(), target


def test_the_two_commands_of_a_newcomer_are_in_the_readme() -> None:
    assert "make demo\nmake test\n" in README
