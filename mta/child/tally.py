"""Outcomes on their way out of a child: of this turn (for the journal), and of this report (for the master)."""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import Final

from mta.child.letters import Letter
from mta.failure.patterns import ReplyPatterns, Wanted
from mta.failure.triage import Decision
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.outcomes.journal import Doubt, Settled
from mta.outcomes.line import escaped, log_line, timestamp
from mta.smtp.envelope import Stage
from mta.wire import Batch, BatchPart, Matched, OutcomeList, PathRefused, Patterns, Report

_REPLIES_KEPT: Final = 2_000
_IN_DOUBT: Final = Status.IN_DOUBT


class Tally:
    """Turns decisions into outcomes and log lines. One clock reading a turn, one text a reply, not a message."""

    def __init__(self) -> None:
        self.settled: list[Settled] = []  # of this turn
        self._report = OutcomeList()
        self._lines: list[str] = []  # of the report; those of this turn begin at _turn_line
        self._doubts: list[Doubt] = []
        self._turn_line = 0
        self._turn_doubt = 0
        self._at = ""
        self._replies: dict[Reply, tuple[Status, str, str, str, Reason]] = {}
        self._patterns = ReplyPatterns(())
        self._watched = Patterns(0, [])
        self._automations: dict[int, tuple[int, ...]] = {}  # of sessions that are older than the patterns
        self._refusals: dict[tuple[int, Stage, Decision], list[tuple[int, int]]] = {}  # of paths; who met them
        # (session, automation, delivery, domain) -> replies, and the first of them
        self._matched: dict[tuple[int, int, int, str], tuple[int, str]] = {}

    @property
    def count(self) -> int:
        """Outcomes in the report."""
        return self._report.count

    def settle(self, letter: Letter, decision: Decision) -> None:
        """Records what became of a letter that was offered."""
        carrier = letter.carrier
        part = letter.part
        part_id = part.part_id
        status = decision.status
        envelope = letter.envelope
        size_bytes = 0 if envelope is None else envelope.size_bytes
        # Its segments leave it when they are written; before that nothing of its content was.
        sent_bytes = size_bytes if letter.segments is None else 0
        self._add(
            letter.batch.batch,
            part_id,
            letter.position,
            status,
            carrier.order.limit,
            sent_bytes,
            size_bytes,
            decision,
        )
        if status is None:
            return
        if not self._at:
            self._at = timestamp(time())
        reply = decision.reply
        texts = self._replies.get(reply)
        if texts is None or texts[0] is not status or texts[3] != decision.judged or texts[4] is not decision.reason:
            texts = self._texts(status, decision)
        self._lines.append(
            log_line(
                self._at,
                letter.batch.delivery_id,
                letter.number,
                part_id,
                part.attempt,
                texts[1],
                letter.address,
                letter.reference,
                carrier.columns,
                texts[2],
                sent_bytes,
                texts[3],
            )
        )
        if status is _IN_DOUBT:
            order = carrier.order
            self._doubts.append((part_id, letter.position, order.mx_host, order.peer, reply.text))

    def watch(self, patterns: Patterns, sessions: Iterable[int]) -> None:
        """What automations wait for from now on. What was found by the patterns before is of no use any more.

        ``sessions`` are open; the numbers that they were opened with mean nothing any more.
        """
        self._patterns = ReplyPatterns(
            Wanted(one.codes, one.enhanced, one.pattern, one.stages) for one in patterns.patterns
        )
        self._watched = patterns
        self._automations = dict.fromkeys(sessions, ()) | dict(patterns.sessions)
        self._matched.clear()

    def refused(self, letter: Letter, reply: Reply, stage: Stage) -> None:
        """Counts a refusal for each automation of the session's rule that waits for such a reply."""
        order = letter.carrier.order
        numbers = self._automations.get(order.session, order.automations)
        for number in self._patterns.match(reply.code, reply.enhanced, reply.text, stage, numbers):
            asked = self._watched.patterns[number]
            domain = letter.address[letter.address.rfind("@") + 1 :] if asked.is_by_domain else ""
            key = (order.session, number, letter.batch.delivery_id if asked.is_by_delivery else 0, domain)
            before = self._matched.get(key)
            self._matched[key] = (1, str(reply)) if before is None else (before[0] + 1, before[1])

    def path_refused(self, letter: Letter, decision: Decision, stage: Stage) -> None:
        """A letter that is returned since its path was refused: the master is told by what, and what it is about."""
        key = (letter.carrier.order.session, stage, decision)
        met = self._refusals.get(key)
        if met is None:
            met = self._refusals[key] = []
        met.append((letter.part.part_id, letter.position))

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None:
        """Records a recipient that was never begun."""
        self._add(batch.batch, part.part_id, position, None, limit)

    def take_turn(self) -> tuple[list[Settled], bytes, list[Doubt]]:
        """Outcomes, lines and doubts since the last call, for the journal. The next turn reads the clock anew."""
        settled, self.settled = self.settled, []
        lines = "".join(self._lines[self._turn_line :]).encode()
        doubts = self._doubts[self._turn_doubt :]
        self._turn_line = len(self._lines)
        self._turn_doubt = len(self._doubts)
        self._at = ""
        return settled, lines, doubts

    def take_report(self, sequence: int) -> Report:
        """All since the last report; each turn of it must have been taken before."""
        assert not self.settled, "what the journal does not have is not reported"
        matched = [Matched(*key, replies, sample) for key, (replies, sample) in self._matched.items()]
        lines = "".join(self._lines).encode()
        refusals = [_path_refused(*key, met) for key, met in self._refusals.items()]
        version = self._watched.version
        report = Report(sequence, self._report.outcomes(), lines, self._doubts, matched, version, refusals)
        self._matched.clear()
        self._refusals.clear()
        self._report = OutcomeList()
        self._lines = []
        self._doubts = []
        self._turn_line = 0
        self._turn_doubt = 0
        return report

    def _add(
        self,
        batch: int,
        part_id: int,
        position: int,
        status: Status | None,
        limit: str,
        sent_bytes: int = 0,
        size_bytes: int = 0,
        decision: Decision | None = None,
    ) -> None:
        self.settled.append(Settled(batch, part_id, position, status or 0, limit))
        self._report.add(batch, part_id, position, status, limit, sent_bytes, size_bytes, decision)

    def _texts(self, status: Status, decision: Decision) -> tuple[Status, str, str, str, Reason]:
        """The columns that a reply makes, kept: servers say the same few sentences."""
        reply = decision.reply
        verdict = f"{status:d}\t{decision.reason:d}\t{reply.code}\t{reply.enhanced}"
        if len(self._replies) >= _REPLIES_KEPT:
            self._replies.clear()
        texts = (status, verdict, escaped(reply.text), decision.judged, decision.reason)
        self._replies[reply] = texts
        return texts


def _path_refused(session: int, stage: Stage, decision: Decision, met: list[tuple[int, int]]) -> PathRefused:
    reply, status = decision.reply, decision.status
    assert status is not None
    return PathRefused(
        session,
        decision.scope,
        decision.rest,
        stage.name,
        reply.code,
        reply.enhanced,
        reply.text,
        status if decision.is_last_word else Status.DEFERRED,
        decision.reason,
        decision.judged,
        met,
    )
