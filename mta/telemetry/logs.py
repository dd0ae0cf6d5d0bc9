"""Log set-up: one JSON object a line for machines, coloured lines on a terminal. Never a line per message.

Everything that a process says goes through the one logger, in the format that was chosen for the process: our own
entries, records of `logging` (asyncio, asyncpg, aiosmtpd, httpx and other libraries, from warnings on), warnings, and
exceptions that nobody caught. No control character of a stranger reaches a terminal or cuts a line.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog

from mta.telemetry.libraries import LibraryRecords

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from threading import ExceptHookArgs

# The format and level of a process, for those that it starts (children, readers of mail, processes of a sink).
INHERITED: Final = "MTA_LOG"
_TRACES: Final = frozenset({"exception", "stack"})  # of several lines, which are their own
# C0 and C1 controls, what turns the direction of text (Unicode TR9 §2), line and paragraph separators, halves of pairs.
_OTHERS: Final = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_UNSAFE: Final = re.compile(rf"[\x00-\x1f{_OTHERS}]")
_UNSAFE_IN_TRACES: Final = re.compile(rf"[\x00-\x08\x0b-\x1f{_OTHERS}]")
log = structlog.get_logger()


def configure(level: str = "info", *, as_json: bool | None = None) -> None:
    """Sets up the log of this process. ``as_json`` None: JSON unless standard error is a terminal."""
    if as_json is None:
        as_json = not sys.stderr.isatty()
    os.environ[INHERITED] = f"{level} {'json' if as_json else 'console'}"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _take_over(level)


def configure_as_parent() -> None:
    """Sets up the log of a process that another one of ours has started: as there."""
    level, _, form = os.environ.get(INHERITED, "").partition(" ")
    configure(level or "info", as_json=form == "json" if form else None)


def _escape(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        event[key] = _escaped(value, _UNSAFE_IN_TRACES if key in _TRACES else _UNSAFE)
    return event


def _escaped(value: Any, unsafe: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return unsafe.sub(_code, value) if unsafe.search(value) else value
    if isinstance(value, Mapping):
        return {_escaped(key, unsafe): _escaped(one, unsafe) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_escaped(one, unsafe) for one in value]
    if value is None or isinstance(value, int | float):
        return value
    return _escaped(repr(value), unsafe)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    if found[0] in "\t\n\r":
        return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}[found[0]]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


# --- what others say ------------------------------------------------------------------------


def _take_over(level: str) -> None:
    """`logging`, warnings and uncaught exceptions speak through our log from here on."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, LibraryRecords):
            root.removeHandler(handler)
    root.addHandler(LibraryRecords())
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping().get(level.upper(), logging.INFO)))
    warnings.showwarning = _on_warning
    sys.excepthook = _on_uncaught
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_uncaught_in_thread


def _on_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.warning("warning", category=category.__name__, what=str(message), at=f"{filename}:{lineno}")


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.info("interrupted")
    else:
        log.critical("process ends by an error", exc_info=(kind, error, trace))


def _on_unraisable(unraisable: UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    where = f"{unraisable.err_msg or 'exception ignored in'}: {unraisable.object!r}"
    log.error("error that cannot be raised", where=where, exc_info=error or False)


def _on_uncaught_in_thread(args: ExceptHookArgs) -> None:
    thread = args.thread.name if args.thread is not None else ""
    log.error("thread ends by an error", thread=thread, exc_info=args.exc_value or False)
