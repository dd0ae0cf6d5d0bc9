"""Errors of ours, by what they may have broken.

- In a callback, an event loop logs and forgets them, which would leave a process with broken books. Here they end their
  unit: whoever owns the loop is handed the exception and raises it where the process is run (`end_on_fault`).
- In finding something out for one domain, one part or one delivery, before anything was entered in the books, they cost
  that one its attempt and no more (`log_internal_error` says so once).
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import structlog

INTERNAL_ERROR_LOG_S: Final = 60.0  # of one kind one entry in this time
_KINDS_MAX: Final = 1_000
log = structlog.get_logger()


class _Kind:
    """An internal error by what was done, its class and its place: when it was told of, and how often it came since."""

    __slots__ = ("told_at_s", "untold")

    def __init__(self) -> None:
        self.told_at_s = float("-inf")
        self.untold = 0


_kinds: dict[tuple[str, type[BaseException], str, int], _Kind] = {}


def log_internal_error(doing: str, error: BaseException, **concerned: object) -> None:
    """One entry with the traceback for an error that should not be; of one kind one in ``INTERNAL_ERROR_LOG_S``.

    ``doing``: what was being done, as a phrase; ``concerned``: of which domain, part or delivery. Call it where the
    error ends, after which only that one is worse off.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
    key = (doing, type(error), *place)
    kind = _kinds.get(key)
    if kind is None:
        if len(_kinds) >= _KINDS_MAX:
            _kinds.clear()
        kind = _kinds[key] = _Kind()
    now_s = time.monotonic()
    if now_s - kind.told_at_s < INTERNAL_ERROR_LOG_S:
        kind.untold += 1
        return
    log.error("internal error", doing=doing, **concerned, more_since=kind.untold, exc_info=error)
    kind.told_at_s, kind.untold = now_s, 0


def end_on_fault(loop: asyncio.AbstractEventLoop, fail: Callable[[BaseException], None]) -> None:
    """From here on ``fail`` gets every exception that nobody awaits, but for those of the network itself."""

    def on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        # A connection that ends badly ends for its protocol too, which deals with it; a future's exception that
        # was not looked at (a library's handshake that was given up) has no callback of ours behind it.
        is_of_network = "transport" in context and isinstance(error, OSError)
        is_of_future = "future" in context and not isinstance(context["future"], asyncio.Task)
        if error is not None and not is_of_network and not is_of_future:
            fail(error)

    loop.set_exception_handler(on_fault)
