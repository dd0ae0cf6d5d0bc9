"""What is tried again, when, with what; and what never is."""

from __future__ import annotations

from pathlib import Path

from mta.model.outcome import Reason, Status
from mta.sink.record import read_body
from tests.support.node import World
from tests.support.outcomes import log_of, story, value
from tests.support.postgres import Database

EACH_SECOND = '{"first_count": 100, "first_period_s": 1, "then_period_s": 1, "greylist_s": 1}'


async def test_a_greylisted_recipient_is_delivered_by_a_new_part_at_its_second_attempt(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, provider="greylist_s = 0.5") as world:
        node = world.node(children=1)
        await node.start()
        to = [f"u{number}@d0.test" for number in range(20)]
        delivery = await world.deliver(to, retry=EACH_SECOND)
        await world.wait_for(delivery, lambda shown: shown.deferrals == 20)
        # They wait in one part or a few, as they came in, with their first attempt counted.
        waiting = await value(
            world,
            "SELECT (min(attempt), max(attempt), sum(count))::text FROM mta.delivery_part WHERE owner IS NULL",
        )
        assert waiting == "(1,1,20)"
        await world.wait_for(delivery)
        assert await story(world, delivery) == {
            address: [(1, Status.DEFERRED), (2, Status.DELIVERED)] for address in to
        }
        first, second, *_ = await log_of(world, delivery)
        assert (first["code"], first["enhanced"], second["code"]) == (451, "4.7.1", 250)
        assert 1 <= (second["at"] - first["at"]).total_seconds() < 5
        assert first["part_id"] != second["part_id"]
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert (await world.audit(delivery)).is_clean


async def test_every_attempt_bears_the_same_message_id_and_date(tmp_path: Path, database: Database) -> None:
    # Refused at the final dot, but kept: the record then shows every attempt's message.
    script = '[[rule]]\nstep = "dot"\ncode = 450\nodds = 0.4\nstore = true\n'
    async with World(tmp_path, database, script=script, bodies=True) as world:
        node = world.node(children=1)
        await node.start()
        to = [f"u{number}@d0.test" for number in range(6)]
        delivery = await world.deliver(to, retry=EACH_SECOND)
        assert (await world.wait_for(delivery)).delivered == len(to)
        seen: dict[str, set[bytes]] = {}
        for message in world.record().accepted:
            body = read_body(world.record_dir, message)
            headers = body.partition(b"\r\n\r\n")[0].split(b"\r\n")
            dated = b"\n".join(line for line in headers if line.startswith((b"Date:", b"Message-ID:")))
            assert dated.count(b":") >= 4  # both are there
            seen.setdefault(message.recipients[0], set()).add(dated)
        assert len(world.record().accepted) == len(to) + (await world.show(delivery)).deferrals > len(to)
        assert {address: len(kinds) for address, kinds in seen.items()} == dict.fromkeys(to, 1)


async def test_a_permanent_refusal_is_recorded_once_and_never_tried_again(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        to = ["a+550@d0.test", "b+550-5.2.2@d1.test", "c+dot-554@d2.test", "d@d3.test"]
        delivery = await world.deliver(to, retry=EACH_SECOND)
        shown = await world.wait_for(delivery)
        assert (shown.delivered, shown.failed, shown.deferrals) == (1, 3, 0)
        rows = {row["address"]: row for row in await log_of(world, delivery)}
        told = {address: (row["code"], row["reason"], row["attempt"]) for address, row in rows.items()}
        assert told == {
            "a+550@d0.test": (550, Reason.USER_UNKNOWN, 1),
            "b+550-5.2.2@d1.test": (550, Reason.USER_UNKNOWN, 1),  # the sink says "no such user": words before codes
            "c+dot-554@d2.test": (554, Reason.REFUSED, 1),
            "d@d3.test": (250, Reason.NOT_DEFINED, 1),
        }
        assert len(world.record().refused) == 3
        assert (await world.audit(delivery)).is_clean
