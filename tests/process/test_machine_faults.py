"""Errors of this machine, each brought about for real: by a missing address, limits, a namespace without a route."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.master.control import ask
from mta.model.machine_fault import SystemCall
from mta.session import open as opening
from mta.session.open import SessionFailed, SessionTarget, open_session
from mta.sink.nameserver import ThreadedNameserver
from tests.support.cli import Cli
from tests.support.launch import ROOT
from tests.support.namespace import run_in_namespace
from tests.support.node import Node, World, addresses, one_host_zones, until
from tests.support.outcomes import log_of, until_value
from tests.support.postgres import Database

ABSENT = "198.51.100.9"  # of a network for documentation (RFC 5737): on no machine
OPEN_ONE = """
import asyncio, sys, json
from mta.session.open import SessionFailed, SessionTarget, open_session
async def main():
    peer, source, count, port = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), 2525
    taken = []
    if count > 1:
        async def greet(reader, writer):
            writer.write(b"220 mx\\r\\n"); await reader.readline(); writer.write(b"250 mx\\r\\n")
            await reader.read()
        server = await asyncio.start_server(greet, peer, port)
    for _ in range(count):
        try:
            taken.append(await open_session(SessionTarget("mx.test", peer, "me.example", port, source)))
        except SessionFailed as failed:
            print(json.dumps([failed.call.value, failed.errno, failed.cause, len(taken)]))
            return
asyncio.run(main())
"""
LO = "ip link set lo up"
PORTS = f"{LO}; echo 40000 40003 >/proc/sys/net/ipv4/ip_local_port_range"


@pytest.mark.parametrize(
    ("setup", "peer", "source", "sessions", "call", "number"),
    [
        ("true", "192.0.2.1", "", 1, SystemCall.CONNECT, errno.ENETUNREACH),
        (f"{LO}; ip route add unreachable 192.0.2.1", "192.0.2.1", "", 1, SystemCall.CONNECT, errno.EHOSTUNREACH),
        (f"{LO}; ip route add prohibit 192.0.2.1", "192.0.2.1", "", 1, SystemCall.CONNECT, errno.EACCES),
        (f"{LO}; ip route add blackhole 192.0.2.1", "192.0.2.1", "", 1, SystemCall.CONNECT, errno.EINVAL),
        (f"{LO}; ip -6 route add prohibit 2001:db8::/32", "2001:db8::1", "", 1, SystemCall.CONNECT, errno.EACCES),
        ("true", "2001:db8::1", "", 1, SystemCall.CONNECT, errno.EADDRNOTAVAIL),
        (LO, "192.0.2.1", ABSENT, 1, SystemCall.BIND, errno.EADDRNOTAVAIL),
        (PORTS, "127.0.0.1", "127.0.0.5", 5, SystemCall.CONNECT, errno.EADDRNOTAVAIL),
    ],
    ids=["no route", "unreachable", "prohibited", "blackhole", "prohibited IPv6", "no IPv6", "absent", "no ports"],
)
def test_the_kernel_names_the_call_and_the_errno(
    setup: str, peer: str, source: str, sessions: int, call: SystemCall, number: int
) -> None:
    done = run_in_namespace(setup, [sys.executable, "-c", OPEN_ONE, peer, source, str(sessions)])
    assert done.returncode == 0, done.stderr
    told_call, told_number, cause, opened = json.loads(done.stdout)
    assert (told_call, told_number) == (call.value, number)
    assert cause == f"{call.value}: {os.strerror(number)}"
    assert opened == sessions - 1


async def failure(peer: str = "127.0.0.1", port: int = 1, source: str | None = None) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        await open_session(SessionTarget("mx.test", peer, "me.example", port, source))
    return caught.value


def test_an_absent_address_and_a_refusal_are_told_apart_without_a_namespace(run: Callable[[Any], None]) -> None:
    async def main() -> None:
        absent = await failure(source=ABSENT)
        assert (absent.call, absent.errno) == (SystemCall.BIND, errno.EADDRNOTAVAIL)
        refused = await failure()
        assert (refused.errno, refused.cause) == (0, "Connection refused")

    run(main())


def test_the_last_files_of_a_process_are_not_for_sessions(run: Callable[[Any], None]) -> None:
    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.dup(0)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + opening.FILES_KEPT, hard))
        try:
            full = await failure()
            os.close(os.open("/dev/null", os.O_RDONLY))
            with socket.socket():
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (full.call, full.errno) == (SystemCall.SOCKET, errno.EMFILE)

    run(main())


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ENFILE, errno.EAFNOSUPPORT])
def test_what_cannot_be_brought_about_is_the_same_in_the_opener(
    number: int, run: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's memory and its table of files cannot be used up without harm to all else here."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(opening.socket, "socket", refuse)
            failed = await failure()
        assert (failed.call, failed.errno) == (SystemCall.SOCKET, number)

    run(main())


# --- the daemon -----------------------------------------------------------------------------------

OPEN_ALERTS = "SELECT count(*) FROM mta.alert WHERE kind = 'machine' AND ended_at IS NULL"
TWO = f"""
[[egress]]
name = "gone"
id = 1
helo = "gone.example"
source_ipv4 = "{ABSENT}"

[[egress]]
name = "here"
id = 2
helo = "here.example"
source_ipv4 = "127.0.0.2"
"""


async def test_one_absent_address_of_a_pool_costs_nobody_an_attempt(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(settings=TWO)
        await node.start()
        delivery = await world.deliver(addresses(500))
        assert (await world.wait_for(delivery)).delivered == 500
        lines = await log_of(world, delivery)
        assert {(row["egress"], row["attempt"]) for row in lines} == {("here", 1)}
        assert len(lines) == 500
        [said] = node.said("machine fault")
        assert (said["egress"], said["cause"]) == ("gone", "address-absent")
        assert ABSENT in str(said["what"])
        await until_value(world, OPEN_ALERTS, 1)
        [alert] = Cli(database.dsn, tmp_path).json("monitor", "alerts")["alerts"]
        assert (alert["kind"], alert["egress"], alert["cause"], alert["node"]) == (
            "machine",
            "gone",
            "address-absent",
            "one",
        )
        assert "ip address add" in alert["reply"]
        # The next run of the node knows nothing of it yet.
        assert await node.stop() == 0
        await node.start()
        await until_value(world, OPEN_ALERTS, 0)
        cli = Cli(database.dsn, tmp_path)
        refused = cli.run("config", "check", str(node.config), expect=1)
        assert f"egress.source_ipv4: egress gone: {ABSENT} is not an address of this machine" in refused.stderr
        assert "mta.toml:" in refused.stderr
        cli.run("config", "check", "--for-another-machine", str(node.config))


def times_met(node: Node) -> int:
    """How many sessions the faults that are open have kept from being opened."""
    told: Any = ask(node.directory / "journal", "status")
    return sum(fault["times"] for fault in told["machine_faults"])


async def test_a_child_out_of_files_goes_on_with_what_it_has_and_keeps_its_journal(
    tmp_path: Path, database: Database
) -> None:
    zones = {**one_host_zones(10), "mx.other.test": {"A": ["127.0.0.4"]}, "other.test": {"MX": [(10, "mx.other.test")]}}
    async with World(tmp_path, database, zones=zones, sink_addresses=("127.0.0.1", "127.0.0.4")) as world:
        node = world.node(children=1, settings="journal_segment_kbytes = 16")
        await node.start()
        await world.wait_for(await world.deliver(addresses(20)))
        [pid] = node.child_pids()
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 3 + opening.FILES_KEPT, limits[1]))
        many = await world.deliver(addresses(2_000))
        assert (await world.wait_for(many)).delivered == 2_000
        assert {row["attempt"] for row in await log_of(world, many)} == {1}
        [said] = node.said("machine fault")[:1]
        assert (said["egress"], said["cause"]) == ("", "no-files")
        # No session with another host can be opened: its mail waits, uncharged, until that is over.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        before = times_met(node)
        other = await world.deliver([f"u{number}@other.test" for number in range(300)])
        await until("it cannot", lambda: times_met(node) > before)
        assert not await log_of(world, other)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert (await world.wait_for(other)).delivered == 300
        assert {row["attempt"] for row in await log_of(world, other)} == {1}
        await until("it is over", lambda: len(node.said("machine fault is over")) == len(node.said("machine fault")))
        assert node.child_pids() == [pid], "no child has died of it"
        assert await node.stop() == 0


async def test_without_a_name_server_nobody_is_charged(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        node = world.node(children=1)
        text = node.config.read_text().replace(f':{world.nameserver.port}"', f':{port}"')
        node.config.write_text(text.replace("[dns]", "[dns]\ntimeout_s = 1.5\ntries = 2"))
        await node.start()
        delivery = await world.deliver(addresses(300))
        await until("it says so", lambda: node.said("machine fault"))
        [said] = node.said("machine fault")
        assert said["cause"] == "no-resolver"
        assert not await log_of(world, delivery)
        slow = Cli(database.dsn, tmp_path).run("monitor", "slow", str(delivery), "--config", str(node.config)).stdout
        assert "dns.nameservers" in slow
        with ThreadedNameserver(one_host_zones(10), port=port):
            assert (await world.wait_for(delivery)).delivered == 300
            await until("it is over", lambda: node.said("machine fault is over"))
            assert {row["attempt"] for row in await log_of(world, delivery)} == {1}
            assert await node.stop() == 0


@pytest.mark.timeout(300)
def test_the_daemon_in_a_namespace_whose_addresses_and_routes_go_and_come_back() -> None:
    inside = ROOT / "tests" / "process" / "inside_namespace.py"
    done = run_in_namespace(
        f"{LO}; ip address add 192.0.2.1/32 dev lo",
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(inside)],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
