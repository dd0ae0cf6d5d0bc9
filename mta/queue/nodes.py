"""Runs of daemons: who is alive, and who may still write.

A run's id is its fencing token. Parts are leased to the run as a whole, so that renewing a lease is one row a
node and not one a part. Only the database's clock is compared with ``alive_until``; a node compares its own
monotonic clock only with the moment at which it last asked.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from mta.queue.connection import Conn
from mta.queue.epochs import DatabaseBehind


class Fenced(Exception):  # noqa: N818 - a verdict about us, not an error of ours
    """This run was declared dead by another: it may neither claim nor settle, and must end."""


class NodeRun(msgspec.Struct, frozen=True):
    """One run of a daemon. Numbers are given out again by a database that forgot some, so its start tells it too."""

    id: int
    name: str
    boot_id: str
    started_us: int = 0  # by the database's clock, in microseconds of Unix time; 0: not asked for
    epoch: int = 0  # of the database, in which it began


class RunState(NamedTuple):
    """What the database knows of a run."""

    started_us: int
    settled: int  # number of its last settlement
    is_ended: bool
    alive_until: datetime.datetime


RECOVERED = 1 << 32  # settlements from this number on were recorded by whoever recovers the run


APPLICATION_NAME_PREFIX = "mta "  # and the node's name: what a daemon's sessions are called in pg_stat_activity

_REGISTER = """
INSERT INTO mta.node (name, boot_id, alive_until, epoch)
SELECT $1, $2, now() + make_interval(secs => $3), max(id) FROM mta.epoch
RETURNING id, (extract(epoch FROM started_at) * 1000000)::bigint, epoch
"""
_UNREGISTER = "DELETE FROM mta.node WHERE id = $1"
_SKIP_IDS = "SELECT max(nextval(pg_get_serial_sequence('mta.node', 'id'))) FROM generate_series(1, $1::bigint)"
_RENEW = """
UPDATE mta.node n SET alive_until = now() + make_interval(secs => $2)
WHERE id = $1 AND ended_at IS NULL AND alive_until > to_timestamp(0)
RETURNING alive_until, epoch = (SELECT max(e.id) FROM mta.epoch e)
"""
# One that was declared dead has lost its heartbeats too, but that is for `renew` to say.
_HAS_HEARTBEAT = """
SELECT EXISTS (SELECT FROM mta.node
               WHERE id = $1 AND (alive_until >= $2 OR alive_until = to_timestamp(0) OR ended_at IS NOT NULL))
"""
_EXISTS = "SELECT EXISTS (SELECT FROM mta.node WHERE id = $1)"
_STATES = """
SELECT id, (extract(epoch FROM started_at) * 1000000)::bigint, settled, ended_at IS NOT NULL, alive_until
FROM mta.node WHERE id = ANY ($1::bigint[])
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
_RUN = "id, name, boot_id, (extract(epoch FROM started_at) * 1000000)::bigint, epoch"
_EARLIER = f"""
SELECT {_RUN} FROM mta.node
WHERE (name = $1 OR id = ANY ($3::bigint[])) AND id <> $2 AND ended_at IS NULL ORDER BY id
"""  # noqa: S608 - put together from constants
_IS_LEASE_OVER = "SELECT ended_at IS NOT NULL OR alive_until < now() FROM mta.node WHERE id = $1"
_BEGIN_RECOVERY = "SELECT pg_try_advisory_lock(20181, ($1::bigint & 2147483647)::int)"
_DEAD = f"""
SELECT {_RUN} FROM mta.node
WHERE ended_at IS NULL AND name <> $1 AND alive_until < now() - make_interval(secs => $2) ORDER BY id
"""  # noqa: S608 - put together from constants


async def register(conn: Conn, name: str, boot_id: str, lease_s: float, *, above: int = 0) -> NodeRun:
    """A new run, alive for ``lease_s`` from the database's now.

    ``above``: its id is higher than this one, which an earlier run had from a database that has forgotten it.
    """
    while True:
        row = await conn.fetchrow(_REGISTER, name, boot_id, lease_s)
        assert row is not None
        node_id, started_us, epoch = row
        if node_id > above:
            return NodeRun(node_id, name, boot_id, started_us, epoch)
        await conn.execute(_UNREGISTER, node_id)
        await conn.fetchval(_SKIP_IDS, above - node_id)


async def renew(conn: Conn, node_id: int, lease_s: float) -> datetime.datetime:
    """Extends the lease; its end. Raises Fenced when the run was declared dead, DatabaseBehind when the database lacks
    the run, or another node found that it lacks what that had recorded."""
    renewed = await conn.fetchrow(_RENEW, node_id, lease_s)
    if renewed is None:
        raise await _not_alive(conn, node_id)
    alive_until, is_of_this_epoch = renewed
    if not is_of_this_epoch:
        raise DatabaseBehind("another node found that the database lacks what it had recorded")
    assert isinstance(alive_until, datetime.datetime)
    return alive_until


async def has_heartbeat(conn: Conn, node_id: int, alive_until: datetime.datetime) -> bool:
    """Whether the database has this heartbeat of the run, or declared it dead since."""
    has: bool = await conn.fetchval(_HAS_HEARTBEAT, node_id, alive_until)
    return has


async def _not_alive(conn: Conn, node_id: int) -> Fenced | DatabaseBehind:
    if await conn.fetchval(_EXISTS, node_id):
        return Fenced(f"node run {node_id} was declared dead")
    return DatabaseBehind(f"the database does not know node run {node_id}")


async def begin_drain(conn: Conn, node_id: int) -> None:
    """The run takes nothing in any more and finishes what it has; for people to see."""
    await conn.execute(_BEGIN_DRAIN, node_id)


async def advance(conn: Conn, node_id: int, sequence: int) -> bool:
    """Inside a transaction: from here to its end nobody can declare this run dead. Raises Fenced.

    False when the settlement of this number is recorded already. Raises DatabaseBehind when those before it are not.
    """
    was: int | None = await conn.fetchval(_ADVANCE, node_id, sequence)
    if was is None:
        raise await _not_alive(conn, node_id)
    if was > sequence:
        raise Fenced(f"node run {node_id} is being recovered by another")
    if was < sequence - 1:
        raise DatabaseBehind(f"node run {node_id} recorded settlement {sequence - 1}, the database has {was}")
    return was < sequence


async def states(conn: Conn, node_ids: Collection[int]) -> dict[int, RunState]:
    """What the database knows of these runs; those that it does not know are not there."""
    rows = await conn.fetch(_STATES, list(node_ids))
    return {row[0]: RunState(*row[1:]) for row in (tuple(row) for row in rows)}


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


async def is_lease_over(conn: Conn, node_id: int) -> bool:
    """Nothing is begun by that run any more, even if it is alive."""
    is_over: bool = await conn.fetchval(_IS_LEASE_OVER, node_id)
    return is_over


async def dead_runs(conn: Conn, own_name: str, grace_s: float) -> list[NodeRun]:
    """Runs of other nodes whose lease ended more than ``grace_s`` ago."""
    return [NodeRun(*row) for row in await conn.fetch(_DEAD, own_name, grace_s)]
