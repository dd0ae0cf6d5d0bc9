"""``mta log``: what became of an address."""

from __future__ import annotations

from typing import Annotated

import typer

from mta.cli.terminal import AsJson, Dsn, print_json, print_table, with_database
from mta.queue import overview

app = typer.Typer(help="The record of every attempt.", no_args_is_help=True)


@app.callback()
def log() -> None:
    """The record of every attempt."""


@app.command()
def find(
    address: Annotated[str, typer.Argument(help="A recipient's address.", show_default=False)],
    limit: Annotated[int, typer.Option(help="So many lines at most.", min=1, max=100_000)] = 100,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Every attempt for an address, the newest first."""
    lines = with_database(dsn, lambda conn: overview.find_in_log(conn, address, limit=limit))
    if as_json:
        for line in lines:
            names = {"status_name": line.status.name.lower(), "reason_name": line.reason.name.lower()}
            print_json({**{name: getattr(line, name) for name in line.__struct_fields__}, **names})
        return
    print_table(
        "Attempts",
        ("at", "delivery", "attempt", "outcome", "MX host", "reply"),
        [
            (
                *(line.at, str(line.delivery_id), line.attempt, line.status.name.lower(), line.mx_host or None),
                " ".join(part for part in (str(line.code or ""), line.enhanced, line.reply) if part),
            )
            for line in lines
        ],
    )
