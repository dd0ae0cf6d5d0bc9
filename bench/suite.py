"""All scenarios, one after the other, into one set of figures."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.append import AppendOptions, append
from bench.claim import ClaimOptions, claim
from bench.drain import DrainOptions, drain
from bench.far import SinkKind, default_kind
from bench.longtail import LongtailOptions, longtail
from bench.matrix import MatrixOptions, matrix
from bench.mix import MixOptions, mix
from bench.openssl import Dkim
from bench.slow import SlowOptions, slow
from bench.throttled import ThrottledOptions, throttled
from bench.world import BenchFailed
from mta import is_compiled
from mta.model.errors import BadInput, LocalFault
from mta.queue.embedded import EmbeddedPostgresError

OnStep = Callable[[str], None]
Scenario = Callable[[OnStep], Coroutine[Any, Any, msgspec.Struct]]
CONNECTIONS: Final = 50
CHILDREN: Final = 2


class Failed(msgspec.Struct, frozen=True):
    """A scenario that gave no figures, and why."""

    failed: str


class Machine(msgspec.Struct, frozen=True):
    """What the figures were measured on."""

    processor: str
    cores: int
    memory_gbytes: float
    system: str
    python: str
    is_compiled: bool  # the hot path (make compile)


class AllFigures(msgspec.Struct, frozen=True):
    """The file that ``all`` writes. ``scale`` 1: the sizes of `scenarios`."""

    at: datetime.datetime
    machine: Machine
    scale: float
    scenarios: dict[str, Any]


async def run_all(scale: float, only: list[str], on_begin: OnStep, on_step: OnStep) -> AllFigures:
    """A scenario that fails does not keep the others from running."""
    found = scenarios(scale)
    for name in only:
        if name not in found:
            raise BadInput("--only", f"there is no {name!r}; there are {', '.join(found)}")
    figures: dict[str, Any] = {}
    for name, work in found.items():
        if only and name not in only:
            continue
        on_begin(name)
        try:
            figures[name] = await work(on_step)
        except (BenchFailed, BadInput, LocalFault, EmbeddedPostgresError, subprocess.SubprocessError) as error:
            figures[name] = Failed(str(error))
            on_step(f"failed: {error}")
    return AllFigures(datetime.datetime.now(datetime.UTC), _machine(), scale, figures)


def scenarios(scale: float) -> dict[str, Scenario]:
    """By name, with sizes that make about twelve minutes of them all."""

    def count(full: int, least: int) -> int:
        return max(least, round(full * scale))

    def draining(
        recipients: int, size_bytes: int, dkim: Dkim = Dkim.NONE, *, tls: bool = False, peers: bool = False
    ) -> Scenario:
        options = DrainOptions(
            recipients=count(recipients, 200),
            size_bytes=size_bytes,
            children=CHILDREN,
            connections=CONNECTIONS,
            sink=default_kind(tls=tls),
            domains=10,
            tls=tls,
            dkim=dkim,
            peers=peers,
        )
        return lambda on_step: drain(options, on_step)

    cell = MatrixOptions(seconds_per_cell=max(0.05, 5 * scale), children=CHILDREN, connections=CONNECTIONS)
    slowly = SlowOptions(
        recipients=count(120_000, 400),
        size_bytes=1_000,
        children=CHILDREN,
        connections=min(4_000, count(4_000, 40)),
        sink=SinkKind.RECEIVER,
    )
    held = ThrottledOptions(
        recipients=count(1_000_000, 400),
        domains=2_000,
        size_bytes=1_000,
        children=CHILDREN,
        connections=CONNECTIONS,
        sink=default_kind(),
        hold_s=10 * min(1.0, scale),
    )
    mixed = MixOptions(recipients=count(50_000, 400), size_bytes=60_000, children=CHILDREN, connections=10)
    tail = LongtailOptions(
        large=count(300_000, 1_000),
        domains=count(100_000, 200),
        hosts=2_000,
        size_bytes=1_000,
        children=CHILDREN,
        connections=CONNECTIONS,
        tail_connections=200,
        sink=default_kind(),
    )
    claiming = ClaimOptions(waiting=(count(10_000, 2_000), count(10_000_000, 20_000)), claims=count(500, 20))
    return {
        "drain-1kb": draining(200_000, 1_000, peers=True),
        "drain-10kb": draining(100_000, 10_000, peers=True),
        "drain-10kb-rsa2048": draining(50_000, 10_000, Dkim.RSA2048),
        "drain-10kb-ed25519": draining(50_000, 10_000, Dkim.ED25519),
        "matrix": lambda on_step: matrix(cell, on_step),
        "slow": lambda on_step: slow(slowly, on_step),
        "throttled": lambda on_step: throttled(held, on_step),
        "mix": lambda on_step: mix(mixed, on_step),
        "longtail": lambda on_step: longtail(tail, on_step),
        "append": lambda on_step: append(AppendOptions(recipients=count(1_000_000, 1_000)), on_step),
        "claim": lambda on_step: claim(claiming, on_step),
    }


def _machine() -> Machine:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=name,
        cores=len(os.sched_getaffinity(0)),
        memory_gbytes=round(memory / 1e9, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        is_compiled=is_compiled(),
    )
