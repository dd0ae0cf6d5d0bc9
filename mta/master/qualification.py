"""What failures mean on this node: the rules' files and what operators said of single texts, handed on to the children.

Rules are read at the start and at a reload; a file that cannot be used changes nothing. Texts stand in the database,
are looked at now and then, and hold on every node. So does a deliverability update, which is read in the place of the
shipped file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from mta.failure.judge import Judge
from mta.failure.qualify import BounceRule, Qualifier
from mta.model.errors import BadInput
from mta.queue import updates
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.qualified import qualified_texts
from mta.queue.updates import Update
from mta.settings.config import FailureSettings
from mta.settings.shipped import load_usable_bounce_rules
from mta.telemetry.waits import event_or_timeout
from mta.wire import BounceRules, QualifiedText

LOOK_S: Final = 60.0
log = structlog.get_logger()


def bounce_rules(settings: FailureSettings, update: Update | None) -> tuple[BounceRule, ...]:
    """Those of the files, with the update in the place of the shipped one where this program can read it. Raises
    BadInput for a file."""
    texts, origin = ({}, "") if update is None else (update.texts, update.origin)
    rules, error = load_usable_bounce_rules(settings.rules_files, texts, origin)
    if error is not None:
        log.error("deliverability update cannot be used", error=str(error))
    return rules


class Qualification:
    """Owned by the master's loop. ``frame`` and ``judge`` are of the rules and texts in force."""

    def __init__(self, settings: FailureSettings, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._news = asyncio.Event()
        self._update: Update | None = None  # the newest that was seen
        self.frame = BounceRules([], [])
        self.judge = Judge(Qualifier(()))

    def read(self) -> None:
        """Reads the rules' files. Raises BadInput at the place; what was in force stays."""
        self._use(BounceRules(self._load(self._update), self.frame.texts))

    def _load(self, update: Update | None) -> list[BounceRule]:
        return list(bounce_rules(self._settings, update))

    def reload(self) -> None:
        """As `read`; what is wrong is logged."""
        try:
            self.read()
        except BadInput as error:
            log.error("bounce rules cannot be used, those in force stay", error=str(error))

    def notify(self) -> None:
        """An operator qualified a text."""
        self._news.set()

    async def begin(self, conn: Conn) -> None:
        """What operators said and what an update brought, before anything is sent."""
        await self._take_update(conn)
        texts = [QualifiedText(*row) for row in await qualified_texts(conn)]
        if texts != self.frame.texts:
            self._use(BounceRules(self.frame.rules, texts))

    async def _take_update(self, conn: Conn) -> None:
        update = await updates.newer_than(conn, self._update)
        if update is None:
            return
        self._update = update
        try:
            rules = await asyncio.to_thread(self._load, update)
        except BadInput as error:
            log.error("bounce rules cannot be used, those in force stay", error=str(error))
            return
        if rules != self.frame.rules:
            self._use(BounceRules(rules, self.frame.texts))
            log.info("bounce rules are of a deliverability update", version=update.version)

    async def run(self, pool: asyncpg.Pool) -> None:
        while True:
            await event_or_timeout(self._news, LOOK_S)
            self._news.clear()
            try:
                async with acquire(pool) as conn:
                    await self.begin(conn)
            except DATABASE_AWAY as error:
                log.debug("texts of failures cannot be read, those in force stay", error=f"{type(error).__name__}")

    def _use(self, frame: BounceRules) -> None:
        self.frame = frame
        self.judge.use(frame.qualifier())
        self._on_change()
