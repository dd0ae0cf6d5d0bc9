"""Runs of daemons: who is alive, and who may still write.

A run's id is its fencing token. Parts are leased to the run as a whole, so that renewing a lease is one row a
node and not one a part. Only the database's clock is compared with ``alive_until``; a node compares its own
monotonic clock only with the moment at which it last asked.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from mta.queue.connection import Conn


class Fenced(Exception):  # noqa: N818 - a verdict about us, not an error of ours
    """This run was declared dead by another: it may neither claim nor settle, and must end."""


class NodeRun(msgspec.Struct, frozen=True):
    """One run of a daemon."""

    id: int
    name: str
    boot_id: str


APPLICATION_NAME_PREFIX = "mta "  # and the node's name: what a daemon's sessions are called in pg_stat_activity

_REGISTER = """
INSERT INTO mta.node (name, boot_id, alive_until) VALUES ($1, $2, now() + make_interval(secs => $3)) RETURNING id
"""
_RENEW = """
UPDATE mta.node SET alive_until = now() + make_interval(secs => $2)
WHERE id = $1 AND ended_at IS NULL AND alive_until > to_timestamp(0) RETURNING id
"""
# The jump puts every settlement of the run itself, and of whoever began to recover it before, behind the counter.
# FOR UPDATE: it waits for claims, which hold the row FOR KEY SHARE, so that none is made behind its back. A settlement
# holds it FOR NO KEY UPDATE, so that claims and settlements of a living run do not wait for one another.
_DECLARE_DEAD = """
WITH living AS MATERIALIZED (SELECT id FROM mta.node WHERE id = $1 AND ended_at IS NULL FOR UPDATE)
UPDATE mta.node n SET alive_until = to_timestamp(0), settled = settled + (1::bigint << 32)
FROM living WHERE n.id = living.id RETURNING n.settled
"""
# Time limits of the server do not reach a session that it is sending an answer to. Those of a new run of the same node
# began after the dead one's lease.
_END_SESSIONS = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))
FROM pg_stat_activity a JOIN mta.node n ON n.id = $1
WHERE a.datname = current_database() AND a.application_name = left($2 || n.name, 63)
  AND n.alive_until < now() AND a.xact_start < n.alive_until AND a.pid <> pg_backend_pid()
"""
_BEGIN_DRAIN = "UPDATE mta.node SET draining_since = now() WHERE id = $1 AND ended_at IS NULL"
_ADVANCE = """
WITH before AS MATERIALIZED (SELECT settled AS was FROM mta.node WHERE id = $1 AND ended_at IS NULL FOR NO KEY UPDATE)
UPDATE mta.node SET settled = greatest(settled, $2) FROM before WHERE id = $1 RETURNING before.was
"""
_END = """
WITH living AS MATERIALIZED (
    SELECT id FROM mta.node WHERE id = $1 AND ended_at IS NULL AND ($2::bigint IS NULL OR settled = $2) FOR UPDATE
)
UPDATE mta.node n SET ended_at = now() FROM living WHERE n.id = living.id RETURNING n.id
"""
# A statement of its own: it must see a claim that the one before had to wait for.
_FREE_ALL = "UPDATE mta.delivery_part SET owner = NULL WHERE owner = $1"
_EARLIER = """
SELECT id, name, boot_id FROM mta.node
WHERE (name = $1 OR id = ANY ($3::bigint[])) AND id <> $2 AND ended_at IS NULL ORDER BY id
"""
_ENDED_AMONG = "SELECT id FROM mta.node WHERE id = ANY ($1::bigint[]) AND ended_at IS NOT NULL"
_IS_LEASE_OVER = "SELECT ended_at IS NOT NULL OR alive_until < now() FROM mta.node WHERE id = $1"
_BEGIN_RECOVERY = "SELECT pg_try_advisory_lock(20181, ($1::bigint & 2147483647)::int)"
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


async def begin_drain(conn: Conn, node_id: int) -> None:
    """The run takes nothing in any more and finishes what it has; for people to see."""
    await conn.execute(_BEGIN_DRAIN, node_id)


async def advance(conn: Conn, node_id: int, sequence: int) -> bool:
    """Inside a transaction: from here to its end nobody can declare this run dead. Raises Fenced.

    False when the settlement of this number is recorded already.
    """
    was: int | None = await conn.fetchval(_ADVANCE, node_id, sequence)
    if was is None:
        raise Fenced(f"node run {node_id} was declared dead")
    if was > sequence:
        raise Fenced(f"node run {node_id} is being recovered by another")
    assert was in (sequence - 1, sequence), f"settlement {sequence} after {was}"
    return was < sequence


async def end_sessions(conn: Conn, node_id: int) -> int:
    """Ends transactions that a run began while its lease held, and still holds locks by; how many there were.

    A process that was stopped while it reads a long answer keeps its transaction open for as long as it is stopped.
    Only sessions of our own role are seen and ended.
    """
    ended: int = await conn.fetchval(_END_SESSIONS, node_id, APPLICATION_NAME_PREFIX)
    return ended


async def declare_dead(conn: Conn, node_id: int) -> int:
    """From here on the run can neither renew, claim nor settle; answers the number to go on from in its name.

    Before anything of it is read, or it could settle what is being recovered. Whoever declared it dead earlier and
    has not ended it yet is fenced too. Raises Fenced when it has ended.
    """
    sequence: int | None = await conn.fetchval(_DECLARE_DEAD, node_id)
    if sequence is None:
        raise Fenced(f"node run {node_id} has ended")
    return sequence


async def end(conn: Conn, node_id: int, sequence: int | None = None) -> None:
    """The run is over: in good order, or because its successor or another node says so.

    What it still leases goes back: there is nothing but what it could not read, or knew nothing of because the answer
    to a claim was lost. ``sequence``: the number of its last settlement; nothing happens when another went on from
    there, who will end it.
    """
    async with conn.transaction():
        if await conn.fetchval(_END, node_id, sequence) is not None:
            await conn.execute(_FREE_ALL, node_id)


async def begin_recovery(conn: Conn, node_id: int) -> bool:
    """Tells others, for as long as this connection is used, that we recover the run; False: somebody else does."""
    is_ours: bool = await conn.fetchval(_BEGIN_RECOVERY, node_id)
    return is_ours


async def earlier_runs(conn: Conn, run: NodeRun, marked: Collection[int] = ()) -> list[NodeRun]:
    """Runs of the same node that did not end in good order: by its name, or ``marked`` in its journal directory."""
    return [NodeRun(*row) for row in await conn.fetch(_EARLIER, run.name, run.id, list(marked))]


async def ended_among(conn: Conn, node_ids: Collection[int]) -> list[int]:
    """Those of the runs that are over and settled."""
    return [row["id"] for row in await conn.fetch(_ENDED_AMONG, list(node_ids))]


async def is_lease_over(conn: Conn, node_id: int) -> bool:
    """Nothing is begun by that run any more, even if it is alive."""
    is_over: bool = await conn.fetchval(_IS_LEASE_OVER, node_id)
    return is_over


async def dead_runs(conn: Conn, own_name: str, grace_s: float) -> list[NodeRun]:
    """Runs of other nodes whose lease ended more than ``grace_s`` ago."""
    return [NodeRun(*row) for row in await conn.fetch(_DEAD, own_name, grace_s)]
