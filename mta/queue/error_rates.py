"""Error rates of recipient domains in the database: nodes add their figures up, so that a block is by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.queue.connection import Conn
from mta.traffic.error_rates import DomainFigures, OthersFigures

FRESH_S: Final = 90  # what a node has told longer ago says nothing any more: it is gone, or has nothing to tell
_LIVING: Final = "SELECT count(*) FROM mta.node WHERE ended_at IS NULL AND alive_until > now()"
_FORGET: Final = "DELETE FROM mta.error_rate WHERE node = $1 AND domain <> ALL ($2::text[])"
# Of nodes that are gone; whichever node looks first does it.
_FORGET_STALE: Final = """
DELETE FROM mta.error_rate WHERE (domain, node) IN (
    SELECT domain, node FROM mta.error_rate WHERE told_at < now() - make_interval(secs => $1::float8)
    FOR UPDATE SKIP LOCKED
)
"""
_TELL: Final = """
INSERT INTO mta.error_rate AS r (domain, node, within_s, messages, errors)
SELECT t.domain, $1, t.within_s, t.messages, t.errors
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[]) AS t(domain, within_s, messages, errors)
ORDER BY t.domain
ON CONFLICT (domain, node) DO UPDATE
SET within_s = excluded.within_s, messages = excluded.messages, errors = excluded.errors, told_at = now()
"""
_OTHERS: Final = """
SELECT domain, sum(messages)::bigint AS messages, sum(errors)::bigint AS errors, count(*) AS nodes
FROM mta.error_rate WHERE node <> $1 AND told_at > now() - make_interval(secs => $2::float8)
GROUP BY domain
"""


class Exchanged(NamedTuple):
    """What the other nodes have counted lately, and how many nodes live, this one included."""

    others: dict[str, OthersFigures]
    nodes: int


async def exchange(conn: Conn, node: str, told: Sequence[DomainFigures]) -> Exchanged:
    """Replaces what ``node`` has told so far, and answers what the others tell."""
    async with conn.transaction():
        await conn.execute(_FORGET_STALE, 10 * FRESH_S)
        await conn.execute(_FORGET, node, [one.domain for one in told])
        if told:
            await conn.execute(
                _TELL,
                node,
                [one.domain for one in told],
                [one.within_s for one in told],
                [one.messages for one in told],
                [one.errors for one in told],
            )
    rows = await conn.fetch(_OTHERS, node, FRESH_S)
    others = {row["domain"]: OthersFigures(row["messages"], row["errors"], row["nodes"]) for row in rows}
    return Exchanged(others, await conn.fetchval(_LIVING))
