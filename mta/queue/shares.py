"""Shares of limits in the database: one exchange of a node is one short transaction under one lock.

Only the database's clock decides who is alive. What a dead node holds stays counted until nothing of it can be in a
window any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from mta.queue.connection import Conn
from mta.traffic.holdings import Ask
from mta.traffic.ledger import (
    DEAD_MARGIN_S,
    TURN_S,
    Granted,
    LimitKind,
    Peer,
    Standing,
    common_of,
    grant,
    is_open,
    span_s,
)
from mta.traffic.limits import DAY_S, HOUR_S, MINUTE_S, SECOND_S, SLICE_S
from mta.traffic.quota import BUCKET_S

SHARES_LOCK: Final = 0x6D746153  # "mtaS"

_LOCK = "SELECT pg_advisory_xact_lock($1)"
_ENTER = """
INSERT INTO mta.limit_node AS n (name, run, egress_ids, is_bound, bound_ids) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO UPDATE
SET run = excluded.run, egress_ids = excluded.egress_ids, is_bound = excluded.is_bound, bound_ids = excluded.bound_ids
"""
# Of a run that is being recovered nobody can say any more when its lease was over: its death counts from the recovery's
# end.
_NODES = """
SELECT l.name, l.egress_ids, l.is_bound, l.bound_ids,
       n.ended_at IS NULL AND n.alive_until > clock_timestamp() AS is_living,
       CASE WHEN n.ended_at IS NULL AND n.alive_until = to_timestamp(0) THEN 0 ELSE
           extract(epoch FROM clock_timestamp() - coalesce(n.ended_at, greatest(n.alive_until, n.started_at)))::float8
       END AS dead_s,
       extract(epoch FROM clock_timestamp())::float8 AS now_s
FROM mta.limit_node l JOIN mta.node n ON n.id = l.run
"""
_KINDS_OF = "SELECT node, array_agg(DISTINCT kind) AS kinds FROM mta.limit_share GROUP BY node"
_SHARES = """
SELECT key, kind, node, most, share, wanted, least FROM mta.limit_share
WHERE (key, kind) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_FORGET_MINE = """
DELETE FROM mta.limit_share
WHERE node = $1 AND (key, kind) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""
_FORGET_KINDS = "DELETE FROM mta.limit_share WHERE node = $1 AND kind = ANY ($2::text[])"
_FORGET_NODE = "DELETE FROM mta.limit_node WHERE name = $1"
_UNBIND = "UPDATE mta.limit_node SET is_bound = false WHERE name = $1"
_NARROW = "UPDATE mta.limit_node SET bound_ids = $2 WHERE name = $1"
_KEEP = """
INSERT INTO mta.limit_share (key, kind, node, most, share, wanted, least)
SELECT key, kind, $1, most, share, wanted, least
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
    AS u (key, kind, most, share, wanted, least)
ON CONFLICT (key, kind, node) DO UPDATE
SET most = excluded.most, share = excluded.share, wanted = excluded.wanted, least = excluded.least
"""
# A node that was alone on an egress had no shares there: what it has used stands in its counters ("key", "key#b" of
# bytes, "key#o").
_SHARES_OF_LOST = """
WITH used AS (
    SELECT split_part(q.key, '#', 1) AS key, coalesce(nullif(split_part(q.key, '#', 2), ''), 'm') || span AS kind,
           sum(q.used)::bigint AS used
    FROM mta.quota_counter q CROSS JOIN unnest($2::int[]) AS span
    WHERE q.node = $1 AND (q.bucket + 1) * $3::bigint > $4::float8 - span
    GROUP BY 1, 2
)
INSERT INTO mta.limit_share (key, kind, node, most, share, wanted)
SELECT key, kind, $1, used, used, 0 FROM used ON CONFLICT DO NOTHING
"""
_BIND_LOST = "UPDATE mta.limit_node SET is_bound = true, bound_ids = egress_ids WHERE name = $1"
_SPANS_S = [SECOND_S, MINUTE_S, SLICE_S, HOUR_S, DAY_S]


class Exchanged(NamedTuple):
    """``peers`` empty: the node is alone, and ``common`` None. ``granted`` holds what it asked for, by (key, kind)."""

    peers: list[Peer]
    common: frozenset[int] | None
    granted: dict[LimitKind, Granted]


async def exchange(
    conn: Conn,
    name: str,
    run: int,
    egress_ids: Collection[int],
    *,
    bound_ids: Collection[int] | None,
    asks: Sequence[Ask],
) -> Exchanged:
    """Tells what the node keeps of each limit, and answers what it has from now on.

    ``bound_ids``: as `mta.traffic.holdings.Holdings` says. What is not among ``asks`` is given up. A node that is not
    bound tells nothing and gets nothing; it learns whether it is alone.
    """
    async with conn.transaction():
        await conn.execute(_LOCK, SHARES_LOCK)
        await conn.execute(_ENTER, name, run, sorted(egress_ids), bound_ids is not None, sorted(bound_ids or ()))
        peers, now_s = await _peers(conn, name)
        if not peers:
            # In the same moment as it learns of it: who comes next must find that it may use all.
            await conn.execute(_UNBIND, name)
            await conn.execute(_FORGET_MINE, name, [], [])
            return Exchanged([], None, {})
        common = common_of(egress_ids, peers)
        if bound_ids is None:
            return Exchanged(peers, common, {})
        if not common.issuperset(bound_ids):
            await conn.execute(_NARROW, name, sorted(common.intersection(bound_ids)))
        keys, kinds = [ask.held.key for ask in asks], [ask.held.kind for ask in asks]
        others = await _others(conn, name, keys, kinds, {peer.name: peer for peer in peers})
        granted: dict[LimitKind, Granted] = {}
        for held, keeps in asks:
            at = (held.key, held.kind)
            if is_open(held.key, peers):
                me = Standing(name, keeps, held.most, held.wanted, least=held.least)
                granted[at] = grant(me, others.get(at, []), int(now_s // TURN_S))
            else:
                granted[at] = Granted(keeps, keeps)
        await conn.execute(_FORGET_MINE, name, keys, kinds)
        await conn.execute(
            _KEEP,
            name,
            keys,
            kinds,
            [held.most for held, _ in asks],
            [granted[at].share for at in zip(keys, kinds, strict=True)],
            [held.wanted for held, _ in asks],
            [held.least for held, _ in asks],
        )
    return Exchanged(peers, common, granted)


async def leave(conn: Conn, name: str) -> None:
    """After a good end: its connections are closed. What was sent is in a window for some time yet."""
    async with conn.transaction():
        await conn.execute(_LOCK, SHARES_LOCK)
        await conn.execute(_FORGET_KINDS, name, ["c", "p"])


async def _peers(conn: Conn, name: str) -> tuple[list[Peer], float]:
    """The others that count: living, or dead for so short that something of theirs may still be in a window."""
    rows = await conn.fetch(_NODES)
    now_s = max(row["now_s"] for row in rows)
    for row in rows:
        is_told = row["is_bound"] and {*row["egress_ids"]} <= {*row["bound_ids"]}
        if row["name"] != name and not row["is_living"] and not is_told:
            # It was alone, on some egress at least, and is dead. Whoever finds it so first puts down its shares, once
            # for all.
            await conn.execute(_SHARES_OF_LOST, row["name"], _SPANS_S, BUCKET_S, now_s - DEAD_MARGIN_S)
            await conn.execute(_BIND_LOST, row["name"])
    kinds = {row["node"]: row["kinds"] for row in await conn.fetch(_KINDS_OF)}
    peers = []
    for row in rows:
        if row["name"] == name:
            continue
        if not row["is_living"] and not await _counts(conn, row["name"], kinds.get(row["name"], []), row["dead_s"]):
            continue
        bound_ids = frozenset(row["bound_ids"]) if row["is_bound"] else None
        peers.append(Peer(row["name"], frozenset(row["egress_ids"]), bound_ids, row["is_living"]))
    return peers, now_s


async def _counts(conn: Conn, dead: str, kinds: list[str], dead_s: float) -> bool:
    """Whether something of a dead node is left; what is over is forgotten."""
    over = [kind for kind in kinds if dead_s > DEAD_MARGIN_S + span_s(kind)]
    if over:
        await conn.execute(_FORGET_KINDS, dead, over)
    if len(over) < len(kinds):
        return True
    if dead_s > DEAD_MARGIN_S + DAY_S:
        await conn.execute(_FORGET_NODE, dead)
    return False


async def _others(
    conn: Conn, name: str, keys: list[str], kinds: list[str], peers: Mapping[str, Peer]
) -> dict[LimitKind, list[Standing]]:
    found: dict[LimitKind, list[Standing]] = {}
    for row in await conn.fetch(_SHARES, keys, kinds):
        peer = peers.get(row["node"])
        if row["node"] != name and peer is not None:
            standing = Standing(row["node"], row["share"], row["most"], row["wanted"], peer.is_living, row["least"])
            found.setdefault((row["key"], row["kind"]), []).append(standing)
    return found
