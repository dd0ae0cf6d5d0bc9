"""How an address stands: what operators said, what the allowlist keeps, and failures that are taken back."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from mta.failure.standing import Correction, Heard, QuarantineRules, Standing, after, corrected
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason, Status
from mta.model.quarantine import AddressStatus

T0 = datetime.datetime(2027, 3, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
SECOND = datetime.timedelta(seconds=1)
RULES = QuarantineRules()
SOFT = Heard(T0, Status.DEFERRED, FailureType.SOFT, Reason.UNREACHABLE, Category.UNREACHABLE, "away", 1, 7)
HARD = SOFT._replace(status=Status.FAILED, type=FailureType.HARD, reason=Reason.USER_UNKNOWN)
IGNORED = SOFT._replace(type=FailureType.IGNORED)


def heard(*events: Heard) -> Standing:
    """How an address stands after these."""
    standing: Standing | None = None
    for event in events:
        standing = after(standing, event, RULES)
    assert standing is not None
    return standing


def daily(count: int, one: Heard = SOFT) -> list[Heard]:
    return [one._replace(at=T0 + day * DAY, number=day) for day in range(count)]


def set_by_hand(status: AddressStatus) -> Standing:
    return Standing(status, T0, T0, changed_by="me")


def test_a_failure_that_is_tried_again_is_not_hard_yet() -> None:
    assert heard(HARD._replace(status=Status.DEFERRED)).status is AddressStatus.WITH_ERRORS
    assert heard(HARD).status is AddressStatus.QUARANTINED


def test_the_first_error_quarantines_where_one_is_the_most() -> None:
    standing = after(None, SOFT, QuarantineRules(errors_max=1))
    assert standing is not None
    assert standing.status is AddressStatus.QUARANTINED


def test_an_older_failure_that_is_told_later_is_not_counted_again() -> None:
    assert heard(SOFT, SOFT._replace(at=T0 - 3 * DAY)).errors == 1


def test_what_is_in_quarantine_keeps_its_cause() -> None:
    standing = heard(HARD, SOFT._replace(at=T0 + DAY, number=8))
    assert (standing.reason, standing.number, standing.errors) == (Reason.USER_UNKNOWN, 7, 1)


def test_errors_of_the_allowlist_are_noted_as_ignored() -> None:
    standing = after(set_by_hand(AddressStatus.ALLOWLISTED), HARD._replace(at=T0 + DAY), RULES)
    assert standing is not None
    assert (standing.status, standing.reason, standing.changed_by) == (
        *(AddressStatus.ALLOWLISTED, Reason.ERROR_IGNORED),
        "me",
    )


@pytest.mark.parametrize("status", [Status.COMPLAINED, Status.UNSUBSCRIBED])
def test_a_complaint_denylists_who_is_in_quarantine_but_nobody_on_the_allowlist(status: Status) -> None:
    complaint = SOFT._replace(status=status, at=T0 + DAY, reason=Reason.DENYLISTED)
    assert heard(HARD, complaint).status is AddressStatus.DENYLISTED
    kept = after(set_by_hand(AddressStatus.ALLOWLISTED), complaint, RULES)
    assert kept is not None
    assert kept.status is AddressStatus.ALLOWLISTED


def test_an_operators_word_covers_what_was_before_it() -> None:
    lifted = after(set_by_hand(AddressStatus.VALID), HARD._replace(at=T0), RULES)
    assert lifted is not None
    assert lifted.status is AddressStatus.VALID
    again = after(lifted, HARD._replace(at=T0 + SECOND), RULES)
    assert again is not None
    assert (again.status, again.changed_by) == (AddressStatus.QUARANTINED, "")


def test_a_success_of_before_the_last_error_forgets_nothing() -> None:
    delivered = SOFT._replace(status=Status.DELIVERED, type=FailureType.NOT_DEFINED, category=Category.NONE)
    assert heard(SOFT, delivered._replace(at=T0 - SECOND)).errors == 1
    assert heard(SOFT, delivered._replace(at=T0 + SECOND)).errors == 0


def take_back(standing: Standing, now: dict[str, Any], *was: Heard) -> Standing:
    return corrected(standing, [Correction(one, one._replace(**now)) for one in was], RULES, T0 + 30 * DAY)


IGNORE = {"type": FailureType.IGNORED}


def test_taking_back_the_failure_that_quarantined_lifts() -> None:
    assert take_back(heard(HARD), IGNORE, HARD).status is AddressStatus.VALID
    softer = take_back(heard(HARD), {"type": FailureType.SOFT, "reason": Reason.MAILBOX_FULL}, HARD)
    assert (softer.status, softer.errors, softer.reason) == (AddressStatus.WITH_ERRORS, 1, Reason.MAILBOX_FULL)


def test_taking_back_another_failure_than_the_cause_lifts_nothing() -> None:
    standing = heard(SOFT, HARD._replace(at=T0 + DAY, number=8))
    assert take_back(standing, IGNORE, SOFT).status is AddressStatus.QUARANTINED


@pytest.mark.parametrize(
    ("taken_back", "status", "errors"),
    [(1, AddressStatus.WITH_ERRORS, 4), (4, AddressStatus.WITH_ERRORS, 1), (5, AddressStatus.VALID, 0)],
)
def test_counted_errors_are_taken_back_one_by_one(taken_back: int, status: AddressStatus, errors: int) -> None:
    events = daily(5)
    standing = heard(*events)
    assert standing.status is AddressStatus.QUARANTINED
    found = take_back(standing, IGNORE, *events[:taken_back])
    assert (found.status, found.errors) == (status, errors)


def test_of_several_errors_of_a_day_one_is_taken_back() -> None:
    events = [*daily(2), SOFT._replace(at=T0 + SECOND), SOFT._replace(at=T0 + 2 * SECOND)]
    standing = heard(*sorted(events))
    assert take_back(standing, IGNORE, *sorted(events)[:3]).errors == 1


def test_a_failure_that_only_has_another_reason_changes_the_reason() -> None:
    found = take_back(heard(SOFT), {"reason": Reason.MAILBOX_FULL, "category": Category.MAILBOX_FULL}, SOFT)
    assert (found.status, found.errors, found.reason) == (AddressStatus.WITH_ERRORS, 1, Reason.MAILBOX_FULL)


@pytest.mark.parametrize("status", list(AddressStatus))
def test_what_an_operator_set_stays_whatever_is_taken_back(status: AddressStatus) -> None:
    assert take_back(set_by_hand(status), IGNORE, HARD).status is status
