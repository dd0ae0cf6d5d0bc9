"""What every command shares: the database option, one connection for one command, tables and JSON."""

from __future__ import annotations

import asyncio
import datetime
import re
import shutil
import textwrap
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from mta.cli.database import named_database
from mta.cli.tables import fitted, lines_of_rows, plain
from mta.model.errors import BadInput
from mta.queue.connection import Conn, connection
from mta.queue.migrate import require_current

T = TypeVar("T")


class _Sentences(Console):
    """Without a terminal a sentence is one line, however long: what reads it is a program."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        super().print(*objects, soft_wrap=not self.is_terminal if soft_wrap is None else soft_wrap, **options)


out: Final = _Sentences()
err: Final = _Sentences(stderr=True)

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
        given = named_database(dsn)
        async with connection(given, application_name="mta cli") as conn:
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
    """As `mta.cli.tables` lays it out: cut to the width of a terminal, or one whole line a row without one."""
    if not out.is_terminal:
        for line in lines_of_rows(title, columns, rows):
            typer.echo(line)
        return
    width = shutil.get_terminal_size().columns
    for line in textwrap.wrap(plain(title), width):
        out.print(Text(line, style="bold"))
    head, body = fitted(columns, rows, width)
    for line in head:
        out.print(Text(line, style="underline"), no_wrap=True, crop=False, overflow="ignore")
    for line in body or ["none"]:
        out.print(Text(line), no_wrap=True, crop=False, overflow="ignore")


def shown(cell: object) -> str:
    """A value for a sentence. Text from outside never becomes markup or a control sequence."""
    return escape(plain(cell))


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
