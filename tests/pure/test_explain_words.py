"""Times as ``mta explain`` says them."""

from __future__ import annotations

import datetime

import pytest

from mta.cli.explain import when

NOW_S = 1_800_000_000.0


@pytest.mark.parametrize(
    ("after_s", "said"),
    [(42.0, "in 42 s"), (0.2, "in 1 s"), (119.0, "in 119 s"), (600.0, "in 10 min"), (7_200.0, "in 2.0 h")],
)
def test_a_time_is_local_and_says_how_long_that_is(after_s: float, said: str) -> None:
    local = datetime.datetime.fromtimestamp(NOW_S + after_s).astimezone()
    assert when(NOW_S + after_s, now_s=NOW_S) == f"{local:%H:%M:%S} ({said})"


def test_far_away_has_its_day_and_the_past_is_now() -> None:
    local = datetime.datetime.fromtimestamp(NOW_S + 90_000).astimezone()
    assert when(NOW_S + 90_000, now_s=NOW_S) == f"{local:%Y-%m-%d %H:%M:%S} (in 25.0 h)"
    assert when(NOW_S - 5, now_s=NOW_S) == "now"


def test_without_a_time_the_event_is_said() -> None:
    assert when(None, "when it rains") == "when it rains"
    assert when(None) == "not known"
