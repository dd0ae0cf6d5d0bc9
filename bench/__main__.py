"""``python -m bench``: parse, run, print."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from bench.drain import DrainOptions, drain
from bench.far import SinkKind, default_kind
from bench.throttled import ThrottledOptions, throttled
from bench.world import BenchFailed
from mta.model.errors import BadInput, LocalFault
from mta.queue.embedded import EmbeddedPostgresError

T = TypeVar("T")
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

app = typer.Typer(
    help="Measurements of the sending core on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err: Final = Console(stderr=True)

Recipients = Annotated[int, typer.Option(help="Messages to send.", min=1, max=10_000_000)]
Size = Annotated[int, typer.Option(help="Bytes of each message's body.", min=100, max=4_000_000)]
Children = Annotated[int, typer.Option(help="Child processes that send.", min=1, max=64)]
Connections = Annotated[int, typer.Option(help="Open at a time, over all hosts.", min=1, max=3_000)]
Sink = Annotated[
    SinkKind | None, typer.Option(help="Who receives; smtp-sink where it is installed.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one line of JSON instead of a table.")]


@app.command("drain")
def drain_(
    recipients: Recipients = 100_000,
    size: Size = 1_000,
    children: Children = 1,
    connections: Connections = 50,
    sink: Sink = None,
    domains: Annotated[int, typer.Option(help="Recipients' domains.", min=1, max=100_000)] = 10,
    as_json: AsJson = False,
) -> None:
    """Drain a full, durable queue of personalised messages."""
    options = DrainOptions(
        recipients=recipients,
        size_bytes=size,
        children=children,
        connections=connections,
        sink=sink or default_kind(),
        domains=domains,
    )
    _print("Drain", _run(lambda step: drain(options, step), as_json), as_json)


@app.command("throttled")
def throttled_(
    recipients: Annotated[int, typer.Option(help="Half of them for each side.", min=20, max=10_000_000)] = 300_000,
    domains: Annotated[int, typer.Option(help="Recipients' domains.", min=2, max=100_000)] = 1_000,
    size: Size = 1_000,
    children: Children = 2,
    connections: Connections = 50,
    sink: Sink = None,
    hold: Annotated[float, typer.Option(help="Seconds to watch the memory after the free half.", min=0)] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Half of the recipients for a site that takes a trickle: the speed of the other half, and the memory."""
    options = ThrottledOptions(
        recipients=recipients,
        domains=domains,
        size_bytes=size,
        children=children,
        connections=connections,
        sink=sink or default_kind(),
        hold_s=hold,
    )
    _print("Throttled", _run(lambda step: throttled(options, step), as_json), as_json)


def _run(work: Callable[[Callable[[str], None]], Coroutine[Any, Any, T]], is_quiet: bool) -> T:
    def step(what: str) -> None:
        if not is_quiet or err.is_terminal:
            err.print(f"[cyan]•[/] {what}", highlight=False, soft_wrap=True)

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work(step)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        err.print("interrupted: everything that was started is stopped and deleted")
        raise typer.Exit(130) from None
    except (BadInput, BenchFailed, LocalFault, EmbeddedPostgresError) as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _print(title: str, figures: msgspec.Struct, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(figures).decode())
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _flat("", msgspec.to_builtins(figures)):
        table.add_row(name, value)
    Console().print(table)


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    """Nested values as lines of a table."""
    if isinstance(value, dict):
        return [row for key, one in value.items() for row in _flat(f"{prefix} {key.replace('_', ' ')}".strip(), one)]
    if isinstance(value, list):
        return [row for number, one in enumerate(value, 1) for row in _flat(f"{prefix} {number}", one)]
    if value is None:
        return [(prefix, "not measured")]
    return [(prefix, f"{value:,}" if isinstance(value, int | float) else str(value))]


if __name__ == "__main__":
    app(prog_name="python -m bench")
