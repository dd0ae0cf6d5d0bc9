"""The child process: takes orders from the master, keeps the journal, reports.

All work happens in callbacks of one event loop. What a turn of the loop brings (outcomes, bodies that are due)
is collected and dealt with once at its end: one journal record, one clock reading; every few milliseconds one
report. So the price of safety is paid by the turn, not by the message.

**Faults of our own code.** One in the code of a session (a callback of its link, the making of its commands) costs that
session: its message that was sent is in doubt, the rest goes back. The process may be wrong in more than that, so it
opens and sends nothing more, tells the master (`mta.wire.frames.Failing`), waits for the replies that are owed to its
other sessions, which are recorded as ever, and ends; another has taken its place by then. Only a fault in the books
themselves, journal and tally, ends the process at once: what they say next must not be believed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

import structlog

from mta.child.carrier import Carrier
from mta.child.letters import BatchCursor, Letter
from mta.child.session_watch import SessionWatch
from mta.child.tally import Tally
from mta.child.templates import Templates
from mta.failure.judge import Judge
from mta.failure.qualify import Qualifier
from mta.failure.triage import RETURNED, Decision, triage
from mta.model.errors import LocalFault
from mta.model.reply import Reply
from mta.outcomes.journal import Intent, Journal, JournalError, Record
from mta.smtp.dialogue import Envelope, Kind
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
    Failing,
    Forget,
    FrameSplitter,
    Health,
    HostObserved,
    JournalState,
    Lease,
    MasterFrame,
    Open,
    Opened,
    Patterns,
    Recall,
    SessionClosed,
    SigningKeys,
    decode_master_frame,
    encode_frame,
)
from mta.wire import Template as TemplateFrame

REPORT_DELAY_S: Final = 0.010
REPORT_OUTCOMES: Final = 400  # then a report goes at once
SWEEP_S: Final = 1.0
FAILING_MARGIN_S: Final = 15.0  # beyond the longest wait for a reply; then a failing child waits no more
_LEAVING: Final = "the process is being replaced"
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
        self.watch = SessionWatch()
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._options: ChildOptions | None = None
        self._journal: Journal | None = None
        self._trouble = ""
        self._carriers: dict[int, Carrier] = {}
        self._templates = Templates()
        self._opening: dict[asyncio.Task[None], Carrier] = {}
        self._tally = Tally()
        self._sequence = 1
        self._tokens = 0
        self._due: list[tuple[Carrier, Envelope]] = []
        self._is_turn_scheduled = False
        self._report_timer: asyncio.TimerHandle | None = None
        self._lease_until_s = 0.0
        self._is_draining = False
        self._failing_until_s = 0.0  # not 0: something of us is wrong
        self._spoilt: set[int] = set()  # deliveries with a message that could not be made by a fault of ours
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
            frame = decode_master_frame(body)
            try:
                self._obey(frame)
            except Exception as fault:
                self.fault(fault)

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
                self._written_journal().committed(frame.sequence, frame.settlement)
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
                self._spoilt.discard(frame.delivery_id)
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
        self._each(self._carriers.values(), self._renew_renderers)

    def _renew_renderers(self, carrier: Carrier) -> None:
        for cursor in list(carrier.batches):
            if renderer := self._templates.renderer(cursor.batch):
                cursor.renderer = renderer
            else:
                carrier.recall(cursor.batch.delivery_id, set())

    def _close(self, order: Close) -> None:
        if carrier := self._carriers.get(order.session):
            gives_back = order.gives_back
            self._each((carrier,), lambda carrier: carrier.close(gives_back=gives_back))

    def _each(self, carriers: Iterable[Carrier], act: Callable[[Carrier], None]) -> None:
        """A fault in one of the sessions is its own."""
        for carrier in list(carriers):
            try:
                act(carrier)
            except Exception as fault:
                self.session_fault(carrier, fault)

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
        if self._failing_until_s:
            self.tell(SessionClosed(order.session, ""))
            return
        carrier = self._carriers[order.session] = Carrier(self, order)
        carrier.opening = task = self._loop.create_task(carrier.open(), name=f"open session {order.session}")
        self._opening[task] = carrier
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        carrier = self._opening.pop(task)
        if not task.cancelled() and (error := task.exception()):
            assert isinstance(error, Exception)  # anything else ended the loop
            self.session_fault(carrier, error)

    def _take_batch(self, batch: Batch) -> None:
        carrier = self._carriers.get(batch.session)
        if carrier is None or not carrier.takes_batches or self._is_draining or self._failing_until_s:
            self._give_batch_back(batch, carrier)
            return
        try:
            renderer = self._templates.renderer(batch)
            cursor = (
                None
                if renderer is None
                else BatchCursor(batch, renderer, is_simulated=self._templates.is_simulated(batch.delivery_id))
            )
        except Exception as fault:
            self._give_batch_back(batch, carrier)
            self.fault(fault)
            return
        if cursor is None:
            self._give_batch_back(batch, carrier)
            return
        carrier.batches.append(cursor)
        self._each((carrier,), Carrier.feed)

    def _give_batch_back(self, batch: Batch, carrier: Carrier | None) -> None:
        limit = carrier.order.limit if carrier else ""
        for part in batch.parts:
            for position in part.positions:
                self.give_back(batch, part, position, limit)

    def _drain(self) -> None:
        self._is_draining = True
        self._recall(None)
        self._each(self._carriers.values(), Carrier.close)
        self._give_up_due()
        self._end_if_drained()

    def _give_up_due(self) -> None:
        """A drain waits for servers, but for no lease: what may not be begun now is left to the next run."""
        if self._is_draining and not self.may_begin:
            due, self._due = self._due, []
            carriers = [carrier for carrier, _ in due]
            self._each(carriers, lambda carrier: carrier.give_up("the node is draining and its lease is over"))

    # --- faults of our own code -------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """The books are wrong: the process ends, says nothing more, and its work is recovered from the journal."""
        if not self.finished.done():
            self.finished.set_exception(error)
        self._transport = None

    def fault(self, error: BaseException) -> None:
        """Something is wrong that is of no one session: no more is begun, and the process is replaced."""
        if self.finished.done():
            return
        log.error("fault in a child", exc_info=error)
        self._begin_failing(f"{type(error).__name__}: {error}")

    def session_fault(self, carrier: Carrier, fault: Exception) -> None:
        """Something is wrong in this session: its message that was sent is in doubt, the rest goes back."""
        if self.finished.done():
            return  # the books are at fault
        if self._carriers.get(carrier.order.session) is not carrier:
            self.fault(fault)  # what it had in hand is accounted for
            return
        order = carrier.order
        log.error("fault in a session", session=order.session, mx_host=order.mx_host, peer=order.peer, exc_info=fault)
        cause = f"a fault of this program: {type(fault).__name__}: {fault}"
        try:
            carrier.drop()
            for token, letter in [(token, one) for token, one in self.letters.items() if one.carrier is carrier]:
                del self.letters[token]
                is_sent = letter.segment is not None and letter.segments is None
                self.settle(letter, triage(Kind.IN_DOUBT, Stage.DOT, None, cause) if is_sent else RETURNED)
            carrier.give_back_all()
            self.tell(SessionClosed(order.session, cause))
            self.forget(carrier)
        except Exception as worse:
            self.fail(worse)
            return
        self._begin_failing(cause)

    def render_fault(self, letter: Letter, fault: BaseException | None) -> None:
        """A message could not be made. Said once a delivery: it may be so with each of its recipients."""
        if letter.batch.delivery_id not in self._spoilt:
            self._spoilt.add(letter.batch.delivery_id)
            log.error("message cannot be made", delivery=letter.batch.delivery_id, number=letter.number, exc_info=fault)

    def _begin_failing(self, cause: str) -> None:
        if self._failing_until_s:
            return
        waits_s = [carrier.order.timeouts.dot_s for carrier in self._carriers.values()]
        self._failing_until_s = self.now_s() + max(waits_s, default=0.0) + FAILING_MARGIN_S
        self._send(Failing(cause))
        self._loop.call_soon(self._leave_all)

    def _leave_all(self) -> None:
        self._due.clear()  # their sessions end below
        self._each(self._carriers.values(), lambda carrier: carrier.leave(_LEAVING))

    # --- from the carriers ----------------------------------------------------------------------

    @property
    def may_begin(self) -> bool:
        """False while nothing new may be begun: the lease or our state is uncertain, the journal cannot be written."""
        return not self._trouble and not self._failing_until_s and self.now_s() < self._lease_until_s

    @property
    def ca_file(self) -> str:
        return "" if self._options is None else self._options.ca_file

    def next_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def settle(self, letter: Letter, decision: Decision) -> None:
        """Records what became of a letter."""
        try:
            segment = letter.segment
            if segment is not None:
                segment.open_intents -= 1
                segment.release = self._sequence
            self._tally.settle(letter, decision)
        except Exception as fault:
            self.fail(fault)
            raise
        self._messages += 1
        self._end_turn_soon()

    def refused(self, letter: Letter, reply: Reply, stage: Stage) -> None:
        """A reply that an automation may wait for."""
        self._tally.refused(letter, reply, stage)

    def path_refused(self, letter: Letter, decision: Decision, stage: Stage) -> None:
        """A refusal that is not about the letter's recipient, which is returned."""
        self._tally.path_refused(letter, decision, stage)

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None:
        try:
            self._tally.give_back(batch, part, position, limit)
        except Exception as fault:
            self.fail(fault)
            raise
        self._end_turn_soon()

    def bodies_due(self, carrier: Carrier, envelopes: list[Envelope]) -> None:
        """The server waits for these bodies; they go at the end of the turn, when their intent is written."""
        for envelope in envelopes:
            self._due.append((carrier, envelope))
        self._end_turn_soon()

    def tell(self, frame: ChildFrame) -> None:
        """Tells the master something about a session, after the outcomes that came before it."""
        if not isinstance(frame, Opened | HostObserved):  # of which outcomes say nothing
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
        self._each(
            self._carriers.values(),
            lambda carrier: carrier.recall(delivery_id, tokens.get(carrier.order.session, set())),
        )
        self._end_turn_soon()

    # --- the end of a turn ----------------------------------------------------------------------

    def _end_turn_soon(self) -> None:
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._close_turn(is_report_due=False)

    def _report_now(self) -> None:
        # With all that is settled by now: a segment may go when the report under way at a settling is committed.
        self._close_turn(is_report_due=True)

    def _close_turn(self, *, is_report_due: bool) -> None:
        """The journal first: outcomes of this turn, and intents for what it begins; then the report, then the bodies.

        Nobody is called between the journal and the report, so what is reported stands in the journal. A session may
        answer its body at once, by verdicts or its end; that is of the next turn.
        """
        self._is_turn_scheduled = False
        due: list[tuple[Carrier, Envelope]] = []
        try:
            if self._due and self.may_begin:
                due, self._due = self._due, []
            is_written = not (due or self._tally.settled) or self._write_journal(due)
            if is_report_due or self._tally.count >= REPORT_OUTCOMES:
                self._send_report()
            elif self._tally.count and self._report_timer is None:
                self._report_timer = self._loop.call_later(REPORT_DELAY_S, self._report_now)
        except Exception as fault:
            self.fail(fault)
            return
        for carrier, envelope in due:
            try:
                if is_written:
                    self._send_body(carrier, envelope)
                elif carrier.link is not None:
                    carrier.link.abort("the local journal cannot be written")
            except Exception as fault:
                self.session_fault(carrier, fault)

    def _send_body(self, carrier: Carrier, envelope: Envelope) -> None:
        letter = self.letters.get(envelope.token)
        # Gone when the link ended since it was due: its verdict is given.
        if letter is not None and carrier.link is not None and letter.segments is not None:
            segments = letter.segments
            if carrier.link.dialogue.takes_body:
                letter.segments = None  # from here on it may be in doubt
                self._bytes_sent += envelope.size_bytes
            carrier.link.body(envelope.token, segments, is_transparent=True)

    def _write_journal(self, due: list[tuple[Carrier, Envelope]]) -> bool:
        """Writes one record. False when it cannot be: then nothing of ``due`` may be sent."""
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
            # What is settled is reported all the same: the database makes it safe.
            self._journal_failed(error)
            return False
        segment = journal.segment
        segment.release = max(segment.release, self._sequence)
        segment.open_intents += len(intended)
        for letter in intended:
            if letter.segment is not None:
                letter.segment.open_intents -= 1
            letter.segment = segment
        return True

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
        self._each(self._carriers.values(), lambda carrier: carrier.check_deadline(now_s))
        if self._failing_until_s and now_s >= self._failing_until_s:
            self._each(self._carriers.values(), Carrier.abort)
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
            waiting = [carrier for carrier in self._carriers.values() if carrier.batches and carrier.is_unloaded]
            self._each(waiting, Carrier.feed)

    def _end_if_drained(self) -> None:
        if self._is_draining and not self._carriers and not self.finished.done():
            self._report_now()
            self.finished.set_result(None)


def _intent(letter: Letter) -> Intent:
    order = letter.carrier.order
    return Intent(
        letter.part.part_id,
        letter.position,
        order.mx_host,
        order.peer,
        order.limit,
        letter.batch.delivery_id,
        letter.number,
        letter.part.attempt,
        letter.address,
        letter.part.dated_unix_s,
    )


async def serve(fd: int) -> None:
    """Runs a child on its socket to the master until the master is gone or the child is drained."""
    loop = asyncio.get_running_loop()
    worker = Worker(loop)
    end_on_fault(loop, worker.fault)
    transport, _ = await loop.create_unix_connection(lambda: worker, sock=socket.socket(fileno=fd))
    # What lives as long as the process is never looked at again; letters and replies hold no cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # Not in a `finally`: compiled, a wait there would lose the error that is under way.
    await asyncio.wait([worker.finished])
    if transport.is_closing():
        # The master is dead. Connections must not outlive it: end without ceremony.
        os._exit(3)
    transport.close()  # after what is written: the last report goes out first
    await worker.unlinked.wait()
    worker.finished.result()
