"""The root of the command line: finds the command's module, and turns errors of outsiders into one clear line."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import asyncpg
import typer

from mta.cli.database import with_config
from mta.cli.terminal import err
from mta.model.errors import BadInput
from mta.queue.connection import DatabaseUnreachable

# A module has either ``app``, a Typer of several commands, or ``command``, a function that is the command.
_NAMES: Final = (
    "run",
    "demo",
    "db",
    "delivery",
    "queue",
    "log",
    "send",
    "keep",
    "quarantine",
    "bounce",
    "inbound",
    "stream",
    "deliverability",
    "monitor",
    "rules",
    "explain",
    "traffic",
    "simulate",
    "forecast",
    "config",
    "dkim",
    "sink",
)
MODULES: Final = {name: f"mta.cli.{name}" for name in _NAMES}
EXIT_NOT_DONE: Final = 2
# The server ended a statement: a time limit, a lock, or a standby that had to go on with what its primary sends.
_CUT_SHORT: Final = (
    asyncpg.QueryCanceledError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
VERSION: Final = "--version"


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"mta {importlib.metadata.version('mta')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option(VERSION, help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """All is done by its commands."""


def build_app(argv: Sequence[str]) -> typer.Typer:
    """The root with the one command that ``argv`` names (so that `mta db` does not load an SMTP server), else all."""
    app = typer.Typer(
        name="mta",
        help="An on-premise, high-throughput mail sending core on PostgreSQL.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    # A root of its own, so that a lone command keeps its name.
    app.callback()(_root)
    wanted = list(MODULES)
    if argv and (argv[0] in MODULES or argv[0] == VERSION):
        wanted = [name for name in MODULES if name == argv[0]]
    for name in wanted:
        if importlib.util.find_spec(MODULES[name]) is None:
            continue
        module = importlib.import_module(MODULES[name])
        if hasattr(module, "app"):
            for one in module.app.registered_commands:
                one.callback = None if one.callback is None else with_config(one.callback)
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(with_config(module.command))
    return app


def main() -> None:
    """Entry point of ``mta``. Exit 2 when nothing was done, with the reason in one line on stderr."""
    try:
        build_app(sys.argv[1:])(prog_name="mta")
    except (BadInput, DatabaseUnreachable) as error:
        _fail(str(error))
    except asyncpg.InsufficientPrivilegeError as error:
        _fail(f"database: {error}")
    except asyncpg.ReadOnlySQLTransactionError as error:
        _fail(f"database: this server takes no writes, it is a standby or set read-only: {error}")
    except _CUT_SHORT as error:
        _fail(f"database: {error}; nothing is wrong with what was asked, ask again")
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError) as error:
        _fail(f"database: the connection was lost: {error}")
    except BrokenPipeError:
        _fail("the reader of the output went away")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(sentence: str) -> None:
    err.print(f"error: {' '.join(sentence.split())}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(EXIT_NOT_DONE)


if __name__ == "__main__":
    main()
