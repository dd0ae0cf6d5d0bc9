"""The sink as a far end: real processes, real sockets, smtplib and aiosmtplib as clients."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiosmtplib
import pytest

from mta.model.errors import BadInput
from mta.sink.processes import SinkOptions, SinkProcesses
from mta.sink.record import Accepted, Connection, Record, Started, read_body, read_record

MESSAGE = b"Message-ID: <%s@shop.example>\r\nSubject: hello\r\n\r\nDear reader\r\n"
TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcesses]:
    """One sink for the tests that look at replies only, or at their own recipients in the record."""
    directory = tmp_path_factory.mktemp("sink")
    with SinkProcesses(SinkOptions(record=directory / "record", bodies=True, tls=True)) as processes:
        yield processes


def client_of(sink: SinkProcesses, address: str = "127.0.0.1") -> smtplib.SMTP:
    return smtplib.SMTP(address, sink.port, timeout=TIMEOUT_S)


def messages_to(sink: SinkProcesses, recipient: str) -> list[Accepted]:
    return [message for message in sink.record().accepted if recipient in message.recipients]


class Raw:
    """A client that sends what it is told and reads whole replies, greeting first."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((address, port), timeout=TIMEOUT_S)
        self._lines = self.socket.makefile("rb")
        self.greeting = self.reply()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """The last line of the next reply; "" at the end of the connection."""
        while True:
            line = self._lines.readline().decode()
            if line[3:4] != "-":
                return line.rstrip("\r\n")

    def codes(self, replies: int) -> list[int]:
        return [int(self.reply()[:3]) for _ in range(replies)]


def test_announces_its_extensions(sink: SinkProcesses) -> None:
    with client_of(sink) as client:
        client.ehlo("c.example")
        announced = {"pipelining", "size", "8bitmime", "smtputf8", "enhancedstatuscodes", "starttls"}
        assert announced == set(client.esmtp_features)


def test_pipelined_transactions_are_answered_in_order_and_all_stored(sink: SinkProcesses) -> None:
    envelope = b"MAIL FROM:<a@shop.example> SIZE=99 BODY=8BITMIME\r\n"
    envelope += b"RCPT TO:<pipe%d@x.test>\r\nRCPT TO:<550+%d@x.test>\r\nDATA\r\n"
    with Raw(sink.port) as raw:
        raw.send(b"EHLO c.example\r\n")
        assert raw.reply().startswith("250")
        raw.send(envelope % (0, 0))
        assert raw.codes(4) == [250, 250, 550, 354]
        for number in range(1, 20):
            raw.send(MESSAGE % b"%d" % (number - 1) + b".\r\n" + envelope % (number, number))
            assert raw.codes(5) == [250, 250, 250, 550, 354]
        raw.send(MESSAGE % b"19" + b".\r\nRSET\r\nNOOP\r\nQUIT\r\n")
        assert raw.codes(4) == [250, 250, 250, 221]
        assert raw.reply() == ""
    stored = [message for message in sink.record().accepted if message.recipients[0].startswith("pipe")]
    assert [f"<{number}@shop.example>" for number in range(20)] == [message.message_id for message in stored]
    assert not [violated for violated in sink.record().violations if violated.connection == stored[0].connection]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"a\r\n..b\r\n...\r\n.\r\n", b"a\r\n.b\r\n..\r\n"),
        (b"x" * 300_000 + b"\r\n" + b"..y\r\n" * 50_000 + b".\r\n", b"x" * 300_000 + b"\r\n" + b".y\r\n" * 50_000),
    ],
    ids=["empty", "one empty line", "one dot", "dots", "larger than its buffer"],
)
def test_a_body_is_stored_as_it_was_before_transparency(sink: SinkProcesses, sent: bytes, stored: bytes) -> None:
    recipient = f"body{len(sent)}@x.test"
    with Raw(sink.port) as raw:
        raw.send(b"EHLO c\r\n")
        raw.reply()
        raw.send(b"MAIL FROM:<>\r\nRCPT TO:<%s>\r\nDATA\r\n" % recipient.encode())
        assert raw.codes(3) == [250, 250, 354]
        raw.send(sent + b"QUIT\r\n")
        assert raw.codes(2) == [250, 221]
    (message,) = messages_to(sink, recipient)
    assert (len(stored), "") == (message.size_bytes, message.mail_from)
    assert stored == read_body(sink.record_dir, message)


def test_a_body_that_comes_in_single_octets_ends_where_it_ends(sink: SinkProcesses) -> None:
    with Raw(sink.port) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.send(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<slow@x.test>\r\nDATA\r\n")
        assert raw.codes(4) == [250, 250, 250, 354]
        for octet in b"\r\n.\n\r\r\n..\r\n.\r\n":
            raw.send(bytes([octet]))
        assert raw.codes(1) == [250]
    (message,) = messages_to(sink, "slow@x.test")
    assert read_body(sink.record_dir, message) == b"\r\n\n\r\r\n.\r\n"
    assert "bare-newline" in [violated.what for violated in sink.record().violations]


@pytest.mark.parametrize(
    ("local_part", "code"),
    [("550-5.1.6+1", 550), ("rcpt-451", 451), ("data-554", 554), ("dot-452", 452), ("name--450", 450)],
)
def test_replies_by_local_part(sink: SinkProcesses, local_part: str, code: int) -> None:
    with client_of(sink) as client:
        recipient = f"{local_part}@replies.test"
        with pytest.raises((smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError)) as caught:
            client.sendmail("a@shop.example", recipient, MESSAGE % b"r")
        got = caught.value
        assert code == (
            got.recipients[recipient][0] if isinstance(got, smtplib.SMTPRecipientsRefused) else got.smtp_code
        )
        client.rset()
        assert client.sendmail("a@shop.example", "ok@replies.test", MESSAGE % b"r") == {}
    assert (code, (recipient,)) in [(refused.code, refused.recipients) for refused in sink.record().refused]
    assert not messages_to(sink, recipient)


@pytest.mark.parametrize(("word", "is_stored"), [("drop-after-dot", True), ("reset-after-dot", True), ("lose", False)])
def test_end_after_the_dot_leaves_the_client_without_a_reply(sink: SinkProcesses, word: str, is_stored: bool) -> None:
    recipient = f"{word}+here@x.test"
    client = client_of(sink)
    with pytest.raises(smtplib.SMTPServerDisconnected):
        client.sendmail("a@shop.example", recipient, MESSAGE % b"d")
    client.close()
    assert [0] * is_stored == [message.reply for message in messages_to(sink, recipient)]


def test_421_is_answered_and_closes(sink: SinkProcesses) -> None:
    with Raw(sink.port) as raw:
        raw.send(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<421@x.test>\r\nRCPT TO:<ok@x.test>\r\n")
        assert raw.codes(3) == [250, 250, 421]
        assert raw.reply() == ""


async def test_hang_never_answers_and_delay_answers_late(sink: SinkProcesses) -> None:
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=sink.port, timeout=TIMEOUT_S, start_tls=False)
    await client.connect()
    await client.ehlo()
    await client.mail("a@shop.example")
    with pytest.raises(aiosmtplib.SMTPTimeoutError):
        await client.rcpt("rcpt-hang@x.test", timeout=0.1)
    client.close()
    loop = asyncio.get_running_loop()
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=sink.port, timeout=TIMEOUT_S, start_tls=False) as client:
        before = loop.time()
        await client.sendmail("a@shop.example", "delay-120@x.test", MESSAGE % b"h")
        assert loop.time() - before >= 0.12


def test_starttls_with_its_certificate_starts_a_new_session(sink: SinkProcesses) -> None:
    assert sink.certificate is not None
    context = ssl.create_default_context(cafile=str(sink.certificate))
    with client_of(sink) as client:
        client.starttls(context=context)
        assert client.mail("a@shop.example")[0] == 503  # EHLO is due again (RFC 3207 §4.2)
        client.ehlo("c.example")
        assert "starttls" not in client.esmtp_features
        assert client.sendmail("a@shop.example", "tls@x.test", MESSAGE % b"t") == {}
    (message,) = messages_to(sink, "tls@x.test")
    closed = [event for event in sink.record().connections if not event.is_open]
    assert [event.tls for event in closed if event.connection == message.connection] == ["TLSv1.3"]


async def test_starttls_by_aiosmtplib(sink: SinkProcesses) -> None:
    options = {"hostname": "127.0.0.1", "port": sink.port, "start_tls": True, "cert_bundle": str(sink.certificate)}
    await aiosmtplib.send(MESSAGE % b"a", sender="a@shop.example", recipients=["tls2@x.test"], **options)
    assert len(messages_to(sink, "tls2@x.test")) == 1


def test_non_ascii_addresses_need_smtputf8_and_are_recorded_as_they_are(sink: SinkProcesses) -> None:
    with Raw(sink.port) as raw:
        raw.send(b"EHLO c\r\n" + "MAIL FROM:<björn@b.test>\r\n".encode() + b"MAIL FROM:<b@b.test> SMTPUTF8\r\n")
        assert raw.codes(3) == [250, 553, 250]
        raw.send("RCPT TO:<jörg@x.test>\r\nRCPT TO:<".encode() + b"\xff@x.test>\r\nDATA\r\n")
        assert raw.codes(3) == [250, 250, 354]
        raw.send(b"a\r\n.\r\n")
        assert raw.codes(1) == [250]
    assert messages_to(sink, "jörg@x.test")[0].recipients[1] == "\\xff@x.test"


def test_hidden_extensions_are_not_offered_and_their_use_is_noticed(tmp_path: Path) -> None:
    options = SinkOptions(record=tmp_path, hide=("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "STARTTLS"), tls=True)
    with SinkProcesses(options) as sink, Raw(sink.port) as raw:
        raw.send(b"EHLO c\r\n")
        assert raw.codes(1) == [250]
        raw.send(b"MAIL FROM:<a@b.test> SIZE=10\r\n")
        assert raw.codes(1) == [555]
        raw.send(b"MAIL FROM:<a@b.test>\r\n")
        assert raw.codes(1) == [250]
        assert [event.what for event in sink.record().violations if event.what == "pipelining"] == []
        raw.send(b"RCPT TO:<a@x.test>\r\nDATA\r\n")
        assert raw.codes(2) == [250, 354]
        raw.send(b"\xe9\r\n.\r\n")
        assert raw.codes(1) == [250]
        assert [event.what for event in sink.record().violations] == ["extension", "pipelining", "8bit"]


def test_a_body_sent_ahead_of_354_is_noticed(sink: SinkProcesses) -> None:
    with Raw(sink.port) as raw:
        raw.send(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<ahead@x.test>\r\nDATA\r\nx\r\n.\r\n")
        assert raw.codes(5) == [250, 250, 250, 354, 250]
    (message,) = messages_to(sink, "ahead@x.test")
    seen = [event.what for event in sink.record().violations if event.connection == message.connection]
    assert seen == ["pipelining-data"]


def test_script_by_file(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(
        """
        [[rule]]
        step = "connect"
        client = "127.0.0.7"
        code = 554
        text = "5.7.1 go away"
        [[rule]]
        step = "helo"
        helo = "bad.example"
        code = 550
        [[rule]]
        step = "mail"
        mail_from = "spam@*"
        disconnect = "before-reply"
        [[rule]]
        step = "rcpt"
        recipient = "*@busy.test"
        code = 451
        text = "4.7.1 busy"
        disconnect = "after-reply"
        """
    )
    with SinkProcesses(SinkOptions(record=tmp_path / "record", script=script)) as sink:
        with pytest.raises(smtplib.SMTPConnectError) as caught:
            smtplib.SMTP("127.0.0.1", sink.port, timeout=TIMEOUT_S, source_address=("127.0.0.7", 0))
        assert (caught.value.smtp_code, caught.value.smtp_error) == (554, b"5.7.1 go away")
        with Raw(sink.port) as raw:
            raw.send(b"EHLO bad.example\r\nEHLO good.example\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@busy.test>\r\n")
            assert raw.codes(4) == [550, 250, 250, 451]
            assert raw.reply() == ""
        with Raw(sink.port) as raw:
            raw.send(b"EHLO c\r\nMAIL FROM:<spam@b.test>\r\n")
            assert raw.codes(1) == [250]
            assert raw.reply() == ""


async def send_many(sink: SinkProcesses, connections: int, each: int, address: str = "127.0.0.1") -> None:
    async def one(number: int) -> None:
        async with aiosmtplib.SMTP(hostname=address, port=sink.port, timeout=TIMEOUT_S, start_tls=False) as client:
            for message in range(each):
                name = b"%d-%d" % (number, message)
                await client.sendmail("a@shop.example", f"u{number}-{message}@x.test", MESSAGE % name)

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(one(number))


async def test_several_processes_on_several_addresses_record_all(tmp_path: Path) -> None:
    addresses = ["127.0.0.2", "127.0.0.3", "::1"]
    options = SinkOptions(record=tmp_path, processes=2, addresses=addresses)
    async with SinkProcesses(options) as sink:
        assert len(set(sink.pids)) == 2
        for address in addresses:
            await send_many(sink, 16, 5, address)
    record = sink.record()
    assert len({message.connection.rpartition(".")[0] for message in record.accepted}) == 2
    assert {f"u{number}-{message}@x.test": 3 for number in range(16) for message in range(5)} == record.recipients()
    assert set(addresses) == set(record.max_in_window_by(60.0, "local"))
    assert record.max_in_window(60.0, "local") == 80
    assert record.messages_per_connection_max() == 5
    assert 16 >= record.connections_max_seen("all") >= 2
    assert len(record.duplicates()) == 80
    assert 240 == sum(record.messages_per_second().values()) == sink.statistics().messages
    opened = [event.connection for event in record.connections if event.is_open]
    assert sorted(opened) == sorted(event.connection for event in record.connections if not event.is_open)


@pytest.mark.parametrize("processes", [1, 3])
async def test_provider_counts_over_all_processes(tmp_path: Path, processes: int) -> None:
    limits = tmp_path / "provider.toml"
    limits.write_text("connections_max = 4\nmessages_per_connection_max = 3\n")
    options = SinkOptions(record=tmp_path / "record", processes=processes, provider=limits)
    async with SinkProcesses(options) as sink:
        await send_many(sink, 4, 3)
        await send_many(sink, 4, 3)
        assert sink.statistics().violations == {}
        held = [Raw(sink.port) for _ in range(6)]
        assert [raw.greeting[:3] for raw in held] == ["220"] * 4 + ["421"] * 2
        for raw in held:
            raw.__exit__()
    with pytest.raises(ConnectionRefusedError):
        Raw(sink.port)
    assert sink.statistics().violations == {"connections": 2}


async def test_provider_notices_a_message_too_many(tmp_path: Path) -> None:
    limits = tmp_path / "provider.toml"
    limits.write_text("messages_per_connection_max = 3\nblock_s = 3600\n")
    async with SinkProcesses(SinkOptions(record=tmp_path / "record", provider=limits)) as sink:
        with pytest.raises(aiosmtplib.SMTPSenderRefused) as caught:
            await asyncio.wait_for(_send_on_one(sink, 4), TIMEOUT_S)
        assert caught.value.code == 421
        with Raw(sink.port) as raw:
            assert raw.greeting.startswith("421")
    assert sink.statistics().violations == {"messages-per-connection": 1, "block-ignored": 1}
    assert sink.record().messages_per_connection_max() == 3


async def _send_on_one(sink: SinkProcesses, messages: int) -> None:
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=sink.port, timeout=TIMEOUT_S, start_tls=False)
    await client.connect()
    try:
        for number in range(messages):
            await client.sendmail("a@shop.example", f"u{number}@x.test", MESSAGE % b"%d" % number)
    finally:
        client.close()


def test_what_was_answered_survives_a_kill_and_the_port_stays(tmp_path: Path) -> None:
    with SinkProcesses(SinkOptions(record=tmp_path)) as sink:
        client = client_of(sink)
        for number in range(20):
            client.sendmail("a@shop.example", f"k{number}@x.test", MESSAGE % b"%d" % number)
        sink.kill(0)
        assert len(sink.record().accepted) == 20
        assert len(sink.ended()) == 1
        client.close()
        port = sink.port
        sink.restart(0)
        with client_of(sink) as client:
            client.sendmail("a@shop.example", "after@x.test", MESSAGE % b"z")
        assert port == sink.port
    assert len(sink.record().accepted) == 21
    assert sink.record().connections_max_seen("all") == 1


def test_a_torn_last_line_is_no_event_but_damage_is_told(tmp_path: Path) -> None:
    with SinkProcesses(SinkOptions(record=tmp_path)) as sink, client_of(sink) as client:
        client.sendmail("a@shop.example", "a@x.test", MESSAGE % b"1")
    (file,) = tmp_path.glob("*.ndjson")
    whole = list(read_record(tmp_path))
    with file.open("ab") as lines:
        lines.write(b'["A",1.0,')
    assert whole == list(read_record(tmp_path))
    with file.open("ab") as lines:
        lines.write(b"\n")
    with pytest.raises(BadInput) as caught:
        Record.load(tmp_path)
    assert f"{file}:{len(whole) + 1}" == caught.value.where


def opened(at_s: float, name: str, local: str = "127.0.0.2", *, is_open: bool = True) -> Connection:
    return Connection(at_s, at_s, f"stem.{name}", is_open, "127.0.0.9", 4711, local)


def test_connections_of_a_killed_process_end_with_its_last_word() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait(TIMEOUT_S)
    first = [Started(0.0, 0.0, "stem", dead.pid), opened(1.0, "1"), opened(2.0, "2"), opened(3.0, "2", is_open=False)]
    later = [Connection(4.0, 4.0, f"next.{number}", True, "127.0.0.9", 1, "127.0.0.2") for number in range(2)]
    assert Record([*first, *later]).connections_max_seen("all") == 2
    alive = [Started(0.0, 0.0, "stem", os.getpid()), *first[1:]]
    assert Record([*alive, *later]).connections_max_seen("all") == 3


def test_connections_are_counted_by_path() -> None:
    events = [opened(1.0, "1"), opened(1.5, "2", "127.0.0.3"), opened(2.0, "1", is_open=False), opened(2.0, "3")]
    record = Record(events)
    assert record.connections_max_by("path") == {"127.0.0.9>127.0.0.2": 1, "127.0.0.9>127.0.0.3": 1}
    assert record.connections_max_by("client") == {"127.0.0.9": 2}


def test_windows_are_half_open() -> None:
    times = [0.0, 0.5, 1.0, 9.0]
    to = ("a@x.test",)
    record = Record([Accepted(at, at, "s.1", "127.0.0.9", "127.0.0.2", "", to, "<1@x>", 5) for at in times])
    assert [record.max_in_window(seconds) for seconds in (0.5, 1.0, 1.01, 10.0)] == [1, 2, 3, 4]
    assert record.messages_per_second() == {0: 2, 1: 1, 9: 1}
    assert record.duplicates() == {("a@x.test", "<1@x>"): 4}


def test_a_taken_port_is_bad_input_and_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sink = SinkProcesses(SinkOptions(record=tmp_path, port=taken.getsockname()[1]))
        with pytest.raises(BadInput, match="cannot be listened on"):
            sink.start()
        assert sink.pids == []


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"addresses": ["localhost"]}, "addresses"),
        ({"addresses": []}, "addresses"),
        ({"port": 70_000}, "port"),
        ({"processes": 0}, "processes"),
        ({"hide": ("CHUNKY",)}, "hide"),
        ({"hostname": "a\r\nb"}, "hostname"),
        ({"script": Path("/absent/script.toml")}, "/absent/script.toml"),
        ({"provider": Path("/absent/provider.toml")}, "/absent/provider.toml"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(tmp_path: Path, wrong: dict[str, object], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        SinkProcesses(SinkOptions(record=tmp_path, **wrong))  # type: ignore[arg-type]
    assert where == caught.value.where


def test_command_tells_where_it_listens_and_what_came(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mta.cli.sink", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]
    command += ["--processes", "2", "--record", str(tmp_path / "record"), "--hide", "pipelining,size", "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        address, port = said["listening"][0].split(":")
        assert f"[::1]:{port}" == said["listening"][1]
        with smtplib.SMTP(address, int(port), timeout=TIMEOUT_S) as client:
            client.sendmail("a@shop.example", ["a@x.test", "b@x.test"], MESSAGE % b"1")
            assert "pipelining" not in client.esmtp_features
        process.send_signal(signal.SIGTERM)
        statistics = json.loads(process.stdout.readline())
        assert process.wait(TIMEOUT_S) == 0
    assert (statistics["messages"], statistics["recipients"], statistics["connections"]) == (1, 2, 1)


def test_no_sink_outlives_who_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mta.cli.sink", "--listen", "127.0.0.1:0", "--record", str(tmp_path), "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        (pid,) = json.loads(process.stdout.readline())["pids"]
        sink_process = os.pidfd_open(pid)
        process.kill()
    ended, _, _ = select.select([sink_process], [], [], TIMEOUT_S)
    os.close(sink_process)
    assert ended


def test_command_says_what_a_record_holds(sink: SinkProcesses) -> None:
    command = [sys.executable, "-m", "mta.cli.sink", "summary", str(sink.record_dir), "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(command, capture_output=True, env=env, timeout=TIMEOUT_S, check=True).stdout
    assert json.loads(said)["messages"] == sink.statistics().messages


def test_command_refuses_bad_input_with_its_place(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[rule]]\nstep = "rcpt"\ncode = 12\n')
    command = [sys.executable, "-m", "mta.cli.sink", "--listen", "127.0.0.1:0", "--script", str(script)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert f"{script}: rule 1.code" in done.stderr
