"""Tables fit the terminal: text is cut, numbers and times never; programs get one whole line a row."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mta.cli.tables import ELLIPSIS, cut, fitted, lines_of_rows, plain

TIME = datetime.datetime(2026, 1, 31, 8, 0, tzinfo=datetime.UTC)
LONG = "550 5.7.1 a server that says much more than anybody would want to read at three in the morning"


def test_text_is_cut_and_numbers_are_not() -> None:
    head, body = fitted(("domain", "errors", "last", "reply"), [("example.com", 1_234_567, TIME, LONG)], 80)
    assert len(body) == 1
    assert head[0].split() == ["domain", "errors", "last", "reply"]
    assert "1,234,567" in body[0]
    assert "2026-01-31 08:00:00Z" in body[0]
    assert body[0].endswith(ELLIPSIS)
    assert max(map(cell_len, head + body)) <= 80


def test_numbers_stand_below_one_another_to_the_right() -> None:
    _, body = fitted(("what", "count"), [("a", 5), ("b", 12_000)], 80)
    assert body == ["a          5", "b     12,000"]


def test_names_of_columns_break_into_lines_before_anything_is_cut() -> None:
    head, body = fitted(("transactions behind us all", "n"), [("x", 1)], 80)
    assert [line.split() for line in head] == [["transactions"], ["behind", "us"], ["all", "n"]]
    assert body == ["x             1"]


def test_many_numbers_take_shorter_names_of_columns() -> None:
    names = ("id", "name", "appended", "waiting", "delivered", "failed", "expired", "cancelled", "simulated", "held")
    head, body = fitted(names, [("7", "A campaign of spring", *[123_456] * 8)], 80)
    assert body[0].count("123,456") == 8
    assert "deliv" in head[-1]
    assert max(map(cell_len, head + body)) <= 80


def test_numbers_without_room_make_blocks() -> None:
    _, body = fitted([f"column {i}" for i in range(9)], [[10**12 + i for i in range(9)]] * 2, 80)
    assert body[0] == "column 0  1,000,000,000,000"
    assert len(body) == 2 * 9 + 1


def test_a_table_without_rows_keeps_its_names() -> None:
    assert fitted(("a", "b"), [], 80) == (["a  b"], [])


def test_programs_get_a_whole_line_a_row() -> None:
    rows = [("ann@example.com", 1_234_567, TIME, None, LONG + "\tand\nmore", True, 1234.5)]
    title, names, line = lines_of_rows("Found\n", ("a", "n", "t", "x", "reply", "ok", "f"), rows)
    assert title == "# Found\\n"
    assert names == "# a\tn\tt\tx\treply\tok\tf"
    assert line.split("\t") == [
        *("ann@example.com", "1234567", "2026-01-31 08:00:00Z", "-", LONG + "\\tand\\nmore", "yes", "1234.5")
    ]


@pytest.mark.parametrize(("text", "width", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 5, "日本…")])
def test_what_is_cut_ends_with_an_ellipsis(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(0, 10**9), st.floats(0, 1e6), st.just(TIME), st.text(max_size=90)
)


@given(
    st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=5)),
    st.integers(40, 120),
)
def test_whatever_is_in_it_no_line_is_too_wide_and_each_number_is_whole(rows: list[list[object]], width: int) -> None:
    head, body = fitted(["recipients found"] * len(rows[0]), rows, width)
    assert all(cell_len(line) <= width for line in head + body)
    text = "\n".join(body)
    for row in rows:
        for cell in row:
            if isinstance(cell, int | float | datetime.datetime):
                assert plain(cell) in text
