"""Every kind of failure at a real sink: outcome, type, reason, retry, and what becomes of the address."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from mta.keeper.keeper import Keeper
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus
from mta.queue import quarantine
from mta.settings.config import load_settings
from tests.support.node import World
from tests.support.postgres import Database

ZONES: dict[str, object] = {
    "mx.test": {"A": ["127.0.0.1"]},
    "d.test": {"MX": [(10, "mx.test")]},
    # A host of its own: the path to one that has blocked us rests, whoever else has mail for it.
    "mx.listed.test": {"A": ["127.0.0.2"]},
    "listed.test": {"MX": [(10, "mx.listed.test")]},
    "null.test": {"MX": [(0, ".")]},
}
SINKS = ("127.0.0.1", "127.0.0.2")
FAILED, DEFERRED = Status.FAILED, Status.DEFERRED
HARD, SOFT = FailureType.HARD, FailureType.SOFT
QUARANTINED, WITH_ERRORS = AddressStatus.QUARANTINED, AddressStatus.WITH_ERRORS


class Case(NamedTuple):
    """``reply`` empty: the name server says it all. ``address_status`` None: nothing is known of the address."""

    reply: str
    status: Status
    type: FailureType
    reason: Reason
    category: Category
    address_status: AddressStatus | None
    step: str = "rcpt"


CASES = {
    "unknown@d.test": Case(
        "550 5.1.1 no such user", FAILED, HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN, QUARANTINED
    ),
    "full@d.test": Case(
        "552 5.2.2 mailbox full", DEFERRED, SOFT, Reason.MAILBOX_FULL, Category.MAILBOX_FULL, WITH_ERRORS
    ),
    "disabled@d.test": Case(
        "550 5.2.1 mailbox is disabled", DEFERRED, SOFT, Reason.ACCOUNT_DISABLED, Category.ACCOUNT_DISABLED, WITH_ERRORS
    ),
    "listed@listed.test": Case(
        "554 5.7.1 your address is on a blocklist", DEFERRED, SOFT, Reason.REFUSED, Category.IP_BLOCKED, None
    ),
    "unsigned@d.test": Case(
        "550 5.7.26 neither SPF nor DKIM passes", DEFERRED, SOFT, Reason.REFUSED, Category.AUTH_FAILURE, None
    ),
    "spam@d.test": Case(
        "554 5.7.1 this message is spam", FAILED, SOFT, Reason.REFUSED, Category.SPAM_CONTENT, None, "dot"
    ),
    "relay@d.test": Case("550 5.7.1 relaying denied", FAILED, SOFT, Reason.REFUSED, Category.RELAY_DENIED, None),
    "grey@d.test": Case(
        "450 4.7.1 greylisted, come back later", DEFERRED, SOFT, Reason.UNREACHABLE, Category.RATE_LIMITED, None
    ),
    "trouble@d.test": Case(
        "451 4.3.0 temporary lookup failure", DEFERRED, SOFT, Reason.UNREACHABLE, Category.SYSTEM_ERROR, WITH_ERRORS
    ),
    "riddle@d.test": Case("550 plugh xyzzy", DEFERRED, SOFT, Reason.UNREACHABLE, Category.OTHER, WITH_ERRORS),
    "any@nowhere.test": Case("", FAILED, SOFT, Reason.INVALID_DOMAIN, Category.INVALID_DOMAIN, WITH_ERRORS),
    "any@null.test": Case("", FAILED, SOFT, Reason.INVALID_DOMAIN, Category.INVALID_DOMAIN, WITH_ERRORS),
}
SCRIPT = "local_parts = false\n" + "".join(
    f'[[rule]]\nstep = "{case.step}"\nrecipient = "{address}"\ncode = {case.reply[:3]}\ntext = "{case.reply[4:]}"\n'
    for address, case in CASES.items()
    if case.reply
)
GREYLIST_S, RETRY_S = 300, 3_600


async def test_every_failure_has_its_outcome_and_its_consequence(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, zones=ZONES, script=SCRIPT, sink_addresses=SINKS) as world:
        node = world.node(children=1)
        await node.start()
        delivery = await world.deliver([*CASES, "good@d.test"])
        await world.wait_for(delivery, lambda shown: shown.delivered + shown.failed + shown.deferrals == len(CASES) + 1)
        await node.stop()
        async with database.pool.acquire() as conn:
            lines = {line["address"]: line for line in await conn.fetch("SELECT * FROM mta.delivery_log")}
            found = {
                address: (Status(line["status"]), line["type"], line["reason"], Category(line["category"]))
                for address, line in lines.items()
                if address in CASES
            }
            assert found == {
                address: (case.status, case.type, case.reason, case.category) for address, case in CASES.items()
            }
            keeper = Keeper(load_settings(node.config))
            while not await keeper.step(conn):
                pass
            known = {address: await quarantine.find(conn, address) for address in CASES}
            assert {address: entry and entry.status for address, entry in known.items()} == {
                address: case.address_status for address, case in CASES.items()
            }
            await _check_returns(database)
            unqualified = await conn.fetch("SELECT sample FROM mta.failure_text WHERE status = 'to-qualify'")
            assert [row["sample"] for row in unqualified if "xyzzy" in row["sample"]] == ["plugh xyzzy"]
        assert (await world.audit(delivery)).is_clean


async def _check_returns(database: Database) -> None:
    """What was put off comes back when its schedule says: soon, and by the same egress, where it was by a 4yz."""
    parts = await database.pool.fetch(
        "SELECT recipients, egress, extract(epoch FROM due_at - now())::float8 AS due_in_s FROM mta.delivery_part"
    )
    due = {
        row[0]: (part["egress"], part["due_in_s"]) for part in parts for row in msgspec.json.decode(part["recipients"])
    }
    assert due.keys() == {address for address, case in CASES.items() if case.status is DEFERRED}
    for address, (egress, due_in_s) in due.items():
        is_put_off = CASES[address].reply.startswith("4")
        wait_s = GREYLIST_S if is_put_off else RETRY_S
        assert 0.9 * wait_s < due_in_s <= 1.05 * wait_s + 1, address
        assert egress == ("default" if is_put_off else None)
