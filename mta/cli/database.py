"""Which database a command asks: named in one way for all of them.

In this order: the settings that ``--config`` gives, if they name one; ``--dsn``; the environment, MTA_DATABASE_URL and
then the settings that MTA_CONFIG names.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import tomllib
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mta.model.errors import BadInput
from mta.queue.dsn import check_dsn

_CONFIG: Final = "config"
_Option = Annotated[
    Path | None, typer.Option("--config", help="Settings (mta.toml) that name the database.", show_default=False)
]
_given: ContextVar[Path | None] = ContextVar("mta.cli.database", default=None)


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command as Typer is to see it: whoever takes ``--dsn`` takes ``--config`` too."""
    signature = inspect.signature(command, eval_str=True)
    if "dsn" not in signature.parameters:
        return command
    has_own = _CONFIG in signature.parameters

    @functools.wraps(command)
    def wrapper(*values: Any, **named: Any) -> Any:
        _given.set(named.get(_CONFIG) if has_own else named.pop(_CONFIG, None))
        return command(*values, **named)

    if not has_own:
        option = inspect.Parameter(_CONFIG, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_Option)
        signature = signature.replace(parameters=[*signature.parameters.values(), option])
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    return wrapper


def named_database(dsn: str) -> str:
    """The one to ask; ``dsn`` is that of ``--dsn`` or the environment. Raises BadInput when none is named."""
    config = _given.get() if _is_typed() else None
    if config is None and not dsn and (text := os.environ.get("MTA_CONFIG")):
        config = Path(text)
    own = "" if config is None else _of_settings(config)
    found = own or dsn
    if not found:
        raise BadInput("--dsn", "is missing: give it, or --config with database.dsn, or set MTA_DATABASE_URL")
    check_dsn(found, f"{config}: database.dsn" if own else "--dsn or MTA_DATABASE_URL")
    return found


def _is_typed() -> bool:
    return any(one == "--config" or one.startswith("--config=") for one in sys.argv)


def _of_settings(config: Path) -> str:
    """What the file itself names, whatever the environment does; empty: nothing."""
    try:
        database = tomllib.loads(config.read_text(encoding="utf-8")).get("database", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{config}", f"{error}") from error
    dsn = database.get("dsn", "") if isinstance(database, dict) else ""
    return dsn if isinstance(dsn, str) else ""
