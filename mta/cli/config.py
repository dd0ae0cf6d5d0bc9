"""``mta config``: would a node start with these settings, and sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from mta.cli.rules_common import print_findings
from mta.cli.rules_lint import lint_settings
from mta.cli.terminal import AsJson, print_json, warn
from mta.inbound.mailboxes import read_password
from mta.message.advice import ONE_CLICK_UNSIGNED
from mta.model.errors import BadInput
from mta.session.addresses import why_not_here
from mta.settings import Settings, load_rules, load_settings
from mta.settings.dkim import read_key
from mta.settings.toml_source import TomlSource
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
    for_another_machine: Annotated[
        bool, typer.Option("--for-another-machine", help="Source addresses of egresses need not be on this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with settings and all that they name, source addresses too; exit 1 when there is something."""
    try:
        settings = load_settings(file)
    except BadInput as error:
        faults, warnings = [error], []
    else:
        faults, rules = _faults_beside(settings)
        if not for_another_machine:
            faults += absent_addresses(settings, file)
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
    for mailbox in settings.inbound.mailbox:
        try:
            if mailbox.password_file:
                read_password(mailbox)
        except BadInput as error:
            faults.append(error)
    for stream in settings.streams:
        try:
            make_sink(stream)
        except BadInput as error:
            faults.append(error)
    return faults, rules


def absent_addresses(settings: Settings, file: Path) -> list[BadInput]:
    """Source addresses of egresses that no session could leave by, as they are not on this machine."""
    source = TomlSource.read(file)
    found = []
    for number, egress in enumerate(settings.egresses):
        for key in ("source_ipv4", "source_ipv6"):
            address: str | None = getattr(egress, key)
            if address is not None and (why := why_not_here(address)):
                what = f"egress {egress.name}: {address} is not an address of this machine ({why})"
                remedy = "add it (ip address add), or use --for-another-machine"
                found.append(source.fault(("egress", number, key), f"{what}; {remedy}"))
    return found
