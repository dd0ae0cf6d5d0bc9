"""Outcomes on their way out of a child: of this tick (for the journal), and of this report (for the master)."""

from __future__ import annotations

from time import time

from mta.child.letters import Letter
from mta.failure.triage import Decision
from mta.model.outcome import Status
from mta.model.reply import Reply
from mta.outcomes.line import escaped, log_line, timestamp
from mta.wire import Batch, BatchPart, Outcome

_REPLIES_KEPT = 2_000
Doubts = list[tuple[int, int, str, str, str]]


class OutcomeList:
    """Outcomes by batch and part, merged as they come."""

    __slots__ = ("_by_part", "count", "doubts", "lines")

    def __init__(self) -> None:
        self._by_part: dict[tuple[int, int], Outcome] = {}
        self.lines: list[str] = []
        self.doubts: Doubts = []
        self.count = 0

    def add(self, batch: Batch, part_id: int, position: int, status: Status | None, limit: str) -> None:
        key = (batch.batch, part_id)
        outcome = self._by_part.get(key)
        if outcome is None:
            outcome = self._by_part[key] = Outcome(batch.batch, part_id, limit)
        if status is Status.DELIVERED:
            outcome.delivered.append(position)
        elif status is None:
            outcome.returned.append(position)
        elif status is Status.FAILED:
            outcome.failed.append(position)
        elif status is Status.DEFERRED:
            outcome.deferred.append(position)
        else:
            assert status is Status.IN_DOUBT
            outcome.in_doubt.append(position)
        self.count += 1

    def outcomes(self) -> list[Outcome]:
        return list(self._by_part.values())

    def merge(self, other: OutcomeList) -> None:
        """Takes over what ``other`` holds; ``other`` is not used again."""
        mine = self._by_part
        for key, theirs in other._by_part.items():
            own = mine.get(key)
            if own is None:
                mine[key] = theirs
                continue
            own.delivered.extend(theirs.delivered)
            own.failed.extend(theirs.failed)
            own.deferred.extend(theirs.deferred)
            own.in_doubt.extend(theirs.in_doubt)
            own.returned.extend(theirs.returned)
        self.lines.extend(other.lines)
        self.doubts.extend(other.doubts)
        self.count += other.count

    def encoded_lines(self) -> bytes:
        return "".join(self.lines).encode()


class Tally:
    """Turns decisions into outcomes and log lines. One clock reading and one text a tick or reply, not a message."""

    def __init__(self) -> None:
        self.tick = OutcomeList()
        self._at = ""
        self._replies: dict[tuple[Status, Reply], tuple[str, str]] = {}

    def settle(self, letter: Letter, decision: Decision) -> None:
        """Records what became of a letter that was offered."""
        carrier = letter.carrier
        part = letter.part
        status = decision.status
        self.tick.add(letter.batch, part.part_id, letter.position, status, carrier.order.limit)
        if status is None:
            return
        if not self._at:
            self._at = timestamp(time())
        verdict, reply = self._texts(status, decision)
        self.tick.lines.append(
            log_line(
                self._at,
                letter.batch.delivery_id,
                letter.number,
                part.part_id,
                part.attempt,
                verdict,
                letter.address,
                letter.reference,
                carrier.columns,
                reply,
            )
        )
        if status is Status.IN_DOUBT:
            order = carrier.order
            self.tick.doubts.append((part.part_id, letter.position, order.mx_host, order.peer, decision.reply.text))

    def give_back(self, batch: Batch, part: BatchPart, position: int, limit: str) -> None:
        """Records a recipient that was never begun."""
        self.tick.add(batch, part.part_id, position, None, limit)

    def take_tick(self) -> OutcomeList:
        """What came since the last call; the next tick reads the clock anew."""
        taken, self.tick = self.tick, OutcomeList()
        self._at = ""
        return taken

    def _texts(self, status: Status, decision: Decision) -> tuple[str, str]:
        key = (status, decision.reply)
        texts = self._replies.get(key)
        if texts is None:
            reply = decision.reply
            verdict = f"{status:d}\t{decision.reason:d}\t{reply.code}\t{reply.enhanced}"
            texts = (verdict, escaped(reply.text))
            if len(self._replies) >= _REPLIES_KEPT:
                self._replies.clear()
            self._replies[key] = texts
        return texts
