"""A storm of bounces, from the socket to the log: accepted on disk, read, qualified, recorded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from bench.content import content_of
from bench.usage import cpu_seconds, peak_rss_mb
from bench.world import PREFIX, STALL_S, BenchFailed, database
from mta.demo.stage import own_directory
from mta.message.verp import ReturnPathSigner, base36
from mta.queue import deliveries
from mta.queue.deliveries import NewDelivery
from mta.queue.installation import verp_key

DOMAIN: Final = "back.bench.test"
APPEND_RECIPIENTS: Final = 10_000
POLL_S: Final = 0.05
_APPEND: Final = """
INSERT INTO mta.delivery_append (delivery_id, key, recipients, digest) VALUES ($1, $2, $3, '') RETURNING append_id
"""
_LOG: Final = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply)
SELECT now() - interval '1 minute', $1, $2::bigint << 16 | n, 1, 1, 1, 0, 250, '2.0.0',
       'r' || n || '@d' || n % 500 || '.bench.test', 'mx.bench.test', 'mx.bench.test', '127.0.0.1', 'e1', 'ok'
FROM generate_series(0, $3::int - 1) AS n
"""
_SAID: Final = (
    ("550 5.1.1 <{to}>: Recipient address rejected: User unknown in virtual mailbox table", "5.1.1"),
    ("552 5.2.2 The mailbox of {to} is over its quota, try again when there is room", "5.2.2"),
    ("550 5.2.1 The account of {to} is disabled", "5.2.1"),
    ("554 5.7.1 Message refused: it looks like spam, see https://example.com/help/{n}", "5.7.1"),
    ("451 4.4.1 Connection timed out with mx{n}.bench.test after several days", "4.4.7"),
)
_BOUNCE: Final = """\
Received: from relay.bench.test by mx.bench.test with ESMTP id 4x{n}; Tue, 1 Dec 2026 10:00:00 +0000\r
From: MAILER-DAEMON@mx.bench.test (Mail Delivery System)\r
To: {path}\r
Subject: Undelivered Mail Returned to Sender\r
Date: Tue, 1 Dec 2026 10:00:00 +0000\r
Message-ID: <{n}.bounce@mx.bench.test>\r
Auto-Submitted: auto-replied\r
MIME-Version: 1.0\r
Content-Type: multipart/report; report-type=delivery-status; boundary="=bench"\r
\r
--=bench\r
Content-Type: text/plain; charset=us-ascii\r
\r
This is the mail system at host mx.bench.test.\r
\r
I'm sorry to have to tell you that your message could not be delivered\r
to one or more recipients. It is attached below.\r
\r
<{to}>: {said}\r
\r
--=bench\r
Content-Type: message/delivery-status\r
\r
Reporting-MTA: dns; mx.bench.test\r
Arrival-Date: Tue, 1 Dec 2026 09:59:00 +0000\r
\r
Final-Recipient: rfc822; {to}\r
Action: failed\r
Status: {status}\r
Remote-MTA: dns; mx.bench.test\r
Diagnostic-Code: smtp; {said}\r
\r
--=bench\r
Content-Type: message/rfc822\r
\r
Return-Path: <{path}>\r
From: Shop <shop@bench.test>\r
To: {to}\r
Subject: What is new this week\r
MIME-Version: 1.0\r
Content-Type: text/plain\r
\r
{text}\r
--=bench--\r
.\r
"""
_TEXT: Final = "\r\n".join(
    f"{i:03d} the quick brown fox jumps over the lazy dog, and comes back again" for i in range(30)
)


class InboundOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Bounces, how many connections bring them at a time, and how many one connection brings."""

    bounces: int
    connections: int
    per_connection: int


class InboundFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The line of ``--json``. ``recorded_per_second`` is from the first connection to the last line of the log."""

    bounces: int
    bounce_bytes: int
    accepted_seconds: float
    accepted_per_second: float
    recorded_seconds: float
    recorded_per_second: float
    listener_cpu_us_per_bounce: float  # and its part of what is recorded
    reader_cpu_us_per_bounce: float
    postgres_cpu_us_per_bounce: float
    listener_rss_mb: float


async def inbound(options: InboundOptions, on_step: Callable[[str], None]) -> InboundFigures:
    """BenchFailed when not each bounce is in the log once."""
    with own_directory(PREFIX) as directory:
        on_step(f"starting PostgreSQL, a log of {options.bounces:,} delivered messages")
        async with database(directory) as (postgres, conn, dsn):
            numbers = await _delivered(conn, options.bounces)
            mails = _mails(numbers, await verp_key(conn))
            config = directory / "mta.toml"
            config.write_text(
                f'[node]\njournal_dir = "{directory / "journal"}"\n[database]\ndsn = "{dsn}"\n[inbound]\n'
                f'listen = ["127.0.0.1:0"]\ndomains = ["{DOMAIN}"]\nspool_dir = "{directory / "spool"}"\n'
                "connections_per_client_max = 1000\n"
            )
            postmaster = postgres.postmaster_pid()
            assert postmaster is not None
            async with _service(config) as (process, port):
                await conn.execute("CHECKPOINT")
                on_step("mta inbound run")
                before = cpu_seconds(process.pid, postmaster, [], 0)
                began_s = time.monotonic()
                await _hand_in(port, mails, options)
                accepted_s = time.monotonic() - began_s
                await _all_recorded(conn, options.bounces)
                recorded_s = time.monotonic() - began_s
                used = cpu_seconds(process.pid, postmaster, [], 0).since(before)
                rss_mb = peak_rss_mb([process.pid])
    us = 1e6 / options.bounces
    return InboundFigures(
        bounces=options.bounces,
        bounce_bytes=sum(len(mail) for _, mail in mails) // len(mails),
        accepted_seconds=round(accepted_s, 3),
        accepted_per_second=round(options.bounces / accepted_s, 1),
        recorded_seconds=round(recorded_s, 3),
        recorded_per_second=round(options.bounces / recorded_s, 1),
        listener_cpu_us_per_bounce=round(used.master * us, 1),
        reader_cpu_us_per_bounce=round(used.children * us, 1),
        postgres_cpu_us_per_bounce=round(used.postgres * us, 1),
        listener_rss_mb=round(rss_mb, 1),
    )


async def _delivered(conn: asyncpg.Connection[asyncpg.Record], count: int) -> list[int]:
    delivery_id = await deliveries.create(conn, NewDelivery(name="bench", content=content_of(1_000)))
    numbers: list[int] = []
    while len(numbers) < count:
        some = min(APPEND_RECIPIENTS, count - len(numbers))
        append_id = await conn.fetchval(_APPEND, delivery_id, str(len(numbers)), some)
        await conn.execute(_LOG, delivery_id, append_id, some)
        numbers += [append_id << 16 | n for n in range(some)]
    return numbers


def _mails(numbers: list[int], key: bytes) -> list[tuple[str, bytes]]:
    signer = ReturnPathSigner(key)
    mails = []
    for n, number in enumerate(numbers):
        path = f"{signer.local_part(base36(number))}@{DOMAIN}"
        index = number & 0xFFFF
        to = f"r{index}@d{index % 500}.bench.test"
        said, status = _SAID[n % len(_SAID)]
        said = said.format(to=to, n=n)
        mails.append((path, _BOUNCE.format(path=path, to=to, said=said, status=status, n=n, text=_TEXT).encode()))
    return mails


@asynccontextmanager
async def _service(config: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mta.cli.main", "inbound", "run", "--config", str(config), "--log-json"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(STALL_S):
            async for line in process.stderr:
                entry = json.loads(line) if line.startswith(b"{") else {}
                if entry.get("event") == "running":
                    port = int(entry["listening"][0].rpartition(":")[2])
                    break
            else:
                raise BenchFailed("mta inbound run ended; it says why when it is started by hand")
        drained = asyncio.create_task(process.stderr.read())
        yield process, port
        process.terminate()
        await process.wait()
        await drained
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _hand_in(port: int, mails: list[tuple[str, bytes]], options: InboundOptions) -> None:
    """Each mail over a connection that brings no more than so many."""
    step = options.per_connection
    loads = iter([mails[at : at + step] for at in range(0, len(mails), step)])

    async def bring() -> None:
        for load in loads:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await _ask(reader, writer, b"", b"220")
            await _ask(reader, writer, b"EHLO mx.bench.test\r\n", b"250")
            for path, mail in load:
                await _ask(reader, writer, b"MAIL FROM:<>\r\n", b"250")
                await _ask(reader, writer, b"RCPT TO:<%s>\r\n" % path.encode(), b"250")
                await _ask(reader, writer, b"DATA\r\n", b"354")
                await _ask(reader, writer, mail, b"250")
            writer.write(b"QUIT\r\n")
            writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(options.connections):
            tasks.create_task(bring())


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: bytes, code: bytes) -> None:
    writer.write(octets)
    async with asyncio.timeout(STALL_S):
        while (line := await reader.readline())[3:4] == b"-":
            pass
    if line[:3] != code:
        raise BenchFailed(f"the listener says {line.decode('ascii', 'replace').strip()!r}")


async def _all_recorded(conn: asyncpg.Connection[asyncpg.Record], bounces: int) -> None:
    last, since_s = -1, time.monotonic()
    while True:
        found = await conn.fetchval("SELECT sum(bounced)::bigint FROM mta.delivery_stats") or 0
        if found >= bounces:
            break
        if found != last:
            last, since_s = found, time.monotonic()
        if time.monotonic() - since_s > STALL_S:
            raise BenchFailed(f"{found:,} of {bounces:,} are recorded, and no more come")
        await asyncio.sleep(POLL_S)
    lines = await conn.fetchval("SELECT count(*) FROM mta.delivery_log WHERE status = 20")
    if not lines == found == bounces:
        raise BenchFailed(f"{bounces:,} bounces were accepted, {found:,} are counted, {lines:,} are in the log")
