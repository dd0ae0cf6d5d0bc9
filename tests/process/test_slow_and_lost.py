"""``mta monitor slow`` tells the truth of what waits; a lost node and a feedback process that is away are alerts."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from mta.keeper.keeper import LOCK
from mta.queue import deliveries, nodes
from mta.queue.append import append_parts
from mta.queue.part import Part
from tests.support.cli import Cli
from tests.support.content import new_delivery


@pytest.fixture
async def cli(conn: asyncpg.Connection, dsn: str, tmp_path: Path) -> Cli:
    made = await new_delivery(conn)
    people = [(f"u{number}@a.example", None, [""]) for number in range(10)]
    await append_parts(conn, made, [Part("p", ("first",), people)])
    await deliveries.start(conn, made)
    return Cli(dsn, tmp_path)


async def test_who_waits_for_a_retry_is_named_and_figures_add_up(cli: Cli, conn: asyncpg.Connection) -> None:
    await nodes.register(conn, "one", "boot", 60.0)
    await conn.execute(
        "UPDATE mta.delivery_part SET attempt = 1, site = 's', due_at = '2099-01-31 08:00+00';"
        "INSERT INTO mta.part_settled SELECT id, '{0,1,2}' FROM mta.delivery_part;"
        "UPDATE mta.delivery_stats SET delivered = 2, excluded = 1"
    )
    lines = cli.on_terminal("monitor", "slow", "1")
    text = " ".join(line.strip() for line in lines)
    assert "delivery 1 is running: 7 of 10 recipients are open" in text
    assert "retry (100 %): 7 are deferred and wait for their retry, the next at 2099-01-31 08:00:00Z" in text
    assert "nothing holds it up" not in text
    shown, told = cli.json("delivery", "show", "1"), cli.json("monitor", "slow", "1")
    facts = told["facts"]
    assert facts["recipients"] - facts["ended"] == shown["waiting"] == facts["deferred"] == 7
    assert told["causes"][0]["kind"] == "retry"


async def test_a_node_that_drains_is_draining(cli: Cli, conn: asyncpg.Connection) -> None:
    await nodes.register(conn, "one", "boot", 60.0)
    await conn.execute("UPDATE mta.node SET draining_since = now()")
    said = cli.run("monitor", "slow", "1").stdout
    assert "1. draining (100 %): every node that lives is draining" in said
    assert "children are missing" not in said


async def test_a_delivery_that_is_scheduled_says_when_it_starts(cli: Cli, conn: asyncpg.Connection) -> None:
    made = str(await new_delivery(conn))
    started = cli.run("delivery", "start", made, "--at", "2099-01-31T08:00:00+00:00").stdout
    assert started == f"delivery {made} is running, starts at 2099-01-31 08:00:00Z\n"
    assert "starts at 2099-01-31 08:00:00Z" in cli.run("delivery", "list").stdout
    assert "starts at 2099-01-31 08:00:00Z" in cli.run("monitor", "slow", made).stdout
    assert cli.json("delivery", "show", made)["state"] == "running"


async def test_a_lost_node_is_an_alert_until_it_is_back(cli: Cli, conn: asyncpg.Connection) -> None:
    await nodes.register(conn, "one", "boot", 60.0)
    assert cli.json("monitor", "check")["alerts"] == []
    await conn.execute("UPDATE mta.node SET alive_until = now() - interval '1 second'")
    new = cli.json("monitor", "check")["alerts"]
    assert [(one["kind"], one["node"]) for one in new] == [("node-lost", "one")]
    assert "node one (run 1) is lost" in new[0]["detail"]
    assert cli.json("monitor", "check")["alerts"] == []
    assert "is lost" in cli.run("monitor", "alerts").stdout
    await nodes.register(conn, "one", "boot", 60.0)
    cli.json("monitor", "check")
    assert cli.json("monitor", "alerts")["alerts"][0]["ended_at"] is not None


async def test_a_node_that_stopped_in_good_order_is_no_alert(cli: Cli, conn: asyncpg.Connection) -> None:
    await nodes.register(conn, "one", "boot", 60.0)
    await conn.execute("UPDATE mta.node SET ended_at = now()")
    assert cli.json("monitor", "check")["alerts"] == []


async def test_feedback_that_nobody_applies_is_an_alert_while_it_lasts(cli: Cli, conn: asyncpg.Connection) -> None:
    assert cli.json("monitor", "check")["alerts"] == []  # it never ran: nobody wants it
    await conn.execute(
        "UPDATE mta.log_pointer SET tx = 1, moved_at = now() - interval '1 hour' WHERE name = 'failures'"
    )
    await conn.execute("SELECT pg_advisory_lock($1)", LOCK)
    assert cli.json("monitor", "check")["alerts"] == []  # it works, however long it takes
    await conn.execute("SELECT pg_advisory_unlock($1)", LOCK)
    new = cli.json("monitor", "check")["alerts"]
    assert [one["kind"] for one in new] == ["feedback-down"]
    assert "systemctl start mta-keeper" in new[0]["reply"]
    await conn.execute("UPDATE mta.log_pointer SET moved_at = now()")
    cli.json("monitor", "check")
    assert cli.json("monitor", "alerts")["alerts"][0]["ended_at"] is not None
