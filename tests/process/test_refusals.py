"""Refusals that are not about a recipient: other paths are tried, the refused one rests, and nobody fails for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.outcome import Status
from tests.support.node import World, addresses
from tests.support.outcomes import story
from tests.support.postgres import Database

EGRESSES = """
[[egress]]
name = "blocked"
id = 1
helo = "blocked.example"
source_ipv4 = "127.0.0.2"

[[egress]]
name = "welcome"
id = 2
helo = "welcome.example"
source_ipv4 = "127.0.0.3"

[pools]
default = ["blocked", "welcome"]
"""
FEW_CONNECTIONS = """
[[rule]]
name = "everything"
mx = "*"
scope = "path"
connections_max = 4
"""


def refuses(step: str, code: int = 554, text: str = "5.7.1 refused", client: str = "127.0.0.2") -> str:
    return f'[[rule]]\nstep = "{step}"\nclient = "{client}"\ncode = {code}\ntext = "{text}"\n'


@pytest.mark.parametrize("step", ["mail", "rcpt", "dot"])
async def test_of_two_egresses_the_blocked_one_is_left_alone_and_all_is_delivered(
    tmp_path: Path, database: Database, step: str
) -> None:
    async with World(tmp_path, database, script=refuses(step)) as world:
        node = world.node(children=1, settings=EGRESSES, rules=FEW_CONNECTIONS)
        await node.start()
        to = addresses(600)
        delivery = await world.deliver(to)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (600, 0, 0)
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert {message.client for message in world.record().accepted} == {"127.0.0.3"}
        assert 0 < len(world.record().refused) < 100, "it was left alone"
        assert {attempts[0] for attempts in (await story(world, delivery)).values()} == {(1, Status.DELIVERED)}
        assert (await world.audit(delivery)).is_clean
