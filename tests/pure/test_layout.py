from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mta.message.layout import SHARED_OCTETS_MIN, Cell, Layout, LayoutPart

LARGE = "l" * SHARED_OCTETS_MIN
SHARED = b"s" * SHARED_OCTETS_MIN
parts = st.lists(
    st.one_of(
        st.sampled_from(["", "a", "bc", LARGE, b"", b"d", SHARED]),
        st.sampled_from([Cell(0), Cell(1), Cell(2)]),
    ),
    max_size=9,
)


@given(parts)
def test_segments_together_are_the_parts_with_their_gaps_filled(made: list[LayoutPart]) -> None:
    cells = ["", "x", "\u00e9" * 3]
    expected = [
        cells[part.cell].encode() if isinstance(part, Cell) else part.encode() if isinstance(part, str) else part
        for part in made
    ]
    layout = Layout(made)
    assert b"".join(layout.fill(cells)) == b"".join(expected)
    assert b"".join(layout.fill(["1", "2", "3"])).count(b"s") == SHARED_OCTETS_MIN * made.count(SHARED)
    assert layout.is_static == (not any(isinstance(part, Cell) for part in made))


@given(parts)
def test_shared_octets_are_handed_out_uncopied_and_no_segment_is_empty_text(made: list[LayoutPart]) -> None:
    segments = Layout(made).fill(["x", "x", "x"])
    assert sum(segment is SHARED for segment in segments) == made.count(SHARED)
    assert all(segments)


def test_small_pieces_are_one_segment_and_large_text_is_its_own() -> None:
    assert len(Layout(["a", Cell(0), b"b", "c", Cell(0)]).fill(["x"])) == 1
    layout = Layout(["a", Cell(0), LARGE, "more", Cell(0), "b"])
    first, second = layout.fill(["x"]), layout.fill(["y"])
    assert list(map(len, first)) == [2, SHARED_OCTETS_MIN + 4, 2]
    assert first[1] is second[1]


def test_a_layout_of_nothing_is_no_segment() -> None:
    assert Layout([]).fill([]) == []
    assert Layout(["", b""]).fill([]) == []
