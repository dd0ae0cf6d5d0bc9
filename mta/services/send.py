"""One test message, sent as all others are, with the way that it went."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Final

import msgspec

from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.queue import deliveries, locate, log_search
from mta.queue.append import append_parts
from mta.queue.connection import Conn
from mta.queue.deliveries import NewDelivery
from mta.queue.locate import Queued
from mta.queue.log_search import Conditions, FoundLine
from mta.queue.part import Part
from mta.services.rules import rules_in_force
from mta.settings import Settings

RECIPIENTS_MAX: Final = 100  # it is a test
VALID_FOR: Final = datetime.timedelta(hours=1)  # then what is left ends by itself
LOOK_S: Final = 0.1


class TestMessage(msgspec.Struct, frozen=True, kw_only=True):
    """``to``: its recipients. ``sender``: of From, an address with or without a name. ``pool``: the egress pool."""

    __test__ = False  # for pytest, which would take it for tests

    to: list[str]
    sender: str
    subject: str
    text: str
    pool: str = "default"


class Attempt(msgspec.Struct, frozen=True):
    """A line of the log. ``rule`` and ``tls``: what holds there now, empty where no host was called."""

    line: FoundLine
    rule: str
    tls: str


class Way(msgspec.Struct, frozen=True):
    """What became of a recipient. ``waiting``: where it is when it has no outcome yet."""

    address: str
    attempts: list[Attempt]
    waiting: Queued | None

    @property
    def has_outcome(self) -> bool:
        return any(one.line.status.is_final for one in self.attempts)

    @property
    def is_delivered(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].line.status.name == "DELIVERED"


class Sent(msgspec.Struct, frozen=True):
    """``nodes_living``: 0 says that nobody is there to send it."""

    delivery_id: int
    ways: list[Way]
    nodes_living: int

    @property
    def is_delivered(self) -> bool:
        return all(way.is_delivered for way in self.ways)


async def send(conn: Conn, settings: Settings, message: TestMessage, *, wait_s: float) -> Sent:
    """Makes a delivery of it, starts it, and waits until all have an outcome, or for ``wait_s``. Raises BadInput.

    It goes before all others, and is sent to who is in quarantine too. What has no outcome then goes on by itself.
    """
    if not 1 <= len(message.to) <= RECIPIENTS_MAX:
        raise BadInput("--to", f"give 1 to {RECIPIENTS_MAX} addresses")
    to = [parse_mailbox(address, "--to").text for address in message.to]
    content = {"sender": message.sender, "subject": message.subject, "text": message.text}
    async with conn.transaction():
        made = await deliveries.create(
            conn,
            NewDelivery(
                name=f"test message: {message.subject}"[: deliveries.NAME_CHARS_MAX],
                content=msgspec.json.encode(content),
                priority=deliveries.PRIORITY_MAX,
                egress_pool=message.pool,
                validity=VALID_FOR,
                keeps_quarantined=True,
            ),
        )
        await append_parts(conn, made, [Part("test", (), [(address, None, []) for address in to])])
        await deliveries.seal(conn, made)
        await deliveries.start(conn, made)
    await _outcomes(conn, made, len(to), wait_s)
    return await _ways(conn, settings, made, to)


async def _outcomes(conn: Conn, delivery_id: int, count: int, wait_s: float) -> None:
    began_s = time.monotonic()
    while time.monotonic() - began_s < wait_s:
        if (await deliveries.show(conn, delivery_id)).final >= count:
            return
        await asyncio.sleep(LOOK_S)


async def _ways(conn: Conn, settings: Settings, delivery_id: int, to: list[str]) -> Sent:
    rules = await rules_in_force(conn, settings)
    ids = {egress.name: egress.id for egress in settings.egresses}
    lines = await log_search.find(conn, Conditions(delivery_id=delivery_id), limit=RECIPIENTS_MAX * 10)
    ways = []
    for address in to:
        attempts = []
        for line in reversed([one for one in lines if one.address == address]):
            rule = None
            if line.mx_host:
                domain_class = rules.domain_class(address.rpartition("@")[2])
                rule = rules.match(line.mx_host, ids.get(line.egress, settings.egresses[0].id), line.site, domain_class)
            attempts.append(Attempt(line, "" if rule is None else rule.name, "" if rule is None else rule.tls.value))
        queued = await locate.by_address(conn, address, delivery_id)
        ways.append(Way(address, attempts, queued[0] if queued else None))
    nodes = await conn.fetchval("SELECT count(*) FROM mta.node WHERE ended_at IS NULL AND alive_until > now()")
    return Sent(delivery_id, ways, nodes)
