"""Faults in callbacks: an event loop logs and forgets them, which would leave a process with broken books.

Here they end their unit: whoever owns the loop is handed the exception and raises it where the process is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def end_on_fault(loop: asyncio.AbstractEventLoop, fail: Callable[[BaseException], None]) -> None:
    """From here on ``fail`` gets every exception that nobody awaits, but for those of the network itself."""

    def on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        error = context.get("exception")
        # A connection that ends badly ends for its protocol too, which deals with it; a future's exception that
        # was not looked at (a library's handshake that was given up) has no callback of ours behind it.
        is_of_network = "transport" in context and isinstance(error, OSError)
        is_of_future = "future" in context and not isinstance(context["future"], asyncio.Task)
        if error is not None and not is_of_network and not is_of_future:
            fail(error)

    loop.set_exception_handler(on_fault)
