"""``mta sink``: the scripted far end and its name server, from the command line."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli.terminal import print_table
from mta.model.errors import BadInput
from mta.sink.nameserver import ThreadedNameserver, read_zones
from mta.sink.processes import SinkOptions, SinkProcesses
from mta.sink.record import Record, Statistics
from mta.telemetry.logs import configure

app = typer.Typer(help="The scripted, recording far end: an SMTP server for demo, tests and benchmarks.")

LIVENESS_S: Final = 0.5  # how often the processes are looked at while nothing else happens
BAD_INPUT_EXIT: Final = 2
DIED_EXIT: Final = 1
ENDING: Final = (signal.SIGINT, signal.SIGTERM)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]


@app.callback(invoke_without_command=True)
def sink(
    context: typer.Context,
    listen: Annotated[
        list[str] | None, typer.Option(help="ADDRESS:PORT, [IPv6]:PORT; again for more addresses on the same port.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the port.")] = 1,
    script: Annotated[Path | None, typer.Option(help="What to do at each step (TOML).")] = None,
    provider: Annotated[Path | None, typer.Option(help="Limits of a mailbox provider to enforce (TOML).")] = None,
    record: Annotated[Path | None, typer.Option(help="Directory for the record; a new one when absent.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Offer STARTTLS with a self-signed certificate.")] = False,
    hide: Annotated[str, typer.Option(help="Extensions not to offer, such as PIPELINING,SIZE.")] = "",
    hostname: Annotated[str, typer.Option(help="Name in the greeting.")] = "sink.test",
    seed: Annotated[int, typer.Option(help="Seed of the script's odds.")] = 1,
    bodies: Annotated[bool, typer.Option("--bodies", help="Keep the messages too, with their SHA-256.")] = False,
    as_json: Json = False,
) -> None:
    """Receive mail until Ctrl-C or SIGTERM, then say what came."""
    if context.invoked_subcommand is not None:
        return
    configure()
    try:
        addresses, port = read_listen(listen or ["127.0.0.1:2525"])
        far_end = SinkProcesses(
            SinkOptions(
                record=Path(tempfile.mkdtemp(prefix="mta-sink-record-")) if record is None else record,
                addresses=addresses,
                port=port,
                processes=processes,
                script=script,
                provider=provider,
                tls=tls,
                hide=tuple(name.strip().upper() for name in hide.split(",") if name.strip()),
                hostname=hostname,
                seed=seed,
                bodies=bodies,
            )
        )
        with _signals_held(), far_end:
            _print_listening(far_end, as_json)
            died = _wait_for_signal(far_end)
        _print_statistics(far_end.statistics(), as_json)
    except BadInput as error:
        raise _refused(error) from error
    if died:
        typer.echo(f"sink process {died} ended by itself", err=True)
        raise typer.Exit(DIED_EXIT)


@app.command()
def summary(
    record: Annotated[Path, typer.Argument(help="A record directory.", exists=True, file_okay=False)],
    as_json: Json = False,
) -> None:
    """Say what a record holds; the sink may be running."""
    try:
        _print_statistics(Record.load(record).statistics(), as_json)
    except BadInput as error:
        raise _refused(error) from error


@app.command()
def nameserver(
    zones: Annotated[Path, typer.Argument(help="Names, rules and faults (TOML).")],
    listen: Annotated[str, typer.Option(help="ADDRESS:PORT, for UDP and TCP.")] = "127.0.0.1:5353",
    as_json: Json = False,
) -> None:
    """Answer DNS questions from a zones file until Ctrl-C or SIGTERM."""
    try:
        (address,), port = read_listen([listen])
        with _signals_held(), ThreadedNameserver(read_zones(zones), address, port) as server:
            if as_json:
                _print_json({"listening": f"{_shown(address)}:{server.port}"})
            else:
                typer.echo(f"listening on {_shown(address)}:{server.port}, UDP and TCP; Ctrl-C ends it")
            _wait_for_signal(None)
    except BadInput as error:
        raise _refused(error) from error
    most = server.queries.most_common(20)
    if as_json:
        _print_json({"queries": server.queries.total(), "most": [[*asked, count] for asked, count in most]})
    else:
        typer.echo(f"{server.queries.total()} queries")
        for (name, kind), count in most:
            typer.echo(f"{count:8d}  {name} {kind}")


def read_listen(listen: list[str]) -> tuple[list[str], int]:
    """``ADDRESS:PORT`` texts as addresses and their one port; BadInput when they do not agree."""
    addresses, ports = [], set()
    for text in listen:
        address, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise BadInput("--listen", f"{text!r} is not ADDRESS:PORT")
        if (":" in address) != (address.startswith("[") and address.endswith("]")):
            raise BadInput("--listen", f"{text!r}: an IPv6 address stands in brackets, as in [::1]:2525")
        addresses.append(address.strip("[]"))
        ports.add(int(port))
    if len(ports) != 1:
        raise BadInput("--listen", "all addresses share one port")
    return addresses, ports.pop()


@contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait for ``_wait_for_signal``, whenever they come. Threads and processes started
    within inherit that; those of the sink take their signals back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_signal(far_end: SinkProcesses | None) -> int:
    """Waits for SIGINT or SIGTERM; the id of a sink process that ended before, or 0."""
    while signal.sigtimedwait(ENDING, LIVENESS_S) is None:
        if far_end is not None and (dead := far_end.ended()):
            return dead[0]
    return 0


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _print_listening(far_end: SinkProcesses, as_json: bool) -> None:
    where = [f"{_shown(address)}:{far_end.port}" for address in far_end.options.addresses]
    certificate = None if far_end.certificate is None else str(far_end.certificate)
    if as_json:
        shown = {
            "listening": where,
            "pids": far_end.pids,
            "record": str(far_end.record_dir),
            "certificate": certificate,
        }
        _print_json(shown)
        return
    typer.echo(f"listening on {', '.join(where)} (processes {', '.join(map(str, far_end.pids))}); Ctrl-C ends it")
    typer.echo(f"recording in {far_end.record_dir}")
    if certificate is not None:
        typer.echo(f"certificate in {certificate}")


def _print_statistics(statistics: Statistics, as_json: bool) -> None:
    if as_json:
        _print_json(statistics)
        return
    rows = []
    for name in statistics.__struct_fields__:
        value = getattr(statistics, name)
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        rows.append((name.replace("_", " "), value))
    print_table("The sink received", ("what", "value"), rows)


def _print_json(value: object) -> None:
    typer.echo(msgspec.json.encode(value).decode())


def _refused(error: BadInput) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(BAD_INPUT_EXIT)


if __name__ == "__main__":
    app()
