"""systemd/mta-deliverability.{service,timer}: accepted by systemd, and they start a command that there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mta.bundle.fetch import FETCH_S_MAX
from mta.cli.main import build_app
from mta.settings.deliverability import DeliverabilitySettings

UNITS = [Path(__file__).parents[2] / "systemd" / f"mta-deliverability.{kind}" for kind in ("service", "timer")]
KEYS = dict(re.findall(r"^(\w+)=(.*)$", "".join(unit.read_text() for unit in UNITS), re.MULTILINE))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NOT VERIFIED: systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mta")
    assert program.is_file()
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/mta/bin/mta", str(program)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    said = [line for line in verified.stderr.splitlines() if "mta-deliverability" in line]
    assert (verified.returncode, said) == (0, []), verified.stderr


def test_they_start_a_command_that_there_is_and_give_it_time() -> None:
    command, *words = KEYS["ExecStart"].split()[1:]
    app = typer.main.get_command(build_app([command]))
    for word in (command, words.pop(0)):
        app = app.commands[word]  # type: ignore[attr-defined]
    options = {name for parameter in app.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert float(KEYS["TimeoutStartSec"]) >= 2 * FETCH_S_MAX


def test_what_was_missed_is_made_good_once() -> None:
    assert KEYS["Persistent"] == "true"
    assert f" {DeliverabilitySettings().daily_at}:00 UTC" in KEYS["OnCalendar"]
