"""A sink whose processes need not load the program; how it loads by itself is for tests/process/test_sink.py."""

from __future__ import annotations

import os
import socket

from mta.sink.processes import SinkProcesses
from mta.sink.server import ProcessOptions
from tests.support.launch import Forked


class ForkedSink(SinkProcesses):
    """As what it is made of, but for how its processes begin."""

    def _spawn(self, index: int, ends: list[socket.socket]) -> Forked:  # type: ignore[override]
        links = tuple(end.fileno() for end in ends)
        process = Forked("mta.sink.__main__", links, os.environ)
        options = ProcessOptions(
            sink=self.options, index=index, port=self.port, certificate=self.certificate, links=links
        )
        process.stdin.write(options.line())
        process.stdin.flush()
        return process
