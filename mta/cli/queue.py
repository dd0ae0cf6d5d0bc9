"""``mta queue``: what waits, sent sooner, or taken out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mta.cli.rules_common import By as ByWhom
from mta.cli.rules_common import operator
from mta.cli.terminal import AsJson, Dsn, out, print_json, print_table, with_database
from mta.model.errors import BadInput
from mta.queue import overview
from mta.queue.connection import Conn
from mta.services import queue as service
from mta.services.queue import AGES_S, By

app = typer.Typer(help="What waits in the queue.", no_args_is_help=True)


@app.callback()
def queue() -> None:
    """What waits in the queue."""


@app.command()
def show(
    by: Annotated[By | None, typer.Option(help="Add up by this, with a spread of ages.", show_default=False)] = None,
    delivery: Annotated[
        int | None, typer.Option(help="With --by: of this delivery.", min=1, show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="With --by: so many rows at most.", min=1, max=100_000)] = 50,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Depth and age by delivery and site, held messages, and what each node leases; or added up --by something."""
    if by is not None:
        _show_by(by, delivery, limit, dsn, as_json)
        return
    if delivery is not None:
        raise BadInput("--delivery", "goes with --by")

    async def work(conn: Conn) -> tuple[list[overview.Waiting], list[overview.NodeLeases]]:
        return await overview.waiting(conn), await overview.leases_by_node(conn)

    waiting, nodes = with_database(dsn, work)
    if as_json:
        print_json({"waiting": waiting, "nodes": nodes})
        return
    print_table(
        "Waiting (recipients)",
        ("delivery", "name", "state", "site", "parts", "all", "due", "leased", "held", "oldest s", "next due in s"),
        [
            (
                *(str(one.delivery_id), one.name, one.state, one.site, one.parts, one.recipients),
                *(one.due, one.leased, one.held, one.oldest_age_s, one.next_due_in_s),
            )
            for one in waiting
        ],
    )
    print_table(
        "Nodes",
        ("run", "node", "started", "state", "lease left s", "parts", "recipients"),
        [
            (str(node.id), node.name, node.started_at, _state(node), node.lease_left_s, node.parts, node.recipients)
            for node in nodes
        ],
    )


def _show_by(by: By, delivery_id: int | None, limit: int, dsn: str, as_json: bool) -> None:
    found = with_database(dsn, lambda conn: service.shape(conn, by, delivery_id))
    if as_json:
        print_json({"by": by, "ages_s": AGES_S, "rows": found[:limit], "rows_all": len(found)})
        return
    minutes = [f"{bound // 60}" for bound in AGES_S]
    total = [sum(one.by_age[index] for one in found) for index in range(len(AGES_S) + 1)]
    if by is By.AGE:
        rows = zip([f"under {bound}" for bound in minutes] + [f"{minutes[-1]} and more"], total, strict=True)
        print_table("Waiting (recipients), by age in minutes", ("age", "all"), rows)
        return
    print_table(
        f"Waiting (recipients), by {by.value} and by age: under so many minutes, and older",
        (by.value, "all", *minutes, f"{minutes[-1]}+"),
        [
            ("TOTAL", sum(total), *total),
            *((one.key or "not known yet", one.recipients, *one.by_age) for one in found[:limit]),
        ],
    )
    if len(found) > limit:
        out.print(f"and {len(found) - limit:,} more (--limit)", highlight=False)


@app.command()
def flush(
    what: Annotated[str, typer.Argument(metavar="DELIVERY|DOMAIN|SITE", show_default=False)],
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """What waits for its next attempt is due now; limits, suspensions, pauses and waves hold all the same."""
    flushed = with_database(dsn, lambda conn: service.flush(conn, what))
    if as_json:
        print_json(flushed)
    else:
        out.print(
            f"{flushed.recipients:,} recipients of {flushed.deliveries:,} deliveries are due now", highlight=False
        )


@app.command()
def delete(
    address: Annotated[str, typer.Argument(help="A recipient; case does not matter.", show_default=False)] = "",
    domain: Annotated[str, typer.Option(help="All recipients of a domain.", show_default=False)] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait_s: Annotated[float, typer.Option(help="For what nodes have in memory, so many seconds.", min=0)] = 30.0,
    by: ByWhom = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Take recipients out of the queue: recorded as cancelled, of all deliveries. Exit 1 when some were not had."""
    wanted = service.Removal(address=address, domain=domain)
    who = operator(by)
    if not yes:
        _ask(wanted, with_database(dsn, lambda conn: service.count(conn, wanted)))
    deleted = with_database(dsn, lambda conn: service.delete(conn, wanted, who, wait_s=wait_s))
    if as_json:
        print_json(deleted)
    else:
        out.print(f"{deleted.cancelled:,} recipients are recorded as cancelled", highlight=False)
        if deleted.left:
            out.print(
                f"{deleted.left:,} are under way at {', '.join(deleted.nodes) or 'the database'}: "
                "ask again when their servers have answered",
                markup=False,
                highlight=False,
            )
    if deleted.left:
        raise typer.Exit(1)


def _ask(wanted: service.Removal, found: service.Found) -> None:
    whom = wanted.address or f"domain {wanted.domain}"
    count = found.free + found.leased
    if not sys.stdin.isatty():
        raise BadInput("--yes", f"is missing, and there is no terminal to ask at: {count:,} recipients wait for {whom}")
    typer.confirm(
        f"{count:,} recipients wait for {whom} ({found.leased:,} in memory of nodes). Cancel them?", abort=True
    )


def _state(node: overview.NodeLeases) -> str:
    """A dead node that was draining is dead."""
    if not node.alive:
        return "dead"
    return "draining" if node.draining else "alive"
