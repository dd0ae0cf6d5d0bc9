"""What an operator installs has all that it reads at its start, wherever it is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
READ = """
import mta
from mta.cli.deliverability import _PROVIDERS
from mta.failure.qualify import Qualifier
from mta.model.failure import Evidence
from mta.settings import load_rules
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import load_settings

print(mta.__file__)
settings = load_settings("mta.toml")
qualifier = Qualifier(load_bounce_rules(settings.failures.rules_files))
print(*(path.name for path in settings.failures.rules_files))
print(qualifier.qualify(Evidence(550, "5.1.1", "no such user", "rcpt")).category.label)
print(len(load_rules(_PROVIDERS.with_name("mx-rules.toml")).rules) > 3)
"""


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_brings_the_shipped_rules(tmp_path: Path) -> None:
    source, site, etc = tmp_path / "source", tmp_path / "site", tmp_path / "etc"
    for name in ("pyproject.toml", "setup.py", "README.md"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "config", source / "config")
    shutil.copytree(ROOT / "mta", source / "mta", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "..", "."], source, MTA_COMPILE="0")
    (wheel,) = tmp_path.glob("mta-*.whl")
    run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], tmp_path)
    etc.mkdir()
    shutil.copy(ROOT / "config" / "mta.toml", etc)
    shutil.copy(ROOT / "config" / "mx-rules.toml", etc)
    shutil.copy(ROOT / "config" / "providers.toml", etc)
    own = '[[rule]]\nname = "own"\ncategory = "policy"\npattern = "no such user"\n'
    (etc / "bounce-rules.local.toml").write_text(own)
    home, files, category, has_rules = run([sys.executable, "-c", READ], etc, PYTHONPATH=str(site)).splitlines()
    assert Path(home).is_relative_to(site)
    assert files == "bounce-rules.local.toml bounce-rules.toml"
    assert category == "policy"
    assert has_rules == "True"
