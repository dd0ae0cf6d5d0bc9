"""What the commands share that run in the foreground until they are told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mta.telemetry.dumps import forbid_dumps
from mta.telemetry.logs import configure

Config = Annotated[
    Path | None, typer.Option(help="The node's mta.toml; without it the defaults hold.", envvar="MTA_CONFIG")
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
LogJson = Annotated[bool, typer.Option(help="One JSON object a line even on a terminal.")]


def prepare(log_level: str, log_json: bool) -> None:
    """Before anything else: the log, and no image of the memory."""
    configure(log_level, as_json=True if log_json else None)
    forbid_dumps()


def on_signals(stop: Callable[[], None], reload: Callable[[], None] | None = None) -> None:
    """SIGTERM and SIGINT stop, SIGHUP reloads; in the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, reload)
