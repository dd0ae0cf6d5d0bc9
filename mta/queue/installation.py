"""What all nodes of one database share, made with its schema."""

from __future__ import annotations

from mta.queue.connection import Conn

_VERP_KEY = "SELECT verp_key FROM mta.installation"


async def verp_key(conn: Conn) -> bytes:
    """The key that signs return paths. Never to be shown."""
    key = await conn.fetchval(_VERP_KEY)
    assert isinstance(key, bytes), "the schema made one"
    return key
