from __future__ import annotations

import re
import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.masks import compile_masks, covers, mask_fault, split_masks

TEXTS = st.text("ab.*?", max_size=8)
NAMES = st.text("ab.", max_size=10)


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        ("*.google.com", "alt1.gmail-smtp-in.l.google.com"),
        ("?.mx.yahoo.com", "a.mx.yahoo.com"),
        ("*.YAHOO.com", "a.mx.yahoo.com"),
        ("*", "localhost"),
        ("mx.example.com", "mx.example.com"),
        ("*a*b*", "xxaxxbxx"),
    ],
)
def test_a_mask_fits(mask: str, name: str) -> None:
    assert compile_masks([mask]).fullmatch(name)


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        ("*.google.com", "google.com"),
        ("?.mx.yahoo.com", "ab.mx.yahoo.com"),
        ("*.google.com", "mx.google.com.example.net"),
        ("mx.example.com", "mxxexample.com"),
        ("*a*b", "ba"),
    ],
)
def test_a_mask_does_not_fit(mask: str, name: str) -> None:
    assert not compile_masks([mask]).fullmatch(name)


def test_no_mask_fits_nothing() -> None:
    assert not compile_masks([]).fullmatch("")
    assert not compile_masks([]).fullmatch("a")


@given(TEXTS, NAMES)
@settings(max_examples=300)
def test_masks_mean_what_shell_patterns_mean(mask: str, name: str) -> None:
    assert bool(compile_masks([mask]).fullmatch(name)) == fnmatchcase(name, mask)


@given(TEXTS, TEXTS, NAMES)
@settings(max_examples=300)
def test_a_covering_mask_fits_all_that_the_covered_one_fits(wide: str, narrow: str, name: str) -> None:
    if covers(compile_masks([wide]), narrow) and compile_masks([narrow]).fullmatch(name):
        assert compile_masks([wide]).fullmatch(name)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [("*", "?"), ("*.com", "*.google.com"), ("*?", "?*"), ("a*c", "ab*c"), ("*", "*"), ("?.X", "a.x")],
)
def test_cover_is_seen(wide: str, narrow: str) -> None:
    assert covers(compile_masks([wide]), narrow)


@pytest.mark.parametrize(("wide", "narrow"), [("?", "*"), ("*.google.com", "*.com"), ("?*", "*"), ("a.x", "?.x")])
def test_no_cover_is_claimed_where_there_is_none(wide: str, narrow: str) -> None:
    assert not covers(compile_masks([wide]), narrow)


def test_a_hostile_name_costs_no_more_than_length_times_length() -> None:
    mask = compile_masks(["*a" * 120 + "*b"])
    began = time.perf_counter()
    assert not mask.fullmatch("a" * 255)
    assert time.perf_counter() - began < 0.25


@pytest.mark.parametrize("mask", ["", "a b", "*.google.com.", ".google.com", "a..b", "ü.de", "x" * 256, "a/b", "(a+)+"])
def test_masks_that_could_never_fit_are_refused(mask: str) -> None:
    assert mask_fault(mask)


@pytest.mark.parametrize("mask", ["*", "?", "*.example.com", "mx-1_a.EXAMPLE.com"])
def test_good_masks_are_taken(mask: str) -> None:
    assert mask_fault(mask) is None


def test_a_mask_is_never_read_as_a_regular_expression() -> None:
    assert not compile_masks(["m.x+"]).fullmatch("mmx")
    assert re.fullmatch("m.x+", "mmx")


def test_lists_are_split_at_commas() -> None:
    assert split_masks(" *.a.example ,b.example,, ") == ("*.a.example", "b.example")
