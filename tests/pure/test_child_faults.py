"""A child with a fault: what it still waits for, for how long, and what ends it at once. Under a clock that jumps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import mta.session.open
from mta.child.worker import FAILING_MARGIN_S, Worker
from mta.model.timeouts import SessionTimeouts
from mta.wire import (
    Batch,
    BatchPart,
    ChildFrame,
    ChildOptions,
    Drain,
    Failing,
    FrameSplitter,
    MasterFrame,
    Open,
    OpenFailed,
    Outcome,
    Report,
    SessionClosed,
    SigningKeys,
    Template,
    decode_child_frame,
    encode_frame,
)
from tests.support.content import content_json
from tests.support.virtual_loop import VirtualLoop, VirtualSocket, VirtualTransport

DOT_S = 600.0


class Server:
    """Answers the commands of one session; its reply to the dot comes when the test says so."""

    def __init__(self, dot: bytes = b"") -> None:
        self._dot = dot
        self._is_body = False

    def connected(self, transport: VirtualTransport) -> None:
        self.transport = transport
        self._say(b"220 mx\r\n")

    def received(self, data: bytes) -> None:
        if self._is_body:
            self._is_body = False
            self._say(self._dot)
        elif data.startswith(b"EHLO"):
            self._say(b"250 mx\r\n")
        elif data.startswith(b"DATA"):
            self._is_body = True
            self._say(b"354 go\r\n")
        else:
            self._say(b"250 ok\r\n")

    def client_left(self) -> None:
        pass

    def _say(self, octets: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.transport.deliver, octets)


class Master(asyncio.Transport):
    """The other end of the child's socket, and the servers that it dials by their port."""

    def __init__(self, directory: Path, servers: list[Server]) -> None:
        super().__init__()
        self.said: list[ChildFrame] = []
        self._splitter = FrameSplitter()
        self._servers = servers
        self.worker = Worker(asyncio.get_running_loop())
        self.worker.connection_made(self)
        self.tell(ChildOptions(7, 1, str(directory), 8 << 20, bytes(32), 1e9))
        self.tell(SigningKeys(False, []))
        self.tell(Template(1, content_json(text="Dear {{first}}")))

    def dial(self, target: mta.session.open.SessionTarget) -> VirtualSocket:
        return VirtualSocket(self._servers[target.port])

    def tell(self, frame: MasterFrame) -> None:
        self.worker.data_received(encode_frame(frame))

    def write(self, data: Any) -> None:
        self.said += [decode_child_frame(body) for body in self._splitter.feed(bytes(data))]

    def is_closing(self) -> bool:
        return False

    def send(self, session: int, recipients: int, dated_unix_s: int = 1_700_000_000) -> None:
        """Opens a session and hands it a batch of its number."""
        self.tell(
            Open(
                *(session, "mx.test", "mx.test", "192.0.2.1", session, "default", "r|1", None, "client.example.com"),
                *("disabled", True, True, 1),
                timeouts=SessionTimeouts(dot_s=DOT_S),
            )
        )
        positions = list(range(recipients))
        rows = json.dumps([[f"u{n}@d.test", None, ["Ann"]] for n in positions]).encode()
        part = BatchPart(session, 1, dated_unix_s, positions, [session * 100 + n for n in positions])
        self.tell(Batch(session, session, 1, ("first",), [part], rows))

    def told(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in self.said if isinstance(frame, kind)]

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """By part: all that was told, together."""
        found: dict[int, Outcome] = {}
        for report in self.told(Report):
            for one in report.outcomes:
                into = found.setdefault(one.part_id, Outcome(one.batch, one.part_id))
                for name in ("delivered", "failed", "deferred", "in_doubt", "returned"):
                    getattr(into, name).extend(getattr(one, name))
        return found


class Broken:
    """A qualifier with a bug."""

    def qualify(self, evidence: object) -> Any:
        raise ZeroDivisionError("ours")


Play = Callable[[list[Server], Callable[[Master], Any]], Master]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    loop = VirtualLoop(1e-9)

    def run(servers: list[Server], script: Callable[[Master], Any]) -> Master:
        async def main() -> Master:
            master = Master(tmp_path, servers)
            with mock.patch.object(mta.session.open, "_connecting_socket", master.dial):
                await script(master)
            return master

        return loop.run_until_complete(main())

    yield run
    loop.close()


def test_a_fault_costs_its_session_and_replies_that_are_owed_to_others_are_taken(play: Play) -> None:
    silent, faulty = Server(), Server(b"550 5.7.1 no\r\n")

    async def script(master: Master) -> None:
        master.worker.judge.use(Broken())
        master.send(0, 5)
        await asyncio.sleep(1)
        master.send(1, 5)
        await asyncio.sleep(1)
        [failing] = master.told(Failing)
        assert "ZeroDivisionError: ours" in failing.cause
        outcomes = master.outcomes
        assert (outcomes[1].in_doubt, sorted(outcomes[1].returned)) == ([0], [1, 2, 3, 4])
        assert sorted(outcomes[0].returned) == [1, 2, 3, 4]
        [closed] = master.told(SessionClosed)
        assert (closed.session, "ZeroDivisionError" in closed.cause) == (1, True)
        master.send(2, 3)  # was on its way
        master.tell(Drain())
        await asyncio.sleep(500)
        assert not master.worker.finished.done()
        silent.transport.deliver(b"250 queued\r\n")
        await master.worker.finished

    master = play([silent, faulty, Server()], script)
    assert master.outcomes[0].delivered == [0]
    assert sorted(master.outcomes[2].returned) == [0, 1, 2]
    assert not master.told(OpenFailed)
    assert len(master.told(Failing)) == 1
    assert sorted(frame.session for frame in master.told(SessionClosed)) == [0, 1, 2]


def test_a_child_with_a_fault_waits_no_longer_than_for_a_reply_to_a_dot(play: Play) -> None:
    async def script(master: Master) -> None:
        master.send(0, 2)
        await asyncio.sleep(1)
        began_s = master.worker.now_s()
        master.worker.fault(ZeroDivisionError("ours"))
        master.tell(Drain())
        await master.worker.finished
        assert master.worker.now_s() - began_s <= DOT_S + FAILING_MARGIN_S + 5

    outcomes = play([Server()], script).outcomes
    assert (outcomes[0].in_doubt, outcomes[0].returned) == ([0], [1])


def test_a_fault_in_the_books_ends_the_process_and_it_says_nothing_more(play: Play) -> None:
    async def script(master: Master) -> None:
        master.send(0, 2)
        await asyncio.sleep(1)
        tally: Any = master.worker._tally
        tally._report = None  # the books are broken
        said = len(master.told(Report))
        master.worker._carriers[0].link.dialogue.receive(b"")
        master.tell(Drain())
        with pytest.raises((AttributeError, TypeError)):
            await master.worker.finished
        assert len(master.told(Report)) == said

    play([Server()], script)


def test_a_message_that_our_code_cannot_make_is_deferred_and_ends_nobody(play: Play) -> None:
    async def script(master: Master) -> None:
        master.send(0, 2, dated_unix_s=10**15)  # a year that no calendar has
        await asyncio.sleep(1)
        master.tell(Drain())
        await master.worker.finished

    master = play([Server(b"250 queued\r\n")], script)
    assert not master.told(Failing)
    assert sorted(master.outcomes[0].deferred) == [0, 1]
    [line, _] = b"".join(report.lines for report in master.told(Report)).decode().splitlines()
    assert "local: a fault of this program" in line
