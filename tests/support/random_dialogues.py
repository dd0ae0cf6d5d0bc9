"""A real child against random servers, under a clock that jumps; what must hold whatever they do.

One run is one child: worker, carriers, links, dialogues and journal are the real ones; this plays the master, the
servers (`tests.support.random_server`) and the network (`tests.support.virtual_loop`). A number makes all of it, and
makes it again. What is checked:

- the child does not end, and has no fault; once drained it ends;
- each recipient that it was handed has one outcome, or came back, once;
- what it reports stands in the files of its journal when the report leaves, and a body's intent when the body does;
- a message that a server took is delivered or in doubt, never anything else, and was taken once;
- what is delivered was taken, with the octets that were rendered for this recipient;
- only a message whose body was written can be in doubt;
- sessions with a server that behaves are not harmed by their neighbours;
- where our own code is made to fail in a session, all of that holds too, but that the child says so and is drained.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import struct
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

import mta.session.open
from mta.child.worker import Worker
from mta.failure.qualify import Qualifier
from mta.model.failure import Evidence, Verdict
from mta.model.outcome import Status
from mta.model.timeouts import SessionTimeouts
from mta.outcomes.journal import JournalError, Record, segments_of
from mta.outcomes.replay import Journals
from mta.telemetry.faults import end_on_fault
from mta.wire import (
    Batch,
    BatchPart,
    ChildOptions,
    Close,
    Committed,
    Drain,
    Failing,
    FrameSplitter,
    HostObserved,
    Lease,
    MasterFrame,
    Open,
    Opened,
    OpenFailed,
    Recall,
    Report,
    SessionClosed,
    SigningKeys,
    Template,
    decode_child_frame,
    encode_frame,
)
from tests.support.content import content_json
from tests.support.random_server import RandomServer, Temper, draw_temper
from tests.support.virtual_loop import VirtualLoop, VirtualSocket

NODE, CHILD = 7, 1
LETTER, LARGE, PROBE = 1, 2, 3  # deliveries
CONTENTS = {
    LETTER: content_json(text="Dear {{first}}"),
    LARGE: content_json(text="Dear {{first}}\n" + ("0123456789" * 7 + "\n") * 1_500),
    PROBE: content_json(text="Dear {{first}}"),
}
BRIEF = SessionTimeouts(
    greeting_s=20, command_s=20, data_s=15, block_s=20, dot_s=30, quit_s=3, idle_s=4, setup_s=60, session_s=300
)
OUTCOMES = ("delivered", "failed", "deferred", "in_doubt", "returned", "simulated")
_TO = re.compile(rb"^To: <?([^>\r\n]+)", re.MULTILINE)
_LENGTH = struct.Struct("!II")
_decoder = msgspec.msgpack.Decoder(Record)


class Broken(AssertionError):  # noqa: N818 - reads as what happened
    """Something that must hold does not."""


def journals_directory() -> Path:
    """In memory, where the machine has such a place."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="mta-dialogues-", dir=shared if os.access(shared, os.W_OK) else None))


class FaultyQualifier:
    """Fails now and then, as a bug would in the code of a session."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._qualifier = Qualifier(())

    def qualify(self, evidence: Evidence) -> Verdict:
        if self._dice.random() < 0.3:
            raise ZeroDivisionError("provoked")
        return self._qualifier.qualify(evidence)


class JournalReader:
    """The files of a journal, read on as they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.intents: set[tuple[int, int]] = set()
        self.settled: Counter[tuple[int, int, int]] = Counter()

    def read(self) -> None:
        for path in segments_of(self._directory, NODE, CHILD):
            content = path.read_bytes()
            at = self._read.get(path, 0)
            while at < len(content):
                size, _ = _LENGTH.unpack_from(content, at)
                at += _LENGTH.size
                record = _decoder.decode(content[at : at + size])
                at += size
                self.intents.update((intent.part_id, intent.position) for intent in record.intents)
                self.settled.update((one.batch, one.part_id, one.position) for one in record.settled)
            self._read[path] = at


class Run:
    """One child, some sessions, and the ledger of all that was handed out."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.directory = directory
        self.servers: list[RandomServer] = []
        self.observed: list[HostObserved] = []
        self.faults: list[str] = []
        self._dialled: dict[int, tuple[Temper, bool]] = {}  # by port
        self._batches = 0
        self._templates: set[int] = set()
        self._number = 0
        self._addresses: dict[tuple[int, int], str] = {}  # by part and position
        self._places: dict[str, tuple[int, int, int]] = {}  # batch, part, position by address
        self._sessions_of: dict[str, int] = {}
        self._outcomes: dict[str, str] = {}
        self._written: set[str] = set()  # bodies that went out
        self._ended: Counter[int] = Counter()  # sessions
        self._opened: set[int] = set()
        self._sequence = 0
        self._splitter = FrameSplitter()
        self._is_journal_broken = False
        self._is_faulty = self.dice.random() < 0.1  # our own code fails now and then
        self._was_interrupted = self._is_faulty  # the master, the lease or the journal had a hand in it

    # -- the master's part -------------------------------------------------------------------------------------

    async def play(self) -> int:
        """The whole run; how many sessions it had."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop
        self.worker = worker = Worker(loop)
        self._reader = JournalReader(self.directory)
        end_on_fault(loop, self._faulted)
        worker.connection_made(_MasterTransport(self))
        if self._is_faulty:
            worker.judge.use(FaultyQualifier(self.dice))
        self._tell(ChildOptions(NODE, CHILD, str(self.directory), self.dice.choice((1_500, 8 << 20)), bytes(32), 1e9))
        self._tell(SigningKeys(False, []))
        sessions = self.dice.choice((1, 1, 2, 3, 5))
        for session in range(1, sessions + 1):
            self._order(session)
        for _ in range(self.dice.choice((0, 0, 0, 1, 2))):
            loop.call_later(self.dice.random() * 20, self._interfere, sessions)
        await asyncio.sleep(self.dice.choice((0.0, 1.0, 30.0, 400.0, 400.0, 400.0)))
        self._tell(Drain())
        async with asyncio.timeout(3_600):
            await worker.finished
        self._check_end(sessions)
        return sessions

    def _order(self, session: int) -> None:
        dice = self.dice
        temper = draw_temper(dice)
        self._dialled[session] = (temper, dice.random() < 0.03)
        self._tell(
            Open(
                session=session,
                site="mx.test",
                mx_host="mx.test",
                peer="192.0.2.1",
                port=session,
                egress="default",
                limit="r|1",
                source=None,
                helo="client.example.com",
                tls="disabled",
                pipelining=dice.random() < 0.9,
                chunking=dice.random() < 0.8,
                recipients_per_transaction_max=dice.choice((1, 3)),
                timeouts=BRIEF,
                pipelines_behind_end=dice.random() < 0.8,
                resets_max=dice.choice((8, 8, 2, 0)),
            )
        )
        for _ in range(dice.choice((1, 1, 2, 4))):
            if dice.random() < 0.8:
                self._hand_out(session)
            else:
                self._loop.call_later(dice.random() * 30, self._hand_out, session)

    def _hand_out(self, session: int) -> None:
        if self.worker.finished.done():
            return
        dice = self.dice
        delivery = dice.choice((LETTER,) * 12 + (PROBE,) * 2 + (LARGE,))
        if delivery not in self._templates:
            self._templates.add(delivery)
            self._tell(Template(delivery, CONTENTS[delivery], delivery == PROBE))
        self._batches += 1
        parts, rows = [], []
        for part in range(1, dice.choice((1, 1, 2)) + 1):
            part_id = self._batches * 10 + part
            positions = list(range(dice.choice((1, 2, 3, 8))))
            for position in positions:
                address = f"u{part_id}p{position}@d{dice.randrange(3)}.test"
                self._addresses[part_id, position] = address
                self._places[address] = (self._batches, part_id, position)
                self._sessions_of[address] = session
                value: object = "Ann\nBob" if dice.random() < 0.02 else "Ann"  # a line end is no value
                rows.append([address, None, [value]])
            numbers = [self._number + position for position in positions]
            self._number += len(positions)
            parts.append(BatchPart(part_id, 1, 1_700_000_000, positions, numbers))
        self._tell(Batch(self._batches, session, delivery, ("first",), parts, json.dumps(rows).encode()))

    def _interfere(self, sessions: int) -> None:
        self._was_interrupted = True
        dice = self.dice
        match dice.randrange(5):
            case 0:
                self._tell(Recall(dice.choice((None, LETTER, PROBE))))
            case 1:
                self._tell(Close(dice.randint(1, sessions)))
            case 2:
                self._tell(Lease(0.0))
                self._loop.call_later(dice.random() * 40, self._tell, Lease(1e9))
            case 3:
                self._break_journal()
                self._loop.call_later(dice.random() * 40, self._mend_journal)
            case _:
                self._tell(SigningKeys(False, []))

    def _break_journal(self) -> None:
        def full(record: Record) -> None:
            raise JournalError(28, "no space left")

        def still_full() -> None:
            raise JournalError(28, "no space left")

        self._is_journal_broken = True
        journal: Any = self.worker._journal
        journal.write, journal.probe = full, still_full

    def _mend_journal(self) -> None:
        journal: Any = self.worker._journal
        for name in ("write", "probe"):
            vars(journal).pop(name, None)

    def _tell(self, frame: MasterFrame) -> None:
        if not self.worker.finished.done():
            self.worker.data_received(encode_frame(frame))

    # -- the network -------------------------------------------------------------------------------------------

    def dial(self, target: mta.session.open.SessionTarget) -> VirtualSocket:
        temper, is_down = self._dialled[target.port]
        if is_down:
            return VirtualSocket(None)
        server = RandomServer(self._loop, self.dice, temper, self._before_it_leaves)
        server.session = target.port
        self.servers.append(server)
        return VirtualSocket(server)

    def _before_it_leaves(self, data: bytes) -> None:
        """Octets of a client: the intent of each body in them must be in the journal."""
        addresses = [found.decode() for found in _TO.findall(data)]
        if addresses:
            self._reader.read()
        for address in addresses:
            self._written.add(address)
            _, part_id, position = self._places[address]
            self._hold((part_id, position) in self._reader.intents, f"the body for {address} left before its intent")

    # -- what the child says -----------------------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            frame = decode_child_frame(body)
            match frame:
                case Report():
                    self._take_report(frame)
                case Opened():
                    self._opened.add(frame.session)
                case OpenFailed() | SessionClosed():
                    self._ended[frame.session] += 1
                case HostObserved():
                    self.observed.append(frame)
                case Failing():
                    self._hold("provoked" in frame.cause, f"the child has a fault: {frame.cause}")
                    self._loop.call_soon(self._tell, Drain())

    def _take_report(self, report: Report) -> None:
        self._hold(report.sequence > self._sequence, f"report {report.sequence} after {self._sequence}")
        self._sequence = report.sequence
        if not self._is_journal_broken:
            self._reader.read()
        for outcome in report.outcomes:
            for name in OUTCOMES:
                for position in getattr(outcome, name):
                    address = self._addresses[outcome.part_id, position]
                    self._hold(address not in self._outcomes, f"{address}: {name} after {self._outcomes.get(address)}")
                    self._outcomes[address] = name
                    place = (outcome.batch, outcome.part_id, position)
                    is_written = self._is_journal_broken or self._reader.settled[place] == 1
                    self._hold(is_written, f"{address}: {name} is reported, and not in the journal")
        if self.dice.random() < 0.5:
            self._loop.call_soon(self._tell, Committed(report.sequence - self.dice.choice((0, 0, 1))))

    def _faulted(self, error: BaseException) -> None:
        self.faults.append(f"{type(error).__name__}: {error}")

    # -- what must hold ----------------------------------------------------------------------------------------

    def _hold(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)

    def _check_end(self, sessions: int) -> None:
        self._hold(self.worker.finished.exception() is None, f"the child ended by {self.worker.finished}")
        self._hold(not self.worker.letters, f"letters are left: {self.worker.letters}")
        self._hold(self._ended == Counter(range(1, sessions + 1)), f"ends of sessions: {self._ended}")
        taken: Counter[str] = Counter()
        for server in self.servers:
            for recipient, body in server.accepted:
                taken[recipient] += 1
                to = [found.decode() for found in _TO.findall(body)]
                self._hold(to == [recipient] or server.has_lied, f"{recipient} was sent a message to {to}")
        liars = {server.session for server in self.servers if server.has_lied}
        for address in self._places:
            self._check_recipient(address, taken[address], is_lied_to=self._sessions_of[address] in liars)
        self._check_neighbours()
        if not self._is_journal_broken:
            self._check_journal()
        if self.faults:
            raise Broken("; ".join(self.faults) + "\n" + self.transcript)

    def _check_recipient(self, address: str, taken: int, *, is_lied_to: bool) -> None:
        outcome = self._outcomes.get(address)
        self._hold(outcome is not None, f"{address} has no outcome")
        self._hold(taken <= 1, f"{address} was taken {taken} times")
        self._hold(outcome != "in_doubt" or address in self._written, f"{address} is in doubt and was never written")
        if not is_lied_to:
            self._hold(outcome != "delivered" or taken == 1, f"{address} is delivered and was never taken")
            self._hold(not taken or outcome in ("delivered", "in_doubt"), f"{address} was taken and is {outcome}")

    def _check_neighbours(self) -> None:
        if self._was_interrupted:
            return
        for address, session in self._sessions_of.items():
            temper, is_down = self._dialled[session]
            is_limited = any(word.startswith(("LIMITS", "SIZE 400")) for word in temper.keywords)
            if temper.is_good and not is_down and not is_limited:
                outcome = self._outcomes.get(address)
                self._hold(outcome not in ("in_doubt", "deferred"), f"{address} of a good server is {outcome}")

    def _check_journal(self) -> None:
        told = Journals(self.directory, NODE, CHILD)
        self._hold(not told.is_damaged, "the journal is damaged")
        for address, outcome in self._outcomes.items():
            _, part_id, position = self._places[address]
            known = told.told(part_id, position)
            status = None if known is None else known.status
            is_right = outcome == "returned" if status is None else status is Status[outcome.upper()]
            # Segments go when what they tell is committed.
            self._hold(is_right or known is None, f"{address} is {outcome}, and the journal says {known}")

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(self._outcomes.values())

    @property
    def transcript(self) -> str:
        lines = [f"outcomes: {self._outcomes}"]
        for number, server in enumerate(self.servers, 1):
            lines += [f"server {number}: {server.temper}", *server.said]
        return "\n".join(lines)


class _MasterTransport(asyncio.Transport):
    """The child's socket to the master."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def write(self, data: Any) -> None:
        self._run.heard(bytes(data))

    def is_closing(self) -> bool:
        return False


def play(seed: int, directory: Path) -> tuple[Run, int]:
    """One run; how many dialogues it had. Raises Broken."""
    here = directory / str(seed)
    here.mkdir()
    run = Run(seed, here)
    # Much of what goes wrong does so because two things come in one turn.
    loop = VirtualLoop(turn_s=run.dice.choice((1e-9, 0.005, 0.05)))
    try:
        with mock.patch.object(mta.session.open, "_connecting_socket", run.dial):
            sessions = loop.run_until_complete(run.play())
    except Broken:
        raise
    except BaseException as error:
        raise Broken(f"{type(error).__name__}: {error}; {run.faults}\n{run.transcript}") from error
    finally:
        journal: Any = run.worker._journal
        journal.close()
        os.close(run.worker._statm_fd)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        shutil.rmtree(here)
    return run, sessions
