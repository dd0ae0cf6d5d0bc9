"""What is seen while it runs: at the far end, from the sink's record as it grows; of our processes, from ``/proc``."""

from __future__ import annotations

import os
from collections import Counter, deque
from pathlib import Path
from typing import Final

import msgspec

from mta.sink.record import Accepted, Connection, Event, Refused

RATE_WINDOW_S: Final = 2.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class FarEnd:
    """Counts by our address of the MX host, from events not read before. ``read`` costs some 2 µs an event."""

    def __init__(self, directory: Path) -> None:
        self.accepted: Counter[str] = Counter()
        self.later: Counter[str] = Counter()  # refused with 4yz
        self.never: Counter[str] = Counter()  # refused with 5yz
        self.open: Counter[str] = Counter()
        self.total = 0
        self._directory = directory
        self._read_bytes: dict[Path, int] = {}
        self._local_of: dict[str, str] = {}  # by open connection; a refusal names no address
        self._decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
        self._totals: deque[tuple[float, int]] = deque()

    def read(self, now_s: float) -> None:
        for path in self._directory.glob("*.ndjson"):
            offset = self._read_bytes.get(path, 0)
            with path.open("rb") as file:
                file.seek(offset)
                octets = file.read()
            end = octets.rfind(b"\n") + 1  # the rest is still being written
            self._read_bytes[path] = offset + end
            for line in octets[:end].splitlines():
                self._count(self._decoder.decode(line))
        self._totals.append((now_s, self.total))
        while len(self._totals) > 2 and self._totals[1][0] <= now_s - RATE_WINDOW_S:
            self._totals.popleft()

    def _count(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self.accepted[event.local] += 1
            self.total += 1
        elif isinstance(event, Connection):
            self.open[event.local] += 1 if event.is_open else -1
            if event.is_open:
                self._local_of[event.connection] = event.local
            else:
                self._local_of.pop(event.connection, None)
        elif isinstance(event, Refused) and event.code:
            local = self._local_of.get(event.connection, "")
            (self.never if event.code >= 500 else self.later)[local] += 1

    @property
    def per_second(self) -> float:
        """Messages a second over the last moments."""
        (first_s, first), (last_s, last) = self._totals[0], self._totals[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Process(msgspec.Struct, frozen=True):
    """One of our processes, now."""

    name: str
    pid: int
    cpu_percent: float  # of one processor, since the last look
    rss_mb: float


class Processes:
    """Remembers the CPU time of the last look, to tell the share of each since then."""

    def __init__(self) -> None:
        self._ticks: dict[int, tuple[float, int]] = {}

    def look(self, named: dict[int, str], now_s: float) -> list[Process]:
        found = []
        for pid, name in named.items():
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            ticks = int(stat[11]) + int(stat[12])
            before_s, before = self._ticks.get(pid, (now_s, ticks))
            self._ticks[pid] = now_s, ticks
            share = (ticks - before) / _TICKS_PER_S / (now_s - before_s) if now_s > before_s else 0.0
            rss_mb = int(stat[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            found.append(Process(name, pid, 100 * share, rss_mb))
        return found
