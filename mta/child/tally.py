"""Outcomes on their way out of a child: of this turn (for the journal), and of this report (for the master)."""

from __future__ import annotations

from time import time
from typing import Final

from mta.child.letters import Letter
from mta.failure.triage import Decision
from mta.model.outcome import Status
from mta.model.reply import Reply
from mta.outcomes.journal import Doubt, Settled
from mta.outcomes.line import escaped, log_line, timestamp
from mta.wire import Batch, BatchPart, OutcomeList, Report

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
        self._replies: dict[Reply, tuple[Status, str, str]] = {}

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
        self._add(letter.batch.batch, part_id, letter.position, status, carrier.order.limit)
        if status is None:
            return
        if not self._at:
            self._at = timestamp(time())
        reply = decision.reply
        texts = self._replies.get(reply)
        if texts is None or texts[0] is not status:
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
            )
        )
        if status is _IN_DOUBT:
            order = carrier.order
            self._doubts.append((part_id, letter.position, order.mx_host, order.peer, reply.text))

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
        report = Report(sequence, self._report.outcomes(), "".join(self._lines).encode(), self._doubts)
        self._report = OutcomeList()
        self._lines = []
        self._doubts = []
        self._turn_line = 0
        self._turn_doubt = 0
        return report

    def _add(self, batch: int, part_id: int, position: int, status: Status | None, limit: str) -> None:
        self.settled.append(Settled(batch, part_id, position, status or 0, limit))
        self._report.add(batch, part_id, position, status, limit)

    def _texts(self, status: Status, decision: Decision) -> tuple[Status, str, str]:
        """The columns that a reply makes, kept: servers say the same few sentences."""
        reply = decision.reply
        verdict = f"{status:d}\t{decision.reason:d}\t{reply.code}\t{reply.enhanced}"
        if len(self._replies) >= _REPLIES_KEPT:
            self._replies.clear()
        texts = self._replies[reply] = (status, verdict, escaped(reply.text))
        return texts
