"""What a database that went back in time is told from journals, by the table in `mta.master.reconciliation`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mta.master.reconciliation import ORPHANS, Reconciled, Reconciler, enter_epoch, highest_forgotten
from mta.model.errors import BadInput
from mta.model.outcome import InDoubtPolicy, Status
from mta.outcomes.journal import Intent, Journal, Record, Settled, segments_of
from mta.outcomes.kept import RunMark, kept_segments, mark_run, remark, remove_run, touch_mark
from mta.outcomes.line import log_line, session_columns, timestamp
from mta.queue import audit, claim, deliveries, epochs, nodes
from mta.queue.append import append_parts
from mta.queue.connection import Conn
from mta.queue.deliveries import Delivery
from mta.queue.epochs import DatabaseBehind
from mta.queue.nodes import NodeRun
from mta.queue.part import Part
from tests.support.content import new_delivery
from tests.support.postgres import Database

BOOT = "00000000-boot"
DATED_UNIX_S = 1_700_000_000
LEASE_S = 15.0
KEEP_S = 900.0
PER_PART = 10
FORGOTTEN_RUN = 900  # a number that this database has not given out


def _address(number: int) -> str:
    return f"u{number & 0xFFFF}@d.test"


@dataclass
class Forgetful:
    """A database that knows of a delivery and of nothing that came of it, and the journal that does."""

    database: Database
    directory: Path
    delivery: int
    numbers: list[int]
    journal: Journal
    mark: RunMark
    at: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    def write(self, outcomes: Sequence[tuple[int, Status]] = (), begun: Sequence[int] = (), **of: object) -> None:
        """Outcomes by recipient number, and intents without one."""
        settled = [Settled(1, self._part(number, of), number & 0xFFFF, status, "") for number, status in outcomes]
        lines = b"".join(self._line(number, status, of) for number, status in outcomes)
        doubts = [
            (self._part(number, of), number & 0xFFFF, "mx.test", "127.0.0.1", "silence")
            for number, status in outcomes
            if status is Status.IN_DOUBT
        ]
        intents = [
            Intent(
                self._part(number, of), number & 0xFFFF, "mx.test", "127.0.0.1", "", self.delivery, number, 1,
                str(of.get("address") or _address(number)), DATED_UNIX_S,
            )
            for number in begun
        ]  # fmt: skip
        self.journal.write(Record(1, intents, settled, lines, doubts))

    def _part(self, number: int, of: dict[str, object]) -> int:
        return int(str(of.get("part") or 500_000 + (number >> 16)))  # as the database that is gone called it

    def _line(self, number: int, status: Status, of: dict[str, object]) -> bytes:
        self.at += datetime.timedelta(microseconds=1)
        columns = session_columns("mx.test", "mx.test", "127.0.0.1", "default")
        address = str(of.get("address") or _address(number))
        attempt = int(str(of.get("attempt") or 1))
        at = timestamp(self.at.timestamp() + float(str(of.get("after_s") or 0)))
        verdict = f"{status:d}\t0\t250\t"
        return log_line(
            at, self.delivery, number, self._part(number, of), attempt, verdict, address, None, columns, "ok"
        ).encode()

    async def tell(self, name: str = "one") -> tuple[Reconciled, NodeRun]:
        """As the next run of the node does at its start."""
        self.journal.close()
        async with self.database.pool.acquire() as conn:
            epoch = await enter_epoch(conn, self.directory, name)
            above = await highest_forgotten(conn, self.directory)
            own = await nodes.register(conn, name, BOOT, LEASE_S, above=above)
        mark_run(self.directory, own.id, RunMark(own.id, name, BOOT, own.started_us, own.epoch))
        reconciler = Reconciler(self.database.pool, own, LEASE_S, self.directory)
        result = await reconciler.run(epoch, KEEP_S)
        return result, own

    async def seen(self) -> Delivery:
        async with self.database.pool.acquire() as conn:
            assert (await audit.audit(conn, self.delivery)).is_clean
            return await deliveries.show(conn, self.delivery)

    async def doubts(self) -> list[int]:
        async with self.database.pool.acquire() as conn:
            return [doubt.number for doubt in await audit.in_doubt(conn, self.delivery)]


async def _append(conn: Conn, policy: InDoubtPolicy) -> tuple[int, list[int]]:
    delivery = await new_delivery(conn, in_doubt_policy=policy)
    rows = [(f"u{at}@d.test", None, []) for at in range(PER_PART)]
    await append_parts(conn, delivery, [Part("1", (), rows), Part("2", (), rows)])
    await deliveries.start(conn, delivery)
    appends = await conn.fetch("SELECT append_id FROM mta.delivery_append ORDER BY append_id")
    return delivery, [append["append_id"] << 16 | at for append in appends for at in range(PER_PART)]


@pytest.fixture
async def forgetful(database: Database, tmp_path: Path) -> Forgetful:
    async with database.pool.acquire() as conn:
        delivery, numbers = await _append(conn, InDoubtPolicy.HOLD)
    mark = RunMark(FORGOTTEN_RUN, "one", BOOT, int(datetime.datetime.now().timestamp() * 1e6), 1)
    mark_run(tmp_path, FORGOTTEN_RUN, mark)
    journal = Journal(tmp_path, FORGOTTEN_RUN, 1)
    journal.open()
    return Forgetful(database, tmp_path, delivery, numbers, journal, mark)


async def test_what_is_open_is_settled_though_run_claim_and_numbers_of_parts_are_forgotten(
    forgetful: Forgetful,
) -> None:
    one, two, three, four, five, *_ = forgetful.numbers
    forgetful.write(begun=[one, two, three, four])
    forgetful.write([(one, Status.DELIVERED), (two, Status.FAILED), (three, Status.IN_DOUBT)], begun=[five])
    result, own = await forgetful.tell()
    assert (result.settled, result.in_doubt, result.orphans, result.is_complete) == (2, 3, 0, True)
    assert own.id > FORGOTTEN_RUN
    assert own.epoch == 2
    shown = await forgetful.seen()
    assert (shown.delivered, shown.failed, shown.in_doubt, shown.held) == (1, 1, 3, 3)
    assert sorted(await forgetful.doubts()) == [three, four, five]
    # Once more, as after a crash in the middle: everything is known by now.
    remark(forgetful.directory, forgetful.mark)
    result, _ = await forgetful.tell()
    assert (result.settled, result.in_doubt, result.orphans) == (0, 0, 0)
    assert (await forgetful.seen()).in_doubt == 3


async def test_what_goes_again_has_the_date_that_only_the_journal_knew(forgetful: Forgetful) -> None:
    one, two, three, *_ = forgetful.numbers
    forgetful.write(begun=[one, two])
    forgetful.write([(one, Status.DEFERRED), (three, Status.DEFERRED)])
    await forgetful.tell()
    dated = "SELECT numbers, extract(epoch FROM dated_at)::bigint FROM mta.delivery_part WHERE numbers IS NOT NULL"
    async with forgetful.database.pool.acquire() as conn:
        found = {number: at for numbers, at in await conn.fetch(dated) for number in numbers}
    # Deferred and in doubt: the same message again. Of the third nothing was ever written: it has no Date yet.
    assert found == {one: DATED_UNIX_S, two: DATED_UNIX_S, three: None}


async def test_a_recipient_is_followed_through_attempts_whose_parts_the_database_never_had(
    forgetful: Forgetful,
) -> None:
    one, two, *_ = forgetful.numbers
    forgetful.write([(one, Status.DEFERRED), (two, Status.DEFERRED)])
    forgetful.write([(one, Status.DELIVERED)], attempt=2, part=700_000)
    result, _ = await forgetful.tell()
    assert (result.settled, result.in_doubt) == (3, 0)
    shown = await forgetful.seen()
    assert (shown.delivered, shown.deferrals, shown.waiting) == (1, 2, 2 * PER_PART - 1)


async def test_numbers_that_were_given_out_again_are_not_taken_for_the_same_recipients(forgetful: Forgetful) -> None:
    one, two, three, *_ = forgetful.numbers
    async with forgetful.database.pool.acquire() as conn:
        (part,) = await conn.fetch("SELECT min(id) AS id FROM mta.delivery_part")
    forgetful.write([(one, Status.DELIVERED)], address="somebody@else.test", part=part["id"])
    forgetful.write([(two, Status.DELIVERED)], after_s=-3600.0)  # before it was appended
    forgetful.write(begun=[three], address="somebody@else.test", part=part["id"])
    await forgetful.tell()
    shown = await forgetful.seen()
    assert (shown.delivered, shown.held, shown.waiting) == (0, 0, 2 * PER_PART)


async def test_what_was_sent_of_an_append_that_is_lost_is_listed_by_address(forgetful: Forgetful) -> None:
    forgetful.write([(99_999 << 16, Status.DELIVERED)], begun=[99_999 << 16 | 1])
    result, _ = await forgetful.tell()
    assert (result.settled, result.in_doubt, result.orphans) == (0, 0, 2)
    listed = (forgetful.directory / ORPHANS).read_text()
    assert "u0@d.test" in listed
    assert "u1@d.test" in listed


async def test_who_comes_late_names_what_others_may_send_again(forgetful: Forgetful) -> None:
    one, two, three, *_ = forgetful.numbers
    forgetful.write([(one, Status.DELIVERED), (two, Status.DELIVERED), (three, Status.FAILED)])
    async with forgetful.database.pool.acquire() as conn:
        await epochs.enter(conn, is_behind="another node found it")
        assert await epochs.try_open(conn, 2) == []
        other = await nodes.register(conn, "two", BOOT, LEASE_S)
        assert len(await claim.claim(conn, other.id, forgetful.delivery, 1)) == 1
    result, _ = await forgetful.tell()
    assert (result.settled, result.in_doubt) == (0, 2)
    assert sorted(await forgetful.doubts()) == [one, two]
    assert (await forgetful.seen()).delivered == 0


async def test_segments_that_the_database_has_are_not_read(forgetful: Forgetful) -> None:
    """By their names: a damaged one shows who looks into it."""
    async with forgetful.database.pool.acquire() as conn:
        run = await nodes.register(conn, "one", BOOT, LEASE_S)
        await conn.execute("UPDATE mta.node SET settled = 7 WHERE id = $1", run.id)
    remove_run(forgetful.directory, FORGOTTEN_RUN)
    forgetful.mark = RunMark(run.id, "one", BOOT, run.started_us, run.epoch)
    mark_run(forgetful.directory, run.id, forgetful.mark)
    for settlement, content in ((7, bytes(100)), (8, b"")):
        (forgetful.directory / "kept" / f"{run.id}-1-{settlement}-{settlement}.journal").write_bytes(content)
    result, own = await forgetful.tell()
    assert own.epoch == 2, "settlement 8 was recorded, the database has 7"
    assert result.is_complete
    assert len(kept_segments(forgetful.directory, run.id)) == 2


async def test_a_lease_that_the_database_has_forgotten_shows_that_it_is_behind(forgetful: Forgetful) -> None:
    remove_run(forgetful.directory, FORGOTTEN_RUN)
    async with forgetful.database.pool.acquire() as conn:
        run = await nodes.register(conn, "one", BOOT, LEASE_S)
        alive_until = await nodes.renew(conn, run.id, LEASE_S)
        mark_run(forgetful.directory, run.id, RunMark(run.id, "one", BOOT, run.started_us, run.epoch))
        touch_mark(forgetful.directory, run.id, alive_until.timestamp())
        assert (await enter_epoch(conn, forgetful.directory, "one")).id == 1
        touch_mark(forgetful.directory, run.id, alive_until.timestamp() + 5)
        assert (await enter_epoch(conn, forgetful.directory, "one")).id == 2
        with pytest.raises(DatabaseBehind):
            await nodes.renew(conn, run.id, LEASE_S)
        assert await claim.claim(conn, run.id, forgetful.delivery, 1) == [], "a run claims in its own epoch only"


async def test_what_is_not_kept_any_more_is_not_told_and_another_start_does_not_hide_it(forgetful: Forgetful) -> None:
    (forgetful.directory / "kept" / f"{FORGOTTEN_RUN}.dropped").write_text("12")
    for _ in range(2):
        result, _ = await forgetful.tell()
        assert "not kept any more" in result.incomplete[0]


async def test_an_epoch_waits_for_all_that_were_alive_or_for_an_operators_word(database: Database) -> None:
    async with database.pool.acquire() as conn:
        await _append(conn, InDoubtPolicy.HOLD)
        for name in ("one", "two"):
            await nodes.register(conn, name, BOOT, LEASE_S)
        epoch, is_new = await epochs.enter(conn, is_behind="found so")
        assert (epoch.id, epoch.is_open, is_new) == (2, False, True)
        assert await epochs.try_open(conn, 2) == ["one", "two"]
        await epochs.confirm(conn, 2, "one")
        with pytest.raises(BadInput, match="waited for: two"):
            await epochs.waive(conn, "three")
        assert await epochs.waive(conn, "two") == 2 * PER_PART
        assert await epochs.try_open(conn, 2) == []
        assert await conn.fetchval("SELECT count(*) FROM mta.delivery_part WHERE held") == 2
        assert (await epochs.latest(conn)).is_open


async def test_the_files_of_a_run_that_is_forgotten_are_kept_for_the_next_time(forgetful: Forgetful) -> None:
    forgetful.write([(forgetful.numbers[0], Status.DELIVERED)])
    await forgetful.tell()
    assert segments_of(forgetful.directory, FORGOTTEN_RUN) == []
    assert len(kept_segments(forgetful.directory, FORGOTTEN_RUN)) == 1
