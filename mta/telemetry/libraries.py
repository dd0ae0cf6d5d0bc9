"""What libraries say by `logging`, in our log."""

from __future__ import annotations

import logging
from typing import Any

import structlog

log = structlog.get_logger()


class LibraryRecords(logging.Handler):
    """Hands records on: ``text`` is what is said, ``library`` the name of its logger.

    A lost connection is no error of a library's: who used it says so (`mta.telemetry.outages`), and a traceback for
    each connection of a pool, at each outage, would bury that. Such records are debug entries.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {"library": record.name, "text": record.getMessage()}
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                fields["exc_info"] = error
            if _is_of_connection(error) or record.levelno < logging.WARNING:
                log.debug("library says", **fields)
            elif record.levelno < logging.ERROR:
                log.warning("library says", **fields)
            else:
                log.error("library says", **fields)
        except Exception as error:  # a library's record that does not fit its own arguments, for one
            what = f"{type(error).__name__}: {error}"
            log.error("record of a library cannot be written", library=record.name, error=what)


def _is_of_connection(error: BaseException | None) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith("asyncpg.")
