"""Opening sessions with servers that do as they should, and with those that do not (threats C3 to C8, C13)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.model.errors import BadInput
from mta.model.timeouts import SessionTimeouts
from mta.session.open import SessionFailed, SessionTarget, TlsPolicy, open_session
from mta.smtp.envelope import Stage
from tests.support.hostile_server import HostileServer, Peer, Play, self_signed, until

QUICK = SessionTimeouts(connect_s=5, greeting_s=5, command_s=5)
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return self_signed(Path(tmp_path_factory.mktemp("tls")))


def target(
    server: HostileServer, tls: TlsPolicy = "opportunistic", timeouts: SessionTimeouts = QUICK, **more: Any
) -> SessionTarget:
    return SessionTarget(
        "mx.example.test", "127.0.0.1", "client.example.com", server.port, tls=tls, timeouts=timeouts, **more
    )


async def failure(server: HostileServer, tls: TlsPolicy = "opportunistic", **more: Any) -> SessionFailed:
    with pytest.raises(SessionFailed) as caught:
        await open_session(target(server, tls, **more))
    return caught.value


async def greet(peer: Peer, *ehlo: str) -> None:
    await peer.say("220 mx.example.test ESMTP")
    await peer.hear_until("EHLO client.example.com")
    await peer.say(*ehlo)


def test_a_plain_session_offers_what_ehlo_said(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250-mx", "250-PIPELINING", "250 SIZE 1000")

    async def main() -> None:
        async with HostileServer(play) as server:
            session = await open_session(target(server))
            assert (session.is_tls, session.tls) == (False, "")
            assert session.extensions.pipelining
            assert session.extensions.size_max == 1000
            session.hand_over(asyncio.Protocol())
            session.discard()

    run(main())


def test_after_tls_only_what_was_said_inside_counts(run: Run, certificate: ssl.SSLContext) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250-mx", "250-PIPELINING", "250 STARTTLS")
        await peer.hear_until("STARTTLS")
        await peer.say("220 go")
        await peer.start_tls(certificate)
        await peer.hear_until("EHLO")
        await peer.say("250-mx", "250 SIZE 77")

    async def main() -> None:
        async with HostileServer(play) as server:
            for policy in ("opportunistic", "required"):
                session = await open_session(target(server, policy))
                assert session.is_tls
                assert session.tls.startswith("TLSv1.3 ")
                assert (session.extensions.pipelining, session.extensions.size_max) == (False, 77)
                session.discard()

    run(main())


@pytest.mark.parametrize("together", [True, False], ids=["one segment", "two segments"])
@pytest.mark.parametrize("policy", ["opportunistic", "required"])
def test_octets_between_220_and_the_handshake_end_the_session(run: Run, policy: TlsPolicy, together: bool) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250-mx", "250 STARTTLS")
        await peer.hear_until("STARTTLS")
        if together:
            await peer.say("220 go", "250-evil", "250 SIZE 1")
        else:
            await peer.say("250-evil", "250 SIZE 1", "220 go")

    async def main() -> None:
        async with HostileServer(play) as server:
            failed = await failure(server, policy)
            assert failed.stage is Stage.STARTTLS
            assert "not owed" in failed.cause
            assert len(server.peers) == 1  # no second try in the clear

    run(main())


async def _refuses_tls(peer: Peer) -> None:
    await greet(peer, "250-mx", "250 STARTTLS")
    await peer.hear_until("STARTTLS")
    await peer.say("454 4.7.0 TLS not available")


async def _breaks_tls(peer: Peer) -> None:
    await greet(peer, "250-mx", "250 STARTTLS")
    await peer.hear_until("STARTTLS")
    await peer.say("220 go")
    await peer.hear()
    await peer.say("this is not a handshake at all")


async def _leaves_at_tls(peer: Peer) -> None:
    await greet(peer, "250-mx", "250 STARTTLS")
    await peer.hear_until("STARTTLS")
    await peer.say("220 go")
    peer.drop()


@pytest.mark.parametrize("play", [_refuses_tls, _breaks_tls, _leaves_at_tls])
def test_failed_tls_is_one_plain_session_when_opportunistic_and_none_when_required(run: Run, play: Play) -> None:
    async def main() -> None:
        async with HostileServer(play) as server:
            session = await open_session(target(server))
            assert not session.is_tls
            assert session.tls.startswith("plain after STARTTLS: ")
            assert len(server.peers) == 2
            session.discard()
            failed = await failure(server, "required")
            assert failed.stage is Stage.STARTTLS
            assert (failed.reply.code if failed.reply else 0) == (454 if play is _refuses_tls else 0)
            assert len(server.peers) == 3

    run(main())


def test_tls_that_is_not_offered_fails_only_where_it_is_required(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250 mx")

    async def main() -> None:
        async with HostileServer(play) as server:
            (await open_session(target(server))).discard()
            failed = await failure(server, "required")
            assert failed.stage is Stage.STARTTLS

    run(main())


def test_disabled_tls_is_never_asked_for(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250-mx", "250 STARTTLS")

    async def main() -> None:
        async with HostileServer(play) as server:
            session = await open_session(target(server, "disabled"))
            assert not session.is_tls
            session.discard()

    run(main())


@pytest.mark.parametrize("tail", ["250 forged", "25", "\n"])
@pytest.mark.parametrize("stage", [Stage.GREETING, Stage.EHLO])
def test_octets_ahead_of_their_command_end_the_session(run: Run, stage: Stage, tail: str) -> None:
    async def play(peer: Peer) -> None:
        if stage is Stage.GREETING:
            await peer.say("220 mx\r\n" + tail, end="")
        else:
            await peer.say("220 mx")
            await peer.hear()
            await peer.say("250-mx\r\n250 PIPELINING\r\n" + tail, end="")

    async def main() -> None:
        async with HostileServer(play) as server:
            failed = await failure(server)
            assert failed.stage is stage
            assert "protocol error" in failed.cause

    run(main())


@pytest.mark.parametrize("words", ["250 forged", "421 4.4.2 bye"])
def test_a_server_that_speaks_before_the_hand_over_is_not_taken_over(run: Run, words: str) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250 mx")
        await told.wait()
        await peer.say(words)

    told = asyncio.Event()

    async def main() -> None:
        async with HostileServer(play) as server:
            session = await open_session(target(server))
            told.set()
            await until(session.transport.is_closing)
            with pytest.raises(SessionFailed) as caught:
                session.hand_over(asyncio.Protocol())
            assert caught.value.stage is Stage.IDLE
            if words.startswith("421"):
                assert caught.value.reply is not None
                assert caught.value.reply.code == 421

    run(main())


def test_an_endless_answer_is_cut_off(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await peer.say("220 mx")
        await peer.hear()
        while True:
            await peer.say(*["250-more and more"] * 100)

    async def long_line(peer: Peer) -> None:
        await peer.say("220 ", end="")
        while True:
            await peer.say("2" * 1000, end="")

    async def no_reply(peer: Peer) -> None:
        while True:
            await peer.say("2" * 1000, end="")

    async def main() -> None:
        async with HostileServer(play) as server:
            assert "reply of more than" in (await failure(server)).cause
        async with HostileServer(long_line) as server:
            assert "reply of more than" in (await failure(server)).cause
        async with HostileServer(no_reply) as server:
            assert "not a reply line" in (await failure(server)).cause

    run(main())


def test_a_trickle_wins_no_time(run: Run) -> None:
    async def play(peer: Peer) -> None:
        while True:
            await peer.say("220-", end="")
            await asyncio.sleep(0.02)
            await peer.say("x", end="\r\n")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with HostileServer(play) as server:
            began_s = loop.time()
            failed = await failure(server, timeouts=SessionTimeouts(greeting_s=0.2))
            assert (failed.stage, failed.cause) == (Stage.GREETING, "timed out")
            failed = await failure(server, timeouts=SessionTimeouts(setup_s=0.2))
            assert (failed.stage, failed.cause) == (Stage.GREETING, "timed out")
            assert loop.time() - began_s < 3

    run(main())


def test_nobody_listens(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(SessionFailed) as caught:
                await open_session(SessionTarget("mx", "127.0.0.1", "client.example.com", sock.getsockname()[1]))
        assert caught.value.stage is Stage.CONNECT
        assert "refused" in caught.value.cause.lower()

    run(main())


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Listens, and has no room for one more connection: the kernel answers nothing."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening


def test_a_host_that_does_not_answer_is_given_up_at_its_limit(run: Run, deaf: socket.socket) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        limits = SessionTimeouts(connect_s=0.2, greeting_s=30)
        port = deaf.getsockname()[1]
        with pytest.raises(SessionFailed) as caught:
            await open_session(SessionTarget("mx", "127.0.0.1", "client.example.com", port, timeouts=limits))
        assert (caught.value.stage, caught.value.cause) == (Stage.CONNECT, "timed out")
        assert 0.2 <= loop.time() - began_s < 5

    run(main())


def test_a_connection_that_comes_late_is_greeted_like_any_other(run: Run, deaf: socket.socket) -> None:
    async def serve(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            await loop.sock_sendall(connection, b"220 mx\r\n")
            await loop.sock_recv(connection, 100)
            await loop.sock_sendall(connection, b"250 mx\r\n")

    async def accept(group: asyncio.TaskGroup) -> None:
        deaf.setblocking(False)
        while True:  # those that filled the queue; and ours, when the kernel has asked for it once more
            connection, _ = await asyncio.get_running_loop().sock_accept(deaf)
            group.create_task(serve(connection))

    async def main() -> None:
        port = deaf.getsockname()[1]
        target = SessionTarget("mx", "127.0.0.1", "client.example.com", port, timeouts=QUICK)
        opening = asyncio.create_task(open_session(target))
        await asyncio.sleep(0.05)
        assert not opening.done()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as group:
                group.create_task(accept(group))
                (await opening).discard()
                raise asyncio.CancelledError

    run(main())


def test_a_server_that_is_connected_has_the_whole_limit_for_its_greeting(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await asyncio.sleep(0.3)
        await greet(peer, "250 mx")

    async def main() -> None:
        async with HostileServer(play) as server:
            limits = SessionTimeouts(connect_s=0.1, greeting_s=5, command_s=5)
            (await open_session(target(server, timeouts=limits))).discard()

    run(main())


def test_an_answer_to_ehlo_that_was_seen_before_is_read_as_strictly(run: Run) -> None:
    answers = iter(
        ["250-mx\r\n250 SIZE 7\r\n"] * 2 + ["250-mx\r\n250 SIZE 7\r\n250 more\r\n", "250-mx\r\n250 SIZE 8\r\n"]
    )

    async def play(peer: Peer) -> None:
        await peer.say("220 mx")
        await peer.hear_until("EHLO")
        await peer.say(next(answers), end="")

    async def main() -> None:
        async with HostileServer(play) as server:
            for _ in range(2):
                session = await open_session(target(server))
                assert session.extensions.size_max == 7
                session.discard()
            assert "not owed" in (await failure(server)).cause
            session = await open_session(target(server))
            assert session.extensions.size_max == 8
            session.discard()

    run(main())


def test_a_server_that_resets_instead_of_a_greeting_was_connected(run: Run) -> None:
    async def play(peer: Peer) -> None:
        peer.drop()

    async def main() -> None:
        async with HostileServer(play) as server:
            assert (await failure(server)).stage is Stage.GREETING

    run(main())


def test_the_source_address_is_bound(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer, "250 mx")

    async def main() -> None:
        async with HostileServer(play) as server:
            sessions = [await open_session(target(server, source=each)) for each in ("127.0.0.2", "127.0.0.3")]
            assert [peer.address for peer in server.peers] == ["127.0.0.2", "127.0.0.3"]
            for session in sessions:
                session.discard()
            assert (await failure(server, source="192.0.2.1")).stage is Stage.CONNECT

    run(main())


@pytest.mark.parametrize("helo", ["", "two words", "line\r\nbreak", "bücher.example"])
def test_a_helo_name_that_is_none_is_refused_before_anything_is_opened(run: Run, helo: str) -> None:
    async def main() -> None:
        with pytest.raises(BadInput):
            await open_session(SessionTarget("mx", "127.0.0.1", helo, 1))

    run(main())
