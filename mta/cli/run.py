"""``mta run``: the daemon of a node, in the foreground, as a service manager wants it."""

from __future__ import annotations

import structlog
import typer
import uvloop

from mta.cli.service import Config, LogJson, LogLevel, on_signals, prepare
from mta.master.daemon import Daemon
from mta.model.errors import BadInput
from mta.queue.nodes import Fenced
from mta.settings.config import load_settings

log = structlog.get_logger()

FENCED_EXIT = 3  # for Restart=on-failure: a new run may claim again at once


def command(config: Config = None, log_level: LogLevel = "info", log_json: LogJson = False) -> None:
    """Run a node: claim, send, record, until SIGTERM. SIGHUP reads the rules and the signing keys anew."""
    prepare(log_level, log_json)
    settings = load_settings(config)
    try:
        uvloop.run(_run(Daemon(settings, config)))
    except* Fenced as fenced:
        log.error("this run was declared dead by another node", error=str(fenced.exceptions[0]))
        raise typer.Exit(FENCED_EXIT) from None


async def _run(daemon: Daemon) -> None:
    on_signals(daemon.stop, lambda: _reload(daemon))
    await daemon.run()


def _reload(daemon: Daemon) -> None:
    try:
        daemon.reload_keys()
    except BadInput as error:
        log.error("signing keys are not changed", error=str(error))
    daemon.reload_rules()
