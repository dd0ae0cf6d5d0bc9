"""Refusals that are not about a recipient: other paths are tried, the refused one rests, and nobody fails for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.failure import OUR_FAULT, Category
from mta.model.outcome import Status
from mta.queue import monitor
from mta.queue.refusals import listed
from tests.support.node import World, addresses, until
from tests.support.outcomes import log_of, story
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


async def test_what_is_refused_over_ipv6_for_want_of_a_reverse_name_goes_over_ipv4(
    tmp_path: Path, database: Database
) -> None:
    zones: dict[str, object] = {"mx.test": {"A": ["127.0.0.1"], "AAAA": ["::1"]}, "d0.test": {"MX": [(10, "mx.test")]}}
    script = refuses("rcpt", 550, "5.7.25 The sending IP address has no PTR record", client="::1")
    async with World(tmp_path, database, zones=zones, sink_addresses=("127.0.0.1", "::1"), script=script) as world:
        node = world.node(children=1, rules=FEW_CONNECTIONS, ipv6=True)
        await node.start()
        delivery = await world.deliver(addresses(160, domains=1))
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (160, 0, 0)
        assert {message.client for message in world.record().accepted} == {"127.0.0.1"}


TWO_HOSTS: dict[str, object] = {
    "mx1.test": {"A": ["127.0.0.1"]},
    "mx2.test": {"A": ["127.0.0.4"]},
    "d0.test": {"MX": [(10, "mx1.test"), (20, "mx2.test")]},
}
BROKEN_TLS_ON_THE_FIRST = """
[[rule]]
step = "starttls"
server = "127.0.0.1"
code = 454
text = "4.7.0 TLS not available due to a local problem"

[[rule]]
step = "mail"
tls = false
code = 530
text = "5.7.0 Must issue a STARTTLS command first"
"""


async def test_a_host_that_wants_tls_and_cannot_do_it_is_passed_over_for_one_that_can(
    tmp_path: Path, database: Database
) -> None:
    async with World(
        tmp_path,
        database,
        zones=TWO_HOSTS,
        sink_addresses=("127.0.0.1", "127.0.0.4"),
        tls=True,
        script=BROKEN_TLS_ON_THE_FIRST,
    ) as world:
        node = world.node(children=1, rules=FEW_CONNECTIONS)
        await node.start()
        delivery = await world.deliver(addresses(100, domains=1))
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (100, 0, 0)
        assert {row["mx_host"] for row in await log_of(world, delivery)} == {"mx2.test"}
        assert len(world.record().refused) < 50, "the first host was left alone"


@pytest.mark.parametrize("step", ["mail", "rcpt"])
async def test_with_one_path_all_are_deferred_the_path_rests_and_an_alarm_is_raised(
    tmp_path: Path, database: Database, step: str
) -> None:
    script = refuses(step, client="127.0.0.*")
    async with World(tmp_path, database, script=script) as world:
        node = world.node(children=1, rules=FEW_CONNECTIONS)
        await node.start()
        delivery = await world.deliver(addresses(100))
        shown = await world.wait_for(delivery, lambda shown: shown.deferrals == 100)
        assert (shown.delivered, shown.failed) == (0, 0)
        rows = await log_of(world, delivery)
        assert {(row["attempt"], row["status"], row["code"], row["enhanced"]) for row in rows} == {
            (1, Status.DEFERRED, 554, "5.7.1")
        }
        assert {Category(row["category"]) for row in rows} <= OUR_FAULT, "no address pays for it"
        assert len(world.record().refused) < 60, "it was left alone"
        # Said once, and known to who looks.
        await until("the alert is raised", lambda: node.said("alert"))
        (rest,) = node.said("path rests after refusals")
        assert (rest["egress"], rest["peer"]) == ("default", "127.0.0.1")
        assert 40 < int(str(rest["for_s"])) <= 60
        assert "refused" in str(rest["reply"])
        (alert,) = node.said("alert")
        assert (alert["kind"], alert["egress"]) == ("our-fault", "default")
        async with world.database.pool.acquire() as conn:
            (path,) = await listed(conn, hours=1)
            assert (await monitor.alerts(conn))[0].egress == "default"
        assert (path.mx_host, path.code) == ("mx.test", 554)
        assert 3 <= path.refused <= len(world.record().refused)
        assert path.rests_until is not None
