"""Waves: whatever is asked for, all recipients have one, in order, and none is ahead of its share."""

from __future__ import annotations

import datetime
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.errors import BadInput
from mta.traffic.waves import WAVES_MAX, parse_waves

START = datetime.datetime(2030, 3, 1, tzinfo=datetime.UTC)
TOTALS = st.integers(1, 10_000_000)
PERCENT = st.integers(1, 10_000).map(lambda hundredths: f"{hundredths // 100}.{hundredths % 100:02}%")


@given(PERCENT | st.integers(1, 10_000_000), TOTALS)
@settings(max_examples=200, deadline=None)
def test_equal_waves_hold_all_and_are_never_ahead(share: str | int, total: int) -> None:
    waves = parse_waves(json.dumps({"share": share, "every_s": 60}), "waves")
    assert waves is not None
    try:
        plan = waves.plan(total, START)
    except BadInput:
        portion = total / share if isinstance(share, int) else 100 / float(share[:-1])
        assert portion > WAVES_MAX
        return
    assert sum(wave.recipients for wave in plan) == total
    gone = 0
    for wave in plan:
        assert wave.recipients > 0
        gone += wave.recipients
        begun = int((wave.due_at - START).total_seconds()) // 60 + 1
        hundredths = 0 if isinstance(share, int) else round(float(share[:-1]) * 100)
        allowed = begun * share if isinstance(share, int) else total * begun * hundredths // 10_000
        assert gone <= min(total, allowed)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 500)), min_size=1, max_size=20), TOTALS)
@settings(max_examples=100, deadline=None)
def test_a_calendar_holds_all_in_the_order_of_its_times(steps: list[tuple[int, int]], total: int) -> None:
    calendar = [{"after_s": after_s, "share": share} for after_s, share in steps]
    waves = parse_waves(json.dumps({"calendar": calendar}), "waves")
    assert waves is not None
    plan = waves.plan(total, START)
    assert sum(wave.recipients for wave in plan) == total
    assert [wave.due_at for wave in plan] == sorted(wave.due_at for wave in plan)
    assert {(wave.due_at - START).total_seconds() for wave in plan} <= {after_s for after_s, _ in steps}
