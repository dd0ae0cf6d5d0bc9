"""What a dead child leaves behind: settled from its journal, so that its work goes on or is named in doubt."""

from __future__ import annotations

from pathlib import Path

import structlog

from mta.master.books import BatchBook, LeasedPart
from mta.master.children import Child
from mta.master.collector import Collector
from mta.master.recovery import doubt_line
from mta.model.errors import LocalFault
from mta.model.outcome import Status
from mta.outcomes.journal import Record, lock_path
from mta.outcomes.line import volume_of
from mta.outcomes.replay import Journals, Told
from mta.wire import Outcome, OutcomeList, Report

log = structlog.get_logger()
CAUSE = "the process died before the reply came"
CAUSE_DAMAGED = "the process died and its journal is damaged"


class Remains:
    """Owned by the master's loop. A child must be gone, not only silent, before it comes here."""

    def __init__(self, directory: Path, node_id: int, collector: Collector) -> None:
        self._directory = directory
        self._node_id = node_id
        self._collector = collector
        self._settled: list[tuple[int, Journals]] = []  # since the last settlement was taken

    def settle(self, child: Child, now_s: float) -> int:
        """Reports what the child could not report itself; how many recipients are in doubt by its death.

        All that it sent has been read, so its journal is ahead of that by some reports at most.
        """
        journals = Journals(self._directory, self._node_id, child.number)
        for record in journals.records:
            if record.sequence > child.last_report and record.settled:
                self._collector.report(child.number, _report_of(record), now_s)
        doubts = 0
        for number, batch in list(self._collector.batches.items()):
            if batch.child == child.number:
                doubts += self._settle_batch(child, number, batch, journals, now_s)
        self._settled.append((child.number, journals))
        return doubts

    def _settle_batch(self, child: Child, number: int, batch: BatchBook, journals: Journals, now_s: float) -> int:
        doubts = 0
        for part_id, positions in list(batch.open.items()):
            part = self._collector.parts[part_id]
            report, in_doubt = _last_report(child, number, part, sorted(positions), journals)
            self._collector.report(child.number, report, now_s)
            doubts += in_doubt
        return doubts

    def take(self) -> list[tuple[int, Journals]]:
        """The journals whose tale is in the settlements taken so far, since the last call."""
        taken, self._settled = self._settled, []
        return taken

    def remove(self, taken: list[tuple[int, Journals]], settlement: int) -> None:
        """Those settlements are in the database: the files go, to what is kept under this number unless it is 0."""
        for number, journals in taken:
            journals.remove(settlement)
            lock_path(self._directory, self._node_id, number).unlink(missing_ok=True)


def _report_of(record: Record) -> Report:
    """What the child would have reported."""
    outcomes = OutcomeList()
    lines = iter(record.lines.splitlines(keepends=True))  # one for each that has an outcome, in their order
    for settled in record.settled:
        status = Status(settled.status) if settled.status else None
        sent_bytes = 0 if status is None else volume_of(next(lines))[2]
        outcomes.add(settled.batch, settled.part_id, settled.position, status, settled.limit, sent_bytes, sent_bytes)
    return Report(record.sequence, outcomes.outcomes(), record.lines, record.doubts)


def _last_report(
    child: Child, number: int, part: LeasedPart, positions: list[int], journals: Journals
) -> tuple[Report, int]:
    """For what was out and has no outcome: begun is in doubt, the rest is ready again."""
    in_doubt: list[int] = []
    returned: list[int] = []
    lines = []
    doubts = []
    limit = ""
    for position in positions:
        told = journals.told(part.id, position)
        if told is None and journals.is_damaged and not part.delivery.view.is_simulated:
            told = Told(None, "", "", CAUSE_DAMAGED, "")
        if told is None:
            returned.append(position)
            continue
        if told.status is not None:
            raise LocalFault(f"part {part.id}: position {position} has an outcome in the journal and none in the books")
        told = told._replace(status=Status.IN_DOUBT, cause=told.cause or CAUSE)
        in_doubt.append(position)
        limit = limit or told.limit
        lines.append(doubt_line(part, position, told))
        doubts.append((part.id, position, told.mx_host, told.peer, told.cause))
    outcome = Outcome(number, part.id, limit, in_doubt=in_doubt, returned=returned)
    return Report(child.last_report, [outcome], b"".join(lines), doubts), len(in_doubt)
