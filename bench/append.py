"""From a CSV into the queue, by the command that an operator would type."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.content import FIELDS, content_of, rows_over
from bench.usage import children_of, cpu_seconds, own_mb
from bench.world import PREFIX, SUFFIX, BenchFailed, database
from mta.demo.stage import own_directory
from mta.model.duplicates import Duplicates
from mta.model.errors import LocalFault
from mta.queue import deliveries
from mta.queue.connection import Conn
from mta.queue.deliveries import NewDelivery

DOMAINS = 2_000
SAMPLE_S = 0.05  # between two looks at the memory of the server


class AppendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the CSV, with two merge fields each; one row in ``double_every`` has the address of an earlier one. Each
    of ``rounds`` appends it twice: to a delivery that keeps duplicates, and to one that excludes them."""

    recipients: int
    double_every: int = 50
    rounds: int = 1


class AppendFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``, of the quickest rounds. ``seconds`` is all of ``mta delivery append`` where duplicates
    are excluded; ``start_seconds`` what it takes to do nothing, and ``recipients_per_second`` is without it. Memory is
    what no other process shares, of the largest process of PostgreSQL while it seals."""

    recipients: int
    csv_mbytes: float
    seconds: float
    start_seconds: float
    recipients_per_second: float
    whole_command_recipients_per_second: float
    kept_recipients_per_second: float
    excluded_to_kept: float
    cpu_kept_to_excluded: float  # of command and server; steadier on a machine that does other things too
    command_cpu_us_per_recipient: float
    postgres_cpu_us_per_recipient: float
    duplicates: int
    seal_seconds: float
    seal_postgres_peak_mbytes: float


class _Summary(msgspec.Struct):
    appended: int


class _Sealed(msgspec.Struct):
    duplicates: int


class _Round(msgspec.Struct):
    """One append, and the seal after it."""

    seconds: float
    command_cpu_s: float
    postgres_cpu_s: float
    seal_s: float
    seal_peak_mb: float
    duplicates: int


class _Bench(msgspec.Struct):
    options: AppendOptions
    csv: Path
    conn: Conn
    postmaster: int
    environment: dict[str, str]


async def append(options: AppendOptions, on_step: Callable[[str], None]) -> AppendFigures:
    """BenchFailed when not every row is in the queue afterwards, or another number of duplicates was found."""
    with own_directory(PREFIX) as directory:
        on_step(f"writing a CSV of {options.recipients:,} recipients, starting PostgreSQL")
        csv = directory / "recipients.csv"
        await asyncio.to_thread(_write_csv, csv, options)
        async with database(directory) as (postgres, conn, dsn):
            environment = {**os.environ, "MTA_DATABASE_URL": dsn, "PYTHONPATH": str(Path(__file__).parents[1])}
            postmaster = postgres.postmaster_pid()
            assert postmaster is not None
            bench = _Bench(options, csv, conn, postmaster, environment)
            await _command(environment, "delivery", "list", "--json")  # what is read is cached
            began_s = time.monotonic()
            await _command(environment, "delivery", "list", "--json")
            start_s = time.monotonic() - began_s
            rounds: dict[Duplicates, list[_Round]] = {which: [] for which in Duplicates}
            for number in range(options.rounds):
                # In turn the one and the other first, as whatever comes second finds a fuller database.
                for which in list(Duplicates)[:: -1 if number % 2 else 1]:
                    on_step(f"mta delivery append, duplicates: {which}")
                    rounds[which].append(await _round(bench, which))
        size_bytes = csv.stat().st_size
    kept, excluded = (min(rounds[which], key=lambda one: one.seconds) for which in Duplicates)
    return _figures(options, size_bytes, start_s, kept, excluded)


async def _round(bench: _Bench, which: Duplicates) -> _Round:
    new = NewDelivery(name="bench", content=content_of(1_000), duplicates=which)
    delivery = str(await deliveries.create(bench.conn, new))
    await bench.conn.execute("CHECKPOINT")
    before, used_before = cpu_seconds(0, bench.postmaster, [], 0), _children_cpu_s()
    began_s = time.monotonic()
    said = await _command(bench.environment, "delivery", "append", delivery, str(bench.csv), "--json")
    seconds = time.monotonic() - began_s
    postgres_cpu_s = cpu_seconds(0, bench.postmaster, [], 0).since(before).postgres
    command_cpu_s = _children_cpu_s() - used_before
    peak_mb = [0.0]
    watch = asyncio.create_task(_watch(bench.postmaster, peak_mb))
    began_s = time.monotonic()
    sealed = await _command(bench.environment, "delivery", "seal", delivery, "--json")
    seal_s = time.monotonic() - began_s
    watch.cancel()
    appended = msgspec.json.decode(said, type=_Summary).appended
    duplicates = msgspec.json.decode(sealed, type=_Sealed).duplicates
    shown = await deliveries.show(bench.conn, int(delivery))
    wanted = bench.options.recipients // bench.options.double_every if which is Duplicates.EXCLUDE else 0
    if not appended == shown.appended == bench.options.recipients or not duplicates == shown.excluded == wanted:
        raise BenchFailed(f"{shown.appended:,} of {bench.options.recipients:,} are in the queue, {duplicates:,} double")
    return _Round(seconds, command_cpu_s, postgres_cpu_s, seal_s, peak_mb[0], duplicates)


async def _watch(postmaster: int, peak_mb: list[float]) -> None:
    while True:
        peak_mb[0] = max([peak_mb[0], *map(own_mb, children_of(postmaster))])
        await asyncio.sleep(SAMPLE_S)


def _figures(options: AppendOptions, csv_bytes: int, start_s: float, kept: _Round, excluded: _Round) -> AppendFigures:
    us = 1e6 / options.recipients
    rate, kept_rate = (options.recipients / max(0.001, one.seconds - start_s) for one in (excluded, kept))
    return AppendFigures(
        recipients=options.recipients,
        csv_mbytes=round(csv_bytes / 1e6, 1),
        seconds=round(excluded.seconds, 3),
        start_seconds=round(start_s, 3),
        recipients_per_second=round(rate, 1),
        whole_command_recipients_per_second=round(options.recipients / excluded.seconds, 1),
        kept_recipients_per_second=round(kept_rate, 1),
        excluded_to_kept=round(rate / kept_rate, 3),
        cpu_kept_to_excluded=round(
            (kept.command_cpu_s + kept.postgres_cpu_s) / (excluded.command_cpu_s + excluded.postgres_cpu_s), 3
        ),
        command_cpu_us_per_recipient=round(excluded.command_cpu_s * us, 2),
        postgres_cpu_us_per_recipient=round(excluded.postgres_cpu_s * us, 2),
        duplicates=excluded.duplicates,
        seal_seconds=round(excluded.seal_s - start_s, 3),
        seal_postgres_peak_mbytes=round(excluded.seal_peak_mb, 1),
    )


def _write_csv(path: Path, options: AppendOptions) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(("address", *FIELDS)) + "\n")
        last = ""
        for number, (address, _, values) in enumerate(rows_over(options.recipients, DOMAINS, SUFFIX), start=1):
            # The one before it, which is not a double itself.
            written = last if number % options.double_every == 0 else address
            file.write(f"{written},{','.join(values)}\n")
            last = address


async def _command(environment: dict[str, str], *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mta.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise LocalFault(f"mta {' '.join(arguments[:2])} ended with {process.returncode}; standard error says why")
    return said


def _children_cpu_s() -> float:
    """CPU time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
