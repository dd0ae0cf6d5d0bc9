"""Traffic events in the database: told by nodes, made and ended by operators, pulled by every node.

Times are the database's. A node says and is told *how long from now*, so its own clock does not matter. What changed is
found by the transactions that changed it, not by time: no row is missed because its transaction took long.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from mta.model.errors import BadInput
from mta.queue.connection import Conn
from mta.traffic.effects import EffectKind, Target, effect_key
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import Limits

CHANNEL: Final = "mta_traffic"
OVER: Final = "over"  # why an event ended; else "cancelled" or "replaced"
DETAIL_CHARS_MAX: Final = 500
NAME_CHARS_MAX: Final = 100

_COLUMNS = """
e.id, e.key, e.name, e.kind, e.target, e.on_what, e.began_at, NULLIF(e.until_at, 'infinity') AS until_at, e.ended_at,
coalesce(e.ended_why, '') AS ended_why, e.by_whom, e.touched_by, e.node, e.automation, e.rule, e.limits::text AS limits,
e.base::text AS base, e.pool, e.step, e.replies, e.detail, e.changed_at, e.version,
extract(epoch FROM e.began_at - clock_timestamp())::float8 AS began_in_s,
CASE WHEN isfinite(e.until_at) THEN extract(epoch FROM e.until_at - clock_timestamp())::float8
     ELSE 'infinity' END AS until_in_s
"""
# Who knows the row as it is now has seen all that led to it and may say how it goes on (recovery eases limits); of who
# does not, the later end and the tighter limits count.
_MERGED = """
until_at = CASE WHEN <is current> THEN <given>.until_at ELSE greatest(e.until_at, <given>.until_at) END,
limits = CASE WHEN <is current> THEN <given>.limits ELSE mta.tighter_limits(e.limits, <given>.limits) END,
base = CASE WHEN <is current> OR e.base = '{}' THEN <given>.base ELSE e.base END,
step = CASE WHEN <is current> THEN <given>.step ELSE least(e.step, <given>.step) END,
replies = e.replies + <given>.replies, detail = <given>.detail, pool = <given>.pool
"""


def _sql(text: str) -> str:
    known = _MERGED.replace("<is current>", "given.version = e.version").replace("<given>", "given")
    made = _MERGED.replace("<is current>", "false").replace("<given>", "excluded")
    return text.replace("<columns>", _COLUMNS).replace("<merged known>", known).replace("<merged made>", made)


# A node that knows the event by its number changes that row or, when it was ended meanwhile, nothing: what an operator
# has cancelled does not come back because a node had not heard of it. Who does not know it makes it, or adds to the one
# that another node has made. What was over before it could be told of is recorded all the same.
_TELL = _sql(
    """
WITH given AS (
    SELECT g.*, CASE WHEN g.until_in_s IS NULL THEN 'infinity' ELSE now() + make_interval(secs => g.until_in_s) END
                AS until_at
    FROM jsonb_to_recordset($1::text::jsonb) AS g (
        id bigint, version integer, key text, name text, kind text, target text, on_what text, began_in_s float8,
        until_in_s float8, node text, automation text, rule text, limits jsonb, base jsonb, pool text, step integer,
        replies bigint, detail text, is_over boolean)
), known AS (
    UPDATE mta.traffic_event e
    SET <merged known>,
        ended_at = CASE WHEN given.is_over THEN now() END, ended_why = CASE WHEN given.is_over THEN 'over' END
    FROM given
    -- Told of as over by who does not know that it was prolonged: it is not.
    WHERE e.id = given.id AND e.ended_at IS NULL AND (given.version = e.version OR NOT given.is_over)
    RETURNING e.*
), made AS (
    INSERT INTO mta.traffic_event AS e (key, name, kind, target, on_what, began_at, until_at, node, automation, rule,
                                        limits, base, pool, step, replies, detail)
    SELECT key, name, kind, target, on_what, now() + make_interval(secs => began_in_s), until_at, node, automation,
           rule, limits, base, pool, step, replies, detail
    FROM given WHERE id IS NULL AND NOT is_over ORDER BY key
    ON CONFLICT (key) WHERE ended_at IS NULL
    DO UPDATE SET <merged made>
    RETURNING e.*
), past AS (
    INSERT INTO mta.traffic_event AS e (key, name, kind, target, on_what, began_at, until_at, ended_at, ended_why, node,
                                        automation, rule, limits, base, pool, step, replies, detail)
    SELECT key, name, kind, target, on_what, now() + make_interval(secs => began_in_s), until_at, now(), 'over', node,
           automation, rule, limits, base, pool, step, replies, detail
    FROM given WHERE id IS NULL AND is_over
    RETURNING e.*
)
SELECT <columns> FROM (SELECT * FROM known UNION ALL SELECT * FROM made UNION ALL SELECT * FROM past) e
"""
)
# Any transaction that had not ended at the last look has a number from its oldest one's on.
_LOOK = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS looked_at, <columns>
FROM (SELECT 1) one LEFT JOIN mta.traffic_event e ON <which> ORDER BY e.id
"""
_LOOK_ALL = _sql(_LOOK.replace("<which>", "e.ended_at IS NULL"))
_LOOK_CHANGED = _sql(_LOOK.replace("<which>", "e.changed_by >= $1::text::xid8"))
_IN_FORCE = "e.ended_at IS NULL AND e.until_at > now()"
_LIST = _sql("SELECT <columns> FROM mta.traffic_event e WHERE <which> ORDER BY e.began_at DESC, e.id DESC LIMIT $1")
_ONE = _sql("SELECT <columns> FROM mta.traffic_event e WHERE e.id = $1")
_REPLACE = """
UPDATE mta.traffic_event SET ended_at = now(), ended_why = 'replaced', touched_by = $2
WHERE key = $1 AND ended_at IS NULL RETURNING id
"""
_MAKE = _sql(
    """
INSERT INTO mta.traffic_event AS e (key, name, kind, target, on_what, until_at, by_whom, limits, detail)
VALUES ($1, $2, $3, $4, $5, coalesce(now() + $6::interval, $7::timestamptz, 'infinity'), $8, $9::text::jsonb, $10)
RETURNING <columns>
"""
)
_RESUME = _sql(
    """
UPDATE mta.traffic_event e SET ended_at = now(), ended_why = 'cancelled', touched_by = $4
WHERE e.kind = $1 AND e.target = $2 AND e.on_what = $3 AND e.ended_at IS NULL RETURNING <columns>
"""
)
_CANCEL = _sql(
    """
UPDATE mta.traffic_event e SET ended_at = now(), ended_why = 'cancelled', touched_by = $2
WHERE e.id = $1 AND e.ended_at IS NULL RETURNING <columns>
"""
)
_CHANGE = _sql(
    """
UPDATE mta.traffic_event e SET until_at = coalesce(now() + $2::interval, $3::timestamptz, 'infinity'), touched_by = $4
WHERE e.id = $1 AND e.ended_at IS NULL RETURNING <columns>
"""
)
_BRING_FORWARD = """
UPDATE mta.delivery_part p SET due_at = least(p.due_at, b.until_at)
FROM (SELECT '@' || domain AS site, (
          SELECT greatest(now(), max(until_at)) FROM mta.traffic_event
          WHERE kind = 'suspend' AND target = 'domain' AND on_what = domain AND ended_at IS NULL) AS until_at
      FROM unnest($1::text[]) AS domain) b
WHERE p.site = b.site AND p.site LIKE '@%' AND p.owner IS NULL AND NOT p.held AND p.due_at > b.until_at
RETURNING p.count
"""
_DELIVERY = "SELECT EXISTS (SELECT FROM mta.delivery WHERE id = $1)"
_EVER = datetime.timedelta(days=36_500)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a node tells of an event. ``replies``: how many more than when it told of it last."""

    id: int | None  # None: the node does not know of a row for it
    version: int  # of the row as the node knows it
    key: str
    name: str
    kind: str
    target: str
    on_what: str
    began_in_s: float  # from now: not positive
    until_in_s: float | None  # None: until it is cancelled
    node: str
    automation: str
    rule: str
    limits: Limits
    base: Limits
    pool: str
    step: int
    replies: int
    detail: str
    is_over: bool


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row. ``began_in_s`` and ``until_in_s`` count from the moment of the answer; inf: until it is cancelled."""

    id: int
    key: str
    name: str
    kind: EffectKind
    target: Target
    on_what: str
    began_at: datetime.datetime
    until_at: datetime.datetime | None  # None: until it is cancelled
    ended_at: datetime.datetime | None
    ended_why: str
    by_whom: str
    touched_by: str
    node: str
    automation: str
    rule: str
    limits: Limits
    base: Limits
    pool: str
    step: int
    replies: int
    detail: str
    changed_at: datetime.datetime
    version: int
    began_in_s: float
    until_in_s: float

    def traffic_event(self, now_unix_s: float) -> TrafficEvent:
        """As a clock has it that shows ``now_unix_s`` at the moment of the answer."""
        return TrafficEvent(
            key=self.key,
            name=self.name,
            kind=self.kind,
            target=self.target,
            on=self.on_what,
            began_unix_s=now_unix_s + self.began_in_s,
            until_unix_s=now_unix_s + self.until_in_s,
            limits=self.limits,
            base=self.base,
            step=self.step,
            pool=self.pool,
            replies=self.replies,
            detail=self.detail,
            automation=self.automation,
            rule=self.rule,
        )


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator puts into force, for some time or until a time; neither: until it is cancelled."""

    name: str
    kind: EffectKind
    target: Target
    on_what: str
    lasts: datetime.timedelta | None = None
    until_at: datetime.datetime | None = None  # aware
    limits: Limits = Limits()
    detail: str = ""


class Look(msgspec.Struct, frozen=True):
    """What was found. ``looked_at`` is for the next look."""

    events: list[StoredEvent]
    looked_at: str


# --- nodes ------------------------------------------------------------------------------------


async def tell(conn: Conn, told: Sequence[Told]) -> list[StoredEvent]:
    """Records changes, one round trip; answers the rows as they are now. No key and no id twice in ``told``.

    An event that was ended meanwhile is not among the answers.
    """
    rows = await conn.fetch(_TELL, msgspec.json.encode([_plain(one) for one in told]).decode())
    return [_event(row) for row in rows]


async def look(conn: Conn, looked_at: str | None) -> Look:
    """What has changed since an earlier look, ended ones included; None: all that has not ended."""
    rows = await (conn.fetch(_LOOK_ALL) if looked_at is None else conn.fetch(_LOOK_CHANGED, looked_at))
    return Look([_event(row) for row in rows if row["id"] is not None], rows[0]["looked_at"])


async def bring_forward(conn: Conn, domains: Iterable[str]) -> int:
    """What waits for the end of these domains' blocks is due when they end now; how many recipients that moved."""
    return sum(row["count"] for row in await conn.fetch(_BRING_FORWARD, list(domains)))


# --- operators --------------------------------------------------------------------------------


async def put_in_force(conn: Conn, new: NewEvent, by_whom: str) -> StoredEvent:
    """An operator's event; one of the same name on the same target is replaced. BadInput names the field."""
    _check_new(new)
    key = effect_key(new.name, new.target, new.on_what)
    async with conn.transaction():
        if new.target is Target.DELIVERY and not await conn.fetchval(_DELIVERY, int(new.on_what)):
            raise BadInput(f"delivery {new.on_what}", "does not exist")
        await conn.execute(_REPLACE, key, by_whom)
        limits = msgspec.json.encode(given_limits(new.limits)).decode()
        row = await conn.fetchrow(
            _MAKE,
            *(key, new.name, new.kind.value, new.target.value, new.on_what),
            *(new.lasts, new.until_at, by_whom, limits, new.detail),
        )
        made = _event(row)
        await _moved(conn, [made])
    return made


async def resume(conn: Conn, target: Target, on_what: str, by_whom: str) -> list[StoredEvent]:
    """Ends every suspension of a target, whoever made it."""
    async with conn.transaction():
        rows = await conn.fetch(_RESUME, EffectKind.SUSPEND.value, target.value, on_what, by_whom)
        ended = [_event(row) for row in rows]
        await _moved(conn, ended)
    return ended


async def cancel(conn: Conn, event_id: int, by_whom: str) -> StoredEvent:
    """Ends an event, whatever it does. BadInput when it is not in force."""
    async with conn.transaction():
        row = await conn.fetchrow(_CANCEL, event_id, by_whom)
        if row is None:
            raise await _not_in_force(conn, event_id)
        ended = _event(row)
        await _moved(conn, [ended])
    return ended


async def change(
    conn: Conn,
    event_id: int,
    by_whom: str,
    *,
    lasts: datetime.timedelta | None = None,
    until_at: datetime.datetime | None = None,
) -> StoredEvent:
    """Another end: so long from now, or at a time; neither: until it is cancelled. BadInput when it is not in force."""
    _check_end(lasts, until_at)
    async with conn.transaction():
        row = await conn.fetchrow(_CHANGE, event_id, lasts, until_at, by_whom)
        if row is None:
            raise await _not_in_force(conn, event_id)
        changed = _event(row)
        if changed.until_in_s <= 0:
            raise BadInput("until", f"{until_at} is not ahead")
        await _moved(conn, [changed])
    return changed


async def in_force(conn: Conn, *, limit: int = 1_000) -> list[StoredEvent]:
    """The newest first."""
    return [_event(row) for row in await conn.fetch(_LIST.replace("<which>", _IN_FORCE), limit)]


async def history(
    conn: Conn, *, since: datetime.datetime | datetime.timedelta | None = None, limit: int = 1_000
) -> list[StoredEvent]:
    """Also those that are over: of all times, or what was in force at some moment since then; the newest first."""
    if since is None:
        return [_event(row) for row in await conn.fetch(_LIST.replace("<which>", "true"), limit)]
    bound = "now() - $2::interval" if isinstance(since, datetime.timedelta) else "$2::timestamptz"
    which = f"coalesce(e.ended_at, 'infinity') >= {bound}"
    return [_event(row) for row in await conn.fetch(_LIST.replace("<which>", which), limit, since)]


async def _moved(conn: Conn, events: Iterable[StoredEvent]) -> None:
    domains = {one.on_what for one in events if one.target is Target.DOMAIN and one.kind is EffectKind.SUSPEND}
    if domains:
        await bring_forward(conn, sorted(domains))


async def _not_in_force(conn: Conn, event_id: int) -> BadInput:
    row = await conn.fetchrow(_ONE, event_id)
    if row is None:
        return BadInput(f"event {event_id}", "does not exist")
    ended = _event(row)
    return BadInput(f"event {event_id}", f"has ended already ({ended.ended_why}, {ended.ended_at:%Y-%m-%d %H:%M:%S}Z)")


# --- rows -------------------------------------------------------------------------------------


def given_limits(limits: Limits) -> dict[str, int]:
    """Those that are set."""
    return {key: value for key, value in msgspec.structs.asdict(limits).items() if value is not None}


def _plain(one: Told) -> dict[str, Any]:
    given = msgspec.structs.asdict(one)
    return {**given, "limits": given_limits(one.limits), "base": given_limits(one.base)}


def _event(row: asyncpg.Record | None) -> StoredEvent:
    assert row is not None
    given = {key: value for key, value in row.items() if key != "looked_at"}
    for key in ("limits", "base"):
        given[key] = msgspec.json.decode(given[key], type=Limits)
    return msgspec.convert(given, StoredEvent)


def _check_new(new: NewEvent) -> None:
    _check_text("name", new.name, NAME_CHARS_MAX)
    _check_text("on", new.on_what, NAME_CHARS_MAX * 3)
    if new.detail:
        _check_text("why", new.detail, DETAIL_CHARS_MAX)
    _check_end(new.lasts, new.until_at)
    if new.kind is EffectKind.LOWER:
        if new.target not in (Target.RULE, Target.PROVIDER):
            raise BadInput("on", f"limits are lowered of a rule or a provider, not of a {new.target}")
        if not given_limits(new.limits):
            raise BadInput("limit", "is missing: nothing would be lowered")
        for key, value in given_limits(new.limits).items():
            if value < 1:
                raise BadInput(key, f"is {value}; a limit is at least 1 (to stop altogether, suspend)")


def _check_end(lasts: datetime.timedelta | None, until_at: datetime.datetime | None) -> None:
    if lasts is not None and not datetime.timedelta(0) < lasts <= _EVER:
        raise BadInput("for", "must be longer than nothing, and a hundred years at most")
    if until_at is not None and until_at.tzinfo is None:
        raise BadInput("until", "has no time zone")


def _check_text(where: str, text: str, most: int) -> None:
    if not text.strip() or len(text) > most or not text.isprintable():
        raise BadInput(where, f"must be 1 to {most} printable characters, and not only spaces")
