"""A link against servers that are slow, deaf, rude or gone (threats C5, C7, C8, C11); time is handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mta.model.host import HostFact
from mta.model.timeouts import SessionTimeouts
from mta.session.link import Link
from mta.session.open import SessionTarget, open_session
from mta.smtp.dialogue import Dialogue, Envelope, Kind, Stage, Verdict
from mta.smtp.envelope import Observation
from tests.support.hostile_server import HostileServer, Peer, self_signed, until

Run = Callable[[Coroutine[Any, Any, None]], None]
LIMITS = SessionTimeouts()
BODY = [b"Subject: x\r\n\r\n", b"hello\r\n"]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


class Owner:
    """Listens, gives bodies at once, and lets a test wait for what comes."""

    def __init__(self, body: list[bytes]) -> None:
        self._body = body
        self.all: list[Verdict] = []
        self.observations: list[Observation] = []
        self.cause: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    def verdicts(self, link: Link, verdicts: list[Verdict]) -> None:
        assert not self.cause.done()
        self.all += verdicts
        self._news.set()

    def bodies_due(self, link: Link, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            link.body(envelope.token, self._body, is_transparent=True)

    def observed(self, link: Link, observations: list[Observation]) -> None:
        self.observations += observations

    def closed(self, link: Link, cause: str) -> None:
        self.cause.set_result(cause)

    def faulted(self, link: Link, fault: Exception) -> None:
        self.cause.set_exception(fault)

    @property
    def kinds(self) -> list[Kind]:
        return [verdict.kind for verdict in self.all]

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.all) < count:
                self._news.clear()
                await self._news.wait()

    async def wait_closed(self) -> str:
        async with asyncio.timeout(20):
            return await self.cause


def target(server: HostileServer) -> SessionTarget:
    return SessionTarget("mx.example.test", "127.0.0.1", "client.example.com", server.port)


async def linked(
    server: HostileServer, body: list[bytes] = BODY, limits: SessionTimeouts = LIMITS
) -> tuple[Link, Owner]:
    session = await open_session(target(server))
    owner = Owner(body)
    return Link(session, Dialogue(session.extensions), owner, limits, now_s=0.0), owner


def envelope(token: int, recipients: int = 1) -> Envelope:
    return Envelope(token, b"news@example.com", tuple(b"recipient-%06d@example.test" % n for n in range(recipients)))


async def greet(peer: Peer) -> None:
    await peer.say("220 mx.example.test ESMTP")
    await peer.hear_until("EHLO")
    await peer.say("250-mx", "250 PIPELINING")


async def serve(peer: Peer, messages: int) -> None:
    """Behave, for so many messages."""
    for _ in range(messages):
        await peer.hear_until("DATA")
        await peer.say("250 ok", "250 ok", "354 go")
        await peer.hear_until(".")
        await peer.say("250 queued")


async def settle() -> None:
    """Let what is in flight on loopback arrive."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_a_batch_is_delivered_and_quit_is_orderly(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await serve(peer, 50)
        await peer.hear_until("QUIT")
        await peer.say("221 bye")

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            assert link.is_open
            link.offer(envelope(token) for token in range(50))
            await owner.wait_for(50)
            assert owner.kinds == [Kind.ACCEPTED] * 50
            assert link.is_idle
            link.close()
            assert not link.is_open
            assert await owner.wait_closed() == ""

    run(main())


def test_a_batch_goes_over_tls(run: Run, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)

    async def play(peer: Peer) -> None:
        await peer.say("220 mx")
        await peer.hear_until("EHLO")
        await peer.say("250-mx", "250 STARTTLS")
        await peer.hear_until("STARTTLS")
        await peer.say("220 go")
        await peer.start_tls(certificate)
        await peer.hear_until("EHLO")
        await peer.say("250-mx", "250 PIPELINING")
        await serve(peer, 20)
        await peer.hear_until("QUIT")
        await peer.say("221 bye")

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer(envelope(token) for token in range(20))
            await owner.wait_for(20)
            assert owner.kinds == [Kind.ACCEPTED] * 20
            link.close()
            assert await owner.wait_closed() == ""

    run(main())


def test_the_limit_is_for_a_whole_reply_not_for_an_octet(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        await peer.say("250 ok")
        for _ in range(1000):
            await peer.say("250-", end="")
            await peer.say("x")
            await asyncio.sleep(0.002)

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer([envelope(1)])
            await until(lambda: link.dialogue.awaiting is Stage.RCPT)
            link.check_deadline(100.0)  # sees the reply to MAIL: the limit for RCPT runs from here
            await settle()
            link.check_deadline(100.0 + LIMITS.command_s - 1)
            assert owner.all == []
            link.check_deadline(100.0 + LIMITS.command_s)
            assert owner.kinds == [Kind.NOT_ATTEMPTED]
            assert "timed out while waiting for RCPT" in await owner.wait_closed()

    run(main())


@pytest.mark.parametrize(
    ("replies", "limit_s", "kind"),
    [
        ([], LIMITS.command_s, Kind.NOT_ATTEMPTED),
        (["250 ok", "250 ok"], LIMITS.data_s, Kind.NOT_ATTEMPTED),
        (["250 ok", "250 ok", "354 go"], LIMITS.dot_s, Kind.IN_DOUBT),
    ],
    ids=["MAIL", "DATA", "DOT"],
)
def test_a_silent_server_gets_the_time_of_its_stage(run: Run, replies: list[str], limit_s: float, kind: Kind) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        if replies:
            await peer.say(*replies)

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer([envelope(1)])
            await until(lambda: link.dialogue.replies_seen == len(replies))
            link.check_deadline(1.0)
            link.check_deadline(limit_s)
            assert owner.all == []
            link.check_deadline(1.0 + limit_s)
            assert owner.kinds == [kind]
            await owner.wait_closed()

    run(main())


def test_a_server_that_never_reads_is_cut_off_and_the_message_was_not_attempted(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        await peer.say("250 ok", "250 ok", "354 go")
        await asyncio.Event().wait()

    async def main() -> None:
        async with HostileServer(play, receive_buffer_bytes=1024) as server:
            link, owner = await linked(server, [b"x" * 70 + b"\r\n"] * 300_000)
            link.offer([envelope(1), envelope(2)])
            await until(lambda: link._is_paused)
            await settle()
            link.check_deadline(1.0)
            link.check_deadline(LIMITS.block_s)
            assert owner.all == []
            link.check_deadline(1.0 + LIMITS.block_s)
            assert owner.kinds == [Kind.NOT_ATTEMPTED] * 2
            assert owner.all[0].stage is Stage.BODY
            await owner.wait_closed()

    run(main())


def test_the_limit_for_the_dot_runs_only_when_the_body_has_left(run: Run) -> None:
    may_read = asyncio.Event()

    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        await peer.say("250 ok", "250 ok", "354 go")
        await may_read.wait()
        await peer.gone()

    async def main() -> None:
        async with HostileServer(play, receive_buffer_bytes=1024) as server:
            link, owner = await linked(server, [b"x" * 70 + b"\r\n"] * 300_000)
            link.offer([envelope(1)])
            await until(lambda: link._is_paused)
            link.check_deadline(1.0)
            link.check_deadline(100.0)
            may_read.set()
            await until(lambda: not link._is_paused)
            late_s = 100.0 + LIMITS.dot_s
            link.check_deadline(late_s - 1)
            assert owner.all == []
            link.check_deadline(late_s)
            assert owner.kinds == [Kind.IN_DOUBT]
            await owner.wait_closed()

    run(main())


def test_a_listener_is_never_called_inside_its_own_call(run: Run) -> None:
    class Recalling(Owner):
        is_inside = False

        def verdicts(self, link: Link, verdicts: list[Verdict]) -> None:
            assert not self.is_inside
            self.is_inside = True
            super().verdicts(link, verdicts)
            link.recall()
            link.offer([envelope(100 + len(self.all))] if len(self.all) < 5 else [])
            self.is_inside = False

    async def play(peer: Peer) -> None:
        await greet(peer)
        await serve(peer, 1)
        peer.drop()

    async def main() -> None:
        async with HostileServer(play) as server:
            session = await open_session(target(server))
            owner = Recalling(BODY)
            link = Link(session, Dialogue(session.extensions), owner, LIMITS, now_s=0.0)
            link.offer(envelope(token) for token in range(4))
            await owner.wait_closed()
            assert len(owner.all) == len({verdict.token for verdict in owner.all}) >= 5
            assert link.load == 0

    run(main())


def test_100_kb_of_recipients_against_a_window_of_1_kb_does_not_lock_up(run: Run) -> None:
    recipients = 2_500

    async def play(peer: Peer) -> None:
        """Reads a line, writes a long reply and waits until it is taken; so it stops reading while we do."""
        peer._writer.transport.set_write_buffer_limits(0)
        await greet(peer)
        await peer.hear_until("MAIL")
        await peer.say("250 ok")
        for _ in range(recipients):
            await peer.hear_until("RCPT")
            await peer.say("250 2.1.5 " + "x" * 200)
        await peer.hear_until("DATA")
        await peer.say("354 go")
        await peer.hear_until(".")
        await peer.say("250 queued")

    async def main() -> None:
        async with HostileServer(play, receive_buffer_bytes=1024) as server:
            link, owner = await linked(server)
            link.offer([envelope(1, recipients)])
            await owner.wait_for(recipients)
            assert set(owner.kinds) == {Kind.ACCEPTED}
            link.abort("the test is over")
            assert await owner.wait_closed() == "the test is over"

    run(main())


@pytest.mark.parametrize("place", range(4))
def test_one_reply_too_many_anywhere_in_a_batch_never_counts_as_sent(run: Run, place: int) -> None:
    counted = 0

    async def play(peer: Peer) -> None:
        nonlocal counted
        await greet(peer)
        for n in range(20):
            await peer.hear_until("DATA")
            replies = ["250 ok", "250 ok", "354 go"]
            if n == 7:
                replies.insert(place, "250 forged")
            await peer.say(*replies)
            await peer.hear_until(".")
            await peer.say("250 queued")
            counted += 1

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer(envelope(token) for token in range(20))
            await owner.wait_for(20)
            await owner.wait_closed()
            assert owner.kinds.count(Kind.ACCEPTED) <= counted
            assert owner.kinds[:7] == [Kind.ACCEPTED] * 7
            assert owner.kinds[8:] == [Kind.NOT_ATTEMPTED] * 12

    run(main())


def test_an_endless_reply_ends_the_link(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        while True:
            await peer.say(*["250-more"] * 100)

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer([envelope(1)])
            assert "reply of more than" in await owner.wait_closed()
            assert owner.kinds == [Kind.NOT_ATTEMPTED]

    run(main())


def test_an_idle_link_says_quit_and_a_deaf_server_is_left(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await asyncio.Event().wait()

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.check_deadline(LIMITS.idle_s - 1)
            assert link.is_open
            link.check_deadline(LIMITS.idle_s)
            assert not link.is_open
            link.offer([envelope(1)])  # too late: comes back at once
            assert owner.kinds == [Kind.NOT_ATTEMPTED]
            link.check_deadline(10.0)
            link.check_deadline(10.0 + LIMITS.quit_s)
            assert "QUIT" in await owner.wait_closed()

    run(main())


def test_an_old_session_begins_nothing_more(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        await asyncio.Event().wait()

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer([envelope(1), envelope(2)])
            link.check_deadline(LIMITS.session_s)
            assert [verdict.token for verdict in owner.all] == [2]
            link.check_deadline(LIMITS.session_s + LIMITS.dot_s)
            assert [verdict.token for verdict in owner.all] == [2, 1]
            await owner.wait_closed()

    run(main())


def lost_behind_end(slow_s: float, looks_s: list[float]) -> Callable[[], Coroutine[Any, Any, None]]:
    """A host that loses what comes with the end of a message; looked at then, after its reply to the dot."""

    async def play(peer: Peer) -> None:
        await greet(peer)
        await serve(peer, 1)
        await peer.gone()

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer(map(envelope, range(3)))
            link.check_deadline(0.0)
            link.check_deadline(slow_s)  # so long it took for something before
            await owner.wait_for(1)
            began_s = slow_s + 1
            link.check_deadline(began_s)
            for look_s in looks_s[:-1]:
                link.check_deadline(began_s + look_s)
                assert owner.kinds == [Kind.ACCEPTED]
            link.check_deadline(began_s + looks_s[-1])
            assert owner.kinds == [Kind.ACCEPTED, Kind.NOT_ATTEMPTED, Kind.NOT_ATTEMPTED]
            assert [one.fact for one in owner.observations] == [HostFact.NO_PIPELINING_BEHIND_END]
            assert "not answered" in await owner.wait_closed()

    return main


def test_commands_lost_behind_the_end_of_a_message_are_noticed_after_seconds(run: Run) -> None:
    run(lost_behind_end(0.0, [1.0, 2.0, 3.0])())


def test_a_host_that_is_slow_is_given_more_time_before_its_silence_is_believed(run: Run) -> None:
    run(lost_behind_end(2.0, [3.0, 10.0, 19.0, 20.0])())


def test_a_dot_that_is_not_answered_is_waited_for_as_long_as_ever(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await peer.hear_until("DATA")
        await peer.say("250 ok", "250 ok", "354 go")
        await peer.gone()

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)
            link.offer(map(envelope, range(2)))
            while link.dialogue.awaiting is not Stage.DOT:
                await settle()
            for now_s in (1.0, 2.0, 10.0, 100.0, 600.0):
                link.check_deadline(now_s)
                assert owner.kinds == []
            link.check_deadline(601.0)
            assert owner.kinds == [Kind.IN_DOUBT, Kind.NOT_ATTEMPTED]
            assert owner.observations == []

    run(main())


def test_a_fault_of_our_own_in_a_callback_is_handed_to_the_listener_and_the_connection_dropped(run: Run) -> None:
    async def play(peer: Peer) -> None:
        await greet(peer)
        await serve(peer, 1)
        await peer.gone()

    async def main() -> None:
        async with HostileServer(play) as server:
            link, owner = await linked(server)

            def broken(link: Link, verdicts: list[Verdict]) -> None:
                raise ZeroDivisionError("ours")

            owner.verdicts = broken  # type: ignore[method-assign]
            link.offer([envelope(1)])
            with pytest.raises(ZeroDivisionError):
                await owner.wait_closed()
            assert not link.is_open
            await settle()  # and nobody is called again

    run(main())
