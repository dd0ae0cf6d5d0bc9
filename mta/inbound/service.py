"""Listener and processor together, from the start to the end of the process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from mta.inbound.listener import Listener
from mta.inbound.processor import Processor
from mta.inbound.spool import Spool
from mta.master.database import closing, connect
from mta.model.errors import BadInput
from mta.queue.installation import verp_key
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import Settings
from mta.telemetry.systemd import notify
from mta.telemetry.waits import event_or_timeout

TELL_S = 60.0
log = structlog.get_logger()


class Inbound:
    """``run`` is its only task."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop_wanted = asyncio.Event()

    def stop(self) -> None:
        self._stop_wanted.set()

    async def run(self) -> None:
        """Until told to stop. The database is needed at the start, for the key; later it may be away for hours."""
        settings = self._settings.inbound
        if not settings.domains:
            raise BadInput("inbound.domains", "is empty: name the domains of your return paths")
        rules = load_bounce_rules(self._settings.failures.rules_files)
        pool = await connect(self._settings, self._stop_wanted)
        if pool is None:
            return
        async with closing(pool):
            async with pool.acquire() as conn:
                key = await verp_key(conn)
            spool = Spool(Path(settings.spool_dir))
            listener, processor = Listener(settings, key, spool), Processor(spool, rules, key)
            addresses = await listener.start()
            try:
                notify("READY=1")
                log.info("running", listening=[f"{host}:{port}" for host, port in addresses])
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(processor.run(pool, self._stop_wanted), name="processor")
                    tasks.create_task(self._tell(listener, processor), name="tell")
            finally:
                await listener.stop()
                await asyncio.to_thread(spool.close)

    async def _tell(self, listener: Listener, processor: Processor) -> None:
        while not self._stop_wanted.is_set():
            await event_or_timeout(self._stop_wanted, TELL_S)
            notify("WATCHDOG=1")
            if listener.counts or processor.counts:
                log.info("mail came back", answered=dict(listener.counts), read=dict(processor.counts))
                listener.counts.clear()
                processor.counts.clear()
