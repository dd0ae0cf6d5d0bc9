"""One session in a child: opened on order, fed from its batches, two letters deep."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from mta.child.letters import BatchCursor, Letter, LetterFailed
from mta.child.session_watch import SessionCounts, SessionWatch
from mta.failure.judge import Judge, judged
from mta.failure.patterns import REFUSAL_MIN
from mta.failure.triage import RETURNED, SERVICE_CLOSING, Decision, triage
from mta.model.failure import Category, FailureType
from mta.model.failure import Verdict as FailureVerdict
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.outcomes.line import session_columns
from mta.session.link import Link
from mta.session.open import OpenSession, SessionFailed, SessionTarget, TlsPolicy, open_session
from mta.smtp.commands import local_refusal
from mta.smtp.dialogue import Dialogue, Envelope, Kind, Verdict
from mta.smtp.envelope import Observation, Stage, in_one_transaction
from mta.wire import Batch, BatchPart, ChildFrame, HostObserved, Open, Opened, OpenFailed, SessionClosed

# One under way and the next: its commands go out in the write that ends the body before it.
DEPTH: Final = 2
_DELIVERED: Final = Status.DELIVERED
# Of a message that our own code failed to make: counted against nobody.
_OUR_FAULT: Final = judged(FailureVerdict(FailureType.IGNORED, Reason.UNREACHABLE, Category.OTHER))
TLS_POLICIES: dict[str, TlsPolicy] = {
    "disabled": "disabled",
    "opportunistic": "opportunistic",
    "required": "required",
    "verified": "verified",
}


class Crew(Protocol):
    """What a carrier asks of its process; `mta.child.worker.Worker` is the one there is."""

    letters: dict[int, Letter]  # under way, by the token of their envelope and their place in it
    judge: Judge  # says what failures mean
    watch: SessionWatch  # says which refusals are about the session

    @property
    def may_begin(self) -> bool: ...

    @property
    def ca_file(self) -> str: ...  # authorities that are trusted; empty: those of the system

    def now_s(self) -> float: ...

    def next_token(self) -> int: ...

    def settle(self, letter: Letter, decision: Decision) -> None: ...

    def refused(self, letter: Letter, reply: Reply, stage: Stage) -> None: ...

    def path_refused(self, letter: Letter, decision: Decision, stage: Stage) -> None: ...

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None: ...

    def bodies_due(self, carrier: Carrier, envelopes: list[Envelope]) -> None: ...

    def tell(self, frame: ChildFrame) -> None: ...

    def forget(self, carrier: Carrier) -> None: ...

    def render_fault(self, letter: Letter, fault: BaseException | None) -> None: ...  # its outcome is given

    def session_fault(self, carrier: Carrier, fault: Exception) -> None: ...


class Carrier:
    """Listener of one Link. Its letters are in the worker's table while they are under way."""

    __slots__ = (
        "_is_closing",
        "_is_given_up",
        "_is_over",
        "_is_plain",
        "batches",
        "columns",
        "counts",
        "link",
        "opening",
        "order",
        "worker",
    )

    def __init__(self, worker: Crew, order: Open) -> None:
        self.worker = worker
        self.order = order
        self.link: Link | None = None
        self.opening: asyncio.Task[None] | None = None  # kept by the worker
        self.batches: deque[BatchCursor] = deque()
        self.counts = SessionCounts(order.session, (order.peer, order.port), worker.now_s())
        self.columns = session_columns(order.site, order.mx_host, order.peer, order.egress)
        self._is_closing = False
        self._is_given_up = False
        self._is_over = False
        self._is_plain = False  # without TLS, as STARTTLS failed

    async def open(self) -> None:
        """Opens the session; whatever comes of it is told to the master."""
        order = self.order
        target = SessionTarget(
            mx_host=order.mx_host,
            peer=order.peer,
            helo=order.helo,
            port=order.port,
            source=order.source,
            tls=TLS_POLICIES[order.tls],
            timeouts=order.timeouts,
            authorities=order.authorities,
            ca_file=self.worker.ca_file,
        )
        session: OpenSession | None = None
        try:
            session = await open_session(target)
            dialogue = Dialogue(
                session.extensions,
                pipelining=order.pipelining,
                chunking=order.chunking,
                pipelines_behind_end=order.pipelines_behind_end,
                resets_max=order.resets_max,
            )
            self.link = Link(session, dialogue, self, order.timeouts, self.worker.now_s())
        except SessionFailed as failed:
            self._not_opened(_open_failed(order.session, failed))
            return
        except asyncio.CancelledError:
            if self._is_over or not self._is_closing:
                raise
            # It was to be closed before it was open: nobody waits for the rest of a slow handshake.
            self._not_opened(SessionClosed(order.session, ""))
            return
        self._is_plain = bool(session.tls) and not session.is_tls
        self.worker.tell(Opened(order.session, session.is_tls))
        if self._is_closing and not self.batches:
            self.link.close()
        else:
            self.feed()

    def _not_opened(self, told: OpenFailed | SessionClosed) -> None:
        self._is_over = True
        self.give_back_all()
        self.worker.tell(told)
        self.worker.forget(self)

    @property
    def takes_batches(self) -> bool:
        """False when it is closing: what is given to it comes back."""
        return not (self._is_over or self._is_closing) and (self.link is None or self.link.is_open)

    def add(self, cursor: BatchCursor) -> None:
        self.batches.append(cursor)
        self.feed()

    def feed(self) -> None:
        """Offers letters until the dialogue is two deep."""
        link = self.link
        if link is None or not self.worker.may_begin:
            if link is not None and self._is_closing and not self.batches and link.load == 0:
                link.close()
            return
        worker = self.worker
        is_sharing = self.order.recipients_per_transaction_max > 1
        while link.load < DEPTH and self.batches and link.is_open:
            cursor = self.batches[0]
            if not len(cursor):
                self.batches.popleft()
                continue
            if is_sharing and cursor.is_simulated:
                # A probe goes out when all before it is answered: by then more recipients may be here, and it is known
                # how many the server takes.
                if link.load:
                    break
                self._offer_shared(link)
                continue
            token = worker.next_token()
            try:
                letter = cursor.next_letter(self, token)
            except LetterFailed as failed:
                self._failed(token, failed)
                continue
            assert letter.envelope is not None
            worker.letters[token] = letter
            link.offer((letter.envelope,))
        if not link.is_open:
            self.give_back_all()
        elif self._is_closing and not self.batches and link.load == 0:
            link.close()

    def _offer_shared(self, link: Link) -> None:
        """Offers one transaction for as many recipients of a simulated delivery as may share it and are at hand.

        Their tokens follow one another, so a verdict finds its letter by the token of the envelope and its own place.
        """
        worker = self.worker
        dialogue = link.dialogue
        most = self.order.recipients_per_transaction_max
        if dialogue.recipients_max is not None and dialogue.recipients_max < most:
            most = dialogue.recipients_max
        delivery_id = self.batches[0].batch.delivery_id
        shared: list[Envelope] = []
        alone: list[Envelope] = []
        token = worker.next_token()
        while self.batches and len(shared) < most and not alone:
            cursor = self.batches[0]
            if not len(cursor):
                self.batches.popleft()
                continue
            if cursor.batch.delivery_id != delivery_id:
                break
            try:
                letter = cursor.next_letter(self, token)
            except LetterFailed as failed:
                self._failed(token, failed)
                continue
            worker.letters[token] = letter
            envelope = letter.envelope
            assert envelope is not None
            # What the server would not take of one must not keep the others from being asked for.
            refused = local_refusal(envelope, dialogue.extensions)
            (shared if refused is None else alone).append(envelope)
            token = worker.next_token()
        if shared:
            alone.insert(0, in_one_transaction(shared))
        link.offer(alone)

    def _failed(self, token: int, failed: LetterFailed) -> None:
        # Under way while it is judged: whatever happens here, it is accounted for.
        worker = self.worker
        worker.letters[token] = failed.letter
        if failed.is_fault:
            worker.render_fault(failed.letter, failed.__cause__)
            reply = Reply(0, f"local: a fault of this program: {failed.why}", "4.6.0")
            decision = Decision(Status.DEFERRED, Reason.UNREACHABLE, reply, _OUR_FAULT)
        else:
            # 5.6.0: other or undefined media error (RFC 3463 §3.7); nothing was asked of the server.
            reply = Reply(0, f"local: {failed.why}", "5.6.0")
            local = Decision(Status.FAILED, Reason.UNREACHABLE, reply)
            decision = worker.judge.complete(local, Stage.IDLE, self.order.mx_host)
        del worker.letters[token]
        worker.settle(failed.letter, decision)

    # --- the link's calls -----------------------------------------------------------------------

    def verdicts(self, link: Link, verdicts: list[Verdict]) -> None:
        worker, counts = self.worker, self.counts
        refusal: Reply | None = None
        for verdict in verdicts:
            token = verdict.token + verdict.recipient
            letter = worker.letters[token]
            reply = verdict.reply
            if reply is not None and reply.code >= REFUSAL_MIN:
                if _is_refusal(verdict, reply, refusal):
                    worker.refused(letter, reply, verdict.stage)
                refusal = reply
            if (verdict.kind is Kind.NOT_ATTEMPTED or self._is_given_up) and letter.segments is not None:
                decision = RETURNED  # nothing of its content was written
            elif reply is not None and verdict.kind is Kind.REFUSED and self._is_about_session(verdict, reply, letter):
                decision = RETURNED  # another session may take it
            else:
                decision = triage(verdict.kind, verdict.stage, verdict.reply, verdict.cause)
                if decision.status is not _DELIVERED:
                    decision = worker.judge.complete(
                        decision, verdict.stage, self.order.mx_host, is_plain=self._is_plain
                    )
                    if decision.scope.is_of_path and not (decision.is_last_word and letter.batch.is_rerouted):
                        worker.path_refused(letter, decision, verdict.stage)
                        decision = RETURNED  # another path may take it
                else:
                    worker.watch.accepted(counts, letter.batch.delivery_id)
                if decision.status is not None:
                    counts.decided += 1
            del worker.letters[token]  # not before its decision is made: whatever happens, it is accounted for
            worker.settle(letter, decision)
        if worker.watch.observed:
            self._tell_observed()
        if counts.leaving and not self._is_closing:
            self.leave(counts.leaving)
        self.feed()

    def _is_about_session(self, verdict: Verdict, reply: Reply, letter: Letter) -> bool:
        worker = self.worker
        recipient = (letter.batch.delivery_id, letter.number)
        return worker.watch.is_about_session(self.counts, verdict.stage, reply, recipient, worker.now_s())

    def _tell_observed(self) -> None:
        worker = self.worker
        observed, worker.watch.observed = worker.watch.observed, []
        for session, fact, value, cause in observed:
            worker.tell(HostObserved(session, fact, value, cause))

    def bodies_due(self, link: Link, envelopes: list[Envelope]) -> None:
        self.worker.bodies_due(self, envelopes)

    def observed(self, link: Link, observations: list[Observation]) -> None:
        for fact, value, cause in observations:
            self.worker.tell(HostObserved(self.order.session, fact, value, cause))

    def faulted(self, link: Link, fault: Exception) -> None:
        self.worker.session_fault(self, fault)

    def closed(self, link: Link, cause: str) -> None:
        self._is_over = True
        self.give_back_all()
        self.worker.tell(SessionClosed(self.order.session, cause))
        self.worker.forget(self)

    # --- the worker's calls ---------------------------------------------------------------------

    def give_back_all(self) -> None:
        """All that is not offered yet goes back to the master."""
        while self.batches:
            self._give_back(self.batches.popleft())

    def recall(self, delivery_id: int | None, tokens: set[int]) -> None:
        """Gives back what is not begun, of one delivery or of all; what is on the wire is finished.

        ``tokens`` are those of its letters that are meant.
        """
        for cursor in self.batches:
            if delivery_id in (None, cursor.batch.delivery_id):
                self._give_back(cursor)
        if self.link is not None:
            self.link.recall(tokens)

    def close(self, *, gives_back: bool = False) -> None:
        """Finish what it was given (``gives_back``: what it has begun), then QUIT."""
        self._is_closing = True
        if gives_back:
            self.give_back_all()
        if self.link is not None:
            self.feed()
        elif not self.batches and self.opening is not None:
            self.opening.cancel()

    @property
    def messages_accepted(self) -> int:
        """In this session, so far."""
        return 0 if self.link is None else self.link.dialogue.messages_accepted

    def leave(self, cause: str) -> None:
        """Ends the session, for a reason that is not its recipients': what was not sent goes back, not attempted.

        Replies that are owed are waited for; no further message is begun, whatever was handed over.
        """
        self._is_closing = True
        self.give_back_all()
        if self.link is not None:
            self.link.leave(cause)
        elif self.opening is not None:
            self.opening.cancel()

    @property
    def is_unloaded(self) -> bool:
        """Its session is open and has nothing to do."""
        return self.link is not None and self.link.load < 1

    def check_deadline(self, now_s: float) -> None:
        """Ends the session when the server is too slow. About once a second."""
        if self.link is not None:
            self.link.check_deadline(now_s)

    def abort(self) -> None:
        """Drops the connection; what was sent and not answered is in doubt."""
        if self.link is not None:
            self.link.abort("the process is being replaced, and no reply came")

    def drop(self) -> None:
        """Cuts the session off without a word to anybody: what it had in hand is the caller's to account for."""
        self._is_over = True
        if self.link is not None:
            self.link.drop()
        elif self.opening is not None:
            self.opening.cancel()

    def give_up(self, cause: str) -> None:
        """Ends the session now. What it was about to send of a message goes back: nothing of it was written."""
        self._is_given_up = True
        if self.link is not None:
            self.link.abort(cause)

    def _give_back(self, cursor: BatchCursor) -> None:
        for part, position in cursor.rest():
            self.worker.give_back(cursor.batch, part, position, self.order.limit)


def _is_refusal(verdict: Verdict, reply: Reply, before: Reply | None) -> bool:
    """It is one more, not ``before``, the one of the verdict in front of it, once again.

    Equal replies may be one object, so that alone does not tell.
    """
    if reply.code == SERVICE_CLOSING:  # ends all that is under way: it is one refusal all the same
        return reply is not before
    if verdict.kind is not Kind.REFUSED:
        return False  # too many recipients: it will be asked for in another transaction
    return verdict.recipient == 0 or verdict.stage is not Stage.MAIL  # which has one reply for all of a transaction


def _open_failed(session: int, failed: SessionFailed) -> OpenFailed:
    reply = failed.reply
    if reply is None:
        return OpenFailed(session, failed.stage.name, 0, failed.cause, "", failed.cause, failed.errno, failed.call)
    said = str(reply)
    cause = said if failed.cause == said else f"{failed.cause}: {said}"
    return OpenFailed(session, failed.stage.name, reply.code, cause, reply.enhanced, reply.text)
