from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from mta.traffic.line import Line, Place


def in_order(line: Line[Place]) -> list[Place]:
    """From the first on, with each link looked at from both sides."""
    found: list[Place] = []
    place = line.first
    before: Place | None = None
    while place is not None:
        assert place.before is before
        found.append(place)
        before, place = place, place.after
    assert line.last is before
    return found


@given(st.lists(st.integers(0, 7), max_size=60))
def test_who_comes_first_is_first_and_leaving_from_anywhere_leaves_the_others_as_they_were(moves: list[int]) -> None:
    line: Line[Place] = Line()
    places = [Place() for _ in range(8)]
    expected: OrderedDict[int, Place] = OrderedDict()
    for number in moves:
        # Who is not in it joins, who is leaves.
        if number in expected:
            line.leave(expected.pop(number))
        else:
            expected[number] = places[number]
            line.join(places[number])
        assert in_order(line) == list(expected.values())
        assert line.count == len(expected)


def test_a_place_that_was_left_holds_on_to_nobody() -> None:
    line: Line[Place] = Line()
    first, second = Place(), Place()
    line.join(first)
    line.join(second)
    line.leave(first)
    assert first.after is None
    assert second.before is None
    line.leave(second)
    assert line.first is None
    assert line.last is None
