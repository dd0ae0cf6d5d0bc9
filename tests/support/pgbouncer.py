"""The real pgbouncer in front of a test's server; where there is none, tests that need it are skipped and say so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest

from mta.queue.embedded import SYSTEM_USER

PROGRAM: Final = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
needs_pgbouncer: Final = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: pgbouncer)")
WAIT_S: Final = 20.0


@contextlib.asynccontextmanager
async def pgbouncer(dsn: str, mode: str, settings: str = "") -> AsyncIterator[str]:
    """The same database by way of pgbouncer, with its own defaults but for the mode and ``settings``."""
    # It does not run as root, no more than the server does, whose socket is for that user only.
    user = pwd.getpwnam(SYSTEM_USER) if os.geteuid() == 0 else None
    parts = urlsplit(dsn)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="mta-test-pgbouncer-"))
    if user is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
    (directory / "users.txt").write_text(f'"{parts.username}" ""\n')
    (directory / "pgbouncer.ini").write_text(
        f"""
[databases]
* = host={parse_qs(parts.query)["host"][0]} user={parts.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {directory / "users.txt"}
pool_mode = {mode}
{settings}
"""
    )
    process = _started(directory, user)
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.poll() is None, (directory / "pgbouncer.log").read_text()
                await asyncio.sleep(0.02)
        yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def _started(directory: Path, user: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
    assert PROGRAM is not None
    with (directory / "pgbouncer.log").open("wb") as log:
        return subprocess.Popen(
            [PROGRAM, directory / "pgbouncer.ini"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=None if user is None else user.pw_uid,
        )
