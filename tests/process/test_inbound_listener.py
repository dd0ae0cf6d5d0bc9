"""The listener on real sockets: what it takes, what it refuses with which code, and what it makes of nonsense."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme

from mta.inbound import connection as bounds
from mta.inbound import listener as listener_bounds
from mta.model.errors import BadInput
from tests.support.inbound import DOMAIN, KEY, listening, path_of
from tests.support.node import until

Run = Callable[[Coroutine[Any, Any, None]], None]
MAIL = b"Subject: x\r\n\r\nhello"
OURS = path_of(65_536)


def test_it_takes_what_is_for_signed_paths_and_for_its_names(run: Run, tmp_path: Path) -> None:
    async def go() -> None:
        async with listening(tmp_path) as scene:
            client = await scene.client()
            upper = OURS.upper()
            for to in (OURS, upper, f"fbl@{DOMAIN}", f"Unsubscribe+any@{DOMAIN}", f"postmaster@{DOMAIN}"):
                assert await client.hand_in(MAIL, to) == "250 2.0.0", to
            assert await client.code("MAIL FROM:<ann@example.com> BODY=8BITMIME SIZE=500") == "250 2.1.0"
            assert await client.code(f"RCPT TO:<{OURS}>") == "250 2.1.5"
            assert await client.code(f"RCPT TO:<abuse@{DOMAIN}>") == "250 2.1.5"
            assert await client.code("DATA") == "354"
            assert await client.code(b"X: y\r\n\r\n..dot\r\n...\r\n.x\r\n\xff\r\n.\r\n") == "250 2.0.0"
            mails = scene.mails()
            assert [stored.recipients for stored, _ in mails[:2]] == [[OURS], [upper]]
            stored, mail = mails[-1]
            assert stored.recipients == [OURS, f"abuse@{DOMAIN}"]
            assert (stored.mail_from, stored.client) == ("ann@example.com", "127.0.0.1")
            assert mail == b"X: y\r\n\r\n.dot\r\n..\r\nx\r\n\xff\r\n"
            assert mails[0][0].mail_from == ""

    run(go())


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("someone@elsewhere.example", "550 5.7.1"),
        (f"victim%elsewhere.example@{DOMAIN}", "550 5.7.1"),
        (f"elsewhere.example!victim@{DOMAIN}", "550 5.7.1"),
        (f"@{DOMAIN}:victim@elsewhere.example", "550 5.7.1"),
        (f'"victim@elsewhere.example"@{DOMAIN}', "550 5.7.1"),
        (f"victim@elsewhere.example@{DOMAIN}", "553 5.1.3"),
        ("postmaster@[127.0.0.1]", "550 5.7.1"),
        (f"postmaster@{DOMAIN}:25", "501"),
        (f"postmaster@sub.{DOMAIN}", "550 5.7.1"),
        (f"postmaster@{DOMAIN}.", "550 5.7.1"),
        (f"nobody@{DOMAIN}", "550 5.1.1"),
        (f"b-1@{DOMAIN}", "550 5.1.1"),
        (f"@{DOMAIN}", "553 5.1.3"),
        ("postmaster", "550 5.7.1"),
    ],
)
async def test_nothing_is_passed_on(tmp_path: Path, to: str, code: str) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        assert await client.code("MAIL FROM:<>") == "250 2.1.0"
        assert await client.code(f"RCPT TO:<{to}>") == code
        assert (await client.code("DATA"))[:3] == "503"
        assert scene.mails() == []


async def test_a_return_path_with_any_octet_changed_is_refused(tmp_path: Path) -> None:
    local, _, domain = OURS.partition("@")
    async with listening(tmp_path) as scene:
        client = await scene.client()
        assert await client.code("MAIL FROM:<>") == "250 2.1.0"
        tried = 0
        for at, octet in enumerate(local):
            for other in {"0", "f", "z", "-"} - {octet}:
                forged = local[:at] + other + local[at + 1 :]
                assert await client.code(f"RCPT TO:<{forged}@{domain}>") == "550 5.1.1", forged
                tried += 1
        assert await client.code(f"RCPT TO:<{path_of(65_536, b'another key, of 16 and more octets')}>") == "550 5.1.1"
        assert await client.code(f"RCPT TO:<{OURS}>") == "250 2.1.5"
        assert scene.listener.counts["forged"] > tried // 2
        assert scene.listener.counts["forged"] + scene.listener.counts["unknown"] == tried + 1


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r\n\0.\r\n", b"\r\n. \r\n"]
)
def test_what_looks_like_an_end_is_none(run: Run, tmp_path: Path, end: bytes) -> None:
    """SMTP smuggling (CVE-2023-51764 and its kin): one message, whatever is in it."""

    async def go() -> None:
        async with listening(tmp_path) as scene:
            client = await scene.client()
            inner = (
                b"MAIL FROM:<eve@example.com>\r\nRCPT TO:<" + OURS.encode() + b">\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
            )
            assert await client.hand_in(b"Subject: outer\r\n\r\nx" + end + inner, OURS) == "250 2.0.0"
            assert await client.code("NOOP") == "250"
            ((_, mail),) = scene.mails()
            assert b"smuggled" in mail

    run(go())


@pytest.mark.parametrize("cut", range(1, 6))
async def test_the_end_is_seen_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        for body in (b"", b"\r\n", b"x\r\n", b"x" * 65_530 + b"\r\n", (b"y" * 60 + b"\r\n") * 3_000):
            assert (await client.envelope(OURS))[-1] == "354"
            whole = body + b".\r\n"
            for piece in (whole[:-cut], whole[-cut:]):
                client.writer.write(piece)
                await client.writer.drain()
                await asyncio.sleep(0)
            assert (await client.reply()).startswith("250 2.0.0")
            assert scene.mails()[-1][1] == body


async def test_commands_behind_the_end_in_one_write_are_answered(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        one = b"MAIL FROM:<>\r\nRCPT TO:<%s>\r\nDATA\r\n" % OURS.encode()
        client.writer.write(one)
        assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
        client.writer.write(MAIL + b"\r\n.\r\n" + one)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        assert await client.code(b".\r\n") == "250 2.0.0"
        assert [mail for _, mail in scene.mails()] == [MAIL + b"\r\n", b""]


async def test_each_bound_has_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(tmp_path, size_mbytes_max=1) as scene:
        client = await scene.client()
        assert await client.code(f"MAIL FROM:<> SIZE={(1 << 20) + 1}") == "552"
        lines = b"\r\n".join([b"y" * 70] * 20_000)
        assert await client.hand_in(MAIL + lines, OURS) == "552 5.3.4"
        assert await client.hand_in(MAIL + b"z" * bounds.LINE_OCTETS_MAX, OURS) == "500 5.6.0"
        assert await client.hand_in(MAIL + b"z" * 5_000, OURS) == "250 2.0.0"  # over 1,000, and yet a bounce
        assert await client.hand_in(b"X: y\r\n" * 45_000 + b"\r\n", OURS) == "552 5.3.4"
        assert await client.hand_in(b"Received: by x\r\n" * 101 + b"\r\n", OURS) == "554 5.4.6"
        assert await client.hand_in(b"Received: by x\r\n" * 100 + b"\r\n", OURS) == "250 2.0.0"
        codes = await client.envelope(*[OURS] * 102)
        assert codes == ["250 2.1.0", *["250 2.1.5"] * 100, "452 4.5.3", "452 4.5.3", "354"]
        assert await client.code(MAIL + b"\r\n.\r\n") == "250 2.0.0"
        monkeypatch.setattr(listener_bounds, "BODIES_BYTES_MAX", 100_000)
        assert await client.hand_in(MAIL + lines[:200_000], OURS) == "452 4.3.1"
        assert await client.hand_in(MAIL, OURS) == "250 2.0.0"
        assert scene.listener.held == 0
        assert (await client.code(b"NOOP " + b"x" * 600 + b"\r\n")) == "500"
        assert (await client.code(b"x" * 200_000 + b"\r\n")) == "500"
        for _ in range(bounds.COMMANDS_MAX["*"]):
            code = await client.code("NOOP")
        assert code == "250"
        assert await client.code("NOOP") == "421 4.7.0"
        assert await client.is_closed()


async def test_a_body_of_empty_lines_takes_no_more_memory_than_its_size(tmp_path: Path) -> None:
    import resource

    async with listening(tmp_path, size_mbytes_max=20) as scene:
        client = await scene.client()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await client.hand_in(b"\r\n" * (9 << 20), OURS) == "250 2.0.0"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB; by lines it were 700 MB


async def test_connections_are_bounded_in_all_and_by_client(tmp_path: Path) -> None:
    async with listening(tmp_path, connections_max=4, connections_per_client_max=2) as scene:
        first, _second = await scene.client(), await scene.client()
        third = await scene.client(greets=False)
        assert (await third.reply()).startswith("421 4.3.2")
        assert await third.is_closed()
        assert await first.code("QUIT") == "221"
        assert await first.is_closed()
        again = await scene.client()
        assert await again.hand_in(MAIL, OURS) == "250 2.0.0"
        # From other addresses there is room for two more, and then for nobody.
        others = [await _from("127.0.0.2", scene.port), await _from("127.0.0.3", scene.port)]
        assert [(await reader.readline())[:3] for reader, _ in others] == [b"220", b"220"]
        reader, writer = await _from("127.0.0.4", scene.port)
        assert (await reader.readline()).startswith(b"421 4.3.2")
        for _, one in [*others, (reader, writer)]:
            one.close()


async def _from(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))


def test_a_client_that_says_nothing_is_sent_away(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "IDLE_S", 0.3)

    async def go() -> None:
        async with listening(tmp_path) as scene:
            silent = await scene.client()
            in_data = await scene.client()
            assert (await in_data.envelope(OURS))[-1] == "354"
            in_data.writer.write(b"Subject: x\r\n")
            for client in (silent, in_data):
                assert (await client.reply()).startswith("421 4.4.2")
                assert await client.is_closed()
            assert scene.listener.held == 0
            assert scene.mails() == []

    run(go())


def test_what_came_before_the_handshake_is_forgotten(run: Run, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    files = {"certificate_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    certificate.cert_chain_pems[0].write_to_path(files["certificate_file"])
    certificate.private_key_pem.write_to_path(files["key_file"])

    async def go() -> None:
        async with listening(tmp_path / "spool", **files) as scene:
            client = await scene.client()
            assert await client.code(b"STARTTLS\r\nMAIL FROM:<eve@example.com>\r\n") == "220"
            await client.start_tls()
            offered = await client.say("EHLO mx.example.net")  # no reply to MAIL comes before this one
            assert offered.startswith("250-back.test")
            assert "STARTTLS" not in offered
            assert "AUTH" not in offered
            assert await client.code("AUTH PLAIN AGEAYg==") == "502 5.5.1"
            assert await client.code(f"RCPT TO:<{OURS}>") == "503"  # there was no MAIL
            assert await client.hand_in(MAIL + b"\r\n" * 50_000, OURS) == "250 2.0.0"
            assert await client.code("QUIT") == "221"
            ((stored, _),) = scene.mails()
            assert stored.mail_from == ""

    run(go())


async def test_a_certificate_that_will_not_do_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(BadInput, match=r"inbound\.certificate_file: .*cert\.pem"):
        async with listening(tmp_path / "spool", certificate_file=str(tmp_path / "cert.pem")):
            pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with pytest.raises(BadInput, match=rf"inbound\.listen: 127\.0\.0\.1:{address[1]}"):
            async with listening(tmp_path / "other", addresses=(address,)):
                pass


async def test_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        assert "AUTH" not in await client.say("EHLO mx.example.net")
        assert await client.code("XCLIENT ADDR=127.0.0.9") == "500"
        assert await client.code("PROXY TCP4 192.0.2.1 192.0.2.2 1 25") == "500"
        assert await client.code("STARTTLS") == "454"
        assert (
            await client.code(f"VRFY postmaster@{DOMAIN}")
            == await client.code("VRFY nobody@example.com")
            == "252 2.5.2"
        )
        assert (await client.code("EXPN list"))[:3] == "502"
        assert await client.code("MAIL FROM:<> RET=HDRS") == "555"
        assert await client.code("MAIL FROM:<" + "(" * 400 + ">") in ("553 5.1.3", "451 4.3.0")
        assert await client.hand_in(MAIL, OURS) == "250 2.0.0"
        proxied = await scene.client(greets=False)
        await proxied.reply()
        assert await proxied.code(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n") == "500"
        assert [stored.client for stored, _ in scene.mails()] == ["127.0.0.1"]


async def test_unknown_commands_end_a_connection(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        codes = [await client.code(b"\x16\x03\x01GET / HTTP/1.1\r\n") for _ in range(5)]
        assert codes[-1].startswith("502 5.5.1")
        assert await client.is_closed()


async def test_senders_of_any_octets_are_kept_as_text(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        assert (await client.code(b"MAIL FROM:<\xc3\xa4nn@example.com> SMTPUTF8\r\n")) == "250 2.1.0"
        assert await client.code(f"RCPT TO:<{OURS}>") == "250 2.1.5"
        assert await client.code("RCPT TO:<b-ä-0000000000000000@back.example>") == "550 5.1.1"
        assert await client.code("DATA") == "354"
        assert await client.code(MAIL + b"\r\n.\r\n") == "250 2.0.0"
        code = await client.code(b"MAIL FROM:<\xff@example.com>\r\n")
        if code == "250 2.1.0":
            assert await client.code(f"RCPT TO:<{OURS}>") == "250 2.1.5"
            assert await client.code("DATA") == "354"
            assert await client.code(MAIL + b"\r\n.\r\n") == "250 2.0.0"
        assert scene.mails()[0][0].mail_from == "änn@example.com"


async def test_a_client_that_goes_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        for at in (b"", b"Subject: x\r\n", MAIL, MAIL + b"\r\n.", MAIL + b"\r\n.\r"):
            client = await scene.client()
            assert (await client.envelope(OURS))[-1] == "354"
            client.writer.write(at)
            await client.writer.drain()
            client.writer.close()
        # Who goes before the reply to the end was handed over all the same.
        last = await scene.client()
        assert (await last.envelope(OURS))[-1] == "354"
        last.writer.write(MAIL + b"\r\n.\r\n")
        last.writer.close()
        await until("it is in the spool", lambda: scene.mails() and not scene.listener.held)
        stays = await scene.client()
        assert await stays.hand_in(MAIL, OURS) == "250 2.0.0"  # the spool's writer goes on
        assert len(scene.mails()) == 2


async def test_a_full_spool_says_later(tmp_path: Path) -> None:
    async with listening(tmp_path, spool_mbytes_max=1) as scene:
        client = await scene.client()
        assert await client.hand_in(MAIL + (b"\r\n" + b"x" * 900) * 1_200, OURS) == "250 2.0.0"
        assert await client.code("MAIL FROM:<>") == "452 4.3.1"
        (path,) = scene.spool.waiting(10)
        scene.spool.settle(path, {}, 0)
        assert await client.hand_in(MAIL, OURS) == "250 2.0.0"


async def test_a_disk_that_takes_nothing_says_later(tmp_path: Path) -> None:
    async with listening(tmp_path) as scene:
        client = await scene.client()
        away = tmp_path / "away"
        (tmp_path / "tmp").rename(away)
        assert await client.hand_in(MAIL, OURS) == "452 4.3.1"
        away.rename(tmp_path / "tmp")
        assert await client.hand_in(MAIL, OURS) == "250 2.0.0"
        assert KEY not in (tmp_path / "new").iterdir().__next__().read_bytes()
