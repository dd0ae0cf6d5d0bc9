"""``mta demo``: everything on this machine, from nothing, shown working and counted at the far end."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import Annotated, Final

import typer

from mta import is_compiled
from mta.cli.terminal import AsJson, err, out, print_json
from mta.demo import Account, DemoFailed, DemoOptions, run_demo
from mta.demo.view import ConsoleView, print_summary
from mta.model.errors import LocalFault
from mta.queue.embedded import EmbeddedPostgresError

NOT_ACCOUNTED_EXIT: Final = 1
NOT_DONE_EXIT: Final = 2
INTERRUPTED_EXIT: Final = 130


def command(
    recipients: Annotated[int, typer.Option(help="How many to send to.")] = 20_000,
    domains: Annotated[int, typer.Option(help="Spread over so many domains.")] = 100,
    children: Annotated[int, typer.Option(help="Child processes that send.")] = 2,
    kill: Annotated[bool, typer.Option("--kill/--no-kill", help="Kill a child, then the master, on the way.")] = False,
    as_json: AsJson = False,
) -> None:
    """See it work: a real queue, a real daemon and a far end that counts, all on this machine, all gone afterwards."""
    options = DemoOptions(recipients=recipients, domains=domains, children=children, kill=kill)
    # Standard output is for the one line of JSON then; whoever watches looks at standard error.
    console = err if as_json else out
    with ConsoleView(console, options) as view:
        if not is_compiled():
            view.step("the hot path is not compiled: `make compile` does it, and halves its processor time")
        account = _run(options, view)
    if as_json:
        print_json(account.contract())
    else:
        print_summary(console, options, account, _program())
    if not account.is_accounted:
        raise typer.Exit(NOT_ACCOUNTED_EXIT)


def _program() -> str:
    """How to call us again: a newcomer has no ``mta`` on the PATH yet."""
    return "mta" if shutil.which("mta") else os.path.relpath(sys.argv[0])


def _run(options: DemoOptions, view: ConsoleView) -> Account:
    try:
        return asyncio.run(run_demo(options, view))
    except asyncio.CancelledError:
        err.print("interrupted: everything that was started is stopped and deleted")
        raise typer.Exit(INTERRUPTED_EXIT) from None
    except (DemoFailed, LocalFault, EmbeddedPostgresError) as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(NOT_DONE_EXIT) from None
