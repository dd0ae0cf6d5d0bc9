"""Epochs of the database: the times between which it may have forgotten what it had acknowledged.

A promoted standby counts a timeline more, a restore from a dump has another system identifier; either begins a new
epoch, and so does a node that finds the database behind its own journal. See ``schema/0020_epochs.sql``.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import PART_INDEX_BITS
from mta.queue.connection import Conn

WAIVED_CAUSE: Final = "the database failed over, and the node that may have sent this is gone"


class DatabaseBehind(Exception):  # noqa: N818 - a verdict about the database, not an error of ours
    """The database lacks what this node had recorded there: nothing may be sent before the two are reconciled."""


class Server(msgspec.Struct, frozen=True):
    """Which history of a database this is. ``timeline`` 0: a standby, which takes no writes."""

    system_identifier: int
    timeline: int


class Epoch(msgspec.Struct, frozen=True):
    """One epoch; ``as_of`` is how much the database knew when it began, by the last heartbeat in it."""

    id: int
    system_identifier: int
    timeline: int
    began_at: datetime.datetime
    as_of: datetime.datetime
    cause: str
    is_open: bool

    @property
    def server(self) -> Server:
        return Server(self.system_identifier, self.timeline)


class Awaited(msgspec.Struct, frozen=True):
    """A node that an epoch waits for, or waited for."""

    node: str
    confirmed_at: datetime.datetime | None
    waived_at: datetime.datetime | None

    @property
    def is_awaited(self) -> bool:
        return self.confirmed_at is None and self.waived_at is None


# Not pg_control_checkpoint(): after a promotion that tells of the old timeline until the next checkpoint has ended.
_SERVER = """
SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN 0
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
FROM pg_control_system()
"""
_LATEST = """
SELECT id, system_identifier, timeline, began_at, as_of, cause, opened_at IS NOT NULL
FROM mta.epoch ORDER BY id DESC LIMIT 1
"""
_LOCK = "LOCK TABLE mta.epoch IN SHARE ROW EXCLUSIVE MODE"
# A heartbeat leaves its time plus the lease, which no row tells: what comes out may be late by a lease.
_BEGIN = """
INSERT INTO mta.epoch (id, system_identifier, timeline, as_of, cause)
SELECT $1, $2, $3, coalesce((SELECT max(greatest(started_at, least(alive_until, now()))) FROM mta.node), now()), $4
"""
_EXPECT_LIVING = """
INSERT INTO mta.epoch_node (epoch, node) SELECT DISTINCT $1::bigint, name FROM mta.node WHERE ended_at IS NULL
"""
_EXPECT = "INSERT INTO mta.epoch_node (epoch, node) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_CONFIRM = "UPDATE mta.epoch_node SET confirmed_at = now() WHERE epoch = $1 AND node = $2 AND confirmed_at IS NULL"
_WAIVE = """
UPDATE mta.epoch_node SET waived_at = now()
WHERE epoch = $1 AND node = $2 AND confirmed_at IS NULL AND waived_at IS NULL RETURNING node
"""
_OPEN = """
UPDATE mta.epoch e SET opened_at = now() WHERE id = $1 AND opened_at IS NULL AND NOT EXISTS (
    SELECT FROM mta.epoch_node n WHERE n.epoch = e.id AND n.confirmed_at IS NULL AND n.waived_at IS NULL)
"""
_IS_OPEN = "SELECT opened_at IS NOT NULL FROM mta.epoch WHERE id = $1"
_NODES = "SELECT node, confirmed_at, waived_at FROM mta.epoch_node WHERE epoch = $1 ORDER BY node"
_LOCK_RECONCILIATION = "SELECT pg_try_advisory_lock(20182)"
_UNLOCK_RECONCILIATION = "SELECT pg_advisory_unlock(20182)"
# What a node may have claimed and sent in the time that the database has forgotten: all that was free and due.
_MAY_BE_SENT = """
FROM mta.delivery_part p JOIN mta.delivery d ON d.id = p.delivery_id
WHERE p.owner IS NULL AND NOT p.held AND p.due_at <= $1 AND p.appended_at <= $1 AND NOT d.is_simulated
  AND d.state IN ('running', 'paused') AND d.ended_at IS NULL
"""
_NAME_DOUBTS = f"""
WITH open AS (
    SELECT p.delivery_id, coalesce(p.numbers[i], p.append_id << {PART_INDEX_BITS} | i - 1) AS number, p.id AS part_id,
           p.attempt + 1 AS attempt, r ->> 0 AS address, p.policy
    FROM (SELECT p.*, d.in_doubt_policy AS policy {_MAY_BE_SENT}) p,
         jsonb_array_elements(convert_from(p.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS one (r, i)
    WHERE NOT EXISTS (SELECT FROM mta.part_settled s WHERE s.part_id = p.id AND (i - 1)::smallint = ANY (s.positions))
), listed AS (
    INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)
    SELECT delivery_id, number, part_id, attempt, address, '', '', policy, $2 FROM open RETURNING 1
)
SELECT count(*) FROM listed
"""  # noqa: S608 - put together from constants
# A held part has no settled positions, since it is counted whole: what is left of one that has some becomes a new part.
_HOLD_DOUBTS = f"""
WITH doubtful AS (
    SELECT p.* {_MAY_BE_SENT} AND d.in_doubt_policy = 'hold'
), settled AS (
    DELETE FROM mta.part_settled s USING doubtful p WHERE s.part_id = p.id RETURNING s.part_id, s.positions
), partly AS (
    DELETE FROM mta.delivery_part p WHERE id IN (SELECT part_id FROM settled) RETURNING p.*
), whole AS (
    UPDATE mta.delivery_part SET held = true
    WHERE id IN (SELECT id FROM doubtful) AND id NOT IN (SELECT part_id FROM settled)
)
INSERT INTO mta.delivery_part
    (delivery_id, due_at, site, attempt, held, appended_at, dated_at, fields, egress, numbers, count, recipients)
SELECT p.delivery_id, p.due_at, p.site, p.attempt, true, p.appended_at, p.dated_at, p.fields, p.egress,
       array_agg(coalesce(p.numbers[i], p.append_id << {PART_INDEX_BITS} | i - 1) ORDER BY i), count(*),
       convert_to(jsonb_agg(r ORDER BY i)::text, 'UTF8')
FROM partly p, jsonb_array_elements(convert_from(p.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS one (r, i)
WHERE NOT EXISTS (SELECT FROM settled s WHERE s.part_id = p.id AND (i - 1)::smallint = ANY (s.positions))
GROUP BY p.id, p.delivery_id, p.due_at, p.site, p.attempt, p.appended_at, p.dated_at, p.fields, p.egress
"""  # noqa: S608 - put together from constants


async def server_of(conn: Conn) -> Server:
    """Which server this is, as any role may ask."""
    row = await conn.fetchrow(_SERVER)
    assert row is not None
    return Server(*row)


async def latest(conn: Conn) -> Epoch:
    """The epoch that the database says it is in; its server may be another by now."""
    row = await conn.fetchrow(_LATEST)
    assert row is not None, "a migration made the first epoch"
    return Epoch(*row)


async def enter(conn: Conn, *, is_behind: str = "") -> tuple[Epoch, bool]:
    """The epoch of this database as it is now, and whether it was begun here and now.

    A new one begins where the server is not that of the last epoch, or a node found the database ``is_behind`` (how).
    """
    last, server = await latest(conn), await server_of(conn)
    if last.server == server and not is_behind:
        return last, False
    async with conn.transaction():
        await conn.execute(_LOCK)
        seen, last = last, await latest(conn)
        if last.server == server and last.id > seen.id:
            return last, False  # another node was quicker
        if last.system_identifier != server.system_identifier:
            cause = "another server, by its system identifier"
        elif last.timeline != server.timeline:
            cause = f"timeline {last.timeline} became {server.timeline}: a standby was promoted, or a backup restored"
        else:
            cause = is_behind
        await conn.execute(_BEGIN, last.id + 1, server.system_identifier, server.timeline, cause)
        await conn.execute(_EXPECT_LIVING, last.id + 1)
        return await latest(conn), True


async def expect(conn: Conn, epoch: int, node: str) -> None:
    """The epoch waits for this node too."""
    await conn.execute(_EXPECT, epoch, node)


async def confirm(conn: Conn, epoch: int, node: str) -> None:
    """The journals of this node are reconciled with the database."""
    await conn.execute(_CONFIRM, epoch, node)


async def try_open(conn: Conn, epoch: int) -> list[str]:
    """Opens the epoch when all that it waits for have confirmed; the nodes that it still waits for."""
    await conn.execute(_OPEN, epoch)
    if await conn.fetchval(_IS_OPEN, epoch):
        return []
    return [one.node for one in await awaited(conn, epoch) if one.is_awaited]


async def awaited(conn: Conn, epoch: int) -> list[Awaited]:
    """The nodes that the epoch waits for, or waited for."""
    return [Awaited(*row) for row in await conn.fetch(_NODES, epoch)]


async def waive(conn: Conn, node: str) -> int:
    """The epoch waits for ``node`` no more; how many recipients are listed in doubt because of it.

    These are all that the node may have sent in the time that the database has forgotten. Those of deliveries with the
    policy ``hold`` are held. BadInput: nobody waits for it.
    """
    async with conn.transaction():
        await conn.execute(_LOCK)
        epoch = await latest(conn)
        if await conn.fetchval(_WAIVE, epoch.id, node) is None:
            names = [one.node for one in await awaited(conn, epoch.id) if one.is_awaited]
            raise BadInput(f"node {node}", f"is not waited for; waited for: {', '.join(names) or 'none'}")
        doubts: int = await conn.fetchval(_NAME_DOUBTS, epoch.began_at, WAIVED_CAUSE)
        await conn.execute(_HOLD_DOUBTS, epoch.began_at)
        return doubts


async def begin_reconciliation(conn: Conn) -> bool:
    """Keeps other nodes from reconciling for as long as this connection lives; False: another node does."""
    is_ours: bool = await conn.fetchval(_LOCK_RECONCILIATION)
    return is_ours


async def end_reconciliation(conn: Conn) -> None:
    """The next node may."""
    await conn.execute(_UNLOCK_RECONCILIATION)
