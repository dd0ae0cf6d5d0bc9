"""Mail that comes back, with everything real: `mta inbound run`, `mta keep`, sockets, PostgreSQL, kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.inbound.meaning import Trust
from mta.inbound.processor import Processor
from mta.inbound.spool import Spool, Stored
from mta.message.leaving import leaving_token
from mta.message.verp import ReturnPathSigner, base36, parse_verp
from mta.model.outcome import Reason
from mta.queue import quarantine
from mta.queue.feedback import record_unsubscribe
from mta.queue.installation import verp_key
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import load_settings
from tests.support.launch import launch
from tests.support.node import World, addresses
from tests.support.outcomes import queue_says
from tests.support.postgres import Database
from tests.support.returning import absence, bounce, complaint, hand_in

DOMAIN = "back.example"


class Service:
    """A command of ours in a process of its own, with its log."""

    def __init__(self, config: Path, *command: str) -> None:
        self._command = (*command, "--config", str(config), "--log-json")
        self.log: list[dict[str, object]] = []

    async def start(self, ready: str) -> dict[str, object]:
        """Returns the log entry that says that it runs."""
        self.process = await launch(*self._command)
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            async for line in self.process.stderr:
                entry = json.loads(line) if line.startswith(b"{") else {"event": line.decode()}
                self.log.append(entry)
                if entry["event"] == ready:
                    self._reader = asyncio.create_task(self._read())
                    return entry
        raise AssertionError(f"{self._command[0]} ended: {self.log}")

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append({"event": line.decode()})

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 30)
        await self._reader
        return code


def write_config(directory: Path, database: Database, more: str = "") -> Path:
    config = directory / "back.toml"
    config.write_text(
        f"""
[node]
name = "back"
journal_dir = "{directory / "back-journal"}"
[database]
dsn = "{database.dsn}"
[inbound]
listen = ["127.0.0.1:0"]
domains = ["{DOMAIN}"]
spool_dir = "{directory / "spool"}"
size_mbytes_max = 1
{more}
"""
    )
    return config


@contextlib.asynccontextmanager
async def sent(tmp_path: Path, database: Database, count: int) -> AsyncIterator[tuple[World, int, dict[str, str]]]:
    """A delivery that was sent; by address the local part of its return path."""
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(addresses(count))
        await world.wait_for(delivery)
        await node.stop()
        async with database.pool.acquire() as conn:
            signer = ReturnPathSigner(await verp_key(conn))
            rows = await conn.fetch("SELECT address, number FROM mta.delivery_log WHERE delivery_id = $1", delivery)
        yield world, delivery, {row["address"]: signer.local_part(base36(row["number"])) for row in rows}


async def test_what_comes_back_corrects_outcomes_and_reaches_the_quarantine(tmp_path: Path, database: Database) -> None:
    config = write_config(tmp_path, database)
    async with sent(tmp_path, database, 6) as (world, delivery, paths):
        inbound, keeper = Service(config, "inbound", "run"), Service(config, "keep")
        port = int(str((await inbound.start("running"))["listening"]).rpartition(":")[2].strip("]'"))
        await keeper.start("keeping")
        gone, full, angry, away, slow, forged = paths
        path_of = {address: f"{local}@{DOMAIN}" for address, local in paths.items()}
        codes = await hand_in(
            port,
            [
                (path_of[gone], bounce(gone, "550 5.1.1 no such user here", "5.1.1")),
                (path_of[gone], bounce(gone, "550 5.1.1 no such user here", "5.1.1")),
                (path_of[full], bounce(full, "552 5.2.2 mailbox full", "5.2.2")),
                (f"fbl@{DOMAIN}", complaint(path_of[angry], angry)),
                (path_of[away], absence(away)),
                (path_of[slow], bounce(slow, "450 4.2.0 busy", "4.4.1", "delayed")),
                (f"{paths[forged][:-1]}x@{DOMAIN}", bounce(forged, "550 5.1.1 no such user here", "5.1.1")),
                (f"fbl@{DOMAIN}", complaint(f"{paths[forged][:-1]}x@{DOMAIN}", forged)),
                ("someone@elsewhere.example", b"Subject: relay\r\n\r\n"),
            ],
            sessions=1,
        )
        assert codes == [250, 250, 250, 250, 250, 250, 550, 250, 550]
        not_mailed = {gone: Reason.QUARANTINED, angry: Reason.DENYLISTED}

        async def is_kept() -> bool:
            async with database.pool.acquire() as conn:
                return await quarantine.not_mailed(conn, list(paths)) == not_mailed

        await queue_says("the keeper has read it", is_kept)
        await queue_says("the spool is empty", lambda: _is_empty(tmp_path / "spool" / "new"))
        shown = await world.show(delivery)
        assert (shown.delivered, shown.bounced, shown.complaints) == (6, 2, 1)
        account = await world.audit(delivery)
        assert account.is_clean
        assert account.final == 6
        # A complaint that only claims to be about us is nobody's.
        assert len(list((tmp_path / "spool" / "unplaced").iterdir())) == 1
        second = await world.deliver(list(paths), start=False)
        assert (await world.show(second)).excluded == 2
        assert await inbound.end() == 0
        assert await keeper.end() == 0


async def test_whoever_wants_no_more_mail_gets_none(tmp_path: Path, database: Database) -> None:
    maildir = tmp_path / "Maildir"
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True)
    mailbox = f'[[inbound.mailbox]]\nkind = "maildir"\npath = "{maildir}"\nevery_s = 1'
    config = write_config(tmp_path, database, mailbox)
    async with sent(tmp_path, database, 6) as (world, delivery, paths):
        clicked, mailed, named, by_box, stranger, stays = paths
        async with database.pool.acquire() as conn:
            key = await verp_key(conn)
        number = {address: parse_verp(local, key) or 0 for address, local in paths.items()}

        def message_id(address: str) -> str:
            return f"{base36(number[address])}.{base36(delivery)}@shop.example"

        def leave(sender: str, subject: str) -> bytes:
            return f"From: <{sender}>\r\nTo: <unsubscribe@{DOMAIN}>\r\nSubject: {subject}\r\n\r\n".encode()

        (maildir / "new" / "1700000000.M1P2.host").write_bytes(
            f"Delivered-To: {paths[by_box]}@{DOMAIN}\r\n".encode() + bounce(by_box, "550 5.1.1 no such user", "5.1.1")
        )
        inbound = Service(config, "inbound", "run")
        port = int(str((await inbound.start("running"))["listening"]).rpartition(":")[2].strip("]'"))
        to = f"unsubscribe@{DOMAIN}"
        mails = [
            (to, leave("anybody@example.net", leaving_token(number[mailed], key))),
            (to, leave(named.upper(), message_id(named))),
            (to, leave("eve@example.net", message_id(stranger))),  # of somebody else
            (to, leave(stays, "unsubscribe")),  # proves nothing
        ]
        assert await hand_in(port, mails, sessions=1) == [250] * 4
        async with database.pool.acquire() as conn:
            assert await record_unsubscribe(conn, leaving_token(number[clicked], key), key)

        async def is_recorded() -> bool:
            shown = await world.show(delivery)
            return (shown.unsubscribed, shown.bounced) == (3, 1)

        await queue_says("three have left, and one bounce was in the mailbox", is_recorded)
        await queue_says("one cannot be placed", lambda: _has_files(tmp_path / "spool" / "unplaced", 1))
        async with database.pool.acquire() as conn:
            rows = await conn.fetch("SELECT address FROM mta.delivery_log WHERE status = 22")
        assert {row["address"] for row in rows} == {clicked, mailed, named}
        status = json.loads(await command("inbound", "status", "--config", str(config), "--json"))
        assert (status["new"], status["unplaced"]) == (1, 1)  # that of the stranger is looked up for ten minutes
        counted = {one["what"]: one["count"] for one in status["counted"]}
        assert counted == {"bounce": 1, "unsubscription": 3, "recorded": 3, "unplaced: not-signed": 1}
        (one,) = json.loads(await command("inbound", "unplaced", "--config", str(config), "--json"))
        assert (one["why"], one["recipients"], one["subject"]) == ("not-signed", to, "unsubscribe")
        assert await inbound.end() == 0
        # Once the operator believes senders, what was filed is read again.
        config.write_text(config.read_text().replace("[[inbound", "unsubscribe_by_sender = true\n[[inbound"))
        await command("inbound", "again", one["file"])
        second = Service(config, "inbound", "run")
        await second.start("running")

        async def has_left() -> bool:
            return (await world.show(delivery)).unsubscribed == 4

        await queue_says("the fourth has left", has_left)
        assert (await world.audit(delivery)).is_clean
        assert await second.end() == 0


async def test_a_bounce_that_is_faster_than_its_outcome_is_recorded_later(tmp_path: Path, database: Database) -> None:
    config = write_config(tmp_path, database)
    async with sent(tmp_path, database, 2) as (world, delivery, paths):
        early, known = paths
        async with database.pool.acquire() as conn:  # as if its commit were still under way
            rows = await conn.fetch("DELETE FROM mta.delivery_log WHERE address = $1 RETURNING *", early)
        spool = Spool(tmp_path / "spool")
        trust = Trust(await _key(database))
        processor = Processor(spool, load_bounce_rules(load_settings(config).failures.rules_files), trust)
        try:
            for address in (early, known):
                mail = bounce(address, "550 5.1.1 no such user", "5.1.1")
                at_s = rows[0]["at"].timestamp() + 1
                spool.put(Stored([f"{paths[address]}@{DOMAIN}"], "", "", max(at_s, time.time())), mail).result(10)
            while await processor.step(database.pool):
                pass
            assert (await world.show(delivery)).bounced == 1
            assert await _has_files(tmp_path / "spool" / "new", 1)
            async with database.pool.acquire() as conn:
                row = rows[0]
                columns = ", ".join(row.keys())
                places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
                await conn.execute(f"INSERT INTO mta.delivery_log ({columns}) VALUES ({places})", *row.values())
            spool._postponed.clear()  # twenty seconds later
            while await processor.step(database.pool):
                pass
            assert (await world.show(delivery)).bounced == 2
            assert await _is_empty(tmp_path / "spool" / "new")
        finally:
            processor._readers.close()
            spool.close()


async def command(*arguments: str) -> bytes:
    process = await launch(*arguments)
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said


async def _key(database: Database) -> bytes:
    async with database.pool.acquire() as conn:
        return await verp_key(conn)


async def _has_files(directory: Path, count: int) -> bool:
    return len(os.listdir(directory)) == count


async def _is_empty(directory: Path) -> bool:
    return not os.listdir(directory)


async def test_nothing_accepted_is_lost_and_nothing_counts_twice_when_it_is_killed(
    tmp_path: Path, database: Database
) -> None:
    config = write_config(tmp_path, database)
    async with sent(tmp_path, database, 300) as (world, delivery, paths):
        mails = [
            (f"{local}@{DOMAIN}", bounce(address, "550 5.1.1 no such user", "5.1.1"))
            for address, local in paths.items()
        ]
        accepted: set[str] = set()
        for _ in range(3):
            service = Service(config, "inbound", "run")
            port = int(str((await service.start("running"))["listening"]).rpartition(":")[2].strip("]'"))
            handing = asyncio.create_task(hand_in(port, mails))
            await asyncio.sleep(0.4)  # anywhere within the storm
            await service.end(signal.SIGKILL)
            accepted |= {to for (to, _), code in zip(mails, await handing, strict=True) if code == 250}
        assert accepted
        service = Service(config, "inbound", "run")
        await service.start("running")
        await queue_says("the spool is empty", lambda: _is_empty(tmp_path / "spool" / "new"))
        shown = await world.show(delivery)
        # What was stored and not answered may be there too: never fewer than were accepted, and each once.
        assert len(accepted) <= shown.bounced <= len(mails)
        async with database.pool.acquire() as conn:
            rows = await conn.fetch("SELECT number FROM mta.delivery_log WHERE status = 20")
        assert len({row["number"] for row in rows}) == len(rows) == shown.bounced
        assert (await world.audit(delivery)).is_clean
        await service.end()


@pytest.mark.parametrize(
    ("to", "mail", "code"),
    [
        (f"nobody@{DOMAIN}", b"Subject: x\r\n\r\n", 550),
        (f"a%b@{DOMAIN}", b"Subject: x\r\n\r\n", 550),
        (f"postmaster@{DOMAIN}", b"X: y\r\n" * 60_000 + b"\r\n", 552),
        (f"postmaster@{DOMAIN}", b"Received: by x\r\n" * 102 + b"\r\n", 554),
        (f"postmaster@{DOMAIN}", b"Subject: x\r\n\r\n" + b"y" * 70 + (b"\r\n" + b"y" * 70) * 16_000, 552),
        (f"postmaster@{DOMAIN}", b"Subject: x\r\n\r\nhello\r\n", 250),
    ],
)
async def test_each_bound_has_its_reply(tmp_path: Path, database: Database, to: str, mail: bytes, code: int) -> None:
    service = Service(write_config(tmp_path, database), "inbound", "run")
    port = int(str((await service.start("running"))["listening"]).rpartition(":")[2].strip("]'"))
    assert await hand_in(port, [(to, mail)], sessions=1) == [code]
    await service.end()
