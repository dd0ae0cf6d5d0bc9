"""Plans: what is asked all day stays cheap however long the queue and the log are."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from mta.queue import overview, partitions
from tests.support.content import new_delivery

PARTS = 50_000
FILL = """
INSERT INTO mta.delivery_part (delivery_id, due_at, append_id, fields, count, recipients)
SELECT $1, now() - n * interval '1 ms', n, '{}', 1, '[["ann@example.com",null,[]]]' FROM generate_series(1, $2::int) n
"""
CLAIM = """
SELECT id FROM mta.delivery_part WHERE delivery_id = $1 AND owner IS NULL AND NOT held AND due_at <= now()
ORDER BY due_at, id LIMIT 16 FOR UPDATE SKIP LOCKED
"""


async def _plan(conn: asyncpg.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    """Every node of the plan, as executed."""
    explained = json.loads(await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *values))
    nodes, ahead = [], [explained[0]["Plan"]]
    while ahead:
        node = ahead.pop()
        nodes.append(node)
        ahead += node.get("Plans", [])
    return nodes


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_a_claim_walks_its_index_and_touches_only_what_it_takes(
    conn: asyncpg.Connection, is_analyzed: bool
) -> None:
    others = await new_delivery(conn)
    made = await new_delivery(conn)
    await conn.execute(FILL, others, PARTS // 2)
    await conn.execute(FILL, made, PARTS)
    if is_analyzed:  # a table that has just been filled has no statistics yet: the plan must be right then too
        await conn.execute("ANALYZE mta.delivery_part")
    nodes = await _plan(conn, CLAIM, made)
    scans = [node for node in nodes if "Scan" in node["Node Type"]]
    assert [node["Index Name"] for node in scans] == ["delivery_part_claim"]
    assert not [node for node in nodes if node["Node Type"] == "Sort"]
    assert scans[0]["Actual Rows"] == 16
    assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 100


async def test_waves_to_come_cost_a_claim_nothing(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await conn.execute(FILL, made, PARTS)
    # All but 20 parts are of later waves.
    await conn.execute(
        "UPDATE mta.delivery_part SET due_at = now() + interval '1 hour' * append_id WHERE append_id > 20"
    )
    claim = CLAIM.replace("LIMIT 16", "LIMIT 64")
    await conn.execute("VACUUM mta.delivery_part")  # as PostgreSQL does by itself soon after so many changes
    nodes = await _plan(conn, claim, made)
    scans = [node for node in nodes if "Scan" in node["Node Type"]]
    assert [node["Index Name"] for node in scans] == ["delivery_part_claim"]
    assert scans[0]["Actual Rows"] == 20
    assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 100


async def test_the_log_finds_an_address_by_index_in_every_partition(conn: asyncpg.Connection) -> None:
    await conn.execute(
        """
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                      address, site, mx_host, peer, egress, reply)
        SELECT now() + (n % 3) * interval '1 day', 1, n, 1, 1, 1, 0, 250, '', 'user' || n || '@example.com',
               '', '', '', '', '' FROM generate_series(1, 30000) n
        """
    )
    await conn.execute("ANALYZE mta.delivery_log")
    nodes = await _plan(conn, overview.FIND_BY_ADDRESS, "user777@example.com", 100)
    by_partition = {node["Relation Name"]: node["Node Type"] for node in nodes if "Relation Name" in node}
    filled = [one.name for one in await partitions.list_partitions(conn) if one.rows_estimated]
    assert len(filled) == 3
    assert all("Index" in by_partition[name] or "Bitmap" in by_partition[name] for name in filled), by_partition
    assert nodes[0]["Actual Rows"] == 1
