"""What a journal tells after a crash: for each recipient the last thing known of it.

Pure reading; what to do about it is recovery's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mta.model.outcome import Status
from mta.outcomes.journal import Intent, Record, SegmentEnd, put_away, read_segment, segments_of
from mta.outcomes.line import COLUMNS, completed, escaped

_Key = tuple[int, int]  # part, position


class Told(NamedTuple):
    """The last thing a journal says of a recipient. ``status`` None: its intent, and nothing after it.

    ``dated_unix_s``: of its Date header; 0: nothing of its message was written, or by a version that did not say.
    """

    status: Status | None
    mx_host: str
    peer: str
    cause: str
    limit: str
    dated_unix_s: int = 0


class Journals:
    """The journals of a node run (or of one child of it), read as a whole.

    Within a part a recipient has one outcome at most, and intents that were taken back before it. Each child's
    records stand in their order, but between children there is none: so what is known of a recipient is its
    outcome, whichever child tells of it, else an intent that none took back.
    """

    def __init__(self, directory: Path, node_id: int, child: int | None = None) -> None:
        self.segments = segments_of(directory, node_id, child)
        self.records: list[Record] = []
        self.is_damaged = False  # what is not told of may have been begun all the same
        self._outcomes: dict[_Key, Told] = {}
        self._intents: dict[tuple[str, int, int], Told] = {}  # child, part, position
        self._intended: dict[_Key, Told] = {}
        self._lines: dict[_Key, bytes] = {}
        for index, path in enumerate(self.segments):
            records, end = read_segment(path)
            writer = path.name.rpartition("-")[0]
            is_last = index + 1 == len(self.segments) or not self.segments[index + 1].name.startswith(f"{writer}-")
            # A kill ends the last segment only; behind a torn record in another the writer went on.
            self.is_damaged |= end is SegmentEnd.DAMAGED or (end is SegmentEnd.TORN and not is_last)
            self.records.extend(records)
            for record in records:
                self._read(writer, record)
        for (_, part_id, position), told in self._intents.items():
            self._intended[part_id, position] = told

    def _read(self, writer: str, record: Record) -> None:
        # Outcomes first: within one record they are of bodies that were begun before its intents.
        doubts = {(doubt[0], doubt[1]): doubt for doubt in record.doubts}
        for settled in record.settled:
            key = (settled.part_id, settled.position)
            if settled.status:
                _, _, mx_host, peer, cause = doubts.get(key, (0, 0, "", "", ""))
                intended = self._intents.get((writer, *key))
                dated_unix_s = 0 if intended is None else intended.dated_unix_s
                self._outcomes[key] = Told(Status(settled.status), mx_host, peer, cause, settled.limit, dated_unix_s)
            else:
                # Another child may have had it before or have it now; only this one's intent is taken back.
                self._intents.pop((writer, *key), None)
        for intent in record.intents:
            told = Told(None, intent.mx_host, intent.peer, "", intent.limit, intent.dated_unix_s)
            self._intents[writer, intent.part_id, intent.position] = told
        for line in record.lines.splitlines(keepends=True):
            _, _, number, part_id, _ = line.split(b"\t", 4)
            self._lines[int(part_id), int(number)] = completed(line)

    def told(self, part_id: int, position: int) -> Told | None:
        """What is known of a recipient; None: it was never begun."""
        key = (part_id, position)
        return self._outcomes.get(key) or self._intended.get(key)

    def line(self, part_id: int, number: int) -> bytes | None:
        """Its line for the log, where it has an outcome."""
        return self._lines.get((part_id, number))

    def remove(self, settlement: int = 0) -> None:
        """All that they tell is in the database since ``settlement``: the files go, to what is kept unless it is 0."""
        for path in self.segments:
            put_away(path, settlement)


class RecipientOutcome(NamedTuple):
    """What a journal says of an attempt, by who the recipient is: numbers of parts mean nothing to another history.

    ``line`` empty: its intent, and no outcome after it. ``address`` is as a line has it (`mta.outcomes.line.escaped`).
    """

    delivery_id: int
    number: int
    attempt: int
    part_id: int  # where it was; a hint
    position: int
    address: str
    at: str  # of the outcome, ISO 8601; empty for an intent
    told: Told
    line: bytes


class OutcomeReader:
    """Segments of one run, read one after the other, so that any number of them takes the memory of one.

    ``segments`` are in the order in which their child wrote them.
    """

    def __init__(self, segments: Sequence[Path]) -> None:
        self._segments = segments
        self._open: dict[tuple[str, int, int], Intent] = {}  # writer, part, position
        self.is_damaged = False

    def outcomes(self) -> Iterator[list[RecipientOutcome]]:
        """The outcomes of each segment."""
        lasts = {_writer_of(path): path for path in self._segments}
        for path in self._segments:
            writer = _writer_of(path)
            records, end = read_segment(path)
            # A kill ends the last segment of a child only.
            self.is_damaged |= end is SegmentEnd.DAMAGED or (end is SegmentEnd.TORN and path != lasts[writer])
            yield [outcome for record in records for outcome in self._read(writer, record)]

    def _read(self, writer: str, record: Record) -> Iterator[RecipientOutcome]:
        doubts = {(doubt[0], doubt[1]): doubt for doubt in record.doubts}
        lines = iter(record.lines.splitlines(keepends=True))  # one for each that has an outcome, in their order
        for settled in record.settled:
            key = (settled.part_id, settled.position)
            intent = self._open.pop((writer, *key), None)
            if settled.status:
                _, _, mx_host, peer, cause = doubts.get(key, (0, 0, "", "", ""))
                dated_unix_s = 0 if intent is None else intent.dated_unix_s
                told = Told(Status(settled.status), mx_host, peer, cause, settled.limit, dated_unix_s)
                yield _outcome(settled.position, told, completed(next(lines)))
        for intent in record.intents:
            self._open[writer, intent.part_id, intent.position] = intent

    def open_intents(self) -> list[RecipientOutcome]:
        """What was begun and has no outcome, in all that was read."""
        found = []
        for intent in self._open.values():
            if intent.number:  # else written by an older version, which did not say who it is
                told = Told(None, intent.mx_host, intent.peer, "", intent.limit, intent.dated_unix_s)
                found.append(
                    RecipientOutcome(
                        intent.delivery_id,
                        intent.number,
                        intent.attempt,
                        intent.part_id,
                        intent.position,
                        escaped(intent.address),
                        "",
                        told,
                        b"",
                    )
                )
        return found


def _writer_of(path: Path) -> str:
    return "-".join(path.name.split("-")[:2])


def _outcome(position: int, told: Told, line: bytes) -> RecipientOutcome:
    columns = line.decode().split("\t", _ADDRESS + 1)
    at, delivery_id, number, part_id, attempt = columns[:5]
    return RecipientOutcome(
        int(delivery_id), int(number), int(attempt), int(part_id), position, columns[_ADDRESS], at, told, line
    )


_ADDRESS = COLUMNS.index("address")
