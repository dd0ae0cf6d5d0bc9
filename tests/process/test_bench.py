"""``python -m bench``: that it measures at all, says so in the agreed form, and that what it says adds up.

No speed is asserted here. The scenarios run side by side, each once, as small as they get.
"""

from __future__ import annotations

import json
import os
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import usage
from bench.far import Receiver, SinkKind, far_end, program
from bench.openssl import read_speed
from bench.picture import picture
from bench.receiver import ReceiverOptions
from mta.model.errors import BadInput
from tests.support.launch import run

ROOT = Path(__file__).parents[2]
SIDE_BY_SIDE = 3
CPU = {"master", "children", "postgres", "sink", "nameserver"}
RUNS = {
    "drain": "drain --recipients 200 --size 1000 --sink aiosmtpd --children 1",
    "signed": "drain --recipients 300 --tls --dkim ed25519 --peers --children 1",
    "matrix": "matrix --seconds-per-cell 0.01 --size-kb 10 --children 1",
    "slow": "slow --recipients 200 --connections 100 --sink receiver --children 1",
    "throttled": "throttled --recipients 400 --domains 20 --sink aiosmtpd --hold 0 --children 2",
    "mix": "mix --recipients 400 --size 10000 --children 1",
    "longtail": "longtail --domains 100 --hosts 25 --large 500 --sink receiver --children 1",
    "claim": "claim --waiting 500 --waiting 5000 --claims 20",
}

Told = Callable[[str], dict[str, Any]]


def _bench(arguments: str, directory: str) -> tuple[dict[str, Any], str]:
    """The last line of a run, and what it wrote to standard error; nothing of it is left in ``directory``."""
    environment = {**os.environ, "TMPDIR": directory}
    done = run([*arguments.split(), "--json"], environment, ROOT, module="bench.__main__", wait_s=100)
    assert done.returncode == 0, done.stderr
    assert os.listdir(directory) == []
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future[tuple[dict[str, Any], str]]]]:
    """All of `RUNS`, under way."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        # Not below pytest's own directory, which nobody but its owner passes through: Postfix is several users.
        directories = {name: tempfile.mkdtemp(prefix="bench-test-") for name in RUNS}
        for directory in directories.values():
            Path(directory).chmod(0o711)
        try:
            yield {name: pool.submit(_bench, arguments, directories[name]) for name, arguments in RUNS.items()}
        finally:
            pool.shutdown(cancel_futures=True)
            for directory in directories.values():
                shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def told(runs: dict[str, Future[tuple[dict[str, Any], str]]]) -> Told:
    return lambda name: runs[name].result()[0]


def test_drain_ends_with_the_agreed_line(told: Told) -> None:
    line = told("drain")
    assert line["messages_per_second"] > 0
    cpu, rss = line["cpu_us_per_message"], line["rss_mb"]
    assert set(cpu) == CPU
    assert set(rss) == {"master", "child", "postgres"}
    assert all(isinstance(value, float) and value >= 0 for value in cpu.values())
    assert cpu["master"] > 0 < cpu["children"]
    assert all(isinstance(value, float) and value > 0 for value in rss.values())
    source, ratio = line["smtp_source_messages_per_second"], line["ratio_to_smtp_source"]
    assert (source is None) == (ratio is None) == (program("smtp-source") is None)
    assert source is None or source > 0 < ratio
    assert line["dkim"] == "none"
    assert line["openssl_signs_per_second"] is line["postfix"] is line["ratio_to_postfix"] is None


def test_a_signed_drain_over_tls_is_measured_beside_openssl(told: Told) -> None:
    line = told("signed")
    assert (line["tls"], line["dkim"], line["sink"]) == (True, "ed25519", "receiver")
    if shutil.which("openssl"):
        cores = len(os.sched_getaffinity(0))
        ratio = line["messages_per_second"] / line["openssl_signs_per_second"] / cores
        assert line["ratio_to_openssl"] == pytest.approx(ratio, abs=0.001)


def test_postfix_is_measured_or_loudly_left_out(runs: dict[str, Future[tuple[dict[str, Any], str]]]) -> None:
    line, said = runs["signed"].result()
    if os.geteuid() or program("postfix") is None or program("smtp-source") is None:
        assert line["postfix"] is line["ratio_to_postfix"] is None
        assert "SKIPPED" in said
        return
    assert line["postfix"]["version"]
    assert all(line["postfix"][f"{name}_messages_per_second"] > 0 for name in ("drain", "inject", "inject_and_deliver"))
    assert line["ratio_to_postfix"] > 0
    assert not _processes_with(b"mta-bench-peer-")


def test_matrix_has_each_combination_once(told: Told) -> None:
    line = told("matrix")
    cells = [(cell["size_kbytes"], cell["tls"], cell["dkim"]) for cell in line["cells"]]
    assert sorted(cells) == [(10, tls, dkim) for tls in (False, True) for dkim in ("none", "rsa2048")]
    for cell in line["cells"]:
        assert cell["mbytes_per_second"] == pytest.approx(cell["messages_per_second"] * 0.01, abs=0.01)
        assert set(cell["cpu_us_per_message"]) == CPU
    assert line["tls_ratio_10kb"] > 0


def test_slow_measures_against_one_message_a_second_and_connection(told: Told) -> None:
    line = told("slow")
    assert line["ideal_messages_per_second"] == 100
    assert 0 < line["window_seconds"] < line["seconds"]
    assert line["seconds"] >= 2  # 200 messages over 100 connections


def test_throttled_sends_the_free_half_and_keeps_the_rest(told: Told) -> None:
    line = told("throttled")
    assert line["throttled_delivered"] <= 50  # the share of five minutes of 600 an hour
    assert line["throttled_delivered"] + line["pending"] == 200
    assert line["free_messages_per_second"] > 0 < line["alone_messages_per_second"]
    assert set(line["rss_mb"]["master"]) == {"start", "peak", "end"}
    assert len(line["rss_mb"]["children"]) == 2


def test_mix_sees_every_refusal_through_to_its_end(told: Told) -> None:
    line = told("mix")
    assert line["delivered"] + line["failed"] == 400
    assert line["deferrals"] > 0 < line["failed"]
    taken = line["taken"]
    # The receiver counted the messages of the warm-up, too.
    assert taken["messages"] > line["delivered"]
    assert taken["temporary"] > line["deferrals"]
    assert taken["permanent"] > line["failed"]


def test_longtail_tells_what_each_has_taken(told: Told) -> None:
    line = told("longtail")
    for who in ("tail_alone", "large_alone"):
        assert line[f"{who}_messages_per_second"] > 0
    # So few messages may be through before the other's first.
    assert line["tail_messages_per_second"] + line["large_messages_per_second"] > 0
    for who in ("tail", "large", "both"):
        assert set(line[f"{who}_cpu_us_per_message"]) == CPU
    assert line["large_explained_messages_per_second"] >= 0


def test_claim_is_timed_on_both_queues(told: Told) -> None:
    line = told("claim")
    assert [(queue["waiting"], queue["parts"]) for queue in line["queues"]] == [(500, 5), (5_000, 50)]
    assert all(0 < queue["median_ms"] <= queue["p99_ms"] for queue in line["queues"])
    assert line["median_ratio"] > 0


def test_all_writes_what_picture_draws(told: Told, tmp_path: Path) -> None:
    out, drawing = tmp_path / "all.json", tmp_path / "all.svg"
    command = [sys.executable, "-m", "bench", "all", "--scale", "0.001", "--only", "append", "--json-out", str(out)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=100, check=True)
    written = json.loads(out.read_bytes())
    assert set(written) == {"at", "machine", "scale", "scenarios"}
    assert set(written["scenarios"]) == {"append"}
    appended = written["scenarios"]["append"]
    assert appended["recipients"] == 1_000
    assert appended["recipients_per_second"] > appended["whole_command_recipients_per_second"] > 0
    written["scenarios"] |= {name: told(name) for name in ("drain", "matrix", "mix")}
    drawing.write_text(picture(json.dumps(written).encode(), "all.json"))
    texts = [element.text for element in ElementTree.parse(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert "drain: mta" in texts
    assert "10 KB, STARTTLS, DKIM rsa2048" in texts
    assert "mix" in texts, "its count of failed recipients is no failure of the scenario"


@pytest.mark.parametrize("text", [b"", b"[]", b'{"scenarios": 1}', b'{"scenarios": {}, "machine": {}}'])
def test_picture_refuses_what_is_no_set_of_figures(text: bytes) -> None:
    with pytest.raises(BadInput, match=r"figures\.json"):
        picture(text, "figures.json")


@pytest.mark.parametrize(
    ("told", "signs"),
    [("+F2:2:2048:3502.02:62515.00\n", 3502.02), ("Doing...\n+F6:0:253:Ed25519:29816.00:11384.00\n", 29816.0)],
)
def test_the_speed_of_openssl_is_that_of_signing(told: str, signs: float) -> None:
    assert read_speed(told) == signs


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    started = []

    def start(**options: Any) -> Receiver:
        far = Receiver(ReceiverOptions(**options))
        started.append(far)
        far.start()
        return far

    yield start
    for far in started:
        far.stop()


def test_the_receiver_counts_what_it_took_however_it_was_cut(receiver: Callable[..., Receiver]) -> None:
    far = receiver(chunking=True)
    bodies = [b"", b"one line\r\n", b"..a dot\r\n.\r" * 3 + b"\r\n", b"x" * 5_000 + b"\r\n"]
    for cut in (1, 2, 3, 5, 1 << 20):
        with _Raw(far.port) as raw:
            for body in bodies:
                raw.ask(b"MAIL FROM:<a@shop.example>\r\nRCPT TO:<b@d.test>\r\nDATA\r\n", 3, cut)
                raw.ask(body + b".\r\nNOOP\r\n", 2, cut)
            raw.ask(
                b"MAIL FROM:<a@shop.example>\r\nRCPT TO:<b@d.test>\r\nBDAT 3\r\nabcBDAT 2 LAST\r\n.\nQUIT\r\n", 5, cut
            )
    far.stop()
    assert far.taken.sessions == 5
    assert far.taken.messages == 5 * (len(bodies) + 1)
    assert far.taken.bytes == 5 * (sum(map(len, bodies)) + 5)


def test_the_receiver_refuses_the_same_addresses_and_some_only_once(receiver: Callable[..., Receiver]) -> None:
    far = receiver(processes=2, tls=True, permanent=0.2, temporary=0.3)
    addresses = [f"u{number}@d.test" for number in range(200)]
    insecure = ssl._create_unverified_context()
    codes = []
    for _ in range(2):
        with smtplib.SMTP("127.0.0.1", far.port, timeout=30) as smtp:
            smtp.starttls(context=insecure)
            smtp.ehlo()
            smtp.mail("news@shop.example")
            codes.append([smtp.rcpt(address)[0] for address in addresses])
    first, second = codes
    assert 20 <= first.count(550) <= 60
    assert 35 <= first.count(451) <= 85
    assert [550 if code == 550 else 250 for code in first] == second
    far.stop()
    assert far.taken.permanent == 2 * first.count(550)
    assert far.taken.temporary == first.count(451)
    assert far.taken.messages == 0


def test_the_receiver_keeps_its_order_when_it_answers_late(receiver: Callable[..., Receiver]) -> None:
    far = receiver(dot_delay_s=0.2)
    with _Raw(far.port) as raw:
        raw.ask(b"MAIL FROM:<a@shop.example>\r\nRCPT TO:<b@d.test>\r\nDATA\r\n", 3, 1 << 20)
        began_s = time.monotonic()
        said = raw.ask(b"Hello\r\n.\r\nRSET\r\nQUIT\r\n", 3, 1 << 20)
        assert time.monotonic() - began_s >= 0.2
        assert [line[:3] for line in said.splitlines()] == [b"250", b"250", b"221"]


def test_the_receiver_ends_with_whoever_started_it() -> None:
    far = Receiver(ReceiverOptions(processes=2))
    far.start()
    process = far._process
    assert process is not None
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in far.pids)


class _Raw:
    """A client that sends in pieces of ``cut`` octets, and reads lines."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> _Raw:
        assert self._lines.readline().startswith(b"220 ")
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, sent: bytes, replies: int, cut: int) -> bytes:
        for at in range(0, len(sent), cut):
            self._socket.sendall(sent[at : at + cut])
        return b"".join(self._lines.readline() for _ in range(replies))


def _processes_with(word: bytes) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_cpu_time_of_children_that_ended_is_counted() -> None:
    before = usage.cpu_seconds(os.getpid(), os.getpid(), [], 0)
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=60)
    used = usage.cpu_seconds(os.getpid(), os.getpid(), [], 0).since(before)
    assert used.children >= 0.25
    assert used.sink == 0


def test_cpu_time_below_a_tick_is_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert 0 < usage.cpu_seconds(child.pid, child.pid, [], 0).master < 60
        before = usage.cpu_seconds(os.getpid(), child.pid, [], 0)
        sum(range(1_000))  # some microseconds: no tick ends in them, mostly
        assert usage.cpu_seconds(os.getpid(), child.pid, [], 0).since(before).master > 0
    finally:
        child.communicate()
    assert usage.cpu_seconds(child.pid, child.pid, [], 0).master == 0


def test_memory_is_that_of_the_largest() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        deadline_s = time.monotonic() + 30
        while not (own := usage.peak_rss_mb([child.pid])):
            assert time.monotonic() < deadline_s
        assert usage.children_of(os.getpid()).count(child.pid) == 1
        assert usage.peak_rss_mb([child.pid, os.getpid()]) >= own
    finally:
        child.communicate(timeout=30)
    assert usage.rss_mb(child.pid) == 0.0


@pytest.mark.parametrize("kind", SinkKind)
def test_a_far_end_listens_and_is_gone_when_stopped(tmp_path: Path, kind: SinkKind) -> None:
    if kind is SinkKind.SMTP_SINK and program("smtp-sink") is None:
        pytest.skip("Postfix's tools are not installed")
    far = far_end(kind, tmp_path, ReceiverOptions())
    far.start()
    try:
        assert far.port
        assert all(Path(f"/proc/{pid}").exists() for pid in far.pids)
        pids = far.pids
    finally:
        far.stop()
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
