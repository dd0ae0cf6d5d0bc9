"""What became of a recipient, as it is told to other programs: one event for each line of the log.

The form is versioned: within a version fields are added, never renamed, never given another meaning.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status

VERSION: Final = 1
TEST_KIND: Final = "test"  # of the one event that `mta stream test` sends


def _label(name: str) -> str:
    return name.lower().replace("_", "-")


KINDS: Final = {_label(status.name): status for status in Status}
_KIND_OF: Final = {int(status): kind for kind, status in KINDS.items()}
_TYPE_OF: Final = {int(one): _label(one.name) for one in FailureType}
_REASON_OF: Final = {int(one): _label(one.name) for one in Reason}
_CATEGORY_OF: Final = {int(one): one.label for one in Category}
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND: Final = datetime.timedelta(microseconds=1)


class Event(msgspec.Struct, frozen=True):
    """``at`` is UTC; ``code`` 0: there was no reply; ``bytes``: of the message as it was sent, 0 where none was."""

    v: int
    id: str
    kind: str
    at: datetime.datetime
    delivery: int
    delivery_name: str | None
    number: int
    reference: str | None
    address: str
    domain: str
    site: str
    mx_host: str
    egress: str
    attempt: int
    code: int
    enhanced: str
    type: str
    reason: str
    reason_code: int
    category: str
    reply: str
    bytes: int


def event_id(delivery: int, number: int, attempt: int, status: int, at: datetime.datetime) -> str:
    """The same for the same line of the log, whoever reads it and how often: by it a consumer tells repeats."""
    return f"{delivery}-{number}-{attempt}-{status}-{(at - _EPOCH) // _MICROSECOND}"


def make_event(
    *,
    at: datetime.datetime,
    delivery: int,
    delivery_name: str | None,
    number: int,
    attempt: int,
    status: int,
    reason: int,
    type: int,  # noqa: A002 - as the column is called
    category: int,
    code: int,
    enhanced: str,
    address: str,
    reference: str | None,
    site: str,
    mx_host: str,
    egress: str,
    reply: str,
    bytes: int,  # noqa: A002
) -> Event:
    """An event from the values of a line of the log. Numbers that this program does not know yet stay numbers."""
    return Event(
        v=VERSION,
        id=event_id(delivery, number, attempt, status, at),
        kind=_KIND_OF.get(status) or str(status),
        at=at,
        delivery=delivery,
        delivery_name=delivery_name,
        number=number,
        reference=reference,
        address=address,
        domain=address.rpartition("@")[2].lower(),
        site=site,
        mx_host=mx_host,
        egress=egress,
        attempt=attempt,
        code=code,
        enhanced=enhanced,
        type=_TYPE_OF.get(type) or str(type),
        reason=_REASON_OF.get(reason) or str(reason),
        reason_code=reason,
        category=_CATEGORY_OF.get(category) or str(category),
        reply=reply,
        bytes=bytes,
    )
