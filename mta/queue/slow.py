"""What the database knows of a slow delivery: what waits and for how long, and what servers said lately."""

from __future__ import annotations

from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.queue.connection import Conn
from mta.traffic.diagnosis import Facts, NodeFacts, SiteRefusals, Suspension

RECENT_S: Final = 900
SITES_MAX: Final = 20
UNTIL_S_MAX: Final = 1e9  # of what lasts until an operator lifts it

_DELIVERY: Final = """
SELECT d.state, coalesce(extract(epoch FROM d.starts_at - now()), 0)::float8 AS starts_in_s, d.starts_at,
       (SELECT coalesce(sum(recipients), 0)::bigint FROM mta.delivery_append WHERE delivery_id = d.id) AS recipients,
       coalesce(s.delivered + s.failed + s.expired + s.cancelled + s.simulated + s.excluded, 0)::bigint
       + (SELECT coalesce(sum(excluded + duplicates), 0)::bigint FROM mta.delivery_append WHERE delivery_id = d.id)
       AS ended,
       p.*, (SELECT count(*) FROM mta.node WHERE ended_at IS NULL AND alive_until > now()) AS nodes_living,
       (SELECT count(*) FROM mta.node
        WHERE ended_at IS NULL AND alive_until > now() AND draining_since IS NOT NULL) AS nodes_draining
FROM mta.delivery d LEFT JOIN mta.delivery_stats s ON s.delivery_id = d.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(count) FILTER (WHERE owner IS NOT NULL), 0)::bigint AS leased,
           coalesce(sum(count) FILTER (WHERE held), 0)::bigint AS held,
           coalesce(sum(count) FILTER (WHERE is_free AND due_at <= now()), 0)::bigint AS due,
           coalesce(sum(count) FILTER (WHERE is_free AND due_at > now() AND attempt > 0), 0)::bigint AS deferred,
           min(due_at) FILTER (WHERE is_free AND due_at > now() AND attempt > 0) AS deferred_until,
           coalesce(sum(count) FILTER (WHERE is_free AND due_at > now() AND attempt = 0 AND site <> ''),
                    0)::bigint AS surplus,
           coalesce(sum(count) FILTER (WHERE is_free AND due_at > now() AND attempt = 0 AND site IS NULL
                                       AND due_when_checked IS NULL), 0)::bigint AS later_waves,
           coalesce(sum(count) FILTER (WHERE is_free AND due_when_checked <= now()), 0)::bigint AS unchecked
    -- Of a part that is worked on what is settled is ended already.
    FROM (SELECT site, attempt, due_at, due_when_checked, owner, held, owner IS NULL AND NOT held AS is_free,
                 d.count - (SELECT coalesce(sum(cardinality(positions)), 0) FROM mta.part_settled
                            WHERE part_id = d.id) AS count
          FROM mta.delivery_part d WHERE d.delivery_id = $1) AS part
) p
WHERE d.id = $1
"""
# What an address did wrong (unknown, disabled, full) says nothing of us; all else that a server refuses may.
_RECENT: Final = """
SELECT site, count(*) AS attempts, count(*) FILTER (WHERE is_refused) AS refused,
       count(*) FILTER (WHERE status = 10 AND code = 0 AND reason <> 2) AS unreachable,
       count(*) FILTER (WHERE status = 10 AND code = 0 AND reason = 2) AS unrouted,
       coalesce(sum(bytes), 0)::bigint AS bytes, count(*) FILTER (WHERE bytes > 0) AS written,
       coalesce((array_agg(concat_ws(' ', code, nullif(enhanced, ''), reply) ORDER BY at DESC)
                 FILTER (WHERE is_refused))[1], '') AS reply
FROM (SELECT *, status IN (2, 10) AND code >= 400 AND reason NOT IN (1, 2, 4, 5) AS is_refused FROM mta.delivery_log
      WHERE delivery_id = $1 AND at >= now() - make_interval(secs => $2) AND attempt > 0) AS recent
GROUP BY site ORDER BY refused DESC, attempts DESC
"""
# What waits for the end of its domain's block stands in parts of the site "@domain" (`mta.master.holds`).
_SUSPENSIONS: Final = """
SELECT e.name, e.on_what AS domain, e.detail, extract(epoch FROM e.until_at - now())::float8 AS until_s,
       (SELECT coalesce(sum(count), 0)::bigint FROM mta.delivery_part
        WHERE delivery_id = $1 AND owner IS NULL AND due_at > now() AND site = '@' || e.on_what) AS recipients
FROM mta.traffic_event e
WHERE e.ended_at IS NULL AND e.kind = 'suspend' AND e.target = 'domain' AND e.until_at > now()
  AND (EXISTS (SELECT FROM mta.delivery_part WHERE delivery_id = $1 AND site = '@' || e.on_what)
       OR EXISTS (SELECT FROM mta.delivery_log WHERE delivery_id = $1 AND at >= now() - make_interval(secs => $2)
                  AND split_part(address, '@', 2) = e.on_what))
ORDER BY recipients DESC, e.began_at LIMIT 20
"""


async def facts(conn: Conn, delivery_id: int, node: NodeFacts | None) -> Facts:
    """All that is known of a delivery; ``node`` is what the daemon here said. Raises BadInput when there is none."""
    found = await conn.fetchrow(_DELIVERY, delivery_id)
    if found is None:
        raise BadInput("delivery", f"there is no delivery {delivery_id}")
    recent = await conn.fetch(_RECENT, delivery_id, RECENT_S)
    suspensions = await conn.fetch(_SUSPENSIONS, delivery_id, RECENT_S)
    written = sum(row["written"] for row in recent)
    sums = {
        name: sum(row[name] for row in recent) for name in ("attempts", "refused", "unreachable", "unrouted", "bytes")
    }
    size_bytes = sums.pop("bytes")
    sites = [SiteRefusals(row["site"], row["attempts"], row["refused"], row["reply"]) for row in recent[:SITES_MAX]]
    given = {**dict(found), **sums, "mean_bytes": size_bytes / written if written else 0.0}
    suspended = tuple(
        Suspension(**{**row, "until_s": min(row["until_s"], UNTIL_S_MAX)}) for row in map(dict, suspensions)
    )
    return msgspec.convert({**given, "sites": tuple(sites), "node": node, "suspensions": suspended}, Facts)
