"""``mta log``: what became of an address."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any

import typer

from mta.cli.terminal import AsJson, Dsn, err, parse_duration, parse_time, print_json, print_table, shown, with_database
from mta.services import log as service
from mta.services.log import FoundLine, LogQuestion

app = typer.Typer(help="The record of every attempt.", no_args_is_help=True)


@app.callback()
def log() -> None:
    """The record of every attempt."""


@app.command()
def find(
    address: Annotated[str, typer.Argument(help="A recipient's address; case does not matter.")] = "",
    domain: Annotated[str, typer.Option(help="Recipients of this domain.", show_default=False)] = "",
    delivery: Annotated[int | None, typer.Option(help="Of this delivery.", min=1, show_default=False)] = None,
    reply: Annotated[str, typer.Option(help="With this in the reply; case does not matter.", show_default=False)] = "",
    code: Annotated[int | None, typer.Option(help="With this reply code.", show_default=False)] = None,
    since: Annotated[str, typer.Option(help="A time, or so long ago: 90m, 12h, 5d.", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="Before this time, or so long ago.", show_default=False)] = "",
    reference: Annotated[
        str, typer.Option(help="The application's reference for the recipient.", show_default=False)
    ] = "",
    message_id: Annotated[str, typer.Option(help="A message by its Message-ID.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(help="So many lines at most.", min=1, max=100_000)] = 100,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Attempts for which all that is given holds, the newest first."""
    question = LogQuestion(
        address=address,
        domain=domain,
        delivery_id=delivery,
        reference=reference,
        message_id=message_id,
        reply=reply,
        code=code,
        since=_when(since, "--since"),
        until=_when(until, "--until"),
        limit=limit,
    )
    answer = with_database(dsn, lambda conn: service.find(conn, question))
    if answer.since is not None:
        err.print(f"looked back to {shown(answer.since)}; further with --since", highlight=False)
    if as_json:
        for line in answer.lines:
            print_json(_as_json(line))
        return
    print_table(
        "Attempts",
        ("at", "delivery", "attempt", "outcome", "type", "reason", "category", "MX host", "address", "reply"),
        [_row(line) for line in answer.lines],
    )


def _when(text: str, where: str) -> datetime.datetime | None:
    if not text:
        return None
    if re.match(r"\d{4}-", text):
        return parse_time(text, where)
    return datetime.datetime.now(datetime.UTC) - parse_duration(text, where)


def _row(line: FoundLine) -> tuple[object, ...]:
    names = (line.type.name.lower() if line.type else None, line.reason.name.lower() if line.reason else None)
    return (
        *(line.at, str(line.delivery_id), line.attempt, line.status.name.lower(), *names),
        *(line.category.label if line.category else None, line.mx_host or None, line.address),
        " ".join(part for part in (str(line.code or ""), line.enhanced, line.reply) if part),
    )


def _as_json(line: FoundLine) -> dict[str, Any]:
    names = {
        "status_name": line.status.name.lower(),
        "type_name": line.type.name.lower(),
        "reason_name": line.reason.name.lower(),
        "category_name": line.category.label,
    }
    return {**{name: getattr(line, name) for name in line.__struct_fields__}, **names}
