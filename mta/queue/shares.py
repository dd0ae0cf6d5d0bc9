"""Shares of limits in the database: one exchange of a node is one short transaction under one lock.

Only the database's clock decides who is alive. What a dead node holds stays counted until nothing of it can be in a
window any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mta.queue.connection import Conn
from mta.traffic.ledger import TURN_S, Granted, Standing, grant, span_s
from mta.traffic.limit import Held
from mta.traffic.limits import DAY_S

SHARES_LOCK: Final = 0x6D746153  # "mtaS"
# After a run's lease is over its children begin nothing; so long they may need for what was under way.
DEAD_MARGIN_S: Final = 30.0

_LOCK = "SELECT pg_advisory_xact_lock($1)"
_ENTER = """
INSERT INTO mta.limit_node AS n (name, run, egress_ids, is_bound) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE SET run = excluded.run, egress_ids = excluded.egress_ids, is_bound = excluded.is_bound
"""
_NODES = """
SELECT l.name, l.egress_ids, l.is_bound, n.ended_at IS NULL AND n.alive_until > clock_timestamp() AS is_living,
       extract(epoch FROM clock_timestamp() - coalesce(n.ended_at, greatest(n.alive_until, n.started_at)))::float8
           AS dead_s,
       extract(epoch FROM clock_timestamp())::float8 AS now_s
FROM mta.limit_node l JOIN mta.node n ON n.id = l.run
"""
_KINDS_OF = "SELECT node, array_agg(DISTINCT kind) AS kinds FROM mta.limit_share GROUP BY node"
_SHARES = """
SELECT key, kind, node, most, share, wanted FROM mta.limit_share
WHERE (key, kind) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_FORGET_MINE = """
DELETE FROM mta.limit_share
WHERE node = $1 AND (key, kind) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""
_FORGET_DEAD = "DELETE FROM mta.limit_share WHERE node = $1 AND kind = ANY ($2::text[])"
_FORGET_NODE = "DELETE FROM mta.limit_node WHERE name = $1"
_UNBIND = "UPDATE mta.limit_node SET is_bound = false WHERE name = $1"
_KEEP = """
INSERT INTO mta.limit_share (key, kind, node, most, share, wanted)
SELECT key, kind, $1, most, share, wanted
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[]) AS u (key, kind, most, share, wanted)
ON CONFLICT (key, kind, node) DO UPDATE SET most = excluded.most, share = excluded.share, wanted = excluded.wanted
"""

LimitKind = tuple[str, str]


class Peer(NamedTuple):
    """Another node whose shares count."""

    name: str
    egress_ids: frozenset[int]
    is_bound: bool
    is_living: bool
    dead_s: float


class Exchanged(NamedTuple):
    """``peers`` empty: the node is alone. ``granted`` holds what it asked for, by (key, kind).

    ``lost``: nodes that were alone and died: what they used is not in shares, but in their counters.
    """

    peers: list[Peer]
    lost: list[str]
    granted: dict[LimitKind, Granted]


async def exchange(
    conn: Conn, name: str, run: int, egress_ids: Sequence[int], *, is_bound: bool, asks: Sequence[tuple[Held, int]]
) -> Exchanged:
    """Tells what the node keeps of each limit, and answers what it has from now on.

    ``asks``: what it holds and wants, and the share that it goes by until the answer. What is not among them is
    given up.

    A node that is not bound tells nothing and gets nothing; it learns whether it is alone.
    """
    async with conn.transaction():
        await conn.execute(_LOCK, SHARES_LOCK)
        await conn.execute(_ENTER, name, run, list(egress_ids), is_bound)
        peers, lost, now_s = await _peers(conn, name)
        if not peers:
            # In the same moment as it learns of it: who comes next must find that it may use all.
            await conn.execute(_UNBIND, name)
            await conn.execute(_FORGET_MINE, name, [], [])
        if not is_bound or not peers:
            return Exchanged(peers, lost, {})
        keys, kinds = [held.key for held, _ in asks], [held.kind for held, _ in asks]
        others = await _others(conn, name, keys, kinds, {peer.name: peer for peer in peers})
        # Whoever is not bound yet may use all of everything: until it is, nobody gets more than they keep.
        is_closed = any(peer.is_living and not peer.is_bound for peer in peers)
        granted: dict[LimitKind, Granted] = {}
        for held, keeps in asks:
            me = Standing(name, keeps, held.most, held.wanted)
            at = (held.key, held.kind)
            granted[at] = Granted(keeps, keeps) if is_closed else grant(me, others.get(at, []), int(now_s // TURN_S))
        await conn.execute(_FORGET_MINE, name, keys, kinds)
        await conn.execute(
            _KEEP,
            name,
            keys,
            kinds,
            [held.most for held, _ in asks],
            [granted[held.key, held.kind].share for held, _ in asks],
            [held.wanted for held, _ in asks],
        )
    return Exchanged(peers, lost, granted)


async def leave(conn: Conn, name: str) -> None:
    """After a good end: connections are closed, and what was sent is in no window for longer than that lasts."""
    async with conn.transaction():
        await conn.execute(_LOCK, SHARES_LOCK)
        await conn.execute(_FORGET_DEAD, name, ["c", "p"])


async def _peers(conn: Conn, name: str) -> tuple[list[Peer], list[str], float]:
    """The others that count: living, or dead for so short that something of theirs may still be in a window."""
    kinds = {row["node"]: row["kinds"] for row in await conn.fetch(_KINDS_OF)}
    peers, lost = [], []
    now_s = 0.0
    for row in await conn.fetch(_NODES):
        now_s = row["now_s"]
        if row["name"] == name:
            continue
        of_node = kinds.get(row["name"], [])
        if not row["is_living"]:
            over = [kind for kind in of_node if row["dead_s"] > DEAD_MARGIN_S + span_s(kind)]
            if over:
                await conn.execute(_FORGET_DEAD, row["name"], over)
            if len(over) == len(of_node):
                if row["dead_s"] > DEAD_MARGIN_S + DAY_S:
                    await conn.execute(_FORGET_NODE, row["name"])
                elif not row["is_bound"]:
                    lost.append(row["name"])
                continue
        peers.append(Peer(row["name"], frozenset(row["egress_ids"]), row["is_bound"], row["is_living"], row["dead_s"]))
    return peers, lost, now_s


async def _others(
    conn: Conn, name: str, keys: list[str], kinds: list[str], peers: Mapping[str, Peer]
) -> dict[LimitKind, list[Standing]]:
    found: dict[LimitKind, list[Standing]] = {}
    for row in await conn.fetch(_SHARES, keys, kinds):
        peer = peers.get(row["node"])
        if row["node"] != name and peer is not None:
            standing = Standing(row["node"], row["share"], row["most"], row["wanted"], peer.is_living)
            found.setdefault((row["key"], row["kind"]), []).append(standing)
    return found
