"""``mta inbound``: the server for mail that comes back, and a look at its spool."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from mta.cli.service import Config, LogJson, LogLevel, on_signals, prepare
from mta.cli.terminal import AsJson, out, print_json, print_table, warn, with_database
from mta.inbound.service import Inbound
from mta.inbound.spool import mails_in, read_stored
from mta.model.errors import BadInput
from mta.queue import feedback
from mta.queue.connection import DatabaseUnreachable
from mta.settings.config import load_settings

app = typer.Typer(help="Mail that comes back: bounces and complaints.", no_args_is_help=True)


@app.command()
def run(config: Config = None, log_level: LogLevel = "info", log_json: LogJson = False) -> None:
    """Take bounces and complaints, in the foreground, until SIGTERM."""
    prepare(log_level, log_json)
    uvloop.run(_run(Inbound(load_settings(config))))


async def _run(inbound: Inbound) -> None:
    on_signals(inbound.stop)
    await inbound.run()


@app.command()
def status(
    config: Config = None, days: Annotated[int, typer.Option(min=1, max=3_650)] = 1, as_json: AsJson = False
) -> None:
    """How much waits in the spool or could not be placed, and what came back (days are UTC)."""
    settings = load_settings(config)
    directory = Path(settings.inbound.spool_dir)
    names = ("new", "unplaced", "forward")
    found = {name: _files(directory / name) for name in names}
    counts = _counts(settings.database.dsn, days)
    mails = {name: sum(mails_in(path.name) for path in paths) for name, paths in found.items()}
    oldest_s = max((time.time() - _arrival_s(path) for path in found["new"][:1]), default=0.0)
    if as_json:
        came = [{"day": day.isoformat(), "what": what, "count": count} for day, what, count in counts]
        print_json({**mails, "oldest_s": round(oldest_s, 1), "counted": came})
        return
    out.print(
        f"{mails['new']:,} waiting (the oldest for {oldest_s:,.0f} s), {mails['unplaced']:,} unplaced, "
        f"{mails['forward']:,} to be forwarded",
        highlight=False,
    )
    if counts:
        print_table("Came back", ("day", "what", "count"), [(str(day), what, f"{n:,}") for day, what, n in counts])


@app.command()
def unplaced(config: Config = None, limit: Annotated[int, typer.Option(min=1)] = 20, as_json: AsJson = False) -> None:
    """Mails of which nobody knows whom they are about, the newest first."""
    directory = Path(load_settings(config).inbound.spool_dir) / "unplaced"
    rows = []
    for path in reversed(_files(directory)[-limit:]):
        try:
            ((stored, mail),) = read_stored(path)
        except FileNotFoundError:
            continue  # it was trimmed meanwhile
        except (msgspec.DecodeError, OSError, ValueError) as error:
            rows.append((str(path), "unreadable", "", "", "", f"{error}"))
            continue
        when = datetime.datetime.fromtimestamp(stored.at_unix_s, datetime.UTC).isoformat(timespec="seconds")
        why = path.name.rpartition(".")[2]
        recipients = ", ".join(stored.recipients)
        rows.append((str(path), why, when, recipients, stored.mail_from, _subject(mail)))
    columns = ("file", "why", "at", "recipients", "mail_from", "subject")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table("Unplaced", columns, rows)


@app.command()
def again(files: Annotated[list[Path], typer.Argument(help="Files of `mta inbound unplaced`.")]) -> None:
    """Have unplaced mails read once more, by the rules and settings of today."""
    for path in files:
        new = path.absolute().parent.parent / "new"
        name = path.name.rpartition(".")[0]
        if path.absolute().parent.name != "unplaced" or not new.is_dir() or not path.is_file():
            raise BadInput(str(path), "is no file of a spool's unplaced/")
        path.rename(new / name)
    out.print(f"{len(files):,} will be read again", highlight=False)


def _counts(dsn: str, days: int) -> list[tuple[datetime.date, str, int]]:
    try:
        return with_database(dsn, lambda conn: feedback.counted(conn, days))
    except DatabaseUnreachable as error:  # what waits is worth knowing just then
        warn([str(error)])
        return []


def _files(directory: Path) -> list[Path]:
    """The oldest first."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(str(directory), str(error.strerror or error)) from None


def _arrival_s(path: Path) -> float:
    return int(path.name[:20]) / 1e9 if path.name[:20].isdigit() else time.time()


def _subject(mail: bytes) -> str:
    """As it can be shown on a terminal: a stranger wrote it."""
    lines = mail[:20_000].splitlines()
    line = next((line[8:].strip() for line in lines if line.lower().startswith(b"subject:")), b"")
    return "".join(c if c.isprintable() else "?" for c in line.decode("utf-8", "replace"))[:200]
