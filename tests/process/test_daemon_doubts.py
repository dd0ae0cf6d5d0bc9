"""A server that takes messages and never says so: nobody gets one at each retry."""

from __future__ import annotations

from pathlib import Path

from mta.model.outcome import Status
from tests.support.long_replies import LongReplies
from tests.support.node import GENEROUS_RULES, World, until
from tests.support.outcomes import story
from tests.support.postgres import Database

EACH_SECOND = "retry = { first_count = 100, first_period_s = 1, then_period_s = 1 }\n"
TAKES_IN_SILENCE = '[[rule]]\nstep = "dot"\ndisconnect = "before-reply"\n'


async def test_who_was_in_doubt_twice_is_held_and_comes_back_by_the_rules_schedule(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, script=TAKES_IN_SILENCE) as world:
        node = world.node(children=1, rules=GENEROUS_RULES + EACH_SECOND)
        await node.start()
        to = [f"u{number}@d0.test" for number in range(4)]
        delivery = await world.deliver(to)  # its own schedule begins with an hour
        shown = await world.wait_for(delivery, lambda shown: shown.held == 4)
        assert shown.in_doubt == 8
        told = await story(world, delivery)
        assert told == {address: [(1, Status.IN_DOUBT), (2, Status.IN_DOUBT)] for address in to}
        assert world.record().recipients() == dict.fromkeys(to, 2)
        assert (await world.audit(delivery)).is_clean


async def test_how_often_is_a_setting(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=TAKES_IN_SILENCE) as world:
        node = world.node(children=1, rules=GENEROUS_RULES + EACH_SECOND, in_doubt_max=1)
        await node.start()
        delivery = await world.deliver(["u@d0.test"])
        assert (await world.wait_for(delivery, lambda shown: shown.held)).in_doubt == 1
        assert world.record().recipients() == {"u@d0.test": 1}


async def test_a_final_reply_of_any_length_is_a_reply(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world, LongReplies() as server:
        node = world.node(children=1, rules=f'[[rule]]\nname = "long"\nmx = "*"\nport = {server.port}\n')
        await node.start()
        delivery = await world.deliver(["yes@d0.test", "no@d0.test", "line@d0.test"])
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.in_doubt) == (2, 1, 0)
        await until("all are taken once", lambda: server.messages == 3)
