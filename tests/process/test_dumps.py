from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, resource
from mta.telemetry.dumps import forbid_dumps
forbid_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def test_a_process_can_forbid_images_of_its_memory() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "(0, 0) 0"  # 3: PR_GET_DUMPABLE
