"""``python -m bench``: that it measures at all, and says so in the agreed form. No speed is asserted here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import usage
from bench.far import SinkKind, far_end

ROOT = Path(__file__).parents[2]


def bench(tmp_path: Path, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "bench", *arguments, "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_drain_ends_with_the_agreed_line(tmp_path: Path) -> None:
    told = bench(tmp_path, "drain", "--recipients", "2000", "--size", "1000", "--sink", "aiosmtpd")
    assert isinstance(told["messages_per_second"], float)
    assert told["messages_per_second"] > 0
    cpu, rss = told["cpu_us_per_message"], told["rss_mb"]
    assert isinstance(cpu, dict)
    assert isinstance(rss, dict)
    assert set(cpu) == {"master", "children", "postgres", "sink"}
    assert set(rss) == {"master", "child", "postgres"}
    assert all(isinstance(value, float) and value > 0 for value in (*cpu.values(), *rss.values()))
    source, ratio = told["smtp_source_messages_per_second"], told["ratio_to_smtp_source"]
    assert (source is None) == (ratio is None)
    assert source is None or (isinstance(source, float) and isinstance(ratio, float) and source > 0 < ratio)


def test_throttled_sends_the_free_half_and_keeps_the_rest(tmp_path: Path) -> None:
    told = bench(tmp_path, "throttled", "--recipients", "2000", "--domains", "20", "--sink", "aiosmtpd", "--hold", "0")
    throttled, pending = told["throttled_delivered"], told["pending"]
    assert isinstance(throttled, int)
    assert isinstance(pending, int)
    assert throttled <= 50  # the share of five minutes of 600 an hour
    assert throttled + pending == 1_000
    assert isinstance(told["free_messages_per_second"], float)
    assert isinstance(told["alone_messages_per_second"], float)
    rss = told["rss_mb"]
    assert isinstance(rss, dict)
    assert set(rss["master"]) == {"start", "peak", "end"}
    assert len(rss["children"]) == 2


def test_cpu_time_of_children_that_ended_is_counted() -> None:
    before = usage.cpu_seconds(os.getpid(), os.getpid(), [])
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=60)
    used = usage.cpu_seconds(os.getpid(), os.getpid(), []).since(before)
    assert used.children >= 0.25
    assert used.sink == 0


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
    if kind is SinkKind.SMTP_SINK and not any(Path(folder, "smtp-sink").exists() for folder in ("/usr/sbin", "/sbin")):
        pytest.skip("Postfix's tools are not installed")
    far = far_end(kind, tmp_path)
    far.start()
    try:
        assert far.port
        assert all(Path(f"/proc/{pid}").exists() for pid in far.pids)
        pids = far.pids
    finally:
        far.stop()
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
