"""What was learnt of hosts, in the database: told by nodes, forgotten by operators, pulled by every node.

Times are the database's; a node says and is told how long ago and how long from now. What changed is found by the
transactions that changed it, as with traffic events (`mta.queue.events`).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from mta.model.host import HostFact
from mta.queue.connection import Conn
from mta.traffic.host_facts import HOSTS_MAX, LASTS_S_MAX, Learnt

CHANNEL: Final = "mta_hosts"
CAUSE_CHARS_MAX: Final = 300
HOST_CHARS_MAX: Final = 300
ROWS_MAX: Final = HOSTS_MAX * len(HostFact)  # a program that looks at all of them looks at no more

_COLUMNS: Final = """
h.host, h.fact, h.value, h.cause, h.mx_host, h.node, h.times, h.learnt_at, h.until_at, h.gone_at, h.gone_why, h.version,
extract(epoch FROM clock_timestamp() - h.learnt_at)::float8 AS learnt_ago_s,
extract(epoch FROM clock_timestamp() - h.valued_at)::float8 AS valued_ago_s,
extract(epoch FROM h.until_at - clock_timestamp())::float8 AS until_in_s
"""
# A node that knows the row as it is (its version is the one before the row's next) says how it goes on. Of one that
# does not, the stricter value and the later end count. What was forgotten is learnt anew. A number that only grew is
# never put in the place of what the node did not know.
_TELL: Final = """
INSERT INTO mta.host_fact AS h (host, fact, value, cause, mx_host, node, times, learnt_at, valued_at, until_at, version)
SELECT host, fact, value, cause, mx_host, node, times, now() - make_interval(secs => learnt_ago_s),
       now() - make_interval(secs => valued_ago_s), now() + make_interval(secs => until_in_s), version + 1
FROM jsonb_to_recordset($1::text::jsonb) AS g (
    host text, fact text, value integer, cause text, mx_host text, node text, times integer, learnt_ago_s float8,
    valued_ago_s float8, until_in_s float8, version integer)
ORDER BY host, fact
ON CONFLICT (host, fact) DO UPDATE SET
    value = CASE WHEN h.gone_at IS NOT NULL OR excluded.version = h.version + 1 THEN excluded.value
                 ELSE least(h.value, excluded.value) END,
    valued_at = CASE WHEN h.gone_at IS NULL AND excluded.version <> h.version + 1 AND h.value <= excluded.value
                     THEN h.valued_at ELSE excluded.valued_at END,
    until_at = CASE WHEN h.gone_at IS NOT NULL OR excluded.version = h.version + 1 THEN excluded.until_at
                    ELSE greatest(h.until_at, excluded.until_at) END,
    times = CASE WHEN h.gone_at IS NOT NULL OR excluded.version = h.version + 1 THEN excluded.times
                 ELSE greatest(h.times, excluded.times) END,
    cause = excluded.cause, mx_host = excluded.mx_host, node = excluded.node, learnt_at = excluded.learnt_at,
    gone_at = NULL, gone_why = ''
"""
_GROW: Final = """
UPDATE mta.host_fact h SET value = g.value, valued_at = now()
FROM jsonb_to_recordset($1::text::jsonb) AS g (host text, fact text, value integer, version integer)
WHERE h.host = g.host AND h.fact = g.fact AND h.version = g.version AND h.gone_at IS NULL
"""
_GONE: Final = """
UPDATE mta.host_fact h SET gone_at = now(), gone_why = $2
FROM jsonb_to_recordset($1::text::jsonb) AS g (host text, fact text, version integer)
WHERE h.host = g.host AND h.fact = g.fact AND h.version = g.version AND h.gone_at IS NULL
"""
# Any transaction that had not ended at the last look has a number from its oldest one's on.
_LOOK: Final = f"""
SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS looked_at, {_COLUMNS}
FROM (SELECT 1) one LEFT JOIN mta.host_fact h ON <which>
"""  # noqa: S608 - columns of the program
_LOOK_ALL: Final = _LOOK.replace("<which>", "h.gone_at IS NULL")
_LOOK_CHANGED: Final = _LOOK.replace("<which>", "h.changed_by >= $1::text::xid8")
_LIST: Final = f"""
SELECT {_COLUMNS} FROM mta.host_fact h
WHERE h.gone_at IS NULL AND ($1::text[] IS NULL OR h.host = ANY ($1) OR h.mx_host = ANY ($1))
ORDER BY h.host, h.fact LIMIT $2
"""  # noqa: S608 - columns of the program
_FORGET: Final = f"""
UPDATE mta.host_fact h SET gone_at = now(), gone_why = $3
WHERE (h.host = $1 OR h.mx_host = $1) AND ($2::text IS NULL OR h.fact = $2) AND h.gone_at IS NULL RETURNING {_COLUMNS}
"""  # noqa: S608 - columns of the program
# Rows of what is gone tell nodes that it is; after a day all have heard. Above the bound those that end first go.
_PURGE: Final = f"""
DELETE FROM mta.host_fact
WHERE gone_at < now() - interval '1 day' OR until_at < now() - make_interval(secs => {LASTS_S_MAX})
   OR (host, fact) IN (SELECT host, fact FROM mta.host_fact ORDER BY until_at DESC OFFSET {ROWS_MAX})
"""  # noqa: S608 - numbers of the program


class StoredFact(msgspec.Struct, frozen=True, kw_only=True):
    """A row. Seconds count from the moment of the answer."""

    host: str
    fact: HostFact
    value: int
    cause: str
    mx_host: str
    node: str
    times: int
    learnt_at: datetime.datetime
    until_at: datetime.datetime
    gone_at: datetime.datetime | None
    gone_why: str
    version: int
    learnt_ago_s: float
    valued_ago_s: float
    until_in_s: float

    def learnt(self, now_unix_s: float) -> Learnt:
        """As a clock has it that shows ``now_unix_s`` at the moment of the answer."""
        return Learnt(
            host=self.host,
            fact=self.fact,
            value=self.value,
            cause=self.cause,
            mx_host=self.mx_host,
            learnt_unix_s=now_unix_s - self.learnt_ago_s,
            changed_unix_s=now_unix_s - self.valued_ago_s,
            until_unix_s=now_unix_s + self.until_in_s,
            times=self.times,
            version=self.version,
        )


class Look(msgspec.Struct, frozen=True):
    """What was found. ``looked_at`` is for the next look."""

    facts: list[StoredFact]
    looked_at: str


# --- nodes ------------------------------------------------------------------------------------


async def tell(conn: Conn, node: str, learnt: Sequence[Learnt], now_unix_s: float) -> None:
    """Records what a node has learnt, one round trip. No fact of a host twice."""
    await conn.execute(_TELL, _json([_told(one, node, now_unix_s) for one in learnt]))


async def grow(conn: Conn, learnt: Sequence[Learnt]) -> None:
    """Records larger numbers, where nobody has changed the row since."""
    await conn.execute(_GROW, _json([_known(one) for one in learnt]))


async def tell_gone(conn: Conn, learnt: Sequence[Learnt], why: str) -> None:
    """Records that these hold no more, where nobody has learnt them anew since."""
    await conn.execute(_GONE, _json([_known(one) for one in learnt]), why)


async def look(conn: Conn, looked_at: str | None) -> Look:
    """What has changed since an earlier look, what is gone included; None: all that is not gone."""
    rows = await (conn.fetch(_LOOK_ALL) if looked_at is None else conn.fetch(_LOOK_CHANGED, looked_at))
    found = [_stored(row) for row in rows if row["host"] is not None]
    return Look([one for one in found if one is not None], rows[0]["looked_at"])


async def purge(conn: Conn) -> None:
    """Keeps the table within its bounds."""
    await conn.execute(_PURGE)


# --- operators --------------------------------------------------------------------------------


async def known(conn: Conn, hosts: Sequence[str] | None = None, *, limit: int = 1_000) -> list[StoredFact]:
    """What is known, of all hosts or of these (as `host_key` writes them, or by MX host name), in order."""
    found = [_stored(row) for row in await conn.fetch(_LIST, None if hosts is None else list(hosts), limit)]
    return [one for one in found if one is not None]


async def forget(conn: Conn, host: str, fact: HostFact | None, by_whom: str) -> list[StoredFact]:
    """Forgets what is known of a host, or one fact; what that was. The nodes hear of it."""
    rows = await conn.fetch(_FORGET, host, None if fact is None else fact.value, f"by {by_whom}")
    found = [_stored(row) for row in rows]
    return sorted((one for one in found if one is not None), key=lambda one: (one.host, one.fact.value))


# --- rows -------------------------------------------------------------------------------------


def _told(learnt: Learnt, node: str, now_unix_s: float) -> dict[str, Any]:
    return {
        **_known(learnt),
        "cause": storable(learnt.cause)[:CAUSE_CHARS_MAX],
        "mx_host": storable(learnt.mx_host)[:HOST_CHARS_MAX],
        "node": node,
        "times": learnt.times,
        "learnt_ago_s": max(0.0, now_unix_s - learnt.learnt_unix_s),
        "valued_ago_s": max(0.0, now_unix_s - learnt.changed_unix_s),
        "until_in_s": learnt.until_unix_s - now_unix_s,
    }


def _known(learnt: Learnt) -> dict[str, Any]:
    return {"host": learnt.host, "fact": learnt.fact.value, "value": learnt.value, "version": learnt.version}


def storable(text: str) -> str:
    """A server's words, as far as PostgreSQL can keep them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _json(rows: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(rows).decode()


def _stored(row: asyncpg.Record) -> StoredFact | None:
    """None for a fact that only a newer program knows."""
    values = {field: row[field] for field in StoredFact.__struct_fields__}
    try:
        values["fact"] = HostFact(row["fact"])
    except ValueError:
        return None
    return StoredFact(**values)
