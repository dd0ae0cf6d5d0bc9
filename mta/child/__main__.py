"""``python -m mta.child FD``: started by the master, never by hand."""

from __future__ import annotations

import signal
import sys

import uvloop

import mta.telemetry.plain  # noqa: F401 - first of ours, before structlog
from mta.child.worker import serve
from mta.telemetry.dumps import forbid_dumps
from mta.telemetry.logs import configure_as_parent


def main() -> None:
    # Ctrl-C in a terminal reaches the whole group; the master decides when a child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_as_parent()
    forbid_dumps()
    uvloop.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
