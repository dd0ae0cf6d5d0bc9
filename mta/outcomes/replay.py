"""What a journal tells after a crash: for each recipient the last thing known of it.

Pure reading; what to do about it is recovery's.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mta.model.outcome import Status
from mta.outcomes.journal import Record, read_records, segments_of
from mta.wire import Outcome


class Told(NamedTuple):
    """The last thing a journal says of a recipient. ``status`` None: its intent, and nothing after it."""

    status: Status | None
    mx_host: str
    peer: str
    cause: str
    limit: str


class Journals:
    """The journals of a node run (or of one child of it), read as a whole."""

    def __init__(self, directory: Path, node_id: int, child: int | None = None) -> None:
        self.segments = segments_of(directory, node_id, child)
        self.records = [record for path in self.segments for record in read_records(path)]
        self._told: dict[tuple[int, int], Told] = {}
        self._lines: dict[tuple[int, int], bytes] = {}
        for record in self.records:
            self._read(record)

    def _read(self, record: Record) -> None:
        # Outcomes first: within one record they are of bodies that were begun before its intents.
        doubts = {(doubt[0], doubt[1]): doubt for doubt in record.doubts}
        for outcome in record.outcomes:
            self._read_outcome(outcome, doubts)
        for intent in record.intents:
            key = (intent.part_id, intent.position)
            self._told[key] = Told(None, intent.mx_host, intent.peer, "", intent.limit)
        for line in record.lines.splitlines(keepends=True):
            _, _, number, part_id, _ = line.split(b"\t", 4)
            self._lines[int(part_id), int(number)] = line

    def _read_outcome(self, outcome: Outcome, doubts: dict[tuple[int, int], tuple[int, int, str, str, str]]) -> None:
        for positions, status in (
            (outcome.delivered, Status.DELIVERED),
            (outcome.failed, Status.FAILED),
            (outcome.deferred, Status.DEFERRED),
            (outcome.in_doubt, Status.IN_DOUBT),
        ):
            for position in positions:
                key = (outcome.part_id, position)
                _, _, mx_host, peer, cause = doubts.get(key, (0, 0, "", "", ""))
                self._told[key] = Told(status, mx_host, peer, cause, outcome.limit)
        for position in outcome.returned:
            # Another child may have had it before or have it now; only this one's intent is taken back.
            told = self._told.get((outcome.part_id, position))
            if told is not None and told.status is None:
                del self._told[outcome.part_id, position]

    def told(self, part_id: int, position: int) -> Told | None:
        """The last thing known of a recipient; None: it was never begun."""
        return self._told.get((part_id, position))

    def line(self, part_id: int, number: int) -> bytes | None:
        """Its line for the log, where it has an outcome."""
        return self._lines.get((part_id, number))

    def remove(self) -> None:
        """All that they tell is in the database: the files go."""
        for path in self.segments:
            path.unlink(missing_ok=True)
