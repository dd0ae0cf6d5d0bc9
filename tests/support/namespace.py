"""Network namespaces of a test's own, in which it may break routes, addresses and ports. Needs root and iproute2."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from tests.support.launch import ROOT

WAIT_S = 280.0


@functools.cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "not root"
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed (util-linux, iproute2)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def run_in_namespace(setup: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in a new network namespace after the shell commands of ``setup``. Skips, and says why, where there
    can be none."""
    if why := _why_not():
        pytest.skip(f"no network namespace, so this is NOT tested here: {why}")
    return subprocess.run(
        ["unshare", "--net", "sh", "-ec", f'{setup}\nexec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
