"""``mta inbound``: the server for mail that comes back, and a look at its spool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from mta.cli.service import Config, LogJson, LogLevel, on_signals, prepare
from mta.cli.terminal import AsJson, out, print_json, print_table
from mta.inbound.service import Inbound
from mta.inbound.spool import read_stored
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
def status(config: Config = None, as_json: AsJson = False) -> None:
    """How much waits in the spool, and how much could not be placed."""
    directory = Path(load_settings(config).inbound.spool_dir)
    counts = {
        name: sum(1 for _ in (directory / name).iterdir()) if (directory / name).is_dir() else 0
        for name in ("new", "unplaced")
    }
    if as_json:
        print_json(counts)
    else:
        out.print(f"{counts['new']:,} waiting, {counts['unplaced']:,} unplaced", highlight=False)


@app.command()
def unplaced(config: Config = None, limit: Annotated[int, typer.Option(min=1)] = 20, as_json: AsJson = False) -> None:
    """Mails of which nobody knows whom they are about, the newest first."""
    directory = Path(load_settings(config).inbound.spool_dir) / "unplaced"
    rows = []
    for path in sorted(directory.iterdir(), reverse=True)[:limit] if directory.is_dir() else []:
        stored, mail = read_stored(path)
        subject = next(
            (line[8:].strip() for line in mail[:20_000].splitlines() if line.lower().startswith(b"subject:")), b""
        )
        rows.append((str(path), ", ".join(stored.recipients), stored.mail_from, subject.decode("utf-8", "replace")))
    if as_json:
        print_json([dict(zip(("file", "recipients", "mail_from", "subject"), row, strict=True)) for row in rows])
    else:
        print_table("Unplaced", ("file", "recipients", "from", "subject"), rows)
