"""The record of every attempt, searched."""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.inbound.meaning import parse_message_id
from mta.model.address import parse_domain, parse_mailbox
from mta.model.errors import BadInput
from mta.queue import log_search
from mta.queue.connection import Conn
from mta.queue.log_search import Conditions, FoundLine

__all__ = ["FoundLine", "LogAnswer", "LogQuestion", "find"]

# What no index helps with reads all lines of this time, unless another is given.
WINDOW: Final = datetime.timedelta(days=1)
LIMIT_MAX: Final = 100_000


class LogQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for: all that is given holds of a line; at least one thing is.

    ``address``: in any case, as the quarantine has it. ``reply``: a part of the reply, in any case. ``code``: of SMTP.
    ``message_id``: of a message of ours, with or without ``<>``. ``since``, ``until``: aware.
    """

    address: str = ""
    domain: str = ""
    delivery_id: int | None = None
    reference: str = ""
    message_id: str = ""
    reply: str = ""
    code: int | None = None
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    limit: int = 100


class LogAnswer(msgspec.Struct, frozen=True):
    """``lines``, the newest first. ``since``: where the search began by itself; None: as asked, or at the oldest."""

    lines: list[FoundLine]
    since: datetime.datetime | None


async def find(conn: Conn, question: LogQuestion) -> LogAnswer:
    """Raises BadInput, which names what is not given as it must be."""
    conditions = _conditions(question)
    has_index = any(one is not None for one in (conditions.address, conditions.delivery_id, conditions.number))
    since = None
    if not has_index and conditions.since is None:
        since = (conditions.until or datetime.datetime.now(datetime.UTC)) - WINDOW
        conditions = msgspec.structs.replace(conditions, since=since)
    return LogAnswer(await log_search.find(conn, conditions, limit=question.limit), since)


def _conditions(question: LogQuestion) -> Conditions:
    if not any(getattr(question, name) for name in question.__struct_fields__ if name != "limit"):
        raise BadInput("log find", "needs an address, or one of its options")
    if not 1 <= question.limit <= LIMIT_MAX:
        raise BadInput("limit", f"must be 1 to {LIMIT_MAX:,}")
    if question.code is not None and not 200 <= question.code <= 599:
        raise BadInput("code", f"{question.code} is no reply code: 200 to 599")
    number, delivery_id = None, question.delivery_id
    if question.message_id:
        pair = parse_message_id(f"<{question.message_id.strip().strip('<>')}>")
        if pair is None or delivery_id not in (None, pair[1]):
            raise BadInput("message-id", f"{question.message_id!a} is none that was made here, or of another delivery")
        number, delivery_id = pair
    address = parse_mailbox(question.address, "address").text.lower() if question.address else None
    domain = f"@{parse_domain(question.domain, 'domain')}" if question.domain else None
    return Conditions(
        address=address,
        domain=domain,
        delivery_id=delivery_id,
        number=number,
        reference=question.reference or None,
        reply=question.reply.lower() or None,
        code=question.code,
        since=question.since,
        until=question.until,
    )
