"""``mta config``: would a node start with these settings, and sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from mta.cli.rules_common import print_findings
from mta.cli.rules_lint import lint_settings
from mta.cli.terminal import AsJson, print_json, warn
from mta.message.advice import ONE_CLICK_UNSIGNED
from mta.model.errors import BadInput
from mta.settings import Settings, load_rules, load_settings
from mta.settings.dkim import read_key
from mta.stream.streams import make_sink
from mta.traffic.rules import RuleSet

app = typer.Typer(help="Settings: check a file and all that it names.", no_args_is_help=True)

REFUSED_EXIT: Final = 1


@app.callback()
def _group() -> None:
    """So that a lone command keeps its name."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Settings, such as config/mta.toml.")],
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with settings, their rules, keys and event streams; exit 1 when there is something."""
    try:
        settings = load_settings(file)
    except BadInput as error:
        faults, warnings = [error], []
    else:
        faults, rules = _faults_beside(settings)
        warnings = lint_settings(rules, settings, str(file))
    advice = [] if faults or settings.signing.entries else [f"{file} has no [[dkim]]: if {ONE_CLICK_UNSIGNED}"]
    if as_json:
        told = [{"where": fault.where, "what": fault.what} for fault in faults]
        print_json({"ok": not faults, "faults": told, "warnings": warnings, "advice": advice})
    elif faults:
        for fault in faults:
            typer.echo(f"{fault}", err=True)
    else:
        typer.echo(f"{file}: {len(settings.egresses)} egresses, {len(settings.signing.entries)} signing keys, all well")
    if not as_json:
        print_findings(warnings)
        warn(advice)
    if faults:
        raise typer.Exit(REFUSED_EXIT)


def _faults_beside(settings: Settings) -> tuple[list[BadInput], RuleSet]:
    """What is wrong with the files that the settings name; and the rules, as far as they can be read."""
    faults, rules = [], RuleSet()
    try:
        if settings.rules_file is not None:
            rules = load_rules(settings.rules_file)
    except BadInput as error:
        faults.append(error)
    for entry in settings.signing.entries:
        try:
            read_key(entry)
        except BadInput as error:
            faults.append(error)
    for stream in settings.streams:
        try:
            make_sink(stream)
        except BadInput as error:
            faults.append(error)
    return faults, rules
