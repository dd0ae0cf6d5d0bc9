"""What the commands of ``mta rules`` share: which file is meant, who types, how findings are shown."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from mta.cli.terminal import err, shown
from mta.model.errors import BadInput
from mta.queue.rule_sets import Bundle, make_bundle
from mta.settings import Settings, load_settings
from mta.settings.rules_file import load_bundle
from mta.traffic.findings import Finding, Severity
from mta.traffic.rules import RuleSet

REFUSED_EXIT: Final = 1
BAD_INPUT_EXIT: Final = 2
DEFAULT_CONFIG: Final = Path("config/mta.toml")
BY_CHARS_MAX: Final = 100

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="MTA_CONFIG", help=f"Settings; {DEFAULT_CONFIG} where that is there."),
]
File = Annotated[
    Path | None, typer.Argument(help="A rules file; that of the settings when absent.", show_default=False)
]
By = Annotated[str, typer.Option(help="Who says so; else your name on this machine.", show_default=False)]
Note = Annotated[str, typer.Option(help="For those who read it later.", show_default=False)]


def settings_of(config: Path | None) -> Settings | None:
    """The settings that are meant; None when none are given and none are there."""
    path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    return None if path is None else load_settings(path)


def chosen_file(file: Path | None, config: Path | None) -> Path:
    """``file``, or the one that the settings name. Raises BadInput when there is none."""
    if file is not None:
        return file
    settings = settings_of(config)
    if settings is None or settings.rules_file is None:
        raise BadInput("FILE", "is missing, and no settings name a rules file; give it, or --config")
    return settings.rules_file


def read_bundle(file: Path) -> tuple[RuleSet, Bundle]:
    """Raises BadInput, with file, line and key, for a file that could not be put into force."""
    rules, texts = load_bundle(file)
    return rules, make_bundle(file.name, texts)


def operator(by: str = "") -> str:
    """``by``, or user and host."""
    if by:
        if not by.isprintable() or len(by) > BY_CHARS_MAX:
            raise BadInput("--by", f"must be 1 to {BY_CHARS_MAX} printable characters")
        return by
    return f"{local_user()}@{socket.gethostname()}"


def local_user() -> str:
    """Who gives a command, also through sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # no such user: a container's bare number
        return f"uid {os.getuid()}"


_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def print_findings(findings: Iterable[Finding], console: Console = err) -> None:
    """One line each, as compilers do: where, how bad, about what, what to do."""
    for one in findings:
        where = f"{shown(one.where)}: " if one.where else ""
        colour = _COLOURS[one.severity]
        console.print(
            f"{where}[{colour}]{one.severity.value}[/]: {shown(one.subject)}: {shown(one.what)} \\[{one.check.value}]",
            soft_wrap=True,
            highlight=False,
        )


def count(findings: Sequence[Finding], severity: Severity) -> int:
    return sum(one.severity is severity for one in findings)
