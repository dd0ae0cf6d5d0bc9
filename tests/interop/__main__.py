"""``make interop``: installs the servers that are missing, delivers to each, writes down what was found.

::

    python -m tests.interop [--bounces] [SERVER ...] [-- options of pytest]

With ``--bounces`` (``make interop-bounces``) the servers relay, and what they report is read.

The run has a network, a mount and a process namespace of its own: nothing that it starts is reached from outside, can
reach the outside, or outlives it. That needs root on Linux; elsewhere it is skipped, and says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.interop.layer import MODULE_ROOT, STORE
from tests.interop.place import ADDRESSES
from tests.interop.servers import SERVERS

INSIDE = "MTA_INTEROP_INSIDE"
_NAMESPACE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_TESTS = "tests/interop/delivery.py", "tests/interop/habits.py"
_BOUNCES = "--bounces"
_TESTS_OF_BOUNCES = ("tests/interop/bounces.py",)


def main(arguments: list[str]) -> int:
    if os.environ.get(INSIDE):
        return _run_inside(arguments)
    names = [one for one in arguments if not one.startswith("-")]
    if why := _cannot():
        print(f"SKIPPED, nothing was tested: {why}", file=sys.stderr)
        return 0
    for server in SERVERS:
        if (not names or server.name in names) and not server.is_installed:
            print(f"installing {server.title}", flush=True)
            STORE.mkdir(parents=True, exist_ok=True)
            try:
                server.install()
            except (subprocess.SubprocessError, OSError) as error:
                print(f"SKIPPED: {server.title} cannot be installed: {error}", file=sys.stderr, flush=True)
    command = [*_NAMESPACE, sys.executable, "-m", "tests.interop", *arguments]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen(command, env={**os.environ, INSIDE: "1"}, cwd=MODULE_ROOT)
    try:
        return process.wait()
    finally:
        process.kill()  # it has no ear for other signals; all that runs inside ends with it


def _cannot() -> str:
    """Why no namespaces can be made here; empty when they can."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare") or not shutil.which("ip"):
        return "it needs Linux with unshare and ip"
    made = subprocess.run([*_NAMESPACE, "true"], capture_output=True, text=True, check=False)
    return "" if made.returncode == 0 else f"namespaces cannot be made ({made.stderr.strip()}); it needs root"


def _run_inside(arguments: list[str]) -> int:
    """In the namespaces: addresses and a name server of the run's own, then the tests."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ADDRESSES:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory(prefix="mta-interop-") as folder:
        Path(folder).chmod(0o755)  # servers have users of their own
        resolver = Path(folder, "resolv.conf")
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
        subprocess.run(["mount", "--bind", resolver, os.path.realpath("/etc/resolv.conf")], check=True)
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        names = [one for one in arguments[:cut] if one != _BOUNCES]
        chosen = ["-k", " or ".join(names)] if names else []
        options = ["-p", "no:cacheprovider", "-rf", "--basetemp", f"{folder}/tests", *chosen, *arguments[cut + 1 :]]
        wanted = _TESTS_OF_BOUNCES if _BOUNCES in arguments[:cut] else _TESTS
        tests = [one for one in wanted if (MODULE_ROOT / one).exists()]
        return subprocess.run([sys.executable, "-m", "pytest", *options, *tests], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
