"""systemd/mta.service: accepted by systemd, and its times fit those of the daemon."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mta.master.daemon import RENEW_TIMEOUT_S_MAX
from mta.master.drain import DRAIN_S
from mta.settings.config import NodeSettings, load_settings
from mta.telemetry.systemd import notify

UNIT = Path(__file__).parents[2] / "systemd" / "mta.service"
TEXT = UNIT.read_text()
KEYS = dict(re.findall(r"^(\w+)=(.*)$", TEXT, re.MULTILINE))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NOT VERIFIED: systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name
    # The program is where this test runs it from; the user need not exist on this machine.
    program = Path(sys.executable).with_name("mta")
    assert program.is_file()
    here.write_text(TEXT.replace(KEYS["ExecStart"].split()[0], str(program)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", here],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    said = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert (verified.returncode, said) == (0, []), verified.stderr


def test_the_manager_waits_for_the_drain() -> None:
    assert float(KEYS["TimeoutStopSec"]) >= DRAIN_S + 30


def test_the_watchdog_is_more_patient_than_a_try_to_renew_the_lease() -> None:
    assert float(KEYS["WatchdogSec"]) >= 3 * RENEW_TIMEOUT_S_MAX


def test_only_the_master_is_told_to_stop() -> None:
    assert (KEYS["Type"], KEYS["KillMode"]) == ("notify", "mixed")
    assert KEYS["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]
    assert KEYS["TimeoutStartSec"] == "infinity"  # it waits for its database


def test_a_reload_fails_where_the_file_is_bad() -> None:
    check, tell = re.findall(r"^ExecReload=(.*)$", TEXT, re.MULTILINE)
    assert check.split()[1:] == ["config", "check", "--for-another-machine", "${MTA_CONFIG}"]
    assert tell.split()[1:] == ["-HUP", "$MAINPID"]


def test_the_journal_lies_where_the_unit_may_write() -> None:
    assert NodeSettings().journal_dir.startswith(f"/var/lib/{KEYS['StateDirectory']}/")
    assert "ProcSubset=" not in TEXT.replace("no ProcSubset=pid", "")  # it would hide the boot id


def test_there_are_descriptors_for_every_session() -> None:
    assert int(KEYS["LimitNOFILE"]) >= 2 * load_settings(environment={}, host_name="a").children.sessions_max


def test_the_manager_hears_what_the_daemon_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(str(address))
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")  # nobody listens: nothing happens
