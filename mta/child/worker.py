"""The child process: takes orders from the master, keeps the journal, reports.

All work happens in callbacks of one event loop. What a turn of the loop brings (outcomes, bodies that are due)
is collected and dealt with once at its end: one journal record, one clock reading; every few milliseconds one
report. So the price of safety is paid by the turn, not by the message.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from pathlib import Path
from typing import Final, cast

import structlog

from mta.child.carrier import Carrier
from mta.child.letters import BatchCursor, Letter
from mta.child.tally import Tally
from mta.child.templates import Templates
from mta.failure.judge import Judge
from mta.failure.qualify import Qualifier
from mta.failure.triage import Decision
from mta.model.errors import LocalFault
from mta.model.reply import Reply
from mta.outcomes.journal import Intent, Journal, JournalError, Record
from mta.smtp.dialogue import Envelope
from mta.smtp.envelope import Stage
from mta.telemetry.faults import end_on_fault
from mta.wire import (
    Batch,
    BatchPart,
    BounceRules,
    ChildFrame,
    ChildOptions,
    Close,
    Committed,
    Drain,
    Forget,
    FrameSplitter,
    Health,
    JournalState,
    Lease,
    MasterFrame,
    Open,
    Opened,
    Patterns,
    Recall,
    SigningKeys,
    decode_master_frame,
    encode_frame,
)
from mta.wire import Template as TemplateFrame

REPORT_DELAY_S: Final = 0.010
REPORT_OUTCOMES: Final = 400  # then a report goes at once
SWEEP_S: Final = 1.0
_PAGE_BYTES: Final = resource.getpagesize()

log = structlog.get_logger()


class Worker(asyncio.Protocol):
    """One child. Owned by its event loop; the socket to the master is its only input."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now_s = loop.time  # uvloop and asyncio both count CLOCK_MONOTONIC
        self.finished: asyncio.Future[None] = loop.create_future()
        self.unlinked = asyncio.Event()  # the socket to the master is closed
        self.letters: dict[int, Letter] = {}
        self.judge = Judge(Qualifier(()))
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._options: ChildOptions | None = None
        self._journal: Journal | None = None
        self._trouble = ""
        self._carriers: dict[int, Carrier] = {}
        self._templates = Templates()
        self._opening: set[asyncio.Task[None]] = set()
        self._tally = Tally()
        self._sequence = 1
        self._tokens = 0
        self._due: list[tuple[Carrier, Envelope]] = []
        self._is_turn_scheduled = False
        self._report_timer: asyncio.TimerHandle | None = None
        self._lease_until_s = 0.0
        self._is_draining = False
        self._messages = 0
        self._bytes_sent = 0
        # Held open: a process that is out of files must still be able to say how it is.
        self._statm_fd = os.open("/proc/self/statm", os.O_RDONLY)

    # --- from the master ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by class, only by what they do.
        self._transport = cast(asyncio.Transport, transport)
        self._loop.call_later(SWEEP_S, self._sweep)

    def data_received(self, data: bytes) -> None:
        for body in self._splitter.feed(data):
            self._obey(decode_master_frame(body))

    def connection_lost(self, exc: Exception | None) -> None:
        # The master is gone: whoever comes after it reads the journal. Nothing may be sent from here on.
        self.unlinked.set()
        if not self.finished.done():
            self.finished.set_result(None)

    def _obey(self, frame: MasterFrame) -> None:
        match frame:
            case Batch():
                self._take_batch(frame)
            case Open():
                self._open(frame)
            case Close():
                self._close(frame)
            case Committed():
                self._written_journal().committed(frame.sequence)
            case Lease():
                self._lease_until_s = frame.until_s
                self._resume()
            case Recall():
                self._recall(frame.delivery_id)
            case Drain():
                self._drain()
            case _:
                self._learn(frame)

    def _learn(self, frame: ChildOptions | TemplateFrame | Forget | SigningKeys | Patterns | BounceRules) -> None:
        """What the child needs to know for all that comes after it."""
        match frame:
            case TemplateFrame():
                assert self._options is not None
                self._templates.add(frame, self._options.verp_key)
            case Forget():
                self._templates.forget(frame.delivery_id)
            case SigningKeys():
                self._take_keys(frame)
            case Patterns():
                self._tally.watch(frame, self._carriers)
            case BounceRules():
                self.judge.use(frame.qualifier())
            case ChildOptions():
                self._begin(frame)

    def _take_keys(self, frame: SigningKeys) -> None:
        """What is not rendered yet is signed by the new keys, or goes back when it cannot be signed any more."""
        self._templates.take_keys(frame)
        for carrier in list(self._carriers.values()):
            for cursor in list(carrier.batches):
                if renderer := self._templates.renderer(cursor.batch):
                    cursor.renderer = renderer
                else:
                    carrier.recall(cursor.batch.delivery_id, set())

    def _close(self, order: Close) -> None:
        if carrier := self._carriers.get(order.session):
            carrier.close()

    def _begin(self, options: ChildOptions) -> None:
        self._options = options
        self._lease_until_s = options.lease_until_s
        self._journal = Journal(
            Path(options.journal_dir), options.node_id, options.child, segment_bytes_max=options.segment_bytes_max
        )
        try:
            self._journal.open()
        except JournalError as error:
            self._journal_failed(error)

    def _open(self, order: Open) -> None:
        carrier = self._carriers[order.session] = Carrier(self, order)
        carrier.opening = task = self._loop.create_task(carrier.open(), name=f"open session {order.session}")
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """A bug of ours: the process ends, and its work is recovered from the journal."""
        if not self.finished.done():
            self.finished.set_exception(error)

    def _take_batch(self, batch: Batch) -> None:
        carrier = self._carriers.get(batch.session)
        renderer = self._templates.renderer(batch)
        if renderer is None or carrier is None or not carrier.takes_batches or self._is_draining:
            limit = carrier.order.limit if carrier else ""
            for part in batch.parts:
                for position in part.positions:
                    self.give_back(batch, part, position, limit)
            return
        carrier.add(BatchCursor(batch, renderer, is_simulated=self._templates.is_simulated(batch.delivery_id)))

    def _drain(self) -> None:
        self._is_draining = True
        self._recall(None)
        for carrier in list(self._carriers.values()):
            carrier.close()
        self._give_up_due()
        self._end_if_drained()

    def _give_up_due(self) -> None:
        """A drain waits for servers, but for no lease: what may not be begun now is left to the next run."""
        if self._is_draining and not self.may_begin:
            due, self._due = self._due, []
            for carrier, _ in due:
                carrier.give_up("the node is draining and its lease is over")

    # --- from the carriers ----------------------------------------------------------------------

    @property
    def may_begin(self) -> bool:
        """False while nothing new may be begun: the lease is not certain, or the journal cannot be written."""
        return not self._trouble and self.now_s() < self._lease_until_s

    @property
    def ca_file(self) -> str:
        return "" if self._options is None else self._options.ca_file

    def next_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def settle(self, letter: Letter, decision: Decision) -> None:
        """Records what became of a letter."""
        segment = letter.segment
        if segment is not None:
            segment.open_intents -= 1
            segment.release = self._sequence
        self._tally.settle(letter, decision)
        self._messages += 1
        self._end_turn_soon()

    def refused(self, letter: Letter, reply: Reply, stage: Stage) -> None:
        """A reply that an automation may wait for."""
        self._tally.refused(letter, reply, stage)

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None:
        self._tally.give_back(batch, part, position, limit)
        self._end_turn_soon()

    def bodies_due(self, carrier: Carrier, envelopes: list[Envelope]) -> None:
        """The server waits for these bodies; they go at the end of the turn, when their intent is written."""
        for envelope in envelopes:
            self._due.append((carrier, envelope))
        self._end_turn_soon()

    def tell(self, frame: ChildFrame) -> None:
        """Tells the master something about a session, after the outcomes that came before it."""
        if not isinstance(frame, Opened):  # which has none
            self._report_now()
        self._send(frame)

    def forget(self, carrier: Carrier) -> None:
        self._carriers.pop(carrier.order.session, None)
        self._end_if_drained()

    def _recall(self, delivery_id: int | None) -> None:
        """What is not begun goes back, of one delivery or of all."""
        tokens: dict[int, set[int]] = {}  # by session
        for token, letter in self.letters.items():
            if delivery_id in (None, letter.batch.delivery_id):
                tokens.setdefault(letter.carrier.order.session, set()).add(token)
        for session, carrier in list(self._carriers.items()):
            carrier.recall(delivery_id, tokens.get(session, set()))
        self._end_turn_soon()

    # --- the end of a turn ----------------------------------------------------------------------

    def _end_turn_soon(self) -> None:
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        """Journal first: outcomes of this turn and intents for what it begins; then the bodies, then the report."""
        self._is_turn_scheduled = False
        due: list[tuple[Carrier, Envelope]] = []
        if self._due and self.may_begin:
            due, self._due = self._due, []
        if due or self._tally.settled:
            due = self._write_journal(due)
        if self._tally.count >= REPORT_OUTCOMES:
            self._send_report()
        elif self._tally.count and self._report_timer is None:
            self._report_timer = self._loop.call_later(REPORT_DELAY_S, self._report_now)
        for carrier, envelope in due:
            letter = self.letters.get(envelope.token)
            # Gone when the link ended since it was due: its verdict is given.
            if letter is not None and carrier.link is not None and letter.segments is not None:
                segments, letter.segments = letter.segments, None
                self._bytes_sent += envelope.size_bytes
                carrier.link.body(envelope.token, segments, is_transparent=True)

    def _write_journal(self, due: list[tuple[Carrier, Envelope]]) -> list[tuple[Carrier, Envelope]]:
        """Writes one record; what of ``due`` may be sent now: all of it, or nothing when the journal fails."""
        journal = self._written_journal()
        intended = [letter for _, envelope in due if (letter := self.letters.get(envelope.token)) is not None]
        if journal.is_full:
            # The intents that are open begin the new segment, so that none keeps an old one.
            intended += [letter for letter in self.letters.values() if letter.segment is not None]
        intents = [_intent(letter) for letter in intended]
        settled, lines, doubts = self._tally.take_turn()
        try:
            journal.write(Record(self._sequence, intents, settled, lines, doubts))
        except JournalError as error:
            self._journal_failed(error)
            for carrier, _ in due:
                if carrier.link is not None:
                    carrier.link.abort("the local journal cannot be written")
            # What that has settled goes into the report as what came before it does, without the journal.
            self._tally.take_turn()
            return []
        segment = journal.segment
        segment.release = max(segment.release, self._sequence)
        segment.open_intents += len(intended)
        for letter in intended:
            if letter.segment is not None:
                letter.segment.open_intents -= 1
            letter.segment = segment
        return due

    def _written_journal(self) -> Journal:
        if self._journal is None:
            raise LocalFault("an order came before the options")
        return self._journal

    def _journal_failed(self, error: JournalError) -> None:
        # New sends stop, replies under way are still collected and reported: the database makes them safe.
        if not self._trouble:
            log.error("journal cannot be written", error=str(error))
        self._trouble = str(error)
        self._send(JournalState(self._trouble))

    def _report_now(self) -> None:
        # With all that is settled by now: a segment may go when the report under way at a settling is committed.
        self._end_turn()
        self._send_report()

    def _send_report(self) -> None:
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        if not self._tally.count:
            return
        self._send(self._tally.take_report(self._sequence))
        self._sequence += 1

    def _send(self, frame: ChildFrame) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(frame))

    # --- once a second --------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_S, self._sweep)
        now_s = self.now_s()
        for carrier in list(self._carriers.values()):
            if carrier.link is not None:
                carrier.link.check_deadline(now_s)
        self._give_up_due()
        if self._trouble:
            self._probe_journal()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._send(
            Health(
                self._rss_bytes(),
                usage.ru_utime + usage.ru_stime,
                self._messages,
                len(self._carriers),
                self._bytes_sent,
            )
        )

    def _rss_bytes(self) -> int:
        return int(os.pread(self._statm_fd, 200, 0).split()[1]) * _PAGE_BYTES

    def _probe_journal(self) -> None:
        try:
            self._written_journal().probe()
        except JournalError as error:
            self._journal_failed(error)
            return
        log.info("journal can be written again")
        self._trouble = ""
        self._send(JournalState(""))
        self._resume()

    def _resume(self) -> None:
        """The lease is certain (again): what had to wait goes on."""
        if self.may_begin:
            if self._due:
                self._end_turn_soon()
            for carrier in list(self._carriers.values()):
                if carrier.batches and carrier.link is not None and carrier.link.load < 1:
                    carrier.feed()

    def _end_if_drained(self) -> None:
        if self._is_draining and not self._carriers and not self.finished.done():
            self._report_now()
            self.finished.set_result(None)


def _intent(letter: Letter) -> Intent:
    order = letter.carrier.order
    return Intent(letter.part.part_id, letter.position, order.mx_host, order.peer, order.limit)


async def serve(fd: int) -> None:
    """Runs a child on its socket to the master until the master is gone or the child is drained."""
    loop = asyncio.get_running_loop()
    worker = Worker(loop)
    end_on_fault(loop, worker.fail)
    transport, _ = await loop.create_unix_connection(lambda: worker, sock=socket.socket(fileno=fd))
    # What lives as long as the process is never looked at again; letters and replies hold no cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        await worker.finished
    finally:
        if transport.is_closing():
            # The master is dead. Connections must not outlive it: end without ceremony.
            os._exit(3)
        transport.close()  # after what is written: the last report goes out first
        await worker.unlinked.wait()
