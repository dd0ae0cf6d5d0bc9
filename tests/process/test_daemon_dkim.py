"""DKIM end to end: what a daemon sends is verified by another's software, and nothing goes unsigned that must not."""

from __future__ import annotations

import re
import resource
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from mta.message import Signer, load_key
from mta.queue import deliveries
from mta.sink.record import read_body
from tests.support.content import content_json
from tests.support.keys import ed25519_pem, is_verified, records, rsa_pem
from tests.support.node import TWO_CONNECTIONS, Node, World, addresses, until
from tests.support.outcomes import all_back_in_the_queue
from tests.support.postgres import Database

WAITS = "delivery waits: its messages cannot be signed"
SLOW_SCRIPT = """
[[rule]]
step = "dot"
delay_ms = 20
"""


def put_key(directory: Path, name: str, pem: bytes) -> None:
    fresh = directory / f"{name}.new"
    fresh.write_bytes(pem)
    fresh.chmod(0o600)
    fresh.rename(directory / name)


def entry(selector: str, key: str, domain: str = "shop.example") -> str:
    return f'[[dkim]]\ndomain = "{domain}"\nselector = "{selector}"\nkey = "{key}"\n'


def public(*keys: tuple[str, bytes]) -> dict[str, bytes]:
    """What DNS has for selectors of shop.example."""
    return records(*[Signer("shop.example", selector, load_key(pem, "key")) for selector, pem in keys])


def bodies(world: World) -> list[tuple[str, bytes]]:
    """(connection, message) of all that the sink took, in time."""
    return [(one.connection, read_body(world.record_dir, one)) for one in world.record().accepted]


def signers_of(message: bytes) -> list[str]:
    """The selectors of a message's signatures, from the top."""
    head = message.partition(b"\r\n\r\n")[0].decode()
    return re.findall(r"^DKIM-Signature:(?:.*\r\n[ \t])*?.*\bs=([^;]+);", head, re.MULTILINE)


def reconfigure(node: Node, old: str, new: str) -> None:
    text = node.config.read_text()
    assert old in text
    node.config.write_text(text.replace(old, new))
    node.signal(signal.SIGHUP)


async def test_each_message_has_both_signatures_and_they_verify(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        node = world.node(settings=entry("r1", "rsa.pem") + entry("e1", "ed.pem"))
        put_key(node.directory, "rsa.pem", rsa_pem())
        put_key(node.directory, "ed.pem", ed25519_pem())
        await node.start()
        content = content_json(
            subject="Größe {{first}}", text="Dear {{first}},\n.\n\nbye  ", html="<p>Für {{first}}</p>\n" * 50
        )
        signed = await world.deliver(addresses(60), content=content)
        other = await world.deliver(addresses(5), content=content_json(sender="news@other.example"))
        for delivery in (signed, other):
            await world.wait_for(delivery)
        dns = public(("r1", rsa_pem()), ("e1", ed25519_pem()))
        of_shop = [message for _, message in bodies(world) if b"From: Shop" in message]
        assert len(of_shop) == 60
        for message in of_shop:
            assert signers_of(message) == ["r1", "e1"]
            assert is_verified(message, dns, 0)
            assert is_verified(message, dns, 1)
        assert [signers_of(message) for _, message in bodies(world) if message not in of_shop] == [[]] * 5
        assert await node.stop() == 0
        secret = ed25519_pem().splitlines()[1].decode()
        assert secret not in (node.directory / "one.log").read_text()
        assert (await world.audit(signed)).is_clean


async def test_a_key_is_exchanged_while_mail_goes_out_and_nothing_goes_unsigned(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, bodies=True, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS, settings=entry("old", "old.pem"))
        put_key(node.directory, "old.pem", rsa_pem())
        put_key(node.directory, "new.pem", ed25519_pem())
        await node.start()
        delivery = await world.deliver(addresses(160))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 30)
        reconfigure(node, entry("old", "old.pem"), entry("new", "new.pem"))
        await until("keys are exchanged", lambda: len(node.said("signing keys changed")) == 2)
        await world.wait_for(delivery)
        last = await world.deliver(addresses(10), content=content_json(subject="last"))
        await world.wait_for(last)
        dns = public(("old", rsa_pem()), ("new", ed25519_pem()))
        by_connection: defaultdict[str, list[str]] = defaultdict(list)
        for connection, message in bodies(world):
            [selector] = signers_of(message)
            assert is_verified(message, dns)
            by_connection[connection].append(selector)
            assert selector == "new" or b"Subject: last" not in message
        used = [selector for selectors in by_connection.values() for selector in selectors]
        assert used.count("old") >= 30
        assert used.count("new") >= 50
        assert all(selectors == sorted(selectors, reverse=True) for selectors in by_connection.values())
        assert await node.stop() == 0
        assert world.record().duplicates() == {}
        assert (await world.audit(delivery)).is_clean


async def test_without_its_key_a_delivery_waits_and_goes_on_when_the_key_is_there(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        node = world.node(settings=entry("a", "a.pem"))
        await node.start()
        [error] = node.said("signing key cannot be used")
        assert f"{node.config}:" in str(error["error"])
        assert "a.pem cannot be opened" in str(error["error"])
        held = await world.deliver(addresses(600), part_recipients=50)
        await until("the delivery is held", lambda: node.said(WAITS))
        # Others are not held up, and it is spoken of once, however often the queue is looked at.
        await world.wait_for(await world.deliver(addresses(20), content=content_json(sender="news@other.example")))
        assert [(one["delivery"], one["sender_domain"]) for one in node.said(WAITS)] == [(held, "shop.example")]
        await all_back_in_the_queue(world)
        assert (await world.show(held)).delivered == 0
        # A child that dies changes nothing of it.
        node.kill_child()
        await until("another child", lambda: len(node.said("child started")) == 3)
        put_key(node.directory, "a.pem", ed25519_pem())
        node.signal(signal.SIGHUP)
        await world.wait_for(held)
        await until("that is said", lambda: node.said("delivery goes on: its messages can be signed"))
        dns = public(("a", ed25519_pem()))
        messages = [message for _, message in bodies(world) if b"From: Shop" in message]
        assert len(messages) == 600
        assert all(is_verified(message, dns) for message in messages)
        assert await node.stop() == 0
        assert (await world.audit(held)).is_clean


async def test_what_loses_its_key_under_way_goes_back_to_the_queue_unsent(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, bodies=True, script=SLOW_SCRIPT) as world:
        node = world.node(rules=TWO_CONNECTIONS, settings="[signing]\nrequired = true\n" + entry("a", "a.pem"))
        put_key(node.directory, "a.pem", ed25519_pem())
        await node.start()
        delivery = await world.deliver(addresses(160))
        await world.wait_for(delivery, lambda shown: shown.delivered >= 20)
        reconfigure(node, entry("a", "a.pem"), entry("a", "a.pem", "another.example"))
        await until("the delivery is held", lambda: node.said(WAITS))
        await all_back_in_the_queue(world)
        sent = len(bodies(world))
        assert 20 <= sent < 150
        assert (await world.show(delivery)).delivered == sent
        await world.wait_for(await world.deliver(addresses(20), content=content_json(sender="news@another.example")))
        assert len(bodies(world)) == sent + 20
        reconfigure(node, entry("a", "a.pem", "another.example"), entry("a", "a.pem"))
        assert (await world.wait_for(delivery)).delivered == 160
        dns = public(("a", ed25519_pem()))
        of_shop = [message for _, message in bodies(world) if b"From: Shop" in message]
        assert len(of_shop) == 160
        assert all(is_verified(message, dns) for message in of_shop)
        assert len(node.said(WAITS)) == 1
        assert await node.stop() == 0
        assert world.record().duplicates() == {}
        assert (await world.audit(delivery)).is_clean


async def test_what_waits_for_a_key_can_be_cancelled_and_expires(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(settings=entry("a", "a.pem"))
        await node.start()
        cancelled = await world.deliver(addresses(20))
        await until("it is held", lambda: node.said(WAITS))
        async with database.pool.acquire() as conn:
            await deliveries.cancel(conn, cancelled)
        shown = await world.wait_for(cancelled, lambda shown: shown.ended_at is not None)
        assert shown.cancelled == 20
        expiring = await world.deliver(addresses(20))
        await until("it is held", lambda: len(node.said(WAITS)) == 2)
        async with database.pool.acquire() as conn:
            await conn.execute("UPDATE mta.delivery SET valid_until = now() WHERE id = $1", expiring)
        shown = await world.wait_for(expiring, lambda shown: shown.ended_at is not None)
        assert shown.expired == 20
        assert world.record().accepted == []
        assert await node.stop() == 0


async def test_a_key_file_that_is_exchanged_is_found_without_a_word(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        node = world.node(settings="[signing]\ncheck_s = 1\n" + entry("a", "a.pem"))
        put_key(node.directory, "a.pem", ed25519_pem())
        await node.start()
        put_key(node.directory, "a.pem", rsa_pem())
        await until("the key is exchanged", lambda: len(node.said("signing keys changed")) == 2)
        await world.wait_for(await world.deliver(addresses(20)))
        dns: dict[str, Any] = public(("a", rsa_pem()))
        assert all(is_verified(message, dns) for _, message in bodies(world))
        # Settings that are refused, and a key that has gone, change nothing.
        (node.directory / "a.pem").unlink()
        reconfigure(node, 'selector = "a"', 'selektor = "a"')
        await until("it is refused", lambda: node.said("signing keys are not changed"))
        await until("its absence is noticed", lambda: node.said("signing key cannot be used"))
        await world.wait_for(await world.deliver(addresses(20)))
        assert len(bodies(world)) == 40
        assert all(is_verified(message, dns) for _, message in bodies(world))
        assert await node.stop() == 0


async def test_no_process_that_holds_keys_leaves_a_core_dump(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        assert node.process is not None
        for pid in (node.process.pid, *node.child_pids()):
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert await node.stop() == 0
