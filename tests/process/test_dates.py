"""What the Date of a message says: when it was first handed out, in every attempt, whatever dies in between."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from mta.master.dispatch import DATE_STEP_S
from mta.sink.record import Accepted, read_body
from tests.support.keys import ed25519_pem
from tests.support.letters import date_of
from tests.support.node import GENEROUS_RULES, World, until
from tests.support.outcomes import value
from tests.support.postgres import Database

EACH_SECOND = '{"first_count": 100, "first_period_s": 1, "then_period_s": 1, "greylist_s": 1}'
ONE_A_SECOND = '[[rule]]\nname = "slow"\nmx = "*"\nscope = "shared"\nmessages_per_second_max = 1\n'
KEEPS_AND_DEFERS = '[[rule]]\nstep = "dot"\ncode = 451\nstore = true\n'
KEEPS_IN_SILENCE = '[[rule]]\nstep = "dot"\nnever_answer = true\nstore = true\n'
SLOW_AT_RCPT = '[[rule]]\nstep = "rcpt"\ndelay_ms = 3000\n'
SLACK_S = 3  # between the hand-out and the sink, on a busy machine
APPENDED_LONG_AGO = """
WITH of_delivery AS (
    UPDATE mta.delivery SET started_at = started_at - interval '5 hours' WHERE id = $1
)
UPDATE mta.delivery_part SET appended_at = appended_at - interval '5 hours', due_at = due_at - interval '5 hours'
WHERE delivery_id = $1 RETURNING id
"""


def message(world: World, one: Accepted) -> bytes:
    return read_body(world.record_dir, one)


async def another_date() -> None:
    """Until what is handed out now bears another Date than what was before."""
    await asyncio.sleep(DATE_STEP_S + 1)


async def test_what_waited_in_the_queue_and_in_memory_is_dated_when_it_is_handed_out(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        # All in one part, which is claimed as a whole: the last waits in the node's memory.
        delivery = await world.deliver([f"u{at}@d0.test" for at in range(3 * DATE_STEP_S)])
        await value(world, APPENDED_LONG_AGO, delivery)
        await world.node(children=1, rules=ONE_A_SECOND).start()
        await world.wait_for(delivery)
        accepted = world.record().accepted
        ages_s = [one.unix_s - date_of(message(world, one)) for one in accepted]
        assert accepted[-1].unix_s - accepted[0].unix_s > 2 * DATE_STEP_S + SLACK_S
        assert 0 <= min(ages_s) <= max(ages_s) < DATE_STEP_S + SLACK_S


async def test_a_retry_by_another_run_of_the_daemon_is_the_same_message(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=KEEPS_AND_DEFERS, bodies=True) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(["u@d0.test"], retry=EACH_SECOND)
        await world.wait_for(delivery, lambda shown: shown.deferrals)
        assert await node.stop() == 0
        tried = len(world.record().accepted)
        await another_date()
        await node.start()
        await world.wait_for(delivery, lambda shown: shown.deferrals > tried)
        assert len({message(world, one) for one in world.record().accepted}) == 1


async def test_what_goes_again_after_a_doubt_is_the_same_message_to_the_octet(
    tmp_path: Path, database: Database
) -> None:
    # A crash: the only one who knows when it was handed out is the journal.
    rules = GENEROUS_RULES + "retry = { first_count = 100, first_period_s = 1, then_period_s = 1 }\n"
    signed = '[[dkim]]\ndomain = "shop.example"\nselector = "s1"\nkey = "s1.pem"\n'
    async with World(tmp_path, database, script=KEEPS_IN_SILENCE, bodies=True) as world:
        node = world.node(children=1, rules=rules, settings=signed)
        key = node.directory / "s1.pem"
        key.write_bytes(ed25519_pem())
        key.chmod(0o600)
        await node.start()
        await world.deliver(["u@d0.test"])
        await until("it has gone", lambda: world.record().accepted)
        await node.kill()
        await another_date()
        await node.start()
        await until("it has gone again", lambda: len(world.record().accepted) == 2)
        first, second = [message(world, one) for one in world.record().accepted]
        assert first.startswith(b"DKIM-Signature:")
        assert first == second


async def test_what_was_given_back_unsent_is_dated_anew(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_AT_RCPT, bodies=True) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver(["u@d0.test"])
        await until("it is under way", lambda: world.record().connections_max_seen())
        await node.kill()
        await another_date()
        again_unix_s = time.time()
        await node.start()
        await world.wait_for(delivery)
        [one] = world.record().accepted
        assert date_of(message(world, one)) > again_unix_s - DATE_STEP_S
