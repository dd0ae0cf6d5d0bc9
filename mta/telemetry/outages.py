"""A database that is away, as several tasks of a process meet it: said once when it begins and once when it ends."""

from __future__ import annotations

import time
from typing import Final

import structlog

log = structlog.get_logger()


class Outage:
    """Of the database, for one process. Tasks name themselves by what they then cannot do.

    It begins with the first task that fails, and is over when each that failed got through again. So a
    server of which half the requests fail is away once, and not each second.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._began_at_s = 0.0

    @property
    def is_on(self) -> bool:
        return bool(self._failing)

    def failed(self, doing: str, error: BaseException) -> None:
        """A task could not do something, as the database did not answer or refused."""
        if doing in self._failing:
            return
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if self._failing:
            log.debug("database is away, for another task too", not_done=doing, error=said)
        else:
            self._began_at_s = time.monotonic()
            log.error("database is away", not_done=doing, error=said)
        self._failing.add(doing)

    def gave_up(self, doing: str) -> None:
        """The task ends, and says nothing of the database any more."""
        self._failing.discard(doing)

    def answered(self, doing: str) -> None:
        """The task got through."""
        if doing in self._failing:
            self._failing.discard(doing)
            if not self._failing:
                log.info("database is back", away_s=round(time.monotonic() - self._began_at_s, 1))


DATABASE: Final = Outage()  # of this process
