"""Children come and go, and a recipient that cannot be mailed takes nobody along."""

from __future__ import annotations

import json
from pathlib import Path

from mta.model.outcome import Status
from mta.queue.append import append_parts
from mta.queue.part import Part
from tests.support.content import content_json
from tests.support.dialogue_script import load
from tests.support.node import World, addresses, until
from tests.support.outcomes import log_of, statuses, value
from tests.support.postgres import Database
from tests.support.scripted_server import ScriptedServer

DIALOGUES = Path(__file__).parents[1] / "dialogues"


async def test_children_are_replaced_after_so_many_messages_without_loss_or_repeat(
    tmp_path: Path, database: Database
) -> None:
    script = '[[rule]]\nstep = "dot"\ndelay_ms = 10\n'
    rules = '[[rule]]\nname = "slow"\nmx = "*"\nscope = "path"\nconnections_max = 8\n'
    async with World(tmp_path, database, script=script) as world:
        node = world.node(rules=rules, settings="recycle_messages = 100")
        await node.start()
        born = set(node.child_pids())
        assert len(born) == 2
        to = addresses(800)
        delivery = await world.deliver(to)
        await until("both first children are gone", lambda: not born & set(node.child_pids()))
        assert (await world.wait_for(delivery)).delivered == 800
        assert len(node.said("child is replaced")) >= 2
        await until("two children are there", lambda: len(node.child_pids()) == 2)
        assert node.said("child died") == []
        assert await node.stop() == 0
        assert world.record().recipients() == dict.fromkeys(to, 1)
        audited = await world.audit(delivery)
        assert audited.is_clean
        assert await statuses(world, delivery) == {Status.DELIVERED: 800}


ROWS: dict[str, object] = {
    # What `append` refuses, written into the queue past it; and among it what can be sent.
    "good": ["good@d0.test", None, ["Ann"]],
    "no at": ["nobody", None, ["Ann"]],
    "empty": ["", None, ["Ann"]],
    "command": ["a@d0.test>\r\nRSET\r\n", None, ["Ann"]],
    "control in domain": ["a@d0\t.test", None, ["Ann"]],
    "nul": ["a\0b@d0.test", None, ["Ann"]],
    "space": ["a b@d0.test", None, ["Ann"]],
    "dots": ["a..b@d0.test", None, ["Ann"]],
    "long domain": [f"a@{'x' * 300}.test", None, ["Ann"]],
    "line break in a value": ["value@d0.test", None, ["Ann\r\nBcc: all@d0.test"]],
    "too few values": ["few@d0.test", None, []],
    "a number": ["number@d0.test", None, [1]],
    "no list": ["nolist@d0.test", None, "Ann"],
    "huge": ["huge@d0.test", None, ["é" * 5_000_000]],
    "also good": ["also@d1.test", "ref\twith\ttabs", ["Zoë"]],
}


async def test_what_cannot_be_mailed_fails_alone_whatever_was_written_into_the_queue(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        born = node.child_pids()
        content = content_json(subject="Hello {{first}}", text="Dear {{first}}")
        delivery = await world.deliver([], content=content, seal=False)
        await insert_part(database, delivery, ["first"], list(ROWS.values()))
        await insert_part(database, delivery, ["last"], [["unknown@d0.test", None, ["Ann"]]])
        async with database.pool.acquire() as conn:
            await append_parts(conn, delivery, [Part("fine", ("first",), [("fine@d0.test", None, ["Bob"])])])
            await conn.execute("UPDATE mta.delivery SET sealed = true")
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed) == (3, len(ROWS) - 2 + 1)
        assert world.record().recipients() == dict.fromkeys(["good@d0.test", "also@d1.test", "fine@d0.test"], 1)
        said = {row["address"]: row["reply"] for row in await log_of(world, delivery) if row["status"] == Status.FAILED}
        assert "first" in said["unknown@d0.test"]
        assert "first" in said["value@d0.test"]
        assert said["number@d0.test"] == said["nolist@d0.test"] == "local: values: are not a list of texts"
        assert node.child_pids() == born
        assert node.said("child died") == []
        assert (await world.audit(delivery)).is_clean


async def test_a_content_that_cannot_be_used_stops_no_other_delivery(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        born = node.child_pids()
        spoilt = await world.deliver(addresses(10), start=False)
        await value(
            world, "UPDATE mta.delivery SET content = '{\"subject\": 1}', retry = '7'::jsonb WHERE id = $1", spoilt
        )
        async with database.pool.acquire() as conn:
            await conn.execute(
                "UPDATE mta.delivery SET state = 'running', started_at = now(), valid_until = now() + validity"
            )
        other = await world.deliver(addresses(10))
        assert (await world.wait_for(other)).delivered == 10
        assert (await world.wait_for(spoilt)).failed == 10
        assert {row["reply"][:24] for row in await log_of(world, spoilt)} == {f"local: delivery {spoilt}.subject"[:24]}
        assert node.said("content cannot be used")[0]["delivery"] == spoilt
        assert node.said("retry schedule cannot be read, the classic one holds")
        assert node.child_pids() == born


async def test_a_message_above_the_size_that_a_server_announces_fails_without_being_sent(
    tmp_path: Path, database: Database
) -> None:
    # It announces a million octets.
    async with World(tmp_path, database) as world, ScriptedServer(load(DIALOGUES / "all_accepted.txt")) as server:
        node = world.node(children=1)
        node.config.write_text(node.config.read_text().replace(f"port = {world.sink.port}", f"port = {server.port}"))
        await node.start()
        large = await world.deliver(["large@d0.test"], content=content_json(text="0123456 89\n" * 120_000))
        small = await world.deliver(["small@d0.test"])
        assert (await world.wait_for(large)).failed == 1
        assert (await world.wait_for(small)).delivered == 1
        (row,) = await log_of(world, large)
        assert (row["code"], row["attempt"]) == (552, 1)
        assert sum(len(session.stored) for session in server.sessions) == 1


async def insert_part(database: Database, delivery_id: int, fields: list[str], rows: list[object]) -> None:
    """As an application would that writes into the tables itself."""
    async with database.pool.acquire() as conn, conn.transaction():
        append_id = await conn.fetchval(
            "INSERT INTO mta.delivery_append (delivery_id, key, recipients, digest)"
            " VALUES ($1, gen_random_uuid()::text, $2, '') RETURNING append_id",
            delivery_id,
            len(rows),
        )
        await conn.execute(
            "INSERT INTO mta.delivery_part (delivery_id, append_id, fields, count, recipients)"
            " VALUES ($1, $2, $3, $4, $5)",
            delivery_id,
            append_id,
            fields,
            len(rows),
            json.dumps(rows).encode(),
        )
