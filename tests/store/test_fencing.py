"""A run that was declared dead can do nothing any more, whenever it comes back."""

from __future__ import annotations

import asyncpg
import pytest

from mta.model.outcome import Status
from mta.outcomes.line import COLUMNS
from mta.queue import claim, deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.nodes import Fenced, NodeRun
from mta.queue.part import Part
from mta.queue.settle import Settlement, commit
from tests.support.content import new_delivery

LEASE_S = 15.0


async def _run_with_a_part(conn: asyncpg.Connection) -> tuple[NodeRun, int]:
    delivery_id = await new_delivery(conn)
    await deliveries.start(conn, delivery_id)
    await append_parts(conn, delivery_id, [Part("k", (), [("ann@example.com", None, [])])])
    run = await nodes.register(conn, "a", "boot", LEASE_S)
    assert len(await claim.claim(conn, run.id, delivery_id, 10)) == 1
    return run, delivery_id


def _settlement(delivery_id: int) -> Settlement:
    settlement = Settlement()
    settlement.count(delivery_id, Status.DELIVERED, 1)
    return settlement


async def _delivered(conn: asyncpg.Connection, delivery_id: int) -> int:
    return (await deliveries.show(conn, delivery_id)).delivered


async def test_a_run_that_comes_back_while_it_is_recovered_cannot_renew_claim_or_settle(
    conn: asyncpg.Connection,
) -> None:
    run, delivery_id = await _run_with_a_part(conn)
    await append_parts(conn, delivery_id, [Part("more", (), [("bob@example.com", None, [])])])
    await commit(conn, run, _settlement(delivery_id), 1, COLUMNS)
    await nodes.declare_dead(conn, run.id)
    with pytest.raises(Fenced):
        await nodes.renew(conn, run.id, LEASE_S)
    with pytest.raises(Fenced):
        await commit(conn, run, _settlement(delivery_id), 2, COLUMNS)
    assert await claim.claim(conn, run.id, delivery_id, 10) == []
    assert await _delivered(conn, delivery_id) == 1


async def test_of_two_that_recover_the_same_run_only_the_later_settles(conn: asyncpg.Connection) -> None:
    run, delivery_id = await _run_with_a_part(conn)
    first = await nodes.declare_dead(conn, run.id)
    await commit(conn, run, _settlement(delivery_id), first + 1, COLUMNS)
    second = await nodes.declare_dead(conn, run.id)
    with pytest.raises(Fenced):
        await commit(conn, run, _settlement(delivery_id), first + 2, COLUMNS)
    await commit(conn, run, _settlement(delivery_id), second + 1, COLUMNS)
    assert await _delivered(conn, delivery_id) == 2


async def test_a_recovery_that_was_cut_short_is_taken_up_by_the_next(conn: asyncpg.Connection) -> None:
    run, _ = await _run_with_a_part(conn)
    await nodes.declare_dead(conn, run.id)
    assert await nodes.dead_runs(conn, "b", 45.0) == [run]
    await nodes.end(conn, run.id)
    assert await nodes.dead_runs(conn, "b", 45.0) == []
    with pytest.raises(Fenced):
        await nodes.declare_dead(conn, run.id)
