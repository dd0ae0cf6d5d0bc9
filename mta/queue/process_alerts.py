"""Alerts about processes that should be there: a node that was lost, and feedback that is applied by nobody.

Any living node looks, and the database lets each alert be open once.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mta.queue.connection import Conn
from mta.queue.quarantine import POINTER

FEEDBACK_LOCK: Final = 0x6D74614B  # "mtaK": held by the one `mta keep` that works
FEEDBACK_NAME: Final = POINTER
FEEDBACK_AWAY_S: Final = 120  # a restart takes less

# Lost: its lease ended before it did. One that comes back under its name ends the alert. The lock says whether somebody
# works; the place in the log whether anybody ever did, since a migration made it.
_LOOK: Final = """
WITH lost AS (
    SELECT DISTINCT ON (n.name) n.name, n.id, n.alive_until FROM mta.node n
    WHERE n.alive_until < coalesce(n.ended_at, now())
      AND (n.ended_at IS NULL OR n.ended_at > now() - interval '1 hour')
      AND NOT EXISTS (SELECT FROM mta.node o WHERE o.name = n.name AND o.id > n.id)
    ORDER BY n.name, n.id DESC
), silent AS (
    SELECT p.moved_at FROM mta.log_pointer p
    WHERE p.name = $2 AND p.moved_at < now() - make_interval(secs => $3)
      AND NOT EXISTS (SELECT FROM mta.schema_migration m WHERE m.applied_at = p.moved_at) AND NOT EXISTS (
        SELECT FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = $1::bigint::oid AND l.objsubid = 1
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
), due AS (
    SELECT 'node-lost' AS kind, name AS node, 'run ' || id AS cause, alive_until AS since,
           'node ' || name || ' (run ' || id || ') is lost: its lease ended, and it did not' AS detail,
           'start it, or look at its machine; what it had in hand is listed by mta delivery in-doubt' AS reply FROM lost
    UNION ALL
    SELECT 'feedback-down', '', '', moved_at, 'nobody applies feedback: mta keep is not running',
           'systemctl start mta-keeper; until then no address goes into quarantine' FROM silent
), over AS (
    UPDATE mta.alert a SET ended_at = now()
    WHERE a.kind IN ('node-lost', 'feedback-down') AND a.ended_at IS NULL
      AND NOT EXISTS (SELECT FROM due d WHERE d.kind = a.kind AND d.node = a.node AND d.cause = a.cause)
      AND (a.kind = 'feedback-down' OR EXISTS (
          SELECT FROM mta.node n WHERE n.name = a.node AND n.alive_until > now() AND n.ended_at IS NULL))
)
INSERT INTO mta.alert (key, kind, node, cause, detail, reply, since, seen_at)
SELECT concat_ws(' ', kind, node, cause, since), kind, node, cause, detail, reply, since, now() FROM due
ON CONFLICT DO NOTHING RETURNING key, kind, node, detail, reply
"""


class ProcessAlert(msgspec.Struct, frozen=True):
    """One that is new. ``node`` empty: of none. ``reply``: what to do."""

    key: str
    kind: str
    node: str
    detail: str
    reply: str


async def look(conn: Conn) -> list[ProcessAlert]:
    """Raises what is new and ends what is over; answers the new ones."""
    rows = await conn.fetch(_LOOK, FEEDBACK_LOCK, FEEDBACK_NAME, float(FEEDBACK_AWAY_S))
    return [ProcessAlert(*row.values()) for row in rows]
