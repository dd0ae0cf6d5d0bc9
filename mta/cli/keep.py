"""``mta keep``: the keeper of addresses and texts of failures, in the foreground, as a service manager wants it."""

from __future__ import annotations

import asyncio

import uvloop

from mta.cli.service import Config, LogJson, LogLevel, on_signals, prepare
from mta.keeper.keeper import Keeper
from mta.settings.config import load_settings
from mta.stream.streams import Streams


def command(config: Config = None, log_level: LogLevel = "info", log_json: LogJson = False) -> None:
    """Follow the log: quarantine addresses, count texts, tell event streams. SIGHUP reads the bounce rules anew."""
    prepare(log_level, log_json)
    settings = load_settings(config)
    uvloop.run(_run(Keeper(settings), Streams(settings)))


async def _run(keeper: Keeper, streams: Streams) -> None:
    def stop() -> None:
        keeper.stop()
        streams.stop()

    on_signals(stop, keeper.reload)
    await asyncio.gather(keeper.run(), streams.run())
