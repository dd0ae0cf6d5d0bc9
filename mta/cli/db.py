"""``mta db``: the schema of the database, and what follows when it went back in time."""

from __future__ import annotations

from typing import Annotated

import typer

from mta.cli.terminal import AsJson, Dsn, out, print_json, print_table, warn, with_database
from mta.queue import epochs, partitions
from mta.queue import migrate as migrations
from mta.queue.connection import Conn

app = typer.Typer(help="The database's schema, and its failovers.", no_args_is_help=True)


@app.command()
def migrate(dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Bring the schema up to date; safe to repeat, and to run from several nodes at once."""

    async def work(conn: Conn) -> list[migrations.Migration]:
        applied = await migrations.migrate(conn)
        await partitions.ensure_partitions(conn)
        warn(await migrations.check_server(conn))
        return applied

    applied = [f"{one.version:04}_{one.name}" for one in with_database(dsn, work, needs_schema=False)]
    if as_json:
        print_json({"applied": applied})
    elif applied:
        out.print(f"applied: {', '.join(applied)}")
    else:
        out.print("nothing to do: the schema is current")


@app.command()
def status(dsn: Dsn = "", as_json: AsJson = False) -> None:
    """What is applied and what is pending; exit 1 when something is."""

    async def work(conn: Conn) -> tuple[migrations.SchemaStatus, list[partitions.LogPartition]]:
        found = await migrations.status(conn)
        return found, await partitions.list_partitions(conn) if found.is_current else []

    found, parts = with_database(dsn, work, needs_schema=False)
    if as_json:
        print_json({"is_current": found.is_current, "schema": found, "log_partitions": parts})
    else:
        warn(found.findings)
        rows = [(f"{one.version:04}_{one.name}", one.applied_at) for one in found.applied]
        print_table("Schema", ("migration", "applied"), [*rows, *((name, "pending") for name in found.pending)])
        if parts:
            log_rows = [(part.name, part.day, part.size_bytes, part.rows_estimated) for part in parts]
            print_table("Delivery log", ("partition", "day", "bytes", "rows (about)"), log_rows)
    if not found.is_current:
        raise typer.Exit(1)


@app.command()
def failover(
    without: Annotated[
        str,
        typer.Option(
            help="Go on without this node, which will not come back: what it may have sent is listed in doubt.",
            show_default=False,
        ),
    ] = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Show which nodes have told what the database forgot at the last failover; exit 1 while one is waited for."""

    async def work(conn: Conn) -> tuple[epochs.Epoch, list[epochs.Awaited], int]:
        doubts = await epochs.waive(conn, without) if without else 0
        epoch = await epochs.latest(conn)
        if without:
            await epochs.try_open(conn, epoch.id)
            epoch = await epochs.latest(conn)
        return epoch, await epochs.awaited(conn, epoch.id), doubts

    epoch, nodes, doubts = with_database(dsn, work)
    if as_json:
        print_json({"epoch": epoch, "nodes": nodes, "in_doubt": doubts})
    else:
        state = "sending" if epoch.is_open else "nothing is sent before all nodes have told what they know"
        out.print(f"epoch {epoch.id}, since {epoch.began_at:%Y-%m-%d %H:%M:%S %Z}: {epoch.cause}; {state}")
        if nodes:
            rows = [(one.node, one.confirmed_at or "", one.waived_at or "") for one in nodes]
            print_table("Nodes", ("node", "has told", "given up"), rows)
        if without:
            out.print(f"{doubts} recipients are listed in doubt; of deliveries with the policy hold they are held")
    if not epoch.is_open:
        raise typer.Exit(1)
