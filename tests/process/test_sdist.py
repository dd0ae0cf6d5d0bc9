"""What is built from a source distribution is what is built from a checkout; compiled, .ci/newcomer does the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.process.test_wheel import READ, ROOT, run
from tests.support.compiled import followed

BUILD = "import setuptools.build_meta as backend; backend.build_sdist('..')"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("config", "mta"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-W", "ignore", "-c", BUILD], source, MTA_COMPILE="0")
    (made,) = tmp_path.glob("mta-*.tar.gz")
    return made


def test_it_holds_what_it_takes_to_compile_and_nothing_compiled(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "config/mx-rules.toml", *followed()} <= names
    assert [name for name in names if name.endswith((".so", ".pyc")) or ".local." in name] == []


def test_it_installs_into_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements"
    download = [*PIP, "download", "--no-deps", "--dest", str(requirements), "setuptools>=75", "mypy>=2.4.1,<2.5"]
    got = subprocess.run(download, capture_output=True, text=True, timeout=100, check=False)
    if got.returncode:
        pytest.skip(f"NOT TESTED, there is no way to a package index here: {got.stderr.strip()[-200:]}")
    python = tmp_path / "venv" / "bin" / "python"
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], tmp_path)
    run([*PIP, "--python", str(python), "install", "--no-deps", str(sdist)], tmp_path, MTA_COMPILE="0")
    for name in ("mta.toml", "mx-rules.toml", "providers.toml"):
        shutil.copy(ROOT / "config" / name, tmp_path)
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({dependencies!r})\n{READ}"
    home, files, *_ = run([str(python), "-c", code], tmp_path).splitlines()
    assert Path(home).is_relative_to(tmp_path / "venv")
    assert files == "bounce-rules.toml"
