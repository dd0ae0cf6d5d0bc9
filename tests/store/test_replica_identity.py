"""Every table has a replica identity: else a publication of all tables would make the server refuse what we record."""

from __future__ import annotations

import datetime
from pathlib import Path

import asyncpg

from mta.queue.partitions import ensure_partitions
from tests.support.node import World, addresses
from tests.support.server import own_server

# A table is as good as its key; without one it needs the whole row.
WITHOUT = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'mta'::regnamespace AND c.relkind IN ('r', 'p') AND NOT CASE c.relreplident
    WHEN 'f' THEN true
    WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
    WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
    ELSE false END
ORDER BY 1
"""


async def _without(conn: asyncpg.Connection) -> list[str]:
    return [row["relname"] for row in await conn.fetch(WITHOUT)]


async def test_every_table_has_a_replica_identity(conn: asyncpg.Connection) -> None:
    assert await _without(conn) == []
    await conn.execute("CREATE TABLE mta.forgotten (value int)")
    assert await _without(conn) == ["forgotten"]


async def test_partitions_that_are_made_later_have_one_too(conn: asyncpg.Connection) -> None:
    for day in await conn.fetch("SELECT day FROM mta.log_partition WHERE day IS NOT NULL"):
        await conn.execute("SELECT mta.drop_log_partitions($1)", day["day"] + datetime.timedelta(days=1))
    await ensure_partitions(conn)
    assert await conn.fetchval("SELECT count(*) FROM mta.log_partition WHERE day IS NOT NULL") > 1
    assert await _without(conn) == []


async def test_a_publication_of_all_tables_stops_nothing(tmp_path: Path) -> None:
    settings = {"wal_level": "logical"}
    async with own_server(settings) as (_, database), World(tmp_path, database) as world:
        await database.pool.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        await database.pool.execute("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')")
        node = world.node()
        await node.start()
        delivery = await world.deliver(addresses(400), part_recipients=50)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.in_doubt) == (400, 0)
        assert (await world.audit(delivery)).is_clean
        # A text that is qualified anew changes lines of the log.
        await database.pool.execute("UPDATE mta.delivery_log SET category = category WHERE delivery_id = $1", delivery)
        await database.pool.execute("DELETE FROM mta.in_doubt")
        assert await node.stop() == 0
        assert not node.said("outcomes cannot be recorded")
        read = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('reader', NULL, NULL, $1, '1', $2, $3)"
        assert await database.pool.fetchval(read, "proto_version", "publication_names", "everything") > 400
