"""Listener and processor together, from the start to the end of the process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import structlog

from mta.failure.qualify import BounceRule
from mta.inbound.forwarding import Forwarder
from mta.inbound.listener import Listener
from mta.inbound.mailboxes import MailboxReader
from mta.inbound.meaning import Trust
from mta.inbound.processor import Processor
from mta.inbound.spool import Spool
from mta.master.database import closing, connect
from mta.master.qualification import bounce_rules
from mta.model.errors import BadInput
from mta.queue import updates
from mta.queue.connection import DATABASE_AWAY, acquire
from mta.queue.feedback import count
from mta.queue.installation import verp_key
from mta.queue.updates import Update
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import Settings
from mta.settings.inbound import InboundSettings
from mta.telemetry.systemd import notify
from mta.telemetry.waits import Stopped, event_or_timeout, until_stopped

TELL_S = 60.0
STOP_S = 5.0
log = structlog.get_logger()


class Inbound:
    """``run`` is its only task."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop_wanted = asyncio.Event()
        self._update: Update | None = None  # whose rules are used

    def stop(self) -> None:
        self._stop_wanted.set()

    async def run(self) -> None:
        """Until told to stop. The database is needed at the start, for the key; later it may be away for hours."""
        settings = self._settings.inbound
        if not settings.domains and not settings.mailbox:
            raise BadInput("inbound.domains", "is empty: name the domains of your return paths, or a mailbox to read")
        load_bounce_rules(self._settings.failures.rules_files)
        pool = await connect(self._settings, self._stop_wanted)
        if pool is None:
            return
        async with closing(pool):
            try:
                key = await until_stopped(self._begin(pool), self._stop_wanted)
            except Stopped:
                return
            rules = await self._rules()
            spool = await asyncio.to_thread(_spool, settings)
            try:
                await self._serve(pool, spool, rules, key)
            finally:
                await asyncio.to_thread(spool.close)

    async def _begin(self, pool: asyncpg.Pool) -> bytes:
        """What only the database knows: the update in force, and the key of return paths."""
        async with acquire(pool) as conn:
            self._update = await updates.in_force(conn)
            return await verp_key(conn)

    async def _serve(self, pool: asyncpg.Pool, spool: Spool, rules: Sequence[BounceRule], key: bytes) -> None:
        settings = self._settings.inbound
        listener = Listener(settings, key, spool)
        trust = Trust(
            key,
            settings.unsubscribe_local_parts,
            settings.feedback_local_parts,
            settings.feedback_networks,
            settings.unsubscribe_by_sender,
        )
        processor = Processor(spool, rules, trust, forwards=settings.forward_address is not None)
        mailboxes = [MailboxReader(one, spool, settings.size_mbytes_max << 20) for one in settings.mailbox]
        addresses = await listener.start() if settings.domains else []
        try:
            notify("READY=1")
            listening = [f"{host}:{port}" for host, port in addresses]
            log.info("running", listening=listening, mailboxes=[one.name for one in settings.mailbox])
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(processor.run(pool, self._stop_wanted), name="processor"),
                    group.create_task(self._tell(pool, listener, processor), name="tell"),
                    group.create_task(self._follow_updates(pool, processor), name="updates"),
                ]
                tasks += [group.create_task(one.run(self._stop_wanted), name="mailbox") for one in mailboxes]
                if settings.forward_address is not None:
                    forwarder = Forwarder(settings, spool)
                    tasks.append(group.create_task(forwarder.run(self._stop_wanted), name="forwarder"))
                await self._stop_wanted.wait()
                await listener.stop()  # before the rest: what comes now would wait for the next start
                await self._end(tasks, mailboxes)
        finally:
            await listener.stop()

    async def _end(self, tasks: Sequence[asyncio.Task[None]], mailboxes: Sequence[MailboxReader]) -> None:
        """Each ends by itself after what it has at hand, unless somebody does not answer it."""
        _, late = await asyncio.wait(tasks, timeout=STOP_S)
        for mailbox in mailboxes:
            mailbox.interrupt()
        for task in late:
            task.cancel()

    async def _rules(self) -> tuple[BounceRule, ...]:
        return await asyncio.to_thread(bounce_rules, self._settings.failures, self._update)

    async def _follow_updates(self, pool: asyncpg.Pool, processor: Processor) -> None:
        while not self._stop_wanted.is_set():
            await event_or_timeout(self._stop_wanted, TELL_S)
            try:
                async with acquire(pool) as conn:
                    update = await updates.newer_than(conn, self._update)
                if update is not None:
                    self._update = update
                    processor.use(await self._rules())
            except DATABASE_AWAY as error:
                log.debug("updates are not looked for", error=f"{type(error).__name__}: {error}")
            except BadInput as error:
                log.error("bounce rules cannot be used, those in force stay", error=str(error))

    async def _tell(self, pool: asyncpg.Pool, listener: Listener, processor: Processor) -> None:
        told: Counter[str] = Counter()  # and not counted in the database yet
        while not self._stop_wanted.is_set():
            await event_or_timeout(self._stop_wanted, TELL_S)
            notify("WATCHDOG=1")
            if listener.counts or processor.counts:
                log.info("mail came back", answered=dict(listener.counts), read=dict(processor.counts))
                told.update({f"answered: {what}": many for what, many in listener.counts.items()})
                listener.counts.clear()
                processor.counts.clear()
            if told:
                try:
                    async with acquire(pool) as conn:
                        await count(conn, told)
                    told.clear()
                except DATABASE_AWAY as error:
                    log.debug("answers are not counted", error=f"{type(error).__name__}: {error}")


def _spool(settings: InboundSettings) -> Spool:
    try:
        return Spool(Path(settings.spool_dir), settings.spool_mbytes_max << 20)
    except OSError as error:
        raise BadInput("inbound.spool_dir", f"{settings.spool_dir}: {error.strerror or error}") from None
