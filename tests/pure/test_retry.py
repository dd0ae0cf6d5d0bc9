from __future__ import annotations

import itertools

import pytest

from mta.model.errors import BadInput
from mta.traffic.retry import CLASSIC, FREQUENT, RetrySchedule, parse_retry

HOUR, DAY = 3600, 86_400


def attempt_times(schedule: RetrySchedule, valid_for_s: float) -> list[float]:
    """When every attempt fails at once, on a clock that starts at the first."""
    times = [0.0]
    while (due := schedule.next_due(len(times), times[-1], valid_for_s)) is not None:
        times.append(due)
    return times


def test_classic_tries_five_times_an_hour_apart_then_daily_until_validity_ends() -> None:
    hours = [time / HOUR for time in attempt_times(CLASSIC, 5 * DAY)]
    assert hours == [0, 1, 2, 3, 4, 5, 29, 53, 77, 101]


def test_frequent_tries_twenty_times_half_an_hour_apart_then_hourly() -> None:
    times = attempt_times(FREQUENT, DAY)
    assert times[:21] == [i * 1800 for i in range(21)]
    assert [later - earlier for earlier, later in itertools.pairwise(times[20:])] == [3600] * 13


def test_nothing_is_tried_at_or_after_the_end_of_validity() -> None:
    assert CLASSIC.next_due(1, 1000, 1000 + HOUR + 1) == 1000 + HOUR
    assert CLASSIC.next_due(1, 1000, 1000 + HOUR) is None
    assert CLASSIC.next_due(9, 1000, 1000 + DAY) is None


def test_the_period_counts_from_the_end_of_the_attempt() -> None:
    assert CLASSIC.next_due(2, 777.5, 1e9) == 777.5 + HOUR


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        CLASSIC.next_due(0, 0, 1)


@pytest.mark.parametrize("text", [None, "", "  ", "null", b"null", '"classic"', "{}"])
def test_nothing_said_is_the_classic_schedule(text: str | bytes | None) -> None:
    assert parse_retry(text, "x") == CLASSIC


def test_a_preset_or_own_figures_are_taken() -> None:
    assert parse_retry('"frequent"', "x") is FREQUENT
    assert parse_retry('{"first_count": 2, "first_period_s": 60}', "x") == RetrySchedule(2, 60, DAY)


@pytest.mark.parametrize(
    "text",
    [
        '"often"',
        '{"first_count": -1}',
        '{"first_count": 1001}',
        '{"first_period_s": 0}',
        '{"then_period_s": 2592001}',
        '{"first_period_s": 1.5}',
        '{"first_period_s": true}',
        '{"first_periods": 10}',
        "[]",
        "5",
        "{",
        b"\xff",
        "[" * 100_000,
    ],
)
def test_anything_else_is_refused_with_its_place_and_the_allowed_form(text: str | bytes) -> None:
    with pytest.raises(BadInput, match=r"delivery\.retry: .*expected 'classic' or 'frequent', or an object"):
        parse_retry(text, "delivery.retry")


def test_any_ladder_is_climbed_and_then_the_last_period_holds() -> None:
    ladder = RetrySchedule(ladder_s=(60, 300, 900), then_period_s=HOUR)
    assert attempt_times(ladder, 3 * HOUR) == [0, 60, 360, 1260, 1260 + HOUR, 1260 + 2 * HOUR]


def test_jitter_makes_a_wait_longer_and_never_shorter() -> None:
    schedule = RetrySchedule(jitter=0.25)
    assert schedule.next_due(1, 0, DAY, dice=0.0) == HOUR
    assert schedule.next_due(1, 0, DAY, dice=1.0) == 1.25 * HOUR
    assert schedule.next_due(1, 0, 1.2 * HOUR, dice=1.0) is None


def test_a_greylisted_recipient_comes_again_soon_twice_and_then_by_the_schedule() -> None:
    waits = [CLASSIC.next_due(attempt, 0, 5 * DAY, is_greylisted=True) for attempt in (1, 2, 3)]
    assert waits == [300, 300, HOUR]
    assert RetrySchedule(greylist_s=60).next_due(1, 0, DAY, is_greylisted=True) == 60


@pytest.mark.parametrize("text", ['{"ladder_s": [0]}', '{"ladder_s": 60}', '{"jitter": 1.5}', '{"greylist_s": 0}'])
def test_impossible_ladders_and_jitters_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"ladder_s \(a list of such\), jitter \(0-1\)"):
        parse_retry(text, "retry")
