"""A second TLS session to the same server costs no second handshake; and resumption is never a way out of TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.model.timeouts import SessionTimeouts
from mta.session.open import OpenSession, SessionTarget, TlsPolicy, open_session
from mta.session.tls import TlsSessions, ssl_object, unverified_context
from mta.sink.processes import SinkOptions, SinkProcesses
from tests.support.hostile_server import HostileServer, Peer, self_signed

QUICK = SessionTimeouts(connect_s=5, greeting_s=5, command_s=5)
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcesses]:
    with SinkProcesses(SinkOptions(record=tmp_path_factory.mktemp("record"), tls=True)) as started:
        yield started


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> Iterator[ssl.TLSVersion]:
    context = unverified_context()
    before = context.maximum_version
    context.maximum_version = request.param
    yield request.param
    context.maximum_version = before


async def opened(port: int, tls: TlsPolicy = "required", mx_host: str = "mx.example.test", **more: Any) -> OpenSession:
    return await open_session(
        SessionTarget(mx_host, "127.0.0.1", "client.example.com", port, tls=tls, timeouts=QUICK, **more)
    )


def is_resumed(session: OpenSession) -> bool:
    of_transport = ssl_object(session.transport)
    assert of_transport is not None
    session.discard()
    return bool(of_transport.session_reused)


def test_the_second_session_resumes_the_first(run: Run, sink: SinkProcesses, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        # A name of its own for each case: what an earlier one left behind would be resumed here.
        name = f"{version.name}-{type(asyncio.get_running_loop()).__module__}.example.test".lower()
        sessions = [await opened(sink.port, mx_host=name) for _ in range(3)]
        assert {session.tls.split(" ")[0] for session in sessions} == {version.name.replace("_", ".")}
        assert [is_resumed(session) for session in sessions] == [False, True, True]
        # Another name, or another source, is another server for all we know.
        assert not is_resumed(await opened(sink.port, mx_host=f"other.{name}"))
        assert not is_resumed(await opened(sink.port, mx_host=name, source="127.0.0.2"))

    run(main())


async def _offers_tls(peer: Peer, context: ssl.SSLContext | None) -> None:
    await peer.say("220 mx")
    await peer.hear_until("EHLO")
    await peer.say("250-mx", "250 STARTTLS")
    await peer.hear_until("STARTTLS")
    await peer.say("220 go")
    if context is None:
        await peer.hear()
        await peer.say("this is not a handshake at all")
        return
    await peer.start_tls(context)
    await peer.hear_until("EHLO")
    await peer.say("250 mx")


def test_a_server_that_has_lost_its_keys_gets_a_full_handshake(
    run: Run, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async def play(peer: Peer) -> None:
        await _offers_tls(peer, self_signed(tmp_path))

    async def main() -> None:
        async with HostileServer(play) as server:
            assert not is_resumed(await opened(server.port))
            assert not is_resumed(await opened(server.port))
            assert len(server.peers) == 2

    run(main())


def test_a_server_without_tickets_is_greeted_in_full_each_time(run: Run, tmp_path: Path) -> None:
    context = self_signed(tmp_path)
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0

    async def main() -> None:
        async with HostileServer(lambda peer: _offers_tls(peer, context)) as server:
            assert [is_resumed(await opened(server.port)) for _ in range(2)] == [False, False]

    run(main())


@pytest.mark.parametrize("policy", ["opportunistic", "required"])
def test_a_resumption_that_fails_is_tried_in_full_before_anything_is_said_in_the_clear(
    run: Run, tmp_path: Path, policy: TlsPolicy
) -> None:
    context = self_signed(tmp_path)

    async def main() -> None:
        async def play(peer: Peer) -> None:
            await _offers_tls(peer, context if len(server.peers) != 2 else None)

        async with HostileServer(play) as server:
            assert not is_resumed(await opened(server.port, policy))
            session = await opened(server.port, policy)
            assert session.is_tls
            assert not is_resumed(session)
            assert len(server.peers) == 3

    run(main())


def test_few_are_remembered_and_not_for_long(run: Run, sink: SinkProcesses) -> None:
    async def main() -> None:
        session = await opened(sink.port, mx_host="memory.example.test")
        of_transport = ssl_object(session.transport)
        assert of_transport is not None
        found = of_transport.session
        assert found is not None
        memory = TlsSessions(entries_max=2, lifetime_max_s=100)
        for key in "abc":
            memory.keep(key, found, now_s=0)
        assert [memory.find(key, 99) is not None for key in "abc"] == [False, True, True]
        assert memory.find("b", 100) is None
        assert len(memory) == 1
        assert memory.forget("c")
        assert not memory.forget("c")
        memory.keep("d", None, 0)
        assert len(memory) == 0
        session.discard()

    run(main())
