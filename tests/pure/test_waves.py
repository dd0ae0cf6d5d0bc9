"""Waves: how many recipients at what time, exactly; and which specifications are refused."""

from __future__ import annotations

import datetime

import pytest

from mta.model.errors import BadInput
from mta.traffic.waves import WAVES_MAX, Wave, parse_waves

START = datetime.datetime(2030, 3, 1, 9, 0, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


def sizes(text: str, total: int) -> list[int]:
    waves = parse_waves(text, "waves")
    assert waves is not None
    return [wave.recipients for wave in waves.plan(total, START)]


def test_thirty_percent_of_ten_are_three_three_three_and_one_an_interval_apart() -> None:
    waves = parse_waves('{"share": "30%", "every_s": 3600}', "waves")
    assert waves is not None
    assert waves.plan(10, START) == [
        Wave(START, 3),
        Wave(START + HOUR, 3),
        Wave(START + 2 * HOUR, 3),
        Wave(START + 3 * HOUR, 1),
    ]


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [
        ('"25%"', 10, [2, 3, 2, 3]),  # never ahead of the shares so far, and four waves as one expects
        ('"33.33%"', 100, [33, 33, 33, 1]),
        ('"100%"', 7, [7]),
        ('"10%"', 5, [1, 1, 1, 1, 1]),
        ("4", 10, [4, 4, 2]),
        ("5", 10, [5, 5]),
        ("20", 10, [10]),
    ],
)
def test_equal_waves_are_so_large(share: str, total: int, expected: list[int]) -> None:
    assert sizes(f'{{"share": {share}, "every_s": 60}}', total) == expected


def test_a_wave_that_would_be_empty_is_left_out_and_the_others_keep_their_times() -> None:
    waves = parse_waves('{"share": "10%", "every_s": 60}', "waves")
    assert waves is not None
    plan = waves.plan(5, START)
    assert [(wave.due_at - START).total_seconds() for wave in plan] == [60, 180, 300, 420, 540]


def test_a_calendar_goes_by_its_times_and_its_last_wave_takes_the_rest() -> None:
    text = (
        '{"calendar": [{"at": "2030-03-02T08:00:00+01:00", "share": 100}, {"after_s": 60, "share": "10%"},'
        ' {"at": "2020-01-01T00:00:00Z", "share": "5%"}]}'
    )
    waves = parse_waves(text, "waves")
    assert waves is not None
    assert waves.plan(1000, START) == [
        Wave(START, 50),  # a time that is over is the start
        Wave(START + datetime.timedelta(seconds=60), 100),
        Wave(datetime.datetime(2030, 3, 2, 7, tzinfo=datetime.UTC), 850),
    ]


def test_shares_larger_than_what_there_is_end_with_it() -> None:
    assert sizes(
        '{"calendar": [{"after_s": 0, "share": 6}, {"after_s": 1, "share": 6}, {"after_s": 2, "share": 6}]}', 10
    ) == [
        6,
        4,
    ]


def test_more_waves_than_are_sensible_are_refused_with_their_number() -> None:
    with pytest.raises(BadInput, match="would be 50,000 waves, 1,000 are allowed"):
        sizes('{"share": 20, "every_s": 86400}', 1_000_000)
    assert len(sizes('{"share": 20, "every_s": 86400}', 20 * WAVES_MAX)) == WAVES_MAX


def test_nothing_is_no_waves() -> None:
    assert parse_waves(None, "waves") is None
    assert parse_waves("null", "waves") is None


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "no JSON",
        '{"share": "30%"}',
        '{"every_s": 60}',
        '{"share": "30%", "every_s": 0}',
        '{"share": "0%", "every_s": 60}',
        '{"share": "101%", "every_s": 60}',
        '{"share": "0.001%", "every_s": 60}',
        '{"share": "30", "every_s": 60}',
        '{"share": 0, "every_s": 60}',
        '{"share": "30%", "every_s": 60, "calendar": [{"after_s": 0, "share": 1}]}',
        '{"calendar": []}',
        '{"calendar": [{"share": "10%"}]}',
        '{"calendar": [{"share": "10%", "after_s": 0, "at": "2030-01-01T00:00:00Z"}]}',
        '{"calendar": [{"share": "10%", "at": "2030-01-01T00:00:00"}]}',
        '{"calendar": [{"share": "60%", "after_s": 0}, {"share": "50%", "after_s": 1}]}',
        '{"calendar": [{"share": "10%", "after_s": 0}], "more": 1}',
    ],
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_waves(text, "waves")
    assert refused.value.where == "waves"
