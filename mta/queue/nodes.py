"""Runs of daemons: who is alive, and who may still write.

A run's id is its fencing token. Parts are leased to the run as a whole, so that renewing a lease is one row a
node and not one a part. Only the database's clock is compared with ``alive_until``; a node compares its own
monotonic clock only with the moment at which it last asked.
"""

from __future__ import annotations

import msgspec

from mta.queue.connection import Conn


class Fenced(Exception):  # noqa: N818 - a verdict about us, not an error of ours
    """This run was declared dead by another: it may neither claim nor settle, and must end."""


class NodeRun(msgspec.Struct, frozen=True):
    """One run of a daemon."""

    id: int
    name: str
    boot_id: str


_REGISTER = """
INSERT INTO mta.node (name, boot_id, alive_until) VALUES ($1, $2, now() + make_interval(secs => $3)) RETURNING id
"""
_RENEW = """
UPDATE mta.node SET alive_until = now() + make_interval(secs => $2) WHERE id = $1 AND ended_at IS NULL RETURNING id
"""
_ADVANCE = """
WITH before AS MATERIALIZED (SELECT settled AS was FROM mta.node WHERE id = $1 AND ended_at IS NULL FOR UPDATE)
UPDATE mta.node SET settled = greatest(settled, $2) FROM before WHERE id = $1 RETURNING before.was
"""
_END = "UPDATE mta.node SET ended_at = now() WHERE id = $1 AND ended_at IS NULL"
_EARLIER = "SELECT id, name, boot_id FROM mta.node WHERE name = $1 AND id <> $2 AND ended_at IS NULL ORDER BY id"
_DEAD = """
SELECT id, name, boot_id FROM mta.node
WHERE ended_at IS NULL AND name <> $1 AND alive_until < now() - make_interval(secs => $2) ORDER BY id
"""


async def register(conn: Conn, name: str, boot_id: str, lease_s: float) -> NodeRun:
    """A new run, alive for ``lease_s`` from the database's now."""
    node_id = await conn.fetchval(_REGISTER, name, boot_id, lease_s)
    return NodeRun(node_id, name, boot_id)


async def renew(conn: Conn, node_id: int, lease_s: float) -> None:
    """Extends the lease. Raises Fenced when the run was declared dead."""
    if await conn.fetchval(_RENEW, node_id, lease_s) is None:
        raise Fenced(f"node run {node_id} was declared dead")


async def advance(conn: Conn, node_id: int, sequence: int) -> bool:
    """Inside a transaction: from here to its end nobody can declare this run dead. Raises Fenced.

    False when the settlement of this number is recorded already.
    """
    was: int | None = await conn.fetchval(_ADVANCE, node_id, sequence)
    if was is None:
        raise Fenced(f"node run {node_id} was declared dead")
    assert was in (sequence - 1, sequence), f"settlement {sequence} after {was}"
    return was < sequence


async def settled_sequence(conn: Conn, node_id: int) -> int:
    """The number of a run's last settlement."""
    sequence: int = await conn.fetchval("SELECT settled FROM mta.node WHERE id = $1", node_id)
    return sequence


async def end(conn: Conn, node_id: int) -> None:
    """The run is over: in good order, or because its successor or another node says so."""
    await conn.execute(_END, node_id)


async def earlier_runs(conn: Conn, run: NodeRun) -> list[NodeRun]:
    """Runs of the same node that did not end in good order."""
    return [NodeRun(*row) for row in await conn.fetch(_EARLIER, run.name, run.id)]


async def dead_runs(conn: Conn, own_name: str, grace_s: float) -> list[NodeRun]:
    """Runs of other nodes whose lease ended more than ``grace_s`` ago."""
    return [NodeRun(*row) for row in await conn.fetch(_DEAD, own_name, grace_s)]
