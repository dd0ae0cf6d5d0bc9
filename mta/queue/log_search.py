"""The log, searched by people: by address, domain, delivery, reply, code, time, reference or number.

Addresses, deliveries and numbers have their index. All else reads every line of the time that is asked for.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.queue.connection import Conn

_COLUMNS: Final = (
    "at, delivery_id, number, attempt, status, type, reason, category, code, enhanced, address, reference, site,"
    " mx_host, peer, egress, reply"
)
# Conditions of `Conditions`, in its order; only those that are given go into the statement, so each plan is its own.
_CONDITIONS: Final = {
    "address": "lower(address) = {}",
    "domain": "right(address, length({0})) = {0}",
    "delivery_id": "delivery_id = {}",
    "number": "number = {}",
    "reference": "reference = {}",
    "reply": "strpos(lower(concat_ws(' ', nullif(enhanced, ''), reply)), {}) > 0",
    "code": "code = {}",
    "since": "at >= {}",
    "until": "at < {}",
}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """All of those that are given hold of a line."""

    address: str | None = None  # in lower case
    domain: str | None = None  # "@" and the domain
    delivery_id: int | None = None
    number: int | None = None
    reference: str | None = None
    reply: str | None = None  # in lower case: is in the reply or its enhanced code
    code: int | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None


class FoundLine(msgspec.Struct, frozen=True):
    """One attempt as recorded, with what was made of its reply."""

    at: datetime.datetime
    delivery_id: int
    number: int
    attempt: int
    status: Status
    type: FailureType
    reason: Reason
    category: Category
    code: int
    enhanced: str
    address: str
    reference: str | None
    site: str
    mx_host: str
    peer: str
    egress: str
    reply: str


def statement(conditions: Conditions) -> tuple[str, list[object]]:
    """The question in SQL with its values, without the limit, which is the last value."""
    values: list[object] = []
    held = []
    for name, text in _CONDITIONS.items():
        if (value := getattr(conditions, name)) is not None:
            values.append(value)
            held.append(text.format(f"${len(values)}"))
    which = " AND ".join(held) or "true"
    order = f"ORDER BY at DESC, attempt DESC LIMIT ${len(values) + 1}"
    return f"SELECT {_COLUMNS} FROM mta.delivery_log WHERE {which} {order}", values  # noqa: S608 - of constants


async def find(conn: Conn, conditions: Conditions, *, limit: int) -> list[FoundLine]:
    """Lines of the log, the newest first."""
    text, values = statement(conditions)
    return [msgspec.convert(dict(row), FoundLine) for row in await conn.fetch(text, *values, limit)]
