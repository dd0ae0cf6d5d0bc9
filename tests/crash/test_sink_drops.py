"""A far end that takes a message and closes the connection instead of answering: nobody can know, so it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.outcome import InDoubtPolicy
from mta.queue import audit
from tests.support.formula import hold_formula
from tests.support.node import World, addresses
from tests.support.postgres import Database

# One in fifty is kept and not answered, one in fifty is thrown away and not answered; to us they look alike.
DROPS = """
[[rule]]
step = "dot"
odds = 0.02
disconnect = "before-reply"
reset = true

[[rule]]
step = "dot"
odds = 0.02
disconnect = "before-reply"
store = false
"""
QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'
RECIPIENTS = 2_000


async def test_with_hold_a_message_that_was_not_answered_is_never_sent_again(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=DROPS) as world:
        node = world.node()
        await node.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone, in_doubt_policy=InDoubtPolicy.HOLD, retry=QUICK_RETRY)
        shown = await world.wait_for(delivery, lambda d: d.waiting == d.held)
        seen = await hold_formula(world, delivery, everyone)
        assert not seen.twice
        assert 0 < shown.held == shown.in_doubt == len(seen.held)
        assert seen.held == seen.doubts.keys()
        assert 0 < len(seen.held & seen.stored.keys()) < len(seen.held), "some were kept, some were not"

        async with database.pool.acquire() as conn:
            listed = await audit.in_doubt(conn, delivery)
            assert all(doubt.held and doubt.mx_host == "mx.test" and doubt.peer == "127.0.0.1" for doubt in listed)
            await audit.settle_in_doubt(conn, delivery, audit.Action.DROP)
        shown = await world.wait_for(delivery)
        assert shown.failed == len(listed)
        await hold_formula(world, delivery, everyone)


@pytest.mark.parametrize("policy", InDoubtPolicy)
async def test_when_sent_again_every_copy_but_one_was_in_doubt(
    tmp_path: Path, database: Database, policy: InDoubtPolicy
) -> None:
    """By the policy, or by an operator's word for what was held."""
    async with World(tmp_path, database, script=DROPS) as world:
        node = world.node(in_doubt_max=100)  # all of the doubts are to go again
        await node.start()
        everyone = addresses(RECIPIENTS)
        delivery = await world.deliver(everyone, in_doubt_policy=policy, retry=QUICK_RETRY)
        while policy is InDoubtPolicy.HOLD:
            shown = await world.wait_for(delivery, lambda d: d.state == "finished" or 0 < d.held == d.waiting)
            if shown.state == "finished":
                break
            async with database.pool.acquire() as conn:
                assert await audit.settle_in_doubt(conn, delivery, audit.Action.RESEND) == shown.held
        shown = await world.wait_for(delivery)
        seen = await hold_formula(world, delivery, everyone)
        assert shown.delivered == RECIPIENTS
        assert seen.twice
        # The same Message-ID, so that whoever got it twice can tell.
        assert {address for address, _ in world.record().duplicates()} == seen.twice
