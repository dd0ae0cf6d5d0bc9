"""What every command shares: the database option, one connection for one command, tables and JSON."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mta.model.errors import BadInput
from mta.queue.connection import Conn, connection
from mta.queue.dsn import check_dsn
from mta.queue.migrate import require_current

T = TypeVar("T")

out: Final = Console()
err: Final = Console(stderr=True)

Dsn = Annotated[
    str,
    typer.Option("--dsn", envvar="MTA_DATABASE_URL", help="Database, postgresql://user@host/name.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeliveryId = Annotated[int, typer.Argument(help="The delivery's number.", min=1, show_default=False)]

_DURATION: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def with_database(dsn: str, work: Callable[[Conn], Awaitable[T]], *, needs_schema: bool = True) -> T:
    """Run ``work`` on one connection; warnings about the server go to stderr."""

    async def run() -> T:
        if not dsn:
            raise BadInput("--dsn", "is missing: give it, or set MTA_DATABASE_URL")
        check_dsn(dsn, "--dsn or MTA_DATABASE_URL")
        async with connection(dsn, application_name="mta cli") as conn:
            if needs_schema:
                warn(await require_current(conn))
            return await work(conn)

    return asyncio.run(run())


def warn(findings: Iterable[str]) -> None:
    for finding in findings:
        err.print(f"[yellow]warning:[/] {escape(finding)}")


def print_json(value: Any) -> None:
    """One document on one line; times in ISO 8601, UTC."""
    typer.echo(msgspec.json.encode(value).decode())


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Numbers to the right; None as a dash. Text from outside never becomes markup or a control sequence."""
    table = Table(title=title, title_justify="left")
    cells = [list(row) for row in rows]
    for index, column in enumerate(columns):
        is_number = any(isinstance(row[index], int | float) for row in cells)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*[shown(cell) for cell in row])
    out.print(table)


def shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.1f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, datetime.datetime):
        return f"{cell.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}Z"
    return escape("".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(cell)))


def parse_duration(text: str, where: str) -> datetime.timedelta:
    """``90s``, ``30m``, ``12h``, ``5d``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise BadInput(where, f"{text!a} is no length of time; write it as 90s, 30m, 12h or 5d")
    return datetime.timedelta(**{_UNITS[match[2]]: int(match[1])})


def parse_time(text: str, where: str) -> datetime.datetime:
    """ISO 8601 with a zone: ``2026-01-31T08:00:00+01:00``."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(where, f"{text!a} is no time; write it as 2026-01-31T08:00:00+01:00") from error
    if time.tzinfo is None:
        raise BadInput(where, f"{text!a} has no time zone; write it as 2026-01-31T08:00:00+01:00")
    return time
