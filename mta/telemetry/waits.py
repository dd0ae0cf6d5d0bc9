"""Waiting for one of two things: that something happens, or that it is time to go on all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - a word to the caller, not an error
    """What was waited for was given up, since the process is to end."""


async def event_or_timeout(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return  # the usual way: it is time


async def until_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event, grace_s: float = 0.0) -> T:
    """The result of ``work``. When ``stop`` is set, ``work`` has ``grace_s`` to end by itself, and is cancelled then.

    Raises Stopped when it was cancelled. ``work`` must end when it is cancelled: what it waits for on the way out needs
    a bound of its own (`mta.queue.connection.acquire` has one).
    """
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and grace_s > 0:
            await asyncio.wait([task], timeout=grace_s)
    finally:
        stopped.cancel()
        is_given_up = not task.done() and task.cancel()
        if is_given_up:
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, also when we are cancelled ourselves
    if is_given_up and task.cancelled():
        raise Stopped
    return task.result()
