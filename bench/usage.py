"""CPU time and memory of processes.

Nothing is lost with a process that ended: its parent has waited for it and bears its time (cutime, cstime), mostly in
ticks of 10 ms. A living process is asked by its own clock, which counts nanoseconds: a short drain on a quick machine
takes less than a tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CUTIME, _CSTIME = 13, 14  # in /proc/PID/stat, counted from the state (proc(5))
_PARENT: Final = 1


class CpuSeconds(msgspec.Struct, frozen=True):
    """CPU time used so far."""

    master: float
    children: float
    postgres: float
    sink: float
    nameserver: float

    def since(self, before: CpuSeconds) -> CpuSeconds:
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(before), strict=True)
        # Of a process that ended in between, a part of a tick is lost.
        return CpuSeconds(*(max(0.0, now - then) for now, then in pairs))

    @property
    def total(self) -> float:
        return float(sum(msgspec.structs.astuple(self)))


class CpuMicroseconds(msgspec.Struct, frozen=True):
    """CPU time a message."""

    master: float
    children: float
    postgres: float
    sink: float
    nameserver: float


class PeakMegabytes(msgspec.Struct, frozen=True):
    """Peak resident memory: of the master, of the largest child, of the largest process of PostgreSQL (with the
    shared buffers that it touched)."""

    master: float
    child: float
    postgres: float


class Used(msgspec.Struct, frozen=True):
    """What a stretch of time has taken."""

    seconds: float
    cpu: CpuSeconds

    def rate(self, messages: int) -> float:
        """Messages a second."""
        return round(messages / self.seconds, 1)

    def cpu_us(self, messages: int) -> CpuMicroseconds:
        return CpuMicroseconds(*(round(value * 1e6 / messages, 2) for value in msgspec.structs.astuple(self.cpu)))


def cpu_seconds(master: int, postmaster: int, sinks: Iterable[int], nameserver: int) -> CpuSeconds:
    """All of them now. ``sinks`` and ``nameserver`` do not end meanwhile."""
    return CpuSeconds(
        master=_own(master),
        children=_of_children(master),
        postgres=_own(postmaster) + _of_children(postmaster),
        sink=sum(map(_own, sinks)),
        nameserver=_own(nameserver),
    )


def peak_rss_mb(pids: Iterable[int]) -> float:
    """The largest resident memory that any of the processes ever had (VmHWM), MB; 0 without a process."""
    return max((_status_kb(pid, "VmHWM") for pid in pids), default=0) / 1000


def rss_mb(pid: int) -> float:
    """Resident memory now (VmRSS), MB."""
    return _status_kb(pid, "VmRSS") / 1000


def own_mb(pid: int) -> float:
    """Resident memory now that is no file's and no other process's (RssAnon), MB."""
    return _status_kb(pid, "RssAnon") / 1000


def children_of(pid: int) -> list[int]:
    """Its living children, and those it has still to wait for."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and int(fields[_PARENT]) == pid
    ]


def _own(pid: int) -> float:
    """By the clock of a process: clock_getcpuclockid(3) makes its number from the pid; 2 stands for the scheduler's."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # it is gone
        return 0.0


def _of_children(pid: int) -> float:
    fields = _stat(pid)
    ended = (int(fields[_CUTIME]) + int(fields[_CSTIME])) / _TICKS_PER_S if fields else 0.0
    return ended + sum(map(_own, children_of(pid)))


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _status_kb(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0)
