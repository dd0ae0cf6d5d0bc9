"""``mta db``: the schema of the database."""

from __future__ import annotations

import typer

from mta.cli.terminal import AsJson, Dsn, out, print_json, print_table, warn, with_database
from mta.queue import migrate as migrations
from mta.queue import partitions
from mta.queue.connection import Conn

app = typer.Typer(help="The database's schema.", no_args_is_help=True)


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
