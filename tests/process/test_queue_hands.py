"""The queue in an operator's hands: spread by age, flushed, and recipients taken out of it, from nodes' memory too."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg
import msgspec
import pytest
from rich.cells import cell_len

from mta.model.outcome import Status
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.part import Part
from tests.support.cli import Cli
from tests.support.content import new_delivery
from tests.support.launch import launch
from tests.support.node import TWO_CONNECTIONS, WAIT_S, World, addresses
from tests.support.outcomes import leased, statuses
from tests.support.postgres import Database

SLOW_SCRIPT = """
[[rule]]
step = "dot"
local_part = "u*"
delay_ms = 20
"""
PEOPLE = ["Ann@a.example", "bob@a.example", "cid@b.example", "dora@b.example", "e@sub.a.example"]


@pytest.fixture
async def cli(conn: asyncpg.Connection, dsn: str, tmp_path: Path) -> Cli:
    made = await new_delivery(conn)
    await append_parts(conn, made, [Part("p", ("first",), [(one, None, ["@a.example"]) for one in PEOPLE])])
    await deliveries.start(conn, made)
    return Cli(dsn, tmp_path)


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("domain", ["a.example", "b.example", "sub.a.example"]),
        ("site", ["not known yet"]),
        ("egress", ["pool default"]),
        ("reason", ["due"]),
    ],
)
async def test_what_waits_is_added_up_with_its_ages(
    cli: Cli, conn: asyncpg.Connection, by: str, keys: list[str]
) -> None:
    await conn.execute("UPDATE mta.delivery_part SET appended_at = now() - interval '11 minutes'")
    lines = cli.on_terminal("queue", "show", "--by", by)
    assert max(map(cell_len, lines)) <= 80
    assert lines[1].split()[-10:] == ["5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"]
    assert lines[2].split()[-11:] == ["5", "0", "0", "5", *"0000000"]
    assert [line.split("  ")[0] for line in lines[3:]] == keys
    plain = cli.run("queue", "show", "--by", by).stdout.splitlines()
    assert plain[2] == "TOTAL\t5\t0\t0\t5" + "\t0" * 7
    assert [line.partition("\t")[0] for line in plain[3:]] == keys
    assert cli.json("queue", "show", "--by", by)["rows"][0]["by_age"][2] > 0


async def test_ages_alone_and_reasons_of_deferrals(cli: Cli, conn: asyncpg.Connection) -> None:
    assert "under 5\t5" in cli.run("queue", "show", "--by", "age").stdout
    await conn.execute("UPDATE mta.delivery_part SET attempt = 1, site = 's', due_at = now() + interval '1 hour'")
    await conn.execute(
        "INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,"
        " address, site, mx_host, peer, egress, reply)"
        " SELECT now(), 1, append_id << 16, 1, 1, 10, 5, 452, '', 'x', '', '', '', '', '' FROM mta.delivery_part"
    )
    assert "deferred: mailbox full\t5" in cli.run("queue", "show", "--by", "reason").stdout
    await conn.execute("UPDATE mta.delivery SET state = 'paused'")
    assert "delivery is paused\t5" in cli.run("queue", "show", "--by", "reason", "--delivery", "1").stdout
    assert "does not exist" in cli.run("queue", "show", "--by", "age", "--delivery", "9", expect=2).stderr


@pytest.mark.parametrize("what", ["1", "b.example", "mx.b.example+sts"])
async def test_what_waits_for_a_retry_is_due_now_and_waves_are_not(
    cli: Cli, conn: asyncpg.Connection, what: str
) -> None:
    await append_parts(conn, 1, [Part("wave", ("first",), [("f@b.example", None, [""])])])
    await conn.execute(
        "UPDATE mta.delivery_part SET due_at = now() + interval '1 hour',"
        " site = CASE WHEN count > 1 THEN 'mx.b.example+sts' END, attempt = (count > 1)::int"
    )
    assert cli.json("queue", "flush", what) == {"recipients": 5, "parts": 1, "deliveries": 1}
    assert await conn.fetchval("SELECT count FROM mta.delivery_part WHERE due_at > now()") == 1
    assert "0 recipients of 0 deliveries are due now" in cli.run("queue", "flush", what).stdout
    assert "delivery 99: does not exist" in cli.run("queue", "flush", "99", expect=2).stderr


@pytest.mark.parametrize(
    ("whom", "gone"),
    [(("ANN@A.example",), 1), (("--domain", "a.example"), 2), (("nobody@a.example",), 0)],
    ids=["address", "domain", "nobody"],
)
async def test_who_is_taken_out_of_the_queue_is_recorded_as_cancelled(
    cli: Cli, conn: asyncpg.Connection, whom: tuple[str, ...], gone: int
) -> None:
    refused = cli.run("queue", "delete", *whom, expect=2).stderr
    assert f"{gone} recipients wait for" in refused
    assert "--yes" in refused
    assert cli.on_terminal("queue", "delete", *whom, typed="n\n", expect=1)[-1].endswith("Aborted.")
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_log") == 0
    said = cli.on_terminal("queue", "delete", *whom, "--by", "ann", typed="y\n")
    assert f"{gone} recipients are recorded as cancelled" in said[-1]
    lines = await conn.fetch("SELECT address, status, reply FROM mta.delivery_log ORDER BY address")
    assert [line["address"] for line in lines] == PEOPLE[:gone]
    assert all(line["status"] == Status.CANCELLED and line["reply"].startswith("deleted by ann") for line in lines)
    shown = cli.json("delivery", "show", "1")
    assert (shown["cancelled"], shown["waiting"]) == (gone, 5 - gone)
    assert cli.json("delivery", "audit", "1")["is_clean"] is True
    assert cli.json("queue", "delete", *whom, "--yes") == {"cancelled": 0, "left": 0, "nodes": []}
    assert [one["kind"] for one in cli.json("traffic", "events", "--since", "1h")["events"]] == ["cancel", "cancel"]


async def test_a_part_of_which_all_are_taken_out_is_gone(cli: Cli, conn: asyncpg.Connection) -> None:
    for domain in ("a.example", "b.example", "sub.a.example"):
        cli.run("queue", "delete", "--domain", domain, "--yes")
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_part") == 0
    assert await conn.fetchval("SELECT count(*) FROM mta.part_settled") == 0
    assert cli.json("delivery", "audit", "1")["is_clean"] is True


def test_one_of_address_and_domain_is_given(cli: Cli) -> None:
    for given in ((), ("a@b.example", "--domain", "b.example")):
        assert "give one of them" in cli.run("queue", "delete", *given, expect=2).stderr


async def test_what_a_node_has_in_memory_is_taken_out_too(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS)
        await node.start()
        everyone = addresses(1000)
        delivery = await world.deliver(everyone)
        await world.wait_for(delivery, lambda shown: shown.delivered >= 20)
        assert await leased(world) > 500
        deleted = await _delete(database, "--domain", "d3.test")
        assert 80 <= deleted["cancelled"] <= 100
        one = await _delete(database, "U995@d5.test")
        assert one["cancelled"] == 1
        shown = await world.wait_for(delivery)
        assert (shown.cancelled, shown.delivered) == (deleted["cancelled"] + 1, 999 - deleted["cancelled"])
        assert await statuses(world, delivery) == {
            Status.DELIVERED: shown.delivered,
            Status.CANCELLED: shown.cancelled,
        }
        sent = world.record().recipients()
        assert "u995@d5.test" not in sent
        assert world.record().duplicates() == {}
        assert await node.stop() == 0
        assert (await world.audit(delivery)).is_clean


async def _delete(database: Database, *whom: str) -> dict[str, int]:
    environment = {**os.environ, "MTA_DATABASE_URL": database.dsn}
    process = await launch("queue", "delete", *whom, "--yes", "--json", env=environment)
    printed, said = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0, (printed, said)
    answer: dict[str, int] = msgspec.json.decode(printed)
    assert answer["left"] == 0
    return answer
