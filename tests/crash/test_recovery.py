"""What a dead run had in hand, settled by the table of `mta.master.recovery`; also when that is killed itself."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from mta.master import recovery
from mta.model.outcome import InDoubtPolicy, Status
from mta.outcomes.journal import Intent, Journal, Record, Settled, segments_of
from mta.outcomes.kept import mark_run, marked_runs
from mta.outcomes.line import log_line, session_columns, timestamp
from mta.queue import audit, claim, deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.nodes import Fenced, NodeRun
from mta.queue.part import Part
from mta.traffic.retry import RetrySchedule
from mta.traffic.rules import Rule, RuleSet
from tests.support.content import new_delivery
from tests.support.postgres import Database

BOOT = "00000000-boot"
LEASE_S = 15.0
PER_PART = 10
DELIVERED, BEGUN = (0, 1), (2,)  # positions of each part of which the journal tells; the others it does not


@dataclass
class Dead:
    """A run that died with all parts of a delivery in hand."""

    database: Database
    directory: Path
    delivery: int
    run: NodeRun
    parts: list[claim.ClaimedPart]

    async def recover(self, boot_id: str = BOOT, name: str = "one") -> None:
        """As the next run of a node does at its start."""
        async with self.database.pool.acquire() as conn:
            own = await nodes.register(conn, name, boot_id, LEASE_S)
        mark_run(self.directory, own.id)
        await recovery.recover_earlier_runs(self.database.pool, own, LEASE_S, self.directory)

    async def queued(self) -> int:
        async with self.database.pool.acquire() as conn:
            free = "SELECT coalesce(sum(count), 0)::int FROM mta.delivery_part WHERE owner IS NULL AND NOT held"
            settled = "SELECT coalesce(sum(cardinality(positions)), 0)::int FROM mta.part_settled"
            return await conn.fetchval(free) - await conn.fetchval(settled)  # type: ignore[no-any-return]

    async def seen(self) -> tuple[int, int, int, bool]:
        """Delivered, in doubt (and held), back in the queue; and whether the books are right."""
        async with self.database.pool.acquire() as conn:
            shown = await deliveries.show(conn, self.delivery)
            audited = await audit.audit(conn, self.delivery)
            listed = await audit.in_doubt(conn, self.delivery)
        assert len(listed) == shown.in_doubt == shown.held
        assert audited.leased == 0
        return shown.delivered, shown.in_doubt, await self.queued(), audited.is_clean


def _line(delivery: int, part: claim.ClaimedPart, position: int) -> bytes:
    columns = session_columns("mx.test", "mx.test", "127.0.0.1", "default")
    at = timestamp(datetime.now(UTC).timestamp())
    number = part.number(position)
    return log_line(at, delivery, number, part.id, 1, "1\t0\t250\t", f"u{number}@d.test", None, columns, "ok").encode()


def _write_journal(directory: Path, delivery: int, run: NodeRun, parts: list[claim.ClaimedPart]) -> None:
    journal = Journal(directory, run.id, 1)
    journal.open()
    for part in parts:
        intents = [Intent(part.id, position, "mx.test", "127.0.0.1", "rule") for position in (*DELIVERED, *BEGUN)]
        journal.write(Record(1, intents, [], b""))
        settled = [Settled(7, part.id, position, Status.DELIVERED, "rule") for position in DELIVERED]
        lines = b"".join(_line(delivery, part, position) for position in DELIVERED)
        journal.write(Record(1, [], settled, lines))
    journal.close()


@pytest.fixture
def died(database: Database, tmp_path: Path) -> Callable[[int], Awaitable[Dead]]:
    async def die(parts: int) -> Dead:
        async with database.pool.acquire() as conn:
            delivery = await new_delivery(conn, in_doubt_policy=InDoubtPolicy.HOLD)
            rows = [Part(f"{n}", (), [(f"u{n}x{i}@d.test", None, []) for i in range(PER_PART)]) for n in range(parts)]
            await append_parts(conn, delivery, rows)
            await deliveries.start(conn, delivery)
            run = await nodes.register(conn, "one", BOOT, LEASE_S)
            claimed = await claim.claim(conn, run.id, delivery, parts)
        mark_run(tmp_path, run.id)
        _write_journal(tmp_path, delivery, run, claimed)
        return Dead(database, tmp_path, delivery, run, claimed)

    return die


Died = Callable[[int], Awaitable[Dead]]


async def test_with_its_journal_only_what_was_begun_is_in_doubt(died: Died) -> None:
    dead = await died(3)
    await dead.recover()
    assert await dead.seen() == (6, 3, 21, True)
    assert not segments_of(dead.directory, dead.run.id)
    assert dead.run.id not in marked_runs(dead.directory)


async def test_after_a_restart_of_the_machine_the_journal_is_believed_but_not_complete(died: Died) -> None:
    dead = await died(3)
    await dead.recover(boot_id="another boot")
    assert await dead.seen() == (6, 24, 0, True)


async def test_of_a_simulated_delivery_nothing_is_ever_in_doubt(died: Died) -> None:
    dead = await died(2)
    async with dead.database.pool.acquire() as conn:
        await conn.execute("UPDATE mta.delivery SET is_simulated = true")
    (segment,) = segments_of(dead.directory, dead.run.id)
    segment.write_bytes(b"")  # not even what it would tell is known
    await dead.recover(boot_id="another boot")
    assert await dead.seen() == (0, 0, 20, True)


async def test_a_damaged_journal_is_not_complete(died: Died) -> None:
    dead = await died(3)
    (segment,) = segments_of(dead.directory, dead.run.id)
    octets = bytearray(segment.read_bytes())
    octets[-40] ^= 0xFF  # in the last record: the outcome of the last part
    segment.write_bytes(octets)
    await dead.recover()
    assert await dead.seen() == (4, 26, 0, True)


async def test_a_torn_last_record_was_not_acted_upon(died: Died) -> None:
    dead = await died(3)
    (segment,) = segments_of(dead.directory, dead.run.id)
    segment.write_bytes(segment.read_bytes()[:-40])
    await dead.recover()
    assert await dead.seen() == (4, 5, 21, True)


async def test_blocks_that_never_reached_the_disk_are_no_records(died: Died) -> None:
    dead = await died(1)
    (segment,) = segments_of(dead.directory, dead.run.id)
    segment.write_bytes(segment.read_bytes() + bytes(4096))
    await dead.recover(boot_id="another boot")
    assert await dead.seen() == (2, 8, 0, True)


async def test_a_journal_directory_that_was_emptied_makes_all_doubtful_once_the_lease_is_over(died: Died) -> None:
    """A container made anew shares the machine's boot id, not the files."""
    dead = await died(2)
    shutil.rmtree(dead.directory)
    dead.directory.mkdir()
    async with dead.database.pool.acquire() as conn:
        await conn.execute("UPDATE mta.node SET alive_until = now() + interval '0.4 s'")
    await dead.recover()
    assert await dead.seen() == (0, 20, 0, True)


async def test_a_node_that_was_renamed_still_reads_its_journal(died: Died) -> None:
    dead = await died(2)
    await dead.recover(name="another")
    assert await dead.seen() == (4, 2, 14, True)


async def test_another_node_takes_over_what_has_no_lease_any_more_and_names_all_of_it(died: Died) -> None:
    dead = await died(2)
    async with dead.database.pool.acquire() as conn:
        own = await nodes.register(conn, "two", BOOT, LEASE_S)
        await recovery.take_over_dead_nodes(dead.database.pool, own, 0.0)
        assert len(await claim.owned_parts(conn, dead.run.id, 0, 10)) == 2, "its lease is not over"
        await conn.execute("UPDATE mta.node SET alive_until = now() - interval '1 s' WHERE id = $1", dead.run.id)
    await recovery.take_over_dead_nodes(dead.database.pool, own, 0.0)
    assert await dead.seen() == (0, 20, 0, True)
    await dead.recover()  # it comes back: its journal tells nothing new, and goes
    assert await dead.seen() == (0, 20, 0, True)
    assert not segments_of(dead.directory, dead.run.id)


async def test_another_node_gives_way_to_one_that_recovers_itself(died: Died) -> None:
    dead = await died(2)
    async with dead.database.pool.acquire() as conn, dead.database.pool.acquire() as other:
        own = await nodes.register(conn, "two", BOOT, LEASE_S)
        assert await nodes.begin_recovery(other, dead.run.id)
        await nodes.declare_dead(other, dead.run.id)
        await recovery.take_over_dead_nodes(dead.database.pool, own, 0.0)
        assert len(await claim.owned_parts(conn, dead.run.id, 0, 10)) == 2


# The database itself refuses the settlement after the k-th.
_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.settled & 4294967295 > {allowed} THEN RAISE EXCEPTION 'the database goes away'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON mta.node FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize("settlements", [0, 1, 2, 3])
async def test_a_recovery_that_is_cut_short_is_taken_up_where_it_ended(died: Died, settlements: int) -> None:
    parts = 3 * recovery.PARTS_PER_SETTLEMENT + 7
    dead = await died(parts)
    async with dead.database.pool.acquire() as conn:
        await conn.execute(_REFUSE.format(allowed=settlements))
        with pytest.raises(asyncpg.RaiseError):
            await dead.recover()
        left = len(await claim.owned_parts(conn, dead.run.id, 0, parts))
        assert left == parts - settlements * recovery.PARTS_PER_SETTLEMENT
        await conn.execute("DROP FUNCTION refuse CASCADE")
    await dead.recover()
    assert await dead.seen() == (2 * parts, parts, 7 * parts, True)


async def test_what_the_journal_tells_of_parts_that_are_not_ours_any_more_is_ignored(died: Died) -> None:
    dead = await died(3)
    async with dead.database.pool.acquire() as conn:
        await claim.release(conn, dead.run.id, [dead.parts[0].id])
    await dead.recover()
    assert await dead.seen() == (4, 2, 24, True)


async def test_a_run_that_is_being_recovered_can_settle_nothing(died: Died) -> None:
    dead = await died(1)
    await dead.recover()
    async with dead.database.pool.acquire() as conn:
        with pytest.raises(Fenced):
            await nodes.renew(conn, dead.run.id, LEASE_S)


async def test_what_goes_again_obeys_the_schedule_of_its_hosts_rule_and_the_most_of_its_doubts(died: Died) -> None:
    dead = await died(2)
    async with dead.database.pool.acquire() as conn:
        await conn.execute("UPDATE mta.delivery SET in_doubt_policy = 'resend'")
        # One of the two was in doubt before.
        await conn.execute(
            "INSERT INTO mta.in_doubt (delivery_id, number, part_id, attempt, address, mx_host, peer, policy, cause)"
            " VALUES ($1, $2, 0, 1, '', '', '', 'resend', '')",
            dead.delivery,
            dead.parts[0].number(BEGUN[0]),
        )
        own = await nodes.register(conn, "one", BOOT, LEASE_S)
    mark_run(dead.directory, own.id)
    rule = Rule("host", mx="mx.test", retry=RetrySchedule(first_period_s=77, jitter=0.0))
    terms = recovery.DoubtTerms(rules=RuleSet([rule]))
    await recovery.recover_earlier_runs(dead.database.pool, own, LEASE_S, dead.directory, terms)
    async with dead.database.pool.acquire() as conn:
        rows = await conn.fetch(
            "SELECT held, numbers, round(extract(epoch FROM due_at - now()))::int AS due_in_s FROM mta.delivery_part"
            " WHERE numbers IS NOT NULL ORDER BY held"
        )
    [again, held] = rows
    assert (again["held"], again["numbers"]) == (False, [dead.parts[1].number(BEGUN[0])])
    assert 60 < again["due_in_s"] <= 77
    assert (held["held"], held["numbers"]) == (True, [dead.parts[0].number(BEGUN[0])])
