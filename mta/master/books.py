"""The master's books: deliveries, leased parts, and batches that are out in children.

Every recipient of a leased part is in exactly one place: waiting for DNS, ready in the schedule, out in a
batch, or settled. ``LeasedPart.left`` counts all but the settled ones.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import msgspec
import structlog

from mta.model.errors import BadInput
from mta.model.limits import PART_INDEX_BITS, PART_RECIPIENTS_MAX
from mta.queue.claim import ClaimedPart, DeliveryView
from mta.queue.settle import Row
from mta.traffic.egress import EgressChooser
from mta.traffic.fair import effective_weight, urgency
from mta.traffic.lanes import Lane
from mta.traffic.ready import Stream
from mta.traffic.refusals import Avoided, PathRefusal
from mta.traffic.retry import CLASSIC, RetrySchedule, parse_retry

log = structlog.get_logger()
_GONE: Final[Row] = ("", None, msgspec.Raw(b"[]"))
_rows_decoder: msgspec.json.Decoder[list[Row]] = msgspec.json.Decoder(list[tuple[str, str | None, msgspec.Raw]])


class DeliveryBook:
    """What the node knows of a delivery that it works on."""

    __slots__ = (
        "chooser",
        "held_recipients",
        "id",
        "is_leaving",
        "part_recipients",
        "retry",
        "sender_domain",
        "valid_until_s",
        "view",
        "weight",
    )

    def __init__(self, view: DeliveryView, chooser: EgressChooser) -> None:
        self.id = view.id
        self.chooser = chooser
        self.held_recipients = 0  # unsettled recipients of its leased parts
        self.is_leaving = False  # paused or cancelled: its parts go back as they become free
        self.part_recipients = PART_RECIPIENTS_MAX  # of its largest part lately, so that claims can be sized
        self.sender_domain = ""  # of the mailbox in From: known when the content was read, and can be
        self.view = view
        self.retry = _retry_of(view)
        self.update(view)

    def update(self, view: DeliveryView) -> None:
        if view.retry != self.view.retry:
            self.retry = _retry_of(view)
        self.view = view
        self.weight = effective_weight(view.priority, view.weight) * _urgency_of(view)
        self.valid_until_s = view.valid_until.timestamp()

    @property
    def is_expired(self) -> bool:
        """Its validity is over: nothing of it is begun any more."""
        return time.time() >= self.valid_until_s


def _urgency_of(view: DeliveryView) -> int:
    if view.deadline is None or view.started_at is None:
        return 1
    return urgency(view.started_at.timestamp(), view.deadline.timestamp(), time.time())


def _retry_of(view: DeliveryView) -> RetrySchedule:
    try:
        return parse_retry(view.retry, f"delivery {view.id}: retry")
    except BadInput as error:
        # Checked when it was made, so this was written into the database by hand; others must not suffer.
        log.error("retry schedule cannot be read, the classic one holds", error=str(error))
        return CLASSIC


class Refused(NamedTuple):
    """What paths said to a recipient in this attempt: which they are, and the last refusal."""

    avoided: Avoided
    last: PathRefusal


class LeasedPart:
    """A claimed part in memory. ``rows`` stay packed but for address and reference."""

    __slots__ = ("attempt", "claimed", "dated_unix_s", "delivery", "fields", "id", "left", "out", "refusals", "rows")

    def __init__(self, claimed: ClaimedPart, delivery: DeliveryBook) -> None:
        self.id = claimed.id
        self.claimed = claimed
        self.delivery = delivery
        self.rows = _rows_decoder.decode(claimed.recipients)
        if len(self.rows) != claimed.count:
            raise msgspec.ValidationError(f"{len(self.rows)} rows where count says {claimed.count}")
        self.fields = claimed.fields
        self.attempt = claimed.attempt + 1  # of the attempt that is made now
        # Of the first hand-out, for the Date header of every attempt; 0: there was none yet.
        self.dated_unix_s = 0 if claimed.dated_at is None else int(claimed.dated_at.timestamp())
        self.left = claimed.count - len(set(claimed.settled))
        self.out = 0  # of those left, how many are in children
        # Position -> what refused it in this attempt, though another path may take it. Most parts have none.
        self.refusals: dict[int, Refused] = {}

    def number(self, position: int) -> int:
        return self.claimed.number(position)

    def forget(self, positions: list[int]) -> None:
        """Lets go of rows that are done with: one recipient who waits must not keep a whole part's in memory."""
        rows, refusals = self.rows, self.refusals
        for position in positions:
            rows[position] = _GONE
            if refusals:
                refusals.pop(position, None)

    def numbers(self, positions: list[int]) -> list[int]:
        claimed = self.claimed
        if claimed.append_id is not None:
            base = claimed.append_id << PART_INDEX_BITS
            return [base | position for position in positions]
        assert claimed.numbers is not None
        numbers = claimed.numbers
        return [numbers[position] for position in positions]

    def open_positions(self) -> list[int]:
        """Positions that no earlier lease has settled; for the beginning of this one."""
        settled = set(self.claimed.settled)
        return [position for position in range(self.claimed.count) if position not in settled]


class BatchBook(NamedTuple):
    """A batch that is out: which positions of which parts have no outcome yet."""

    session: int
    child: int
    lane: Lane[LeasedPart]
    stream: Stream
    open: dict[int, set[int]]  # part -> positions
    retry: RetrySchedule | None = None  # of the session's rule; None: that of the delivery
    dated_unix_s: int = 0  # of this hand-out: the Date of those who had none before
