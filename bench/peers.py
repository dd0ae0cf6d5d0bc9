"""A real Postfix that relays the same messages to the same far end: how fast it takes them, and how fast it drains.

An instance of its own: configuration, queue and data in a directory of ours, ports of ours on loopback, no service
but those that relaying needs. It is told to be quick (50 connections to the far end, no pause for the queue's sake),
and syncs its queue files as it always does. Only root can start it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from bench.far import ADDRESS, free_port, is_listening, program, smtp_source_messages_per_second
from mta.demo.stage import own_directory, uninterrupted
from mta.model.errors import LocalFault

PREFIX: Final = "mta-bench-peer-"
DAEMONS: Final = Path("/usr/lib/postfix/sbin")
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 10.0
STALL_S: Final = 60.0
MESSAGES_MAX: Final = 20_000
POLL_S: Final = 0.02
# Whatever happens to us, it ends by itself after so long.
LIFE_S: Final = 3_600
# Its master cannot be told by the kernel that we are gone, since it changes its user: this shell sees its input end.
_KEEPER: Final = '"$@" & master=$!; read -r line; kill -TERM $master; wait $master'
_QUEUES: Final = ("incoming", "active", "deferred")
_QUEUE_MANAGER: Final = "qmgr unix n - n 300 1 qmgr\n"


class PostfixFigures(msgspec.Struct, frozen=True):
    """Messages a second: from a full queue to an empty one; taken in while nothing goes out; and both at once."""

    version: str
    messages: int
    drain_messages_per_second: float
    inject_messages_per_second: float
    inject_and_deliver_messages_per_second: float


async def postfix(
    far_port: int, *, connections: int, messages: int, size_bytes: int, on_step: Callable[[str], None]
) -> PostfixFigures | None:
    """With at most `MESSAGES_MAX` of the messages: its pace does not change with more.

    None, said aloud, where it is not installed or we are not root.
    """
    messages = min(messages, MESSAGES_MAX)
    missing = _missing()
    if missing:
        sys.stderr.write(f"SKIPPED: no comparison with Postfix: {missing}\n")
        return None

    def inject() -> float:
        rate = smtp_source_messages_per_second(
            instance.port, connections=connections, messages=messages, size_bytes=size_bytes
        )
        assert rate is not None
        return rate

    with own_directory(PREFIX) as directory:
        instance = Postfix(directory, far_port, connections)
        try:
            on_step(f"Postfix: taking {messages:,} messages in")
            await uninterrupted(instance.start)
            inject_rate = await asyncio.to_thread(inject)
            on_step("Postfix: draining them")
            began_s = time.monotonic()
            instance.release()
            await instance.wait_empty()
            drain_s = time.monotonic() - began_s
            on_step("Postfix: both at once")
            began_s = time.monotonic()
            await asyncio.to_thread(inject)
            await instance.wait_empty()
            both_s = time.monotonic() - began_s
        finally:
            # Not in a thread: it must be over before anything else is, cancelled or not.
            instance.stop()
    return PostfixFigures(
        instance.version, messages, round(messages / drain_s, 1), round(inject_rate, 1), round(messages / both_s, 1)
    )


def _missing() -> str:
    if program("postfix") is None or not (DAEMONS / "master").exists():
        return "it is not installed"
    if program("smtp-source") is None:
        return "smtp-source is not installed"
    return "only root can start it" if os.geteuid() else ""


class Postfix:
    """``start`` without its queue manager, so that mail only comes in; ``release`` starts that, too."""

    def __init__(self, directory: Path, far_port: int, connections: int) -> None:
        self._root = directory / "postfix"
        self._config = self._root / "config"
        self._queue = self._root / "queue"
        self._far_port = far_port
        self._connections = connections
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.version = ""

    def start(self) -> None:
        """LocalFault when it does not come up."""
        self._prepare()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "sh", DAEMONS / "master", "-c", self._config, "-d", "-e", str(LIFE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in our terminal reaches it through us
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG": str(self._config)},
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_listening(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise LocalFault(f"Postfix did not start: {self._log_end()}")
            time.sleep(0.02)

    def release(self) -> None:
        """Mail goes out from now on."""
        with (self._config / "master.cf").open("a") as services:
            services.write(_QUEUE_MANAGER)
        os.kill(self._master_pid(), signal.SIGHUP)

    async def wait_empty(self) -> None:
        """LocalFault when nothing moves any more."""
        last, moved_at_s = -1, time.monotonic()
        while any(True for _ in self._files()):
            now_s = time.monotonic()
            if now_s - moved_at_s > STALL_S:
                left = sum(1 for _ in self._files())
                if left == last:
                    raise LocalFault(f"Postfix stands still with {left:,} messages: {self._log_end()}")
                last, moved_at_s = left, now_s
            await asyncio.sleep(POLL_S)

    def stop(self) -> None:
        """Ends all of its processes; does nothing when it was never started."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._master_pid(), signal.SIGKILL)  # all its daemons are of its process group
            self._process.wait()
        self._process = None

    def _master_pid(self) -> int:
        return int((self._queue / "pid" / "master.pid").read_text())

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Messages, found one by one: a full queue is not listed to see that it is not empty."""
        waiting = [str(self._queue / name) for name in _QUEUES]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        else:
                            yield entry
                    except FileNotFoundError:
                        continue  # moved on meanwhile

    def _prepare(self) -> None:
        owner = pwd.getpwnam("postfix").pw_uid
        for path in (self._root.parent, self._root):
            path.mkdir(mode=0o755, exist_ok=True)
            path.chmod(0o711)  # its daemons are not root, and must pass through
        _check_passable(self._root)
        for path in (self._config, self._queue, self._root / "data"):
            path.mkdir(mode=0o755)
        for name in (*_QUEUES, "bounce", "corrupt", "defer", "flush", "hold", "private", "saved", "trace"):
            (self._queue / name).mkdir(mode=0o700)
            os.chown(self._queue / name, owner, -1)
        for name in ("public", "maildrop"):
            (self._queue / name).mkdir(mode=0o710 if name == "public" else 0o730)
            os.chown(self._queue / name, owner, -1)
        (self._queue / "pid").mkdir(mode=0o755)
        os.chown(self._root / "data", owner, -1)
        (self._config / "main.cf").write_text(self._main())
        (self._config / "master.cf").write_text(self._services())
        postconf = [program("postconf") or "postconf", "-c", str(self._config), "-h", "mail_version"]
        self.version = subprocess.run(postconf, check=True, capture_output=True, text=True).stdout.strip()

    def _main(self) -> str:
        return f"""\
compatibility_level = 3.6
queue_directory = {self._queue}
data_directory = {self._root}/data
command_directory = /usr/sbin
daemon_directory = {DAEMONS}
mail_owner = postfix
setgid_group = postdrop
myhostname = peer.example
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = {ADDRESS}
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [{ADDRESS}]:{self._far_port}
default_process_limit = 100
initial_destination_concurrency = {self._connections}
default_destination_concurrency_limit = {self._connections}
smtp_destination_concurrency_limit = {self._connections}
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
smtp_tls_security_level = none
smtpd_tls_security_level = none
maillog_file_prefixes = {self._root}
maillog_file = {self._root}/log
"""

    def _services(self) -> str:
        return f"""\
{ADDRESS}:{self.port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

    def _log_end(self) -> str:
        log = self._root / "log"
        return " / ".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else "(it wrote no log)"


def _check_passable(path: Path) -> None:
    for parent in path.parents:
        if not parent.stat().st_mode & 0o001:
            raise LocalFault(f"Postfix's own user cannot pass through {parent}; set TMPDIR to a place where it can")
