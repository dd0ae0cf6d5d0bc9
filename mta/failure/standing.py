"""How an address stands after what was heard of it: errors counted, quarantined, denylisted.

==================================  =========================================================================
what happened                       what becomes of the address
==================================  =========================================================================
hard failure                        in quarantine, at once
soft failure                        counted, once a day at most; in quarantine at the fifth
failure of our own fault, ignored   nothing
more than 10 days without one       counted from one again
delivered                           nothing is counted any more
complaint, unsubscription           denylisted
on the allowlist                    nothing, whatever happens; its errors are noted as ignored
==================================  =========================================================================

All times are those of the log, so that it makes no difference when somebody gets round to reading it. Nothing here
takes an address out of quarantine or off the denylist (campaign-mta §5). An operator's word covers what was before it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus

_DENYLISTING = frozenset({Status.COMPLAINED, Status.UNSUBSCRIBED})
_SETTLED = frozenset({AddressStatus.DENYLISTED, AddressStatus.QUARANTINED})


class QuarantineRules(msgspec.Struct, frozen=True):
    """``[quarantine]`` of the settings: what is counted, and for how long."""

    errors_max: int = 5  # of so many counted soft errors an address is quarantined
    count_every_s: int = 86_400  # an error counts when the last counted one is at least so much older
    quiet_s: int = 10 * 86_400  # after so long without one, counting begins anew
    mailbox_full_s: int = 30 * 86_400  # a full mailbox is released after it

    @property
    def count_every(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=self.count_every_s)

    @property
    def quiet(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=self.quiet_s)

    @property
    def mailbox_full(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=self.mailbox_full_s)


class Heard(NamedTuple):
    """One line of the log, as far as it matters to its address."""

    at: datetime.datetime
    status: Status
    type: FailureType
    reason: Reason
    category: Category
    text: str
    delivery_id: int
    number: int

    @property
    def counts(self) -> bool:
        """Whether it is a failure that counts against its address."""
        return self.type in (FailureType.SOFT, FailureType.HARD) and self.category not in OUR_FAULT

    @property
    def is_hard(self) -> bool:
        """What is tried again is not hard yet."""
        return self.counts and self.type is FailureType.HARD and self.status is not Status.DEFERRED


class Standing(msgspec.Struct):
    """What is known of an address. ``changed_at`` and ``changed_by`` are of its status; by nobody: by these rules."""

    status: AddressStatus
    created_at: datetime.datetime
    changed_at: datetime.datetime
    errors: int = 0
    counted_at: datetime.datetime | None = None
    reason: Reason = Reason.NOT_DEFINED
    category: Category = Category.NONE
    text: str = ""
    delivery_id: int | None = None
    number: int | None = None
    changed_by: str = ""

    def become(self, status: AddressStatus, at: datetime.datetime) -> None:
        if status is not self.status:
            self.status, self.changed_at, self.changed_by = status, at, ""

    def tell(self, heard: Heard) -> None:
        """What was heard is its cause on record."""
        self.reason, self.category, self.text = heard.reason, heard.category, heard.text
        self.delivery_id, self.number = heard.delivery_id, heard.number


def after(known: Standing | None, heard: Heard, rules: QuarantineRules) -> Standing | None:
    """Changes what is known of an address by what was heard of it; None: there is nothing to be known."""
    if heard.status in _DENYLISTING:
        return _after_complaint(known, heard)
    if heard.status is Status.DELIVERED:
        return _after_success(known, heard)
    return _after_failure(known, heard, rules) if heard.counts else known


def _after_complaint(known: Standing | None, heard: Heard) -> Standing:
    if known is None:
        known = Standing(AddressStatus.DENYLISTED, heard.at, heard.at)
    elif known.status in (AddressStatus.DENYLISTED, AddressStatus.ALLOWLISTED):
        return known
    known.become(AddressStatus.DENYLISTED, heard.at)
    known.tell(heard)
    return known


def _after_success(known: Standing | None, heard: Heard) -> Standing | None:
    if known is not None and known.status is AddressStatus.WITH_ERRORS and (known.counted_at or heard.at) <= heard.at:
        known.become(AddressStatus.VALID, heard.at)
        known.errors, known.counted_at = 0, None
    return known


def _after_failure(known: Standing | None, heard: Heard, rules: QuarantineRules) -> Standing:
    if known is None:
        known = Standing(AddressStatus.VALID, heard.at, heard.at)
    elif known.changed_by and heard.at <= known.changed_at:
        return known
    if known.status in _SETTLED:
        return known  # its cause stays on record, not what came after it
    last = known.counted_at
    if last is None or heard.at > last + rules.quiet:
        known.errors, known.counted_at = 1, heard.at
    elif heard.at >= last + rules.count_every:
        known.errors, known.counted_at = known.errors + 1, heard.at
    known.tell(heard)
    if known.status is AddressStatus.ALLOWLISTED:
        known.reason = Reason.ERROR_IGNORED
    elif heard.is_hard or known.errors >= rules.errors_max:
        known.become(AddressStatus.QUARANTINED, heard.at)
    else:
        known.become(AddressStatus.WITH_ERRORS, heard.at)
    return known


class Correction(NamedTuple):
    """A failure of the past that means something else than it was taken for."""

    was: Heard
    now: Heard

    @property
    def weighs_more(self) -> bool:
        return (self.now.counts and not self.was.counts) or (self.now.is_hard and not self.was.is_hard)


def corrected(
    known: Standing, corrections: Sequence[Correction], rules: QuarantineRules, at: datetime.datetime
) -> Standing:
    """Takes back what failures did to an address that weigh less than was thought; ``corrections`` by their time.

    What other failures did, and what operators said, stays. What weighs more is simply heard (`after`).
    """
    if known.changed_by or known.status not in (AddressStatus.WITH_ERRORS, AddressStatus.QUARANTINED):
        return known
    was_by_count = known.errors >= rules.errors_max
    known.errors = max(0, known.errors - _counted([one.was for one in corrections if not one.now.counts], rules))
    causes = [one for one in corrections if (one.was.delivery_id, one.was.number) == (known.delivery_id, known.number)]
    if causes and causes[-1].now.counts:
        known.tell(causes[-1].now)
    if known.status is AddressStatus.QUARANTINED:
        stays = known.errors >= rules.errors_max if was_by_count else not causes or causes[-1].now.is_hard
        if stays:
            return known
    known.become(AddressStatus.WITH_ERRORS if known.errors else AddressStatus.VALID, at)
    if not known.errors:
        known.counted_at = None
    return known


def _counted(failures: Sequence[Heard], rules: QuarantineRules) -> int:
    """How many of these were counted, at most: one a day."""
    count, last = 0, None
    for one in failures:
        if one.counts and (last is None or one.at >= last + rules.count_every):
            count, last = count + 1, one.at
    return count
