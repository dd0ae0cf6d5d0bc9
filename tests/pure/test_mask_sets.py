"""Masks that cover one another, also several together: the search agrees with matching, and ends."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.masks import compile_masks
from mta.traffic.mask_sets import can_fit, is_covered, uncovered_name


@pytest.mark.parametrize(
    ("mask", "covers"),
    [
        ("*.google.com", ["*"]),
        ("*.google.com", ["?*.google.com"]),  # no name begins with a dot
        ("mx*.a.example", ["mx.a.example", "mx?*.a.example"]),
        ("*.a.example", ["*x.a.example", "*.example"]),
        ("mx?.A.example", ["MX?.a.example"]),
    ],
)
def test_masks_that_others_cover_together(mask: str, covers: list[str]) -> None:
    assert is_covered(mask, covers)


@pytest.mark.parametrize(
    ("mask", "covers", "left"),
    [
        ("*.google.com", [], r".+\.google\.com"),
        ("mx*.a.example", ["mx?*.a.example"], r"mx\.a\.example"),
        ("*.protection.outlook.com", ["*.olc.protection.outlook.com", "*.mail.protection.outlook.com"], r".+"),
        ("*", ["*.*"], r"[^.]+"),
    ],
)
def test_masks_that_leave_something_over_say_what(mask: str, covers: list[str], left: str) -> None:
    name = uncovered_name(mask, covers)
    assert name is not None
    assert re.fullmatch(left, name)
    assert not is_covered(mask, covers)


def test_names_without_labels_do_not_count() -> None:
    assert [can_fit(mask) for mask in ("*.", ".a", "a..b", "*..*")] == [False] * 4
    assert [can_fit(mask) for mask in ("*", "?", "*.a", "a", "*.*", "?.?")] == [True] * 6


masks = st.text("ab.*?", min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(masks, st.lists(masks, max_size=3), st.lists(st.text("ab.", min_size=1, max_size=6), max_size=60))
def test_covering_agrees_with_matching(mask: str, covers: list[str], names: list[str]) -> None:
    narrow, wide = compile_masks([mask]), compile_masks(covers)
    left = uncovered_name(mask, covers, are_names=False)
    if left is None:
        assert all(wide.fullmatch(name) for name in names if narrow.fullmatch(name))
        assert is_covered(mask, covers, are_names=False)
    elif left != "?":
        assert narrow.fullmatch(left)
        assert not wide.fullmatch(left)
