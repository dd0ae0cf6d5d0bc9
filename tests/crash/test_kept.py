"""What is kept of journals after its commit: by name and number, for a time, and no more than so much."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from mta.model.outcome import Status
from mta.outcomes.journal import Intent, Journal, Record, Settled, segments_of
from mta.outcomes.kept import (
    RunMark,
    dropped_up_to,
    kept_segments,
    local_runs,
    mark_run,
    remark,
    remove_run,
    sweep_kept,
    touch_mark,
)
from mta.outcomes.line import log_line, session_columns
from mta.outcomes.replay import OutcomeReader

NOW_S = 1_800_000_000.0


def _intent(position: int) -> Intent:
    return Intent(1, position, "mx.test", "127.0.0.1", "rule", 17, position, 1, f"u{position}@d.test")


def _outcome(position: int, sequence: int = 1) -> Record:
    at = f"2027-01-15T08:00:0{position}+00:00"
    columns = session_columns("mx.test", "mx.test", "127.0.0.1", "default")
    line = log_line(at, 17, position, 1, 1, "1\t0\t250\t", f"u{position}@d.test", None, columns, "ok")
    return Record(sequence, [], [Settled(7, 1, position, Status.DELIVERED, "rule")], line.encode())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    mark_run(tmp_path, 5, RunMark(5, "one", "boot", 1_700_000_000_000_000, 1))
    journal = Journal(tmp_path, 5, 1, segment_bytes_max=1)
    journal.open()
    return journal


def _kept(directory: Path, *settlements: int) -> None:
    """A segment of one kilobyte for each, the first kept longest: ten seconds apart, the last at this moment."""
    for age, settlement in enumerate(reversed(settlements)):
        path = directory / "kept" / f"5-1-{settlement}-{settlement}.journal"
        path.write_bytes(bytes(1024))
        os.utime(path, (NOW_S - 10 * age, NOW_S - 10 * age))


def test_a_segment_is_kept_under_the_settlement_that_recorded_it(journal: Journal, tmp_path: Path) -> None:
    for sequence in (1, 2, 3):
        journal.write(_outcome(sequence, sequence))
        journal.segment.release = sequence
    journal.committed(1, 40)
    journal.committed(2, 41)
    assert [(kept.settlement, kept.number) for kept in kept_segments(tmp_path, 5)] == [(40, 1), (41, 2)]
    assert segments_of(tmp_path, 5) == [journal.segment.path]
    journal.close()
    remove_run(tmp_path, 5, 42)
    assert [kept.settlement for kept in kept_segments(tmp_path)] == [40, 41, 42]
    assert [mark.id for mark, _ in local_runs(tmp_path)] == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_without_keeping_it_is_removed(journal: Journal, tmp_path: Path) -> None:
    journal.write(_outcome(1))
    journal.write(_outcome(2))
    journal.committed(9)
    journal.close()
    remove_run(tmp_path, 5)
    assert kept_segments(tmp_path) == []
    assert local_runs(tmp_path) == []


def test_where_nothing_can_be_kept_the_segment_stays_for_recovery(journal: Journal, tmp_path: Path) -> None:
    journal.write(_outcome(1))
    first = journal.segment.path
    journal.write(_outcome(2))
    (tmp_path / "kept" / "5.run").unlink(missing_ok=True)
    (tmp_path / "kept").rmdir()
    journal.committed(9, 40)
    assert first.exists()
    (tmp_path / "kept").mkdir()
    journal.committed(9, 40)
    assert not first.exists()
    assert len(kept_segments(tmp_path)) == 1


def test_what_is_old_goes_and_it_is_known_up_to_where(journal: Journal, tmp_path: Path) -> None:
    _kept(tmp_path, 1, 2, 3, 4)
    assert sweep_kept(tmp_path, NOW_S, 25.0, 1 << 20) == 3 * 1024
    assert [kept.settlement for kept in kept_segments(tmp_path)] == [2, 3, 4]
    assert dropped_up_to(tmp_path, 5) == 1


def test_what_is_too_much_goes_the_oldest_first(journal: Journal, tmp_path: Path) -> None:
    _kept(tmp_path, 1, 2, 3, 4)
    assert sweep_kept(tmp_path, NOW_S, 900.0, 2_500) == 2 * 1024
    assert [kept.settlement for kept in kept_segments(tmp_path)] == [3, 4]
    assert dropped_up_to(tmp_path, 5) == 2


def test_a_mark_says_which_run_it_was_and_how_long_it_was_acknowledged(journal: Journal, tmp_path: Path) -> None:
    touch_mark(tmp_path, 5, NOW_S)
    (found,) = local_runs(tmp_path)
    assert found == (RunMark(5, "one", "boot", 1_700_000_000_000_000, 1), NOW_S)
    remove_run(tmp_path, 5, 3)
    remark(tmp_path, RunMark(5, "one", "boot", 1_700_000_000_000_000, 2))
    ((mark, alive_until_s),) = local_runs(tmp_path)
    assert (mark.epoch, alive_until_s) == (2, NOW_S)
    # The last one stays, however old: it says how far back this node remembers.
    sweep_kept(tmp_path, NOW_S + 1e6, 900.0, 1 << 20)
    assert len(local_runs(tmp_path)) == 1
    mark_run(tmp_path, 6, RunMark(6, "one", "boot", 1_700_000_000_000_000, 2))
    remove_run(tmp_path, 6, 1)
    sweep_kept(tmp_path, NOW_S + 1e6, 900.0, 1 << 20)
    assert [mark.id for mark, _ in local_runs(tmp_path)] == [6]


def test_marks_of_an_older_version_are_known_by_their_number(tmp_path: Path) -> None:
    (tmp_path / "7.run").touch()
    ((mark, _),) = local_runs(tmp_path)
    assert mark == RunMark(7)


def test_a_reader_tells_outcomes_by_segment_and_what_is_still_open_at_the_end(journal: Journal, tmp_path: Path) -> None:
    journal.write(Record(1, [_intent(1), _intent(2), _intent(3)], [], b""))
    journal.write(_outcome(1))
    journal.write(Record(2, [], [Settled(7, 1, 2, 0, "rule")], b""))  # it went back, not begun
    journal.close()
    reader = OutcomeReader(segments_of(tmp_path, 5))
    told = [[(one.delivery_id, one.number, one.attempt, one.address) for one in each] for each in reader.outcomes()]
    assert told == [[], [(17, 1, 1, "u1@d.test")], []]
    (left,) = reader.open_intents()
    assert (left.number, left.address, left.line, left.told.status) == (3, "u3@d.test", b"", None)
    assert not reader.is_damaged


def test_intents_of_an_older_version_are_read_and_belong_to_nobody(tmp_path: Path) -> None:
    old = msgspec.msgpack.encode([1, [[1, 0, "mx.test", "127.0.0.1", "rule"]], [], b"", []])
    record = msgspec.msgpack.decode(old, type=Record)
    assert record.intents == [Intent(1, 0, "mx.test", "127.0.0.1", "rule")]
