"""Texts of failures: counted once each, qualified by hand, and past failures looked at again."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from mta.failure.judge import amended
from mta.failure.qualify import BounceRule, Qualifier
from mta.failure.standing import QuarantineRules
from mta.model.errors import BadInput
from mta.model.failure import Category, FailureType, Verdict
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import failure_texts, feed, quarantine, requalify
from mta.queue.qualified import qualified_texts
from tests.support.postgres import Database

T0 = datetime.datetime(2027, 3, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
RULES = QuarantineRules()
UNKNOWN = Qualifier(())
ADDRESS = "ann@d.test"
REPLY = "plugh xyzzy"
_LINE = """
INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address, site,
                              mx_host, peer, egress, reply, type, category)
VALUES ($1, 1, $2, 1, 1, $3, $4, $5, '', $6, 'd.test', 'mx.d.test', '', '', $7, $8, $9)
"""


class Past:
    """Failures of the log, and what became of their addresses."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn
        self._numbers = 0

    async def line(self, at: datetime.datetime, verdict: Verdict, status: Status = Status.FAILED, **more: Any) -> None:
        self._numbers += 1
        given = {"code": 550, "address": ADDRESS, "reply": REPLY} | more
        place = (verdict.type, verdict.category)
        line = (at, self._numbers, status, verdict.reason, given["code"], given["address"], given["reply"], *place)
        await self.conn.execute(_LINE, *line)

    async def keep(self) -> None:
        """As the keeper does it."""
        async with self.conn.transaction():
            after = await feed.pointer(self.conn, quarantine.POINTER, is_locked=True)
            page = await feed.read(self.conn, after, where=quarantine.FOLLOWED)
            await quarantine.apply(self.conn, page, after, RULES)
            await failure_texts.count(self.conn, page.lines, UNKNOWN.qualify, lambda _: False)
            await feed.move(self.conn, quarantine.POINTER, page.upto)

    async def qualify(self, verdict: Verdict, reply: str = REPLY) -> None:
        key = next(text.key for text in await failure_texts.texts(self.conn) if text.sample == reply)
        await failure_texts.qualify(self.conn, key, verdict, "me")

    async def requalify(self, qualifier: Qualifier = UNKNOWN) -> requalify.Requalified:
        judge = amended(qualifier, await qualified_texts(self.conn))
        span = (T0 - DAY, T0 + 30 * DAY)
        return await requalify.requalify(self.conn, *span, judge.qualify, RULES)

    async def standing(self, address: str = ADDRESS) -> tuple[str, int] | None:
        found = await quarantine.find(self.conn, address)
        return found and (found.status.label, found.errors)


@pytest.fixture
async def past(database: Database) -> AsyncIterator[Past]:
    async with database.pool.acquire() as conn:
        yield Past(conn)


SOFT = Verdict(FailureType.SOFT, Reason.UNREACHABLE, Category.OTHER)
HARD = Verdict(FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN)
FULL = Verdict(FailureType.SOFT, Reason.MAILBOX_FULL, Category.MAILBOX_FULL)
BLOCKED = Verdict(FailureType.SOFT, Reason.REFUSED, Category.IP_BLOCKED)


async def test_a_text_is_counted_up_to_a_hundred_thousand_and_its_first_sample_stays(past: Past) -> None:
    await past.line(T0, SOFT, reply="no room for ann@d.test")
    await past.keep()
    await past.line(T0 - DAY, SOFT, reply="no room for bob@d.test")
    await past.keep()
    (text,) = await failure_texts.texts(past.conn)
    assert (text.occurrences, text.sample, text.first_at, text.last_at) == (2, "no room for ann@d.test", T0 - DAY, T0)
    await past.conn.execute("UPDATE mta.failure_text SET occurrences = $1", failure_texts.OCCURRENCES_MAX - 1)
    for _ in range(3):
        await past.line(T0, SOFT, reply="no room for cas@d.test")
    await past.keep()
    (text,) = await failure_texts.texts(past.conn)
    assert text.occurrences == 100_000


async def test_what_an_operator_said_of_a_text_is_not_unsaid_by_rules(past: Past) -> None:
    await past.line(T0, SOFT)
    await past.keep()
    await past.qualify(FULL)
    await past.line(T0, SOFT)
    await past.keep()
    (text,) = await failure_texts.texts(past.conn)
    assert (text.category, text.status, text.qualified_by) == (Category.MAILBOX_FULL, "keep", "me")
    assert await failure_texts.texts(past.conn, "to-qualify") == []


@pytest.mark.parametrize(
    ("key", "says"), [("12", "4 to 32 hexadecimal"), ("xyz1", "4 to 32 hexadecimal"), ("ffffffff", "no text has")]
)
async def test_a_key_that_names_no_text_is_refused(past: Past, key: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        await failure_texts.qualify(past.conn, key, FULL, "me")


async def test_a_key_that_names_several_texts_is_refused_and_changes_none(past: Past) -> None:
    insert = """INSERT INTO mta.failure_text (digest, text, sample, first_at, last_at)
                VALUES (decode(rpad('abcd' || $1, 32, '0'), 'hex'), '', '', now(), now())"""
    for end in ("1", "2"):
        await past.conn.execute(insert, end)
    with pytest.raises(BadInput, match="2 texts have"):
        await failure_texts.qualify(past.conn, "abcd", FULL, "me")
    assert {text.qualified_by for text in await failure_texts.texts(past.conn)} == {""}


async def test_a_text_that_is_our_fault_after_all_gives_its_addresses_back(past: Past) -> None:
    for day in range(5):
        await past.line(T0 + day * DAY, SOFT, Status.DEFERRED)
    await past.line(T0, SOFT, Status.DEFERRED, address="bob@d.test", reply="something else")
    await past.keep()
    assert await past.standing() == ("quarantined", 5)
    await past.qualify(BLOCKED)
    assert await past.requalify() == requalify.Requalified(5, 1)
    assert await past.standing() == ("valid", 0)
    assert await past.standing("bob@d.test") == ("with-errors", 1)
    query = "SELECT DISTINCT type, reason, category FROM mta.delivery_log WHERE reply = $1"
    lines = await past.conn.fetch(query, REPLY)
    assert [tuple(line) for line in lines] == [(FailureType.SOFT, Reason.REFUSED, Category.IP_BLOCKED)]
    assert await past.requalify() == requalify.Requalified(0, 0)


async def test_a_text_that_is_hard_after_all_quarantines_but_not_who_took_mail_since(past: Past) -> None:
    await past.line(T0, SOFT)
    await past.line(T0, SOFT, address="Bob@d.test")
    await past.line(T0 + DAY, Verdict(FailureType.NOT_DEFINED, Reason.NOT_DEFINED, Category.NONE), Status.DELIVERED,
                    code=250, address="Bob@d.test", reply="ok")  # fmt: skip
    await past.line(T0, SOFT, Status.DEFERRED, address="cas@d.test")
    await past.keep()
    await past.qualify(HARD)
    assert await past.requalify() == requalify.Requalified(3, 1)
    assert await past.standing() == ("quarantined", 1)
    assert await past.standing("bob@d.test") == ("valid", 0)
    assert await past.standing("cas@d.test") == ("with-errors", 1)  # it was to be tried again


async def test_a_mailbox_that_is_only_full_is_released_by_time(past: Past) -> None:
    await past.line(T0, HARD)
    await past.keep()
    await past.qualify(FULL)
    await past.requalify()
    found = await quarantine.find(past.conn, ADDRESS)
    assert found is not None
    assert (found.status, found.reason) == (AddressStatus.WITH_ERRORS, Reason.MAILBOX_FULL)


async def test_lines_that_are_not_applied_yet_are_applied_as_they_are_then(past: Past) -> None:
    await past.line(T0, SOFT)
    await past.keep()
    await past.qualify(HARD)
    await past.line(T0, SOFT, address="bob@d.test")
    assert await past.requalify() == requalify.Requalified(2, 1)
    assert await past.standing("bob@d.test") is None
    await past.keep()
    assert await past.standing("bob@d.test") == ("quarantined", 1)


async def test_by_rules_only_what_rules_decide_is_looked_at_again(past: Past) -> None:
    rule = BounceRule(
        name="riddle", type=FailureType.SOFT, reason=Reason.REFUSED, category=Category.IP_BLOCKED, pattern="plugh"
    )
    await past.line(T0, SOFT)
    await past.line(T0, BLOCKED, address="bob@d.test", reply="go away", code=554)  # at the greeting, by its code
    await past.line(T0, SOFT, Status.DEFERRED, address="cas@d.test", code=0)  # nobody replied
    await past.keep()
    assert await past.requalify(Qualifier((rule,))) == requalify.Requalified(1, 1)
    assert await past.standing() == ("valid", 0)


async def test_what_operators_set_stays_whatever_is_requalified(past: Past) -> None:
    await past.line(T0, HARD)
    await past.keep()
    await quarantine.put(past.conn, [ADDRESS], AddressStatus.QUARANTINED, "", "me")
    await past.qualify(BLOCKED)
    assert await past.requalify() == requalify.Requalified(1, 0)
    assert await past.standing() == ("quarantined", 0)
