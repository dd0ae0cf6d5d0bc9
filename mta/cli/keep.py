"""``mta keep``: the keeper of addresses and texts of failures, in the foreground, as a service manager wants it."""

from __future__ import annotations

import uvloop

from mta.cli.service import Config, LogJson, LogLevel, on_signals, prepare
from mta.keeper.keeper import Keeper
from mta.settings.config import load_settings


def command(config: Config = None, log_level: LogLevel = "info", log_json: LogJson = False) -> None:
    """Follow the log: quarantine addresses, count texts of failures. SIGHUP reads the bounce rules anew."""
    prepare(log_level, log_json)
    uvloop.run(_run(Keeper(load_settings(config))))


async def _run(keeper: Keeper) -> None:
    on_signals(keeper.stop, keeper.reload)
    await keeper.run()
