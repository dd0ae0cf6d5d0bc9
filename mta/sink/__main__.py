"""``python -m mta.sink``: one process of a sink, started by ``SinkProcesses`` and by nobody else.

Reads its options as a line of JSON from standard input, writes ``{"listening": true}`` or
``{"where": ..., "what": ...}`` as a line to standard output, and stops when standard input ends, so
that no sink outlives who started it.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec
import uvloop

import mta.telemetry.plain  # noqa: F401 - first of ours, before structlog
from mta.model.errors import BadInput
from mta.sink.server import ProcessOptions, serve
from mta.telemetry.logs import configure_as_parent

BAD_INPUT_EXIT = 2


def _say(answer: dict[str, object]) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(answer) + b"\n")


async def _run(options: ProcessOptions) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            over.set()

    loop.add_reader(0, on_input)
    await serve(options, lambda: _say({"listening": True}), over)


def main() -> int:
    configure_as_parent()
    line = bytearray()
    while not line.endswith(b"\n"):  # unbuffered: what follows belongs to the loop
        octet = os.read(0, 1)
        if not octet:
            return BAD_INPUT_EXIT
        line += octet
    try:
        uvloop.run(_run(ProcessOptions.of_line(bytes(line))))
    except BadInput as error:
        _say({"where": error.where, "what": error.what})
        return BAD_INPUT_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
