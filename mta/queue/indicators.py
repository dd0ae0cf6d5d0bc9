"""Indicators of deliverability, by recipient domain, by site or by provider: what came of all that was sent.

They are sums of the log (campaign-mta §6): *hard* is user unknown and nothing else; *soft* is unreachable, mailbox
full, invalid domain, account disabled, not connected and refused. Both are of recipients that failed, that expired (by
the reason of their last deferral), or that came back by mail after they were delivered; deferrals alone are no errors.

==============  ===================================================================================================
of              counted
==============  ===================================================================================================
sent            recipients that are done with: delivered, failed, expired. Not what was excluded, cancelled, simulated
hard %, soft %  of *sent*
complaint %     of *delivered*
==============  ===================================================================================================

Each line counts at its own time: a bounce in the window of a message that was delivered before it counts as an error.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.model.outcome import Reason
from mta.queue.connection import Conn

HARD_PERCENT: Final = 2.0
SOFT_PERCENT: Final = 10.0
COMPLAINT_PERCENT: Final = 0.1
COMPLAINT_PERCENT_BAD: Final = 0.3
SINCE_MAX: Final = datetime.timedelta(days=31)
SENT_MIN: Final = 50  # below, a share says little
GROUPS_MAX: Final = 100_000
HARD: Final = (Reason.USER_UNKNOWN,)
SOFT: Final = (
    Reason.UNREACHABLE,
    Reason.MAILBOX_FULL,
    Reason.INVALID_DOMAIN,
    Reason.ACCOUNT_DISABLED,
    Reason.NOT_CONNECTED,
    Reason.REFUSED,
)
_PATIENCE: Final = "SET LOCAL statement_timeout = '10min'"
_HARD: Final = ", ".join(str(int(one)) for one in HARD)
_SOFT: Final = ", ".join(str(int(one)) for one in SOFT)
_BY: Final = {
    "domain": "lower(split_part(address, '@', -1))",
    "site": "regexp_replace(site, '(\\+dane)?(\\+sts)?$', '')",
}
# An expired recipient's line says that its time was over; why it was not reached in time says its last deferral.
_FIGURES: Final = f"""
WITH line AS (
    SELECT {{by}} AS name, status,
           CASE WHEN status = 3 THEN coalesce((
               SELECT d.reason FROM mta.delivery_log d
               WHERE d.delivery_id = l.delivery_id AND d.number = l.number AND d.status = 10 ORDER BY d.at DESC LIMIT 1
           ), 0) ELSE reason END AS reason
    FROM mta.delivery_log l
    WHERE {{which}} AND status IN (1, 2, 3, 10, 20, 21, 22)
), summed AS (
    SELECT name,
           count(*) FILTER (WHERE status IN (1, 2, 3)) AS sent, count(*) FILTER (WHERE status = 1) AS delivered,
           count(*) FILTER (WHERE status = 2) AS failed, count(*) FILTER (WHERE status = 3) AS expired,
           count(*) FILTER (WHERE status = 10) AS deferrals,
           count(*) FILTER (WHERE status IN (2, 3, 20) AND reason IN ({_HARD})) AS hard,
           count(*) FILTER (WHERE status IN (2, 3, 20) AND reason IN ({_SOFT})) AS soft,
           count(*) FILTER (WHERE status = 20) AS bounced, count(*) FILTER (WHERE status = 21) AS complaints,
           count(*) FILTER (WHERE status = 22) AS unsubscribed
    FROM line GROUP BY name
)
SELECT * FROM summed ORDER BY sent DESC, name LIMIT {GROUPS_MAX + 1}
"""  # noqa: S608 - put together from constants
_OF_WINDOW: Final = "at >= now() - $1::interval"
_OF_DELIVERY: Final = "delivery_id = $2 AND ($1::interval IS NULL OR at >= now() - $1::interval)"


class Mark(enum.StrEnum):
    """What is out of bounds."""

    HARD = "hard"
    SOFT = "soft"
    COMPLAINTS = "complaints"
    COMPLAINTS_BAD = "complaints-bad"


class Indicators(msgspec.Struct, frozen=True):
    """The sums of one domain, site or provider; ``name`` is empty where it is not known."""

    name: str
    sent: int
    delivered: int
    failed: int
    expired: int
    deferrals: int
    hard: int
    soft: int
    bounced: int
    complaints: int
    unsubscribed: int

    @property
    def hard_percent(self) -> float:
        return _percent(self.hard, self.sent)

    @property
    def soft_percent(self) -> float:
        return _percent(self.soft, self.sent)

    @property
    def complaint_percent(self) -> float:
        return _percent(self.complaints, self.delivered)

    @property
    def marks(self) -> list[Mark]:
        """Above its bound, not at it; reckoned in whole numbers, so that 2 of 100 is not above 2 %."""
        found = []
        if _is_above(self.hard, self.sent, HARD_PERCENT):
            found.append(Mark.HARD)
        if _is_above(self.soft, self.sent, SOFT_PERCENT):
            found.append(Mark.SOFT)
        if _is_above(self.complaints, self.delivered, COMPLAINT_PERCENT_BAD):
            found.append(Mark.COMPLAINTS_BAD)
        elif _is_above(self.complaints, self.delivered, COMPLAINT_PERCENT):
            found.append(Mark.COMPLAINTS)
        return found


class Table(msgspec.Struct, frozen=True):
    """``listed``: marked ones first, then the largest; ``others``: the sum of all that are not listed."""

    listed: list[Indicators]
    others: Indicators | None
    total: Indicators
    is_cut: bool  # more groups than can be told apart: the smallest ones are in no figure


def _percent(part: int, whole: int) -> float:
    """Of nothing that was sent, whatever came back is all of it."""
    return 100 * part / whole if whole else 100.0 * bool(part)


def _is_above(part: int, whole: int, percent: float) -> bool:
    return part * 100_000 > round(percent * 1_000) * whole


def add_up(name: str, rows: Iterable[Indicators]) -> Indicators:
    """The sum of several, under a name."""
    fields = Indicators.__struct_fields__[1:]
    sums = dict.fromkeys(fields, 0)
    for row in rows:
        for field in fields:
            sums[field] += getattr(row, field)
    return Indicators(name, **sums)


async def indicators(
    conn: Conn,
    *,
    since: datetime.timedelta | None = None,
    delivery_id: int | None = None,
    by: str = "domain",
    provider_of: Callable[[str], str] | None = None,
    sent_min: int = SENT_MIN,
    limit: int = 200,
) -> Table:
    """Of a window of time, of a delivery, or of both. ``by``: domain, site or provider.

    ``provider_of``: the name of the provider of a site; needed for that. Listed are at most ``limit`` groups with at
    least ``sent_min`` sent, or with something that came back. Raises BadInput.
    """
    if since is None and delivery_id is None:
        raise BadInput("indicators", "need a window of time, a delivery, or both")
    if since is not None and not datetime.timedelta(0) < since <= SINCE_MAX:
        raise BadInput("--since", f"must be more than nothing and at most {SINCE_MAX.days} days")
    column = _BY["domain" if by == "domain" else "site"]
    which, values = (_OF_WINDOW, [since]) if delivery_id is None else (_OF_DELIVERY, [since, delivery_id])
    async with conn.transaction(readonly=True):
        await conn.execute(_PATIENCE)
        rows = await conn.fetch(_FIGURES.format(by=column, which=which), *values)
    found = [Indicators(**row) for row in rows[:GROUPS_MAX]]
    if by == "provider":
        assert provider_of is not None
        groups: dict[str, list[Indicators]] = {}
        for one in found:
            groups.setdefault(provider_of(one.name), []).append(one)
        found = [add_up(name, group) for name, group in groups.items()]
    return _table(found, sent_min, limit, len(rows) > GROUPS_MAX)


def _table(found: list[Indicators], sent_min: int, limit: int, is_cut: bool) -> Table:
    # Of little that was sent, much may come back: that is not little.
    large = [one for one in found if max(one.sent, one.bounced + one.complaints) >= sent_min]
    large.sort(key=lambda one: (not one.marks, -one.sent, one.name))
    listed = large[:limit]
    names = {one.name for one in listed}
    rest = [one for one in found if one.name not in names]
    return Table(listed, add_up("others", rest) if rest else None, add_up("total", found), is_cut)
