"""The spool, its readers and what is sent on: real files, real processes, a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from mta.inbound import readers as readers_module
from mta.inbound import spool as spool_module
from mta.inbound.forwarding import Forwarder
from mta.inbound.meaning import Trust
from mta.inbound.readers import Readers
from mta.inbound.spool import Spool, Stored, mails_in, read_stored
from mta.model.errors import BadInput
from mta.settings.inbound import InboundSettings
from tests.support.inbound import KEY, path_of
from tests.support.node import until
from tests.support.returning import absence, bounce

TRUST = Trust(KEY)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path)
    with contextlib.closing(spool):
        yield spool


def stored(to: str = "a@back.example") -> Stored:
    return Stored([to], "", "192.0.2.1", time.time())


def put(spool: Spool, *mails: bytes) -> None:
    for done in [spool.put(stored(), mail) for mail in mails]:
        done.result(10)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_what_is_put_is_read_back(spool: Spool) -> None:
    mails = [b"", b"\n", b"x" * 100_000, b'{"octets":9}\n', bytes(range(256)), *[b"%d\r\n" % n for n in range(300)]]
    put(spool, *mails)
    paths = spool.waiting(1_000)
    assert [mail for path in paths for _, mail in read_stored(path)] == mails
    assert [mails_in(path.name) for path in paths] == [len(read_stored(path)) for path in paths]
    assert len(paths) < len(mails) / 2  # they share files
    assert spool.waiting(1_000) == paths  # another look, nothing was dealt with


def test_what_is_left_of_a_file_gets_files_of_its_own(spool: Spool) -> None:
    path = spool.new / f"{time.time_ns():020d}-1-0-4"
    spool._put_file(path, [spool_module._record(stored(), mail) for mail in (b"0", b"1", b"2", b"3")])
    spool._count(path.stat().st_size)
    spool.settle(path, {1: (spool.new, ""), 3: (spool.unplaced, "not-signed")}, again_s=0.05)
    assert names(spool.new) == [f"{path.name}.1"]
    assert names(spool.unplaced) == [f"{path.name}.3.not-signed"]
    assert spool.waiting(10) == []  # not yet
    time.sleep(0.06)
    (left,) = spool.waiting(10)
    assert [mail for _, mail in read_stored(left)] == [b"1"]
    spool.settle(left, {0: (spool.new, "")}, again_s=0.0)
    assert names(spool.new) == [left.name]
    spool.settle(left, {}, 0)
    assert names(spool.new) == []
    assert spool._bytes == 0


def test_a_death_before_the_old_file_is_removed_makes_nothing_two(spool: Spool) -> None:
    path = spool.new / f"{time.time_ns():020d}-1-0-2"
    spool._put_file(path, [spool_module._record(stored(), mail) for mail in (b"0", b"1")])
    whole = path.read_bytes()
    for _ in range(2):
        spool.settle(path, {1: (spool.unplaced, "other")}, 0)
        path.write_bytes(whole)
    assert names(spool.unplaced) == [f"{path.name}.1.other"]


def test_a_spool_is_of_one_process(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"inbound\.spool_dir: .* in use by another process"):
        Spool(tmp_path)


def test_what_was_never_answered_for_is_removed_at_the_start(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    put(first, b"kept")
    (tmp_path / "tmp" / "half").write_bytes(b"{")
    first.close()
    second = Spool(tmp_path, bytes_max=1)
    assert names(tmp_path / "tmp") == []
    assert second.is_full  # what waits from before counts
    assert isinstance(second.put(stored(), b"more").exception(1), OSError)
    assert len(second.waiting(10)) == 1
    second.close()


def test_what_is_set_aside_is_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "KEPT_FILES_MAX", 3)
    monkeypatch.setattr(spool_module, "KEPT_BYTES_MAX", 1_000)
    now = time.time_ns()
    ages_s = [40 * 86_400, 50, 40, 30, 20]
    for age_s in ages_s:
        (spool.unplaced / f"{now - age_s * 10**9:020d}-1-0-1.other").write_bytes(b"x" * 10)
    assert spool.trim() == 2
    assert len(names(spool.unplaced)) == 3
    (spool.unplaced / f"{now:020d}-1-0-1.other").write_bytes(b"x" * 985)
    assert spool.trim() == 2  # the newest and one that fits beside it
    assert spool.trim() == 0


@pytest.mark.parametrize("octets", [b"", b"no json\n", b'{"octets":5}\nabc', b'{"recipients":[],"octets":1}\nx'])
def test_what_nobody_here_wrote_is_refused(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(octets)
    if octets:
        with pytest.raises(msgspec.DecodeError):
            read_stored(path)
    else:
        assert read_stored(path) == []


# --- readers ---------------------------------------------------------------------------------------


async def test_a_reader_that_does_not_survive_a_mail_is_replaced(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed from outside in the middle stands for one that a mail kills."""
    put(spool, bounce("ann@example.com", "550 5.1.1 no such user", "5.1.1"), absence("ann@example.com"))
    paths = spool.waiting(10)
    readers = Readers((), TRUST)
    try:
        first = await readers.read(paths)
        assert [one.what for mails in first if mails for one in mails] == ["bounce", "autoreply"]
        assert readers._pool is not None
        (worker,) = readers._pool._processes.values()
        worker.kill()
        worker.join()
        assert await readers.read(paths) == first
        monkeypatch.setattr(readers_module, "MAIL_S", 0.0)
        monkeypatch.setattr(readers_module, "START_S", 0.0)
        assert await readers.read(paths) == [None] * len(paths)  # none is in time
    finally:
        readers.close()


async def test_a_large_or_deep_mail_is_read_in_bounded_time(spool: Spool) -> None:
    deep = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(3_000))
    mails = [b"Subject: x\r\n\r\n" + b"y" * (30 << 20), deep, b"X: y\r\n" * 40_000, os.urandom(200_000)]
    put(spool, *mails)
    readers = Readers((), TRUST)
    try:
        await readers.read([])
        began_s = time.monotonic()
        found = await readers.read(spool.waiting(10))
        assert sum(len(one) for one in found if one is not None) == len(mails)
        assert time.monotonic() - began_s < 30
    finally:
        readers.close()


# --- forwarding ------------------------------------------------------------------------------------


class Taker:
    """A server that takes what is forwarded, or says what it is told to say."""

    def __init__(self) -> None:
        self.taken: list[tuple[str | None, list[str], bytes]] = []
        self.says: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.says:
            return self.says.pop(0)
        self.taken.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.original_content or b""))
        return "250 ok"


@pytest.fixture
async def taker() -> AsyncIterator[tuple[Taker, int]]:
    taker, loop = Taker(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(taker, hostname="mx.test", loop=loop), "127.0.0.1", 0)
    async with server:
        yield taker, server.sockets[0].getsockname()[1]


def forwarder(spool: Spool, port: int) -> Forwarder:
    settings = InboundSettings(forward_to="help@example.org", forward_address=("127.0.0.1", port), name="back.test")
    return Forwarder(settings, spool)


def give(spool: Spool, *mails: bytes) -> None:
    for number, mail in enumerate(mails):
        path = spool.new / f"{time.time_ns():020d}-1-{number}-1"
        spool._put_file(path, [spool_module._record(stored(path_of(1)), mail)])
        spool.settle(path, {0: (spool.forward, "not-signed")}, 0)


async def test_what_cannot_be_placed_is_sent_on_once_and_marked(spool: Spool, taker: tuple[Taker, int]) -> None:
    server, port = taker
    give(spool, b"Subject: x\r\n\r\nlone\nends\r.\n.\r\nhere\r\n.\r\n")
    await forwarder(spool, port)._send(forwarder(spool, port)._waiting())
    ((sender, recipients, mail),) = server.taken
    assert (sender, recipients) == ("<>", ["help@example.org"])
    assert mail.startswith(f"X-Mta-Forwarded: not-signed; to {path_of(1)}\r\nSubject: x\r\n".encode())
    assert mail.endswith(b"lone\r\nends\r\n.\r\n.\r\nhere\r\n.\r\n")
    assert names(spool.forward) == []


async def test_what_was_sent_on_before_is_filed(spool: Spool, taker: tuple[Taker, int]) -> None:
    server, port = taker
    give(spool, b"Received: by x\r\nx-mta-forwarded: not-signed\r\nSubject: x\r\n\r\n")
    await forwarder(spool, port)._send(forwarder(spool, port)._waiting())
    assert server.taken == []
    assert [name.rpartition(".")[2] for name in names(spool.unplaced)] == ["loop"]


async def test_who_refuses_it_for_good_leaves_it_here_and_who_says_later_gets_it_later(
    spool: Spool, taker: tuple[Taker, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.inbound.forwarding.AGAIN_S", 0.05)
    monkeypatch.setattr("mta.inbound.forwarding.LOOK_S", 0.05)
    server, port = taker
    server.says = ["550 5.7.1 no", "451 4.3.0 later"]
    give(spool, b"Subject: refused\r\n\r\n", b"Subject: later\r\n\r\n", b"Subject: third\r\n\r\n")
    stop_wanted = asyncio.Event()
    running = asyncio.create_task(forwarder(spool, port).run(stop_wanted))
    await until("all are forwarded", lambda: len(server.taken) >= 2 and not names(spool.forward))
    stop_wanted.set()
    await running
    assert [b"later" in server.taken[0][2], b"third" in server.taken[1][2]] == [True, True]
    assert [name.rpartition(".")[2] for name in names(spool.unplaced)] == ["refused"]
