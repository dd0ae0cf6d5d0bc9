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
from bench.usage import cpu_seconds
from bench.world import PREFIX, SUFFIX, BenchFailed, database
from mta.demo.stage import own_directory
from mta.model.errors import LocalFault
from mta.queue import deliveries
from mta.queue.deliveries import NewDelivery

DOMAINS = 2_000


class AppendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of the CSV; two merge fields each."""

    recipients: int


class AppendFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``. ``seconds`` is all of ``mta delivery append``; ``start_seconds`` what it takes to do
    nothing, and ``recipients_per_second`` is without it."""

    recipients: int
    csv_mbytes: float
    seconds: float
    start_seconds: float
    recipients_per_second: float
    whole_command_recipients_per_second: float
    command_cpu_us_per_recipient: float
    postgres_cpu_us_per_recipient: float


class _Summary(msgspec.Struct):
    appended: int


async def append(options: AppendOptions, on_step: Callable[[str], None]) -> AppendFigures:
    """BenchFailed when not every row is in the queue afterwards."""
    with own_directory(PREFIX) as directory:
        on_step(f"writing a CSV of {options.recipients:,} recipients, starting PostgreSQL")
        csv = directory / "recipients.csv"
        await asyncio.to_thread(_write_csv, csv, options.recipients)
        async with database(directory) as (postgres, conn, dsn):
            delivery_id = await deliveries.create(conn, NewDelivery(name="bench", content=content_of(1_000)))
            environment = {**os.environ, "MTA_DATABASE_URL": dsn, "PYTHONPATH": str(Path(__file__).parents[1])}
            await _command(environment, "delivery", "show", str(delivery_id), "--json")  # what is read is cached
            began_s = time.monotonic()
            await _command(environment, "delivery", "show", str(delivery_id), "--json")
            start_s = time.monotonic() - began_s
            await conn.execute("CHECKPOINT")
            on_step("mta delivery append")
            postmaster = postgres.postmaster_pid()
            assert postmaster is not None
            before, used_before = cpu_seconds(0, postmaster, [], 0), _children_cpu_s()
            began_s = time.monotonic()
            said = await _command(environment, "delivery", "append", str(delivery_id), str(csv), "--json")
            seconds = time.monotonic() - began_s
            used = cpu_seconds(0, postmaster, [], 0).since(before)
            command_cpu_s = _children_cpu_s() - used_before
            shown = await deliveries.show(conn, delivery_id)
        size_bytes = csv.stat().st_size
    if not msgspec.json.decode(said, type=_Summary).appended == shown.appended == options.recipients:
        raise BenchFailed(f"{shown.appended:,} of {options.recipients:,} are in the queue")
    us = 1e6 / options.recipients
    return AppendFigures(
        recipients=options.recipients,
        csv_mbytes=round(size_bytes / 1e6, 1),
        seconds=round(seconds, 3),
        start_seconds=round(start_s, 3),
        recipients_per_second=round(options.recipients / max(0.001, seconds - start_s), 1),
        whole_command_recipients_per_second=round(options.recipients / seconds, 1),
        command_cpu_us_per_recipient=round(command_cpu_s * us, 2),
        postgres_cpu_us_per_recipient=round(used.postgres * us, 2),
    )


def _write_csv(path: Path, recipients: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(("address", *FIELDS)) + "\n")
        file.writelines(
            f"{address},{','.join(values)}\n" for address, _, values in rows_over(recipients, DOMAINS, SUFFIX)
        )


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
