"""Waiting for one of two things: that something happens, or that it is time to look all the same."""

from __future__ import annotations

import asyncio


async def event_or_timeout(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return  # the usual way: it is time
