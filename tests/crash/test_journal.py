"""The local journal: what damages it, what fills its disk, and what grows in it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mta.model.outcome import Status
from mta.outcomes.journal import (
    Intent,
    Journal,
    JournalError,
    Record,
    SegmentEnd,
    Settled,
    lock_path,
    read_segment,
    segments_of,
)
from mta.outcomes.replay import Journals
from mta.queue.deliveries import Delivery
from tests.support.formula import hold_formula
from tests.support.node import Node, World, addresses, one_host_zones, until
from tests.support.postgres import Database

QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'
SLOW_SINK = """
[[rule]]
step = "dot"
delay_ms = 20
"""


def _intent(part: int, position: int) -> Intent:
    return Intent(part, position, "mx.test", "127.0.0.1", "")


def _begun(*positions: int, part: int = 1) -> Record:
    return Record(1, [_intent(part, position) for position in positions], [], b"")


def _ended(part: int = 1, **positions: list[int]) -> Record:
    statuses = {"returned": 0, **{status.name.lower(): int(status) for status in Status}}
    settled = [Settled(1, part, place, statuses[name], "") for name, places in positions.items() for place in places]
    return Record(1, [], settled, b"")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    opened = Journal(tmp_path, 5, 1)
    opened.open()
    return opened


# --- reading ---------------------------------------------------------------------------------------


def test_a_segment_cut_off_anywhere_gives_its_whole_records(journal: Journal) -> None:
    ends = []
    for position in range(3):
        journal.write(_begun(position))
        ends.append(journal.segment.path.stat().st_size)
    octets = journal.segment.path.read_bytes()
    for size in range(len(octets) + 1):
        journal.segment.path.write_bytes(octets[:size])
        records, end = read_segment(journal.segment.path)
        assert len(records) == sum(size >= whole for whole in ends)
        assert end is (SegmentEnd.WHOLE if size in (0, *ends) else SegmentEnd.TORN)


def test_an_octet_changed_anywhere_is_never_taken_for_a_record(journal: Journal) -> None:
    journal.write(_begun(0))
    journal.write(_begun(1))
    octets = journal.segment.path.read_bytes()
    whole = read_segment(journal.segment.path)[0]
    for at in range(len(octets)):
        changed = bytearray(octets)
        changed[at] ^= 0x55
        journal.segment.path.write_bytes(changed)
        records, end = read_segment(journal.segment.path)
        assert records == whole[: len(records)]
        assert len(records) < 2
        assert end is not SegmentEnd.WHOLE


def test_what_is_damaged_or_torn_before_its_end_makes_a_journal_incomplete(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 5, 1, segment_bytes_max=1)
    journal.open()
    journal.write(_begun(0))
    first = journal.segment.path
    journal.write(_begun(1))  # in the next segment
    assert not Journals(tmp_path, 5).is_damaged
    octets = first.read_bytes()
    first.write_bytes(octets[:-1])
    assert Journals(tmp_path, 5).is_damaged
    first.write_bytes(octets)
    last = journal.segment.path
    last.write_bytes(last.read_bytes()[:-1])
    assert not Journals(tmp_path, 5).is_damaged, "a kill in the middle of a write leaves this"
    last.write_bytes(last.read_bytes() + bytes(100))
    assert Journals(tmp_path, 5).is_damaged


@pytest.mark.parametrize("first", [1, 2])
def test_an_outcome_is_known_whichever_child_had_the_recipient_before(tmp_path: Path, first: int) -> None:
    """Begun by one child, given back, delivered by the other: the numbers of the children tell no order."""
    journals = {number: Journal(tmp_path, 5, number) for number in (1, 2)}
    for each in journals.values():
        each.open()
    journals[first].write(_begun(0))
    journals[first].write(_ended(returned=[0]))
    journals[3 - first].write(_begun(0))
    told = Journals(tmp_path, 5).told(1, 0)
    assert told is not None
    assert told.status is None, "given back by one, begun by the other"
    journals[3 - first].write(_ended(delivered=[0]))
    told = Journals(tmp_path, 5).told(1, 0)
    assert told is not None
    assert told.status is Status.DELIVERED


def test_two_writers_for_one_child_cannot_be(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot lock"):
        Journal(tmp_path, 5, 1).open()


# --- writing ---------------------------------------------------------------------------------------

# A process of its own: the limit on the size of files is the process's. Each write that the limit cuts short must
# leave the file as it was, and the same record must go in once the limit is gone.
_WRITE_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from mta.outcomes.journal import Intent, Journal, JournalError, Record, SegmentEnd, read_segment, segments_of
directory = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
record = lambda n: Record(n, [Intent(n, n, "mx.test", "127.0.0.1", "rule")], [], b"line")
refused = 0
for number, limit in enumerate(range(0, 200, 3), 1):
    journal = Journal(directory, number, 1)
    journal.open()
    for n in range(1, 5):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            journal.write(record(n))
        except JournalError:
            refused += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            kept = [n for path in segments_of(directory, number) for n in read_segment(path)[0]]
            assert len(kept) == n - 1, (limit, n, kept)
            journal.write(record(n))
    for path in segments_of(directory, number):
        records, end = read_segment(path)
        assert end is SegmentEnd.WHOLE and [r.sequence for r in records] == [1, 2, 3, 4], (limit, records)
    journal.close()
assert refused > 100
"""


def test_a_write_that_fails_at_any_octet_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_UNDER_A_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_directory_that_is_gone_is_an_error_until_it_is_there_again(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = Journal(directory, 5, 1)
    with pytest.raises(JournalError, match="cannot lock"):
        journal.open()
    with pytest.raises(JournalError, match="cannot lock"):
        journal.write(_begun(0))
    directory.mkdir()
    journal.write(_begun(0))
    assert lock_path(directory, 5, 1).exists()
    assert Journals(directory, 5).told(1, 0) is not None


def test_a_segment_goes_when_nothing_in_it_is_needed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 5, 1, segment_bytes_max=1)
    journal.open()
    segments = []
    for sequence in (1, 2, 3):
        journal.write(Record(sequence, [], [], b""))
        journal.segment.release = sequence
        segments.append(journal.segment)
    segments[0].open_intents = 1
    journal.committed(2)
    assert segments_of(tmp_path, 5) == [segments[0].path, segments[2].path], "an open intent, and the current one"
    segments[0].open_intents = 0
    journal.committed(2)
    assert segments_of(tmp_path, 5) == [segments[2].path]


# --- in a daemon -----------------------------------------------------------------------------------


def _limit_files(pids: list[int], size_bytes: int) -> None:
    """No file of these processes grows beyond: a disk that is full, for them alone. Short writes come first."""
    for pid in pids:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def _segment_bytes(node: Node) -> int:
    return max(path.stat().st_size for path in (node.directory / "journal").glob("*.journal"))


async def _all_collected(world: World, delivery: int) -> int:
    """Waits until what the sink has is recorded, and stays so; how much it is."""
    before = -1
    while (stored := world.record().recipients().total()) != before or (await world.show(delivery)).delivered != stored:
        before = stored
        await asyncio.sleep(0.2)
    return stored


async def test_while_the_journal_cannot_be_written_nothing_is_sent_and_replies_are_collected(
    tmp_path: Path, database: Database
) -> None:
    """The n-th write fails, for many n: each time the disk is full a little later."""
    recipients = 3_000
    async with World(tmp_path, database, script=SLOW_SINK) as world:
        node = world.node(children=1)
        await node.start()
        everyone = addresses(recipients)
        delivery = await world.deliver(everyone, retry=QUICK_RETRY)
        await world.wait_for(delivery, lambda d: d.delivered > 50)
        children = node.child_pids()
        for further_bytes in (0, 50, 5_000):
            held = len(node.said("sending"))
            _limit_files(children, _segment_bytes(node) + further_bytes)
            await until("sending is held", lambda held=held: len(node.said("sending")) > held)  # type: ignore[misc]
            assert node.said("sending")[-1]["held_by"] == "journal"
            stored = await _all_collected(world, delivery)
            await asyncio.sleep(0.5)
            assert world.record().recipients().total() == stored < recipients, "something was sent"
            _limit_files(children, resource.RLIM_INFINITY)
            await until("sending goes on", lambda: node.said("sending")[-1]["held_by"] == "nothing")
            await world.wait_for(delivery, lambda d, stored=stored: d.delivered > stored)  # type: ignore[misc]
        assert node.child_pids() == children
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.in_doubt) == (recipients, 0)
        seen = await hold_formula(world, delivery, everyone)
        assert not seen.twice
        assert await node.stop() == 0


async def test_segments_go_as_they_are_recorded_also_beside_servers_that_never_answer(
    tmp_path: Path, database: Database
) -> None:
    """Some messages stay without an answer all the time, and are known after a kill all the same."""
    recipients = 6_000
    # A site of their own: what is handed to a session waits behind a message that is not answered.
    zones = one_host_zones(10) | {
        "mx.silent.test": {"A": ["127.0.0.1"]},
        "silent.test": {"MX": [(1, "mx.silent.test")]},
    }
    async with World(tmp_path, database, zones=zones) as world:
        node = world.node(children=1, settings="journal_segment_kbytes = 64")
        await node.start()
        silent = [f"hang+{number}@silent.test" for number in range(10)]
        everyone = addresses(recipients)
        hanging = await world.deliver(silent, retry=QUICK_RETRY)
        delivery = await world.deliver(everyone)
        most = 0
        journal_dir = node.directory / "journal"

        def look(delivery: Delivery) -> bool:
            nonlocal most
            most = max(most, len(list(journal_dir.glob("*.journal"))))
            return delivery.state == "finished"

        await world.wait_for(delivery, look)
        numbers = [int(path.stem.rpartition("-")[2]) for path in journal_dir.glob("*.journal")]
        assert max(numbers) > 15, "there were many segments"
        assert most <= 12
        assert len(numbers) <= 3
        assert min(numbers) > 10, "the first segments, with the intents that are still open, are gone"
        await node.kill()
        journals = Journals(journal_dir, 1)
        begun = sum(
            told.status is None for part in (1, 2) for at in range(10) if (told := journals.told(part, at)) is not None
        )
        assert begun > 0, "some wait behind others on the same session, and are not begun"
        await node.start()
        assert (await world.show(hanging)).in_doubt == begun
        assert (await world.audit(hanging)).is_clean
        assert world.record().recipients() == dict.fromkeys(everyone, 1)
