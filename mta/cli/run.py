"""``mta run``: the daemon of a node, in the foreground, as a service manager wants it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from mta.master.daemon import Daemon
from mta.model.errors import BadInput
from mta.queue.nodes import Fenced
from mta.settings.config import load_settings
from mta.telemetry.dumps import forbid_dumps
from mta.telemetry.logs import configure

log = structlog.get_logger()

FENCED_EXIT = 3  # for Restart=on-failure: a new run may claim again at once


def command(
    config: Annotated[
        Path | None, typer.Option(help="The node's mta.toml; without it the defaults hold.", envvar="MTA_CONFIG")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option(help="One JSON object a line even on a terminal.")] = False,
) -> None:
    """Run a node: claim, send, record, until SIGTERM. SIGHUP reads the rules and the signing keys anew."""
    configure(log_level, as_json=True if log_json else None)
    forbid_dumps()
    settings = load_settings(config)
    try:
        uvloop.run(_run(Daemon(settings, config)))
    except* Fenced as fenced:
        log.error("this run was declared dead by another node", error=str(fenced.exceptions[0]))
        raise typer.Exit(FENCED_EXIT) from None


async def _run(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon)
    await daemon.run()


def _reload(daemon: Daemon) -> None:
    try:
        daemon.reload_keys()
    except BadInput as error:
        log.error("signing keys are not changed", error=str(error))
    daemon.reload_rules()
