"""``mta keep``: the keeper of addresses and texts of failures, in the foreground, as a service manager wants it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from mta.keeper.keeper import Keeper
from mta.settings.config import load_settings
from mta.telemetry.dumps import forbid_dumps
from mta.telemetry.logs import configure


def command(
    config: Annotated[
        Path | None, typer.Option(help="The node's mta.toml; without it the defaults hold.", envvar="MTA_CONFIG")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option(help="One JSON object a line even on a terminal.")] = False,
) -> None:
    """Follow the log: quarantine addresses, count texts of failures. SIGHUP reads the bounce rules anew."""
    configure(log_level, as_json=True if log_json else None)
    forbid_dumps()
    uvloop.run(_run(Keeper(load_settings(config))))


async def _run(keeper: Keeper) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, keeper.stop)
    loop.add_signal_handler(signal.SIGHUP, keeper.reload)
    await keeper.run()
