"""``python -m bench``: parse, run, print."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from bench.append import AppendOptions, append
from bench.claim import ClaimOptions, claim
from bench.drain import DrainOptions, drain
from bench.far import SinkKind, default_kind
from bench.inbound import InboundOptions, inbound
from bench.longtail import LongtailOptions, longtail
from bench.matrix import SIZES_KBYTES, MatrixOptions, matrix
from bench.mix import MixOptions, mix
from bench.openssl import Dkim
from bench.picture import picture
from bench.slow import SlowOptions, slow
from bench.suite import Failed, run_all
from bench.throttled import ThrottledOptions, throttled
from bench.traffic import TrafficFigures, TrafficOptions, traffic
from bench.world import BenchFailed
from mta.model.errors import BadInput, LocalFault
from mta.queue.embedded import EmbeddedPostgresError

T = TypeVar("T")
CORES: Final = len(os.sched_getaffinity(0))  # as many children as the daemon starts by itself
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
Connections = Annotated[int, typer.Option(help="Open at a time, over all hosts.", min=1, max=10_000)]
Domains = Annotated[int, typer.Option(help="Recipients' domains.", min=2, max=1_000_000)]
Sink = Annotated[
    SinkKind | None, typer.Option(help="Who receives; smtp-sink where it is installed and will do.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one line of JSON instead of a table.")]


@app.command("drain")
def drain_(
    recipients: Recipients = 100_000,
    size: Size = 1_000,
    children: Children = CORES,
    connections: Connections = 50,
    sink: Sink = None,
    domains: Annotated[int, typer.Option(help="Recipients' domains.", min=1, max=100_000)] = 10,
    tls: Annotated[bool, typer.Option("--tls/--no-tls", help="Over STARTTLS.")] = False,
    dkim: Annotated[Dkim, typer.Option(help="How each message is signed.")] = Dkim.NONE,
    peers: Annotated[bool, typer.Option("--peers", help="Beside a real Postfix that relays the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drain a full, durable queue of personalised messages."""
    options = DrainOptions(
        recipients=recipients,
        size_bytes=size,
        children=children,
        connections=connections,
        sink=sink or default_kind(tls=tls),
        domains=domains,
        tls=tls,
        dkim=dkim,
        peers=peers,
    )
    _print("Drain", _run(lambda step: drain(options, step), as_json), as_json)


@app.command("matrix")
def matrix_(
    seconds_per_cell: Annotated[float, typer.Option(help="About how long each takes.", min=0.01, max=600)] = 8.0,
    size_kb: Annotated[list[int] | None, typer.Option(help="Only these sizes.", min=1, max=1_000)] = None,
    children: Children = CORES,
    connections: Connections = 50,
    as_json: AsJson = False,
) -> None:
    """Sizes × STARTTLS × signatures, all against the same receiver."""
    options = MatrixOptions(
        seconds_per_cell=seconds_per_cell,
        children=children,
        connections=connections,
        sizes_kbytes=tuple(size_kb or SIZES_KBYTES),
    )
    _print("Matrix", _run(lambda step: matrix(options, step), as_json), as_json)


@app.command("slow")
def slow_(
    recipients: Recipients = 120_000,
    size: Size = 1_000,
    children: Children = CORES,
    connections: Annotated[int, typer.Option(help="Open at a time, over all hosts.", min=1, max=5_000)] = 4_000,
    sink: Annotated[SinkKind, typer.Option(help="Who receives.")] = SinkKind.RECEIVER,
    as_json: AsJson = False,
) -> None:
    """A far end that takes a second to answer each message."""
    options = SlowOptions(
        recipients=recipients,
        size_bytes=size,
        children=children,
        connections=connections,
        sink=sink,
    )
    _print("Slow far end", _run(lambda step: slow(options, step), as_json), as_json)


@app.command("throttled")
def throttled_(
    recipients: Annotated[int, typer.Option(help="Half of them for each side.", min=20, max=10_000_000)] = 1_000_000,
    domains: Domains = 2_000,
    size: Size = 1_000,
    children: Children = CORES,
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


@app.command("mix")
def mix_(
    recipients: Recipients = 50_000,
    size: Size = 60_000,
    children: Children = CORES,
    connections: Annotated[int, typer.Option(help="Open at a time, to each provider.", min=1, max=500)] = 10,
    dkim: Annotated[Dkim, typer.Option(help="How each message is signed.")] = Dkim.RSA2048,
    as_json: AsJson = False,
) -> None:
    """What a campaign looks like: providers and small domains, signed HTML over TLS, refusals and retries."""
    options = MixOptions(recipients=recipients, size_bytes=size, children=children, connections=connections, dkim=dkim)
    _print("Realistic mix", _run(lambda step: mix(options, step), as_json), as_json)


@app.command("longtail")
def longtail_(
    domains: Domains = 100_000,
    hosts: Annotated[int, typer.Option(help="MX hosts of the tail.", min=1, max=100_000)] = 2_000,
    large: Annotated[int, typer.Option(help="Messages for the large site.", min=1, max=10_000_000)] = 300_000,
    size: Size = 1_000,
    children: Children = CORES,
    connections: Annotated[int, typer.Option(help="Open at a time, to the large site.", min=1, max=1_000)] = 50,
    tail_connections: Annotated[int, typer.Option(help="Open at a time, to the tail.", min=1, max=5_000)] = 200,
    sink: Sink = None,
    as_json: AsJson = False,
) -> None:
    """Many domains with one recipient each, beside a large site at full speed."""
    options = LongtailOptions(
        large=large,
        domains=domains,
        hosts=hosts,
        size_bytes=size,
        children=children,
        connections=connections,
        tail_connections=tail_connections,
        sink=sink or default_kind(),
    )
    _print("Long tail", _run(lambda step: longtail(options, step), as_json), as_json)


@app.command("append")
def append_(
    recipients: Recipients = 1_000_000,
    double_every: Annotated[int, typer.Option(help="One row in so many is a duplicate.", min=2)] = 50,
    rounds: Annotated[int, typer.Option(help="The quickest of so many counts.", min=1, max=100)] = 1,
    as_json: AsJson = False,
) -> None:
    """From a CSV into the queue, by the command that an operator would type; with duplicates kept and excluded."""
    options = AppendOptions(recipients=recipients, double_every=double_every, rounds=rounds)
    _print("Append", _run(lambda step: append(options, step), as_json), as_json)


@app.command("inbound")
def inbound_(
    bounces: Annotated[int, typer.Option(help="Mails that come back.", min=1, max=1_000_000)] = 20_000,
    connections: Annotated[int, typer.Option(help="Open at a time.", min=1, max=500)] = 20,
    per_connection: Annotated[int, typer.Option(help="Mails that one connection brings.", min=1, max=500)] = 1,
    as_json: AsJson = False,
) -> None:
    """A storm of bounces, from the socket to the log."""
    options = InboundOptions(bounces=bounces, connections=connections, per_connection=per_connection)
    _print("Inbound", _run(lambda step: inbound(options, step), as_json), as_json)


@app.command("claim")
def claim_(
    waiting: Annotated[
        list[int] | None,
        typer.Option(
            help="Recipients in the queue; one each for several queues.",
            min=1,
            max=100_000_000,
            show_default="10000 and 10000000",
        ),
    ] = None,
    claims: Annotated[int, typer.Option(help="How many are timed.", min=10, max=100_000)] = 500,
    as_json: AsJson = False,
) -> None:
    """What a claim costs with few recipients waiting, and with many."""
    options = ClaimOptions(waiting=tuple(waiting or (10_000, 10_000_000)), claims=claims)
    _print("Claim", _run(lambda step: claim(options, step), as_json), as_json)


@app.command("traffic")
def traffic_(
    recipients: Recipients = 400_000,
    sites: Annotated[int, typer.Option(help="Sites that mail is for.", min=2, max=100_000)] = 2_000,
    rules: Annotated[int, typer.Option(help="Rules; of 25 one is limited.", min=1, max=2_000)] = 500,
    egresses: Annotated[int, typer.Option(help="Source addresses of the pool.", min=1, max=64)] = 8,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What a decision costs, and whether limits are held and used: the schedule alone, under a virtual clock."""
    options = TrafficOptions(recipients=recipients, sites=sites, rules=rules, egresses=egresses, seed=seed)

    async def work(step: Callable[[str], None]) -> TrafficFigures:
        return traffic(options, step)

    _print("Traffic control", _run(work, as_json), as_json)


@app.command("all")
def all_(
    json_out: Annotated[Path, typer.Option(help="Where all figures go.", dir_okay=False, show_default=False)],
    scale: Annotated[float, typer.Option(help="1: about twelve minutes on two cores.", min=0.001, max=100)] = 1.0,
    only: Annotated[list[str] | None, typer.Option(help="Only these, by name.", show_default=False)] = None,
) -> None:
    """Every scenario, one after the other, into one file. Exit 1 when one of them failed."""

    def begin(name: str) -> None:
        err.rule(name)

    figures = _run(lambda step: run_all(scale, only or [], begin, step), is_quiet=False)
    json_out.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    for name, found in figures.scenarios.items():
        if isinstance(found, Failed):
            err.print(f"{name} failed: {found.failed}", style="red", markup=False, highlight=False, soft_wrap=True)
        else:
            _print(name, found, as_json=False)
    if any(isinstance(found, Failed) for found in figures.scenarios.values()):
        raise typer.Exit(1)


@app.command("picture")
def picture_(
    figures: Annotated[Path, typer.Argument(help="What `all` wrote.", exists=True, dir_okay=False)],
    drawing: Annotated[Path, typer.Argument(help="The SVG to write.", dir_okay=False)],
) -> None:
    """Draw the figures of `all`."""
    try:
        drawing.write_text(picture(figures.read_bytes(), str(figures)), encoding="utf-8")
    except BadInput as error:
        raise _refused(error) from None


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
        raise _refused(error) from None


def _refused(error: Exception) -> typer.Exit:
    err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _print(title: str, figures: msgspec.Struct, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(figures).decode())
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = []
    for name, value in msgspec.to_builtins(figures).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows.append((name.replace("_", " "), value))
        else:
            for line in _flat(name.replace("_", " "), value):
                table.add_row(*line)
    Console().print(table)
    for name, values in rows:
        _print_rows(name, values)


def _print_rows(title: str, rows: list[dict[str, object]]) -> None:
    """Things of one kind: one a line."""
    lines = [dict(_flat("", row)) for row in rows]
    table = Table(title=title, title_justify="left")
    for name in lines[0]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line.values())
    Console(width=max(Console().width, 160)).print(table)


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    """Nested values as lines of a table."""
    if isinstance(value, dict):
        return [row for key, one in value.items() for row in _flat(f"{prefix} {key.replace('_', ' ')}".strip(), one)]
    if isinstance(value, list):
        return [row for number, one in enumerate(value, 1) for row in _flat(f"{prefix} {number}", one)]
    if value is None:
        return [(prefix, "not measured")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    return [(prefix, f"{value:,}" if isinstance(value, int | float) else str(value))]


def main() -> None:
    app(prog_name="python -m bench")


if __name__ == "__main__":
    main()
