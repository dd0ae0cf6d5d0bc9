"""What others have committed, heard of by NOTIFY; without it (connection lost) each poll still finds everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

import asyncpg
import structlog

from mta.queue.connection import DATABASE_AWAY, Conn, acquire

AGAIN_S = 1.0
Listener: TypeAlias = tuple[str, Callable[..., None]]  # a channel, and who is called with whatever comes there
log = structlog.get_logger()


async def listen(pool: asyncpg.Pool, listeners: Sequence[Listener]) -> None:
    """For as long as it is not cancelled, over one connection at a time."""
    while True:
        try:
            async with acquire(pool) as conn:
                await _listen_on(conn, listeners)
        except DATABASE_AWAY as error:
            log.debug("not listening", error=str(error))
        await asyncio.sleep(AGAIN_S)


async def _listen_on(conn: Conn, listeners: Sequence[Listener]) -> None:
    lost = asyncio.Event()
    conn.add_termination_listener(lambda *_: lost.set())
    try:
        for channel, listener in listeners:
            await conn.add_listener(channel, listener)
        await lost.wait()
    finally:
        conn.terminate()  # to take back what it listens for needs an answer, which may never come
