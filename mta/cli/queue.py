"""``mta queue``: what waits."""

from __future__ import annotations

import typer

from mta.cli.terminal import AsJson, Dsn, print_json, print_table, with_database
from mta.queue import overview
from mta.queue.connection import Conn

app = typer.Typer(help="What waits in the queue.", no_args_is_help=True)


@app.callback()
def queue() -> None:
    """What waits in the queue."""


@app.command()
def show(dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Depth and age by delivery and site, held messages, and what each node leases."""

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


def _state(node: overview.NodeLeases) -> str:
    """A dead node that was draining is dead."""
    if not node.alive:
        return "dead"
    return "draining" if node.draining else "alive"
