"""What becomes of addresses, at each edge. Time is that of the log's lines, so a month is a matter of rows."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import asyncpg
import pytest

from mta.failure.qualify import Qualifier
from mta.failure.standing import QuarantineRules
from mta.model.errors import BadInput
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import failure_texts, feed, quarantine
from tests.support.postgres import Database

T0 = datetime.datetime(2027, 3, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
SECOND = datetime.timedelta(seconds=1)
RULES = QuarantineRules()
ADDRESS = "Ann@d.test"


class Log:
    """Lines of the log, and the keeper's work on what is new of them."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn
        self._after = 0

    async def line(self, at: datetime.datetime, status: Status = Status.DEFERRED, **of_line: Any) -> None:
        given: dict[str, Any] = {
            "type": FailureType.SOFT,
            "reason": Reason.UNREACHABLE,
            "category": Category.UNREACHABLE,
            "address": ADDRESS,
            "reply": "cannot be reached",
            "code": 450,
            **of_line,
        }
        if status is Status.DELIVERED:
            given |= {"type": FailureType.NOT_DEFINED, "category": Category.NONE, "reply": "ok", "code": 250}
        columns = {
            "at": at,
            "delivery_id": 1,
            "number": 7,
            "part_id": 1,
            "attempt": 1,
            "status": status,
            "enhanced": "",
        }
        columns |= dict.fromkeys(("site", "mx_host", "peer", "egress"), "") | given
        places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
        names = ", ".join(columns)
        await self.conn.execute(f"INSERT INTO mta.delivery_log ({names}) VALUES ({places})", *columns.values())

    async def keep(self) -> quarantine.Entry | None:
        while True:
            page = await feed.read(self.conn, self._after, where=quarantine.FOLLOWED)
            await quarantine.apply(self.conn, page, self._after, RULES)
            self._after = page.upto
            if page.is_last:
                return await quarantine.find(self.conn, ADDRESS)

    async def after(self, at: datetime.datetime, status: Status = Status.DEFERRED, **of_line: Any) -> quarantine.Entry:
        await self.line(at, status, **of_line)
        found = await self.keep()
        assert found is not None
        return found


@pytest.fixture
async def log(database: Database) -> Any:
    async with database.pool.acquire() as conn:
        yield Log(conn)


async def test_a_hard_failure_quarantines_at_once_whatever_the_case_of_its_address(log: Log) -> None:
    found = await log.after(T0, Status.FAILED, type=FailureType.HARD, reason=Reason.USER_UNKNOWN, code=550)
    assert (found.address, found.status, found.reason) == ("ann@d.test", AddressStatus.QUARANTINED, Reason.USER_UNKNOWN)
    assert await quarantine.not_mailed(log.conn, ["aNN@d.test", "bob@d.test"]) == {"aNN@d.test": Reason.QUARANTINED}


async def test_soft_failures_are_counted_and_the_fifth_quarantines(log: Log) -> None:
    counted = [await log.after(T0 + day * DAY) for day in range(6)]
    assert [(entry.errors, entry.status.label) for entry in counted] == [
        *((1, "with-errors"), (2, "with-errors"), (3, "with-errors"), (4, "with-errors")),
        *((5, "quarantined"), (5, "quarantined")),
    ]


async def test_one_a_day_is_counted_at_most(log: Log) -> None:
    assert (await log.after(T0)).errors == 1
    assert (await log.after(T0 + DAY - SECOND)).errors == 1
    assert (await log.after(T0 + DAY)).errors == 2
    # From the last that counted, not from the last there was.
    assert (await log.after(T0 + 2 * DAY - SECOND)).errors == 2
    assert (await log.after(T0 + 2 * DAY)).errors == 3


async def test_after_ten_quiet_days_counting_begins_anew(log: Log) -> None:
    for day in range(3):
        await log.after(T0 + day * DAY)
    last = T0 + 2 * DAY
    assert (await log.after(last + 10 * DAY)).errors == 4
    assert (await log.after(last + 20 * DAY + SECOND)).errors == 1


async def test_a_success_forgets_what_was_counted_and_lifts_no_quarantine(log: Log) -> None:
    await log.after(T0)
    await log.after(T0 + DAY)
    found = await log.after(T0 + DAY + SECOND, Status.DELIVERED)
    assert (found.status, found.errors) == (AddressStatus.VALID, 0)
    assert (await log.after(T0 + 2 * DAY)).errors == 1
    await log.after(T0 + 3 * DAY, Status.FAILED, type=FailureType.HARD)
    assert (await log.after(T0 + 4 * DAY, Status.DELIVERED)).status is AddressStatus.QUARANTINED


async def test_a_success_before_a_failure_counts_before_it_also_when_both_are_read_at_once(log: Log) -> None:
    await log.after(T0)
    await log.after(T0 + DAY)
    await log.line(T0 + 2 * DAY, Status.DELIVERED)
    await log.line(T0 + 3 * DAY)
    found = await log.keep()
    assert found is not None
    assert found.errors == 1


@pytest.mark.parametrize(
    "category", [Category.IP_BLOCKED, Category.SPAM_CONTENT, Category.RATE_LIMITED, Category.POLICY]
)
async def test_what_is_our_fault_is_never_counted(log: Log, category: Category) -> None:
    await log.line(T0, Status.FAILED, category=category, reason=Reason.REFUSED)
    assert await log.keep() is None


async def test_what_is_ignored_is_never_counted(log: Log) -> None:
    await log.line(T0, Status.FAILED, type=FailureType.IGNORED)
    assert await log.keep() is None


@pytest.mark.parametrize("status", [Status.COMPLAINED, Status.UNSUBSCRIBED])
async def test_complaints_and_unsubscriptions_denylist_for_good(log: Log, status: Status) -> None:
    found = await log.after(T0, status, type=FailureType.IGNORED, reason=Reason.DENYLISTED)
    assert found.status is AddressStatus.DENYLISTED
    assert (await log.after(T0 + DAY, Status.DELIVERED)).status is AddressStatus.DENYLISTED
    await quarantine.release(log.conn, T0 + 400 * DAY, RULES)
    assert await quarantine.not_mailed(log.conn, [ADDRESS]) == {ADDRESS: Reason.DENYLISTED}


async def test_a_full_mailbox_is_released_after_thirty_days_and_nothing_else_is(log: Log) -> None:
    for day in range(5):
        await log.after(T0 + day * DAY, reason=Reason.MAILBOX_FULL, category=Category.MAILBOX_FULL, code=552)
    await log.line(T0, Status.FAILED, address="gone@d.test", type=FailureType.HARD, reason=Reason.USER_UNKNOWN)
    await log.keep()
    last = T0 + 4 * DAY
    assert await quarantine.release(log.conn, last + 30 * DAY - SECOND, RULES) == 0
    assert await quarantine.release(log.conn, last + 30 * DAY, RULES) == 1
    assert await quarantine.not_mailed(log.conn, [ADDRESS, "gone@d.test"]) == {"gone@d.test": Reason.QUARANTINED}


async def test_who_is_on_the_allowlist_is_mailed_whatever_happens(log: Log) -> None:
    await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.ALLOWLISTED, "a test", "me")
    found = await log.after(T0, Status.FAILED, type=FailureType.HARD)
    assert (found.status, found.changed_by) == (AddressStatus.ALLOWLISTED, "me")
    await quarantine.put(log.conn, ["@d.test"], AddressStatus.DENYLISTED, "", "me")
    assert await quarantine.not_mailed(log.conn, [ADDRESS, "bob@d.test"]) == {"bob@d.test": Reason.DENYLISTED}


async def test_an_outage_is_corrected_by_text_domain_and_time_and_no_wider(log: Log) -> None:
    hard = {"status": Status.FAILED, "type": FailureType.HARD, "reason": Reason.USER_UNKNOWN}
    for at, address, reply in (
        (T0, "a@big.test", "no such user: directory is down"),
        (T0, "b@other.test", "no such user: directory is down"),
        (T0, "c@big.test", "no such user"),
        (T0 - DAY, "d@big.test", "no such user: directory is down"),
        (T0, "e@verybig.test", "no such user: directory is down"),
    ):
        await log.line(at, address=address, reply=reply, **hard)
    await log.keep()
    window = {"since": T0 - SECOND, "until": T0 + SECOND}
    assert await quarantine.outage(log.conn, "me", **window, text="Directory is down", domain="big.test") == 1
    everybody = [f"{name}@big.test" for name in "acd"]
    assert set(await quarantine.not_mailed(log.conn, everybody)) == {"c@big.test", "d@big.test"}
    assert await quarantine.outage(log.conn, "me", **window, text="directory") == 2
    with pytest.raises(BadInput, match="name a text, a domain, or both"):
        await quarantine.outage(log.conn, "me", **window)


async def test_a_success_after_the_first_failure_counts_also_when_both_are_read_at_once(log: Log) -> None:
    # After days of absence all of it is in one page: nobody is quarantined for what went well in the end.
    for day in range(6):
        await log.line(T0 + day * DAY)
        await log.line(T0 + day * DAY + SECOND, Status.DELIVERED)
    found = await log.keep()
    assert found is not None
    assert (found.status, found.errors) == (AddressStatus.VALID, 0)


async def test_an_address_that_an_operator_sets_meanwhile_keeps_that_word(log: Log, database: Database) -> None:
    await log.line(datetime.datetime.now(datetime.UTC) + DAY)
    page = await feed.read(log.conn, 0, where=quarantine.FOLLOWED)
    transaction = log.conn.transaction()
    await transaction.start()
    async with database.pool.acquire() as other:
        by_hand = other.transaction()
        await by_hand.start()
        await quarantine.put(other, ["ann@d.test"], AddressStatus.ALLOWLISTED, "", "me")
        applying = asyncio.create_task(quarantine.apply(log.conn, page, 0, RULES))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while await database.pool.fetchval(waits) == 0:
            assert not applying.done()
        await by_hand.commit()
        await applying
    await transaction.commit()
    found = await quarantine.find(log.conn, ADDRESS)
    assert found is not None
    assert (found.status, found.changed_by) == (AddressStatus.ALLOWLISTED, "me")
    assert (found.errors, found.reason) == (1, Reason.ERROR_IGNORED)


async def test_a_mailbox_that_an_operator_quarantined_is_not_released_by_time(log: Log) -> None:
    for day in range(5):
        await log.line(T0 + day * DAY, reason=Reason.MAILBOX_FULL, category=Category.MAILBOX_FULL)
    await log.keep()
    assert await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.QUARANTINED, "for good", "me") == 1
    assert await quarantine.release(log.conn, T0 + 400 * DAY, RULES) == 0
    assert await quarantine.not_mailed(log.conn, [ADDRESS]) == {ADDRESS: Reason.QUARANTINED}


async def test_counted_errors_go_after_ten_quiet_days_and_then_the_row(log: Log) -> None:
    await log.after(T0)
    assert await quarantine.release(log.conn, T0 + 10 * DAY, RULES) == 0
    assert await quarantine.release(log.conn, T0 + 10 * DAY + SECOND, RULES) == 1
    found = await quarantine.find(log.conn, ADDRESS)
    assert found is not None
    assert (found.status, found.errors) == (AddressStatus.VALID, 0)
    await quarantine.release(log.conn, T0 + 12 * DAY, RULES)
    assert await quarantine.find(log.conn, ADDRESS) is None


async def test_who_lifted_an_address_stays_on_record_for_ninety_days(log: Log) -> None:
    await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.QUARANTINED, "", "me")
    await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.VALID, "by phone", "you")
    now = datetime.datetime.now(datetime.UTC)
    await quarantine.release(log.conn, now + 89 * DAY, RULES)
    found = await quarantine.find(log.conn, ADDRESS)
    assert found is not None
    assert (found.changed_by, found.text) == ("you", "by phone")
    await quarantine.release(log.conn, now + 91 * DAY, RULES)
    assert await quarantine.find(log.conn, ADDRESS) is None


async def test_of_a_stranger_who_is_lifted_nothing_is_kept(log: Log) -> None:
    assert await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.VALID, "", "me") == 0
    assert await quarantine.find(log.conn, ADDRESS) is None


async def test_an_outage_leaves_what_operators_set(log: Log) -> None:
    await quarantine.put(log.conn, ["ann@d.test"], AddressStatus.QUARANTINED, "directory", "me")
    long_ago, later = (datetime.datetime.now(datetime.UTC) + days * DAY for days in (-1, 1))
    assert await quarantine.outage(log.conn, "me", long_ago, later, domain="d.test") == 0
    with pytest.raises(BadInput, match="begins when it is over"):
        await quarantine.outage(log.conn, "me", later, long_ago, domain="d.test")


async def test_sql_adds_lifts_and_corrects_outages(log: Log) -> None:
    ask = log.conn.fetchval
    assert await ask("SELECT mta.quarantine_add('Ann@D.test', 'denylisted', 'by phone', 'shop')") is True
    assert await ask("SELECT mta.quarantine_add('ann@d.test', 'denylisted')") is False
    found = await quarantine.find(log.conn, ADDRESS)
    assert found is not None
    assert (found.status, found.text, found.changed_by) == (AddressStatus.DENYLISTED, "by phone", "shop")
    assert await ask("SELECT mta.quarantine_lift('ANN@d.test')") is True
    assert await quarantine.not_mailed(log.conn, [ADDRESS]) == {}
    assert await ask("SELECT mta.quarantine_add('@D.test')") is True
    assert await quarantine.not_mailed(log.conn, [ADDRESS]) == {ADDRESS: Reason.QUARANTINED}
    gone = {"address": "bob@e.test", "type": FailureType.HARD, "reply": "no such user"}
    await log.line(T0, Status.FAILED, **gone)
    await log.keep()
    outage = "SELECT mta.quarantine_outage($1, $2, domain => '@E.test')"
    assert await ask(outage, T0 + SECOND, T0 + DAY) == 0
    assert await ask(outage, T0, T0 + DAY) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("mta.quarantine_add('ann')", "has no @"),
        ("mta.quarantine_add('@no_host')", "not a host name"),
        ("mta.quarantine_add(NULL)", "must not be null"),
        ("mta.quarantine_add('ann@d.test', 'valid')", "must be quarantined, denylisted or allowlisted"),
        ("mta.quarantine_lift('ann@')", "not a host name"),
        ("mta.quarantine_outage(now(), now() - interval '1 h', 'x')", "begin and the end"),
        ("mta.quarantine_outage(now() - interval '1 h', now())", "name a text, a domain, or both"),
    ],
)
async def test_sql_refuses_what_makes_no_sense(log: Log, call: str, says: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match=says):
        await log.conn.execute(f"SELECT {call}")


async def test_a_role_may_do_what_it_was_granted_and_no_more(log: Log) -> None:
    role = f"clerk_{await log.conn.fetchval('SELECT current_database()')}"
    await log.conn.execute(f"CREATE ROLE {role}")
    await log.conn.execute(f"GRANT USAGE ON SCHEMA mta TO {role}")
    await log.conn.execute(f"GRANT EXECUTE ON FUNCTION mta.quarantine_add(text, text, text, text) TO {role}")
    await log.conn.execute(f"SET ROLE {role}")
    try:
        assert await log.conn.fetchval("SELECT mta.quarantine_add('ann@d.test')") is True
        for call in ("mta.quarantine_lift('ann@d.test')", "mta.quarantine_set('{}', 3::smallint, '', '')"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await log.conn.execute(f"SELECT {call}")
    finally:
        await log.conn.execute("RESET ROLE")


async def test_texts_are_counted_once_whomever_they_are_about(log: Log) -> None:
    qualifier = Qualifier(())
    for name in ("ann", "bob"):
        await log.line(T0, address=f"{name}@d.test", reply=f"no room for {name}@d.test at 10:23:{name}")
    page = await feed.read(log.conn, 0, where=quarantine.FOLLOWED)
    await failure_texts.count(log.conn, page.lines, qualifier.qualify, lambda _: False)
    await failure_texts.count(log.conn, page.lines[:1], qualifier.qualify, lambda _: False)
    texts = await failure_texts.texts(log.conn, "to-qualify")
    assert sum(text.occurrences for text in texts) == 3
    assert all("@" not in text.text for text in texts)
