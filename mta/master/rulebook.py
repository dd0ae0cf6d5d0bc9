"""Which rules hold on this node: those of the newest set that was applied to the database, on every node the same.

A node's own file becomes such a set when it is new at the start, or when the node is told to read it anew. A file that
cannot be used changes nothing, nor does a set that this program cannot read. Files are read and parsed beside the loop.

Where a set includes the shipped rules for providers, those of the deliverability update in force are read in their
place; the set itself stays as it was applied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
import structlog

from mta.model.errors import BadInput
from mta.queue import rule_sets, updates
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.rule_sets import Applied, Bundle, How
from mta.queue.updates import Update
from mta.settings.rules_file import load_bundle, parse_bundle
from mta.settings.shipped import is_updated, parse_updated_rules
from mta.traffic.rules import RuleSet

LOOK_S: Final = 0.8  # between looks at the database; NOTIFY is only sooner
log = structlog.get_logger()


class _Read(NamedTuple):
    """A file as it was read."""

    rules: RuleSet
    bundle: Bundle


def _read(file: Path) -> _Read:
    rules, texts = load_bundle(file)
    return _Read(rules, rule_sets.make_bundle(file.name, texts))


class Rulebook:
    """Owned by the master's loop. ``adopt`` is handed every set of rules that comes into force after `begin`.

    ``file``: the node's own; None: the built-in rule holds until a set is applied.
    """

    def __init__(self, file: Path | None, node: str, adopt: Callable[[RuleSet], None]) -> None:
        self.rules = RuleSet()
        self.applied: Applied | None = None  # None: the built-in rule, or a file while there is no database
        self._path = file
        self._node = node
        self._adopt = adopt
        self._file: _Read | None = None  # as last read
        self._wanted: _Read | None = None  # read anew, to be applied
        self._looked_at = 0  # the newest set that was seen
        self._update: Update | None = None  # the newest that was seen
        self._held: tuple[str, str] | None = None  # digests of the set and of the update that make the rules
        self._has_begun = False
        self._is_away = False
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    # --- from outside -------------------------------------------------------------------------

    def read(self) -> None:
        """Before all else. Raises BadInput when the file cannot be used."""
        if self._path is not None:
            self._file = _read(self._path)
            self.rules = self._file.rules

    def reload(self) -> None:
        """Have the file read anew and applied, on all nodes; when it cannot be used, the log says why."""
        if self._reading is not None:
            self._reading.cancel()  # what it would find may be older than the word to read
        self._reading = asyncio.get_running_loop().create_task(self._reload(), name="read rules")

    def notify(self, *_: object) -> None:
        """A set was applied (NOTIFY)."""
        self._news.set()

    async def begin(self, conn: Conn) -> None:
        """With which rules the node starts: its file's when they are new, else those in force."""
        self._update = await updates.in_force(conn)
        if self._file is None:
            found = await rule_sets.in_force(conn)
        else:
            found = await rule_sets.begin_with(conn, self._file.bundle, self._node)
        self._has_begun = True
        if found is None:
            return
        applied, bundle = found
        if self._file is not None and bundle.digest == self._file.bundle.digest:
            await self._take(applied, bundle, lambda _: None, of_file=self._file.rules)
            return
        if self._file is not None:
            log.warning("rules file is not what is in force", file=str(self._path), rule_set=applied.id, by=applied.who)
        await self._take(applied, bundle, lambda _: None)

    async def run(self, pool: asyncpg.Pool) -> None:
        """Applies what was read anew, and adopts what was applied, here or elsewhere."""
        while True:
            self._news.clear()
            try:
                async with acquire(pool) as conn:
                    await self._look(conn)
                self._is_away = False
            except DATABASE_AWAY as error:
                if self._wanted is not None and not self._is_away:
                    self._is_away = True
                    log.warning("new rules wait for the database", error=f"{type(error).__name__}: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()

    # --- the steps ----------------------------------------------------------------------------

    async def _reload(self) -> None:
        if self._path is None:
            log.info("rules reloaded", file=None, rule_set=self.applied and self.applied.id)
            return
        try:
            found = await asyncio.to_thread(_read, self._path)
        except BadInput as error:
            log.error("rules are not changed", error=str(error))
            return
        if not self._has_begun:
            self._file, self.rules = found, found.rules
            log.info("rules reloaded", file=str(self._path), rule_set=None)
            return
        self._wanted = found
        self._news.set()

    async def _look(self, conn: Conn) -> None:
        wanted = self._wanted
        if wanted is not None:
            applied, _ = await rule_sets.apply(conn, wanted.bundle, How.SIGHUP, node=self._node)
            if self._wanted is wanted:
                self._wanted = None
            await self._take(applied, wanted.bundle, self._adopt, of_file=wanted.rules)
            log.info("rules reloaded", file=str(self._path), rule_set=applied.id)
        update = await updates.newer_than(conn, self._update)
        if update is not None:
            self._update = update
        if update is not None or await rule_sets.newest_id(conn) != self._looked_at:
            found = await rule_sets.in_force(conn)
            if found is not None:
                await self._take(*found, self._adopt)

    async def _take(
        self, applied: Applied, bundle: Bundle, adopt: Callable[[RuleSet], None], *, of_file: RuleSet | None = None
    ) -> None:
        """``of_file``: what was read from the node's own file already, with its path in each origin."""
        self._looked_at = applied.id
        try:
            rules, update = await asyncio.to_thread(self._parsed, bundle, of_file)
        except BadInput as error:
            log.error("applied rules cannot be used", rule_set=applied.id, by=applied.who, error=str(error))
            return
        if self._hold(applied, (applied.digest, update), rules, adopt) and of_file is None:
            log.info("rules applied", rule_set=applied.id, how=applied.how.value, by=applied.who, file=applied.root)

    def _parsed(self, bundle: Bundle, of_file: RuleSet | None) -> tuple[RuleSet, str]:
        """The rules of a set, and the digest of the update that is in them. Raises BadInput for the set itself."""
        update = self._update
        if update is not None and is_updated(bundle.texts, update.texts):
            try:
                return parse_updated_rules(bundle.root, bundle.texts, update.texts, update.origin), update.digest
            except BadInput as error:
                log.error("deliverability update cannot be used", error=str(error))
        return parse_bundle(bundle.root, bundle.texts) if of_file is None else of_file, ""

    def _hold(self, applied: Applied, held: tuple[str, str], rules: RuleSet, adopt: Callable[[RuleSet], None]) -> bool:
        """True when these are other rules than before."""
        self.applied, self._looked_at = applied, applied.id
        if self._held == held:
            return False
        self._held = held
        self.rules = rules
        adopt(rules)
        return True
