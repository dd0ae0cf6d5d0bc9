"""Which replies are meant: code, enhanced code, text, stage; and in what time."""

from __future__ import annotations

import pytest

from mta.failure.patterns import ReplyPatterns, Wanted
from mta.model.errors import BadInput
from mta.smtp.envelope import Stage


def match(wanted: Wanted, code: int = 421, enhanced: str = "4.7.28", text: str = "Too many", **more: Stage) -> bool:
    return ReplyPatterns([wanted]).match(code, enhanced, text, more.get("stage", Stage.DOT)) == (0,)


@pytest.mark.parametrize(
    ("wanted", "is_meant"),
    [
        (Wanted((), (), "", ()), True),
        (Wanted(("421",), (), "", ()), True),
        (Wanted(("4",), (), "", ()), True),
        (Wanted(("42", "550"), (), "", ()), True),
        (Wanted(("5", "45"), (), "", ()), False),
        (Wanted((), ("4.7.28",), "", ()), True),
        (Wanted((), ("4.7",), "", ()), True),
        (Wanted((), ("4.7.2",), "", ()), False),
        (Wanted((), (), "too MANY", ()), True),
        (Wanted((), (), "^many", ()), False),
        (Wanted((), (), "", ("dot", "rcpt")), True),
        (Wanted((), (), "", ("rcpt",)), False),
        (Wanted(("421",), ("4.7",), "many", ("mail",)), False),
    ],
)
def test_all_that_is_given_must_fit(wanted: Wanted, is_meant: bool) -> None:
    assert match(wanted) is is_meant


def test_what_is_no_refusal_fits_nothing_and_a_failure_without_a_reply_has_code_0() -> None:
    anything = Wanted((), (), "", ())
    assert not match(anything, code=250)
    assert match(anything, code=0, enhanced="", text="timed out", stage=Stage.CONNECT)
    assert match(Wanted(("0",), (), "", ("connect",)), code=0, enhanced="", text="timed out", stage=Stage.CONNECT)
    assert not match(Wanted(("4",), (), "", ()), code=0, enhanced="")


def test_every_kind_that_a_reply_is_of_is_found_at_once() -> None:
    patterns = ReplyPatterns(Wanted((), (), text, ()) for text in ("busy", "try (again|later)", "", "never"))
    assert patterns.match(451, "", "Server busy, try later", Stage.MAIL) == (0, 1, 2)
    assert patterns.match(451, "", "Server busy, try later", Stage.MAIL) == (0, 1, 2)


def test_a_pattern_that_would_be_slow_elsewhere_is_not_slow_here() -> None:
    patterns = ReplyPatterns([Wanted((), (), "(a+)+$", ()), Wanted((), (), "(x|x|x)*y.*y.*y.*z", ())])
    assert patterns.match(450, "", "a" * 2_000 + "b" + "xy" * 500, Stage.DOT) == ()


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be used"):
        ReplyPatterns([Wanted((), (), "(?=a)", ())])


def test_only_those_that_are_asked_for_are_looked_for() -> None:
    patterns = ReplyPatterns(Wanted((), (), text, ()) for text in ("busy", "later", "", "busy"))
    assert patterns.match(451, "", "busy, try later", Stage.MAIL, (3, 1)) == (3, 1)
    assert patterns.match(451, "", "busy, try later", Stage.MAIL, (1,)) == (1,)
    assert patterns.match(451, "", "busy, try later", Stage.MAIL, ()) == ()
    assert patterns.match(451, "", "busy, try later", Stage.MAIL) == (0, 1, 2, 3)


def test_more_patterns_than_one_automaton_has_memory_for_are_matched_all_the_same() -> None:
    texts = [rf"temporarily deferred .{{0,60}} rate limit(ed)? {number} [a-z]+ex\d{{1,3}}" for number in range(400)]
    patterns = ReplyPatterns(Wanted((), (), text, ()) for text in texts)
    for number in (0, 137, 399):
        text = f"Temporarily deferred by rate limit {number} abex12"
        assert patterns.match(421, "4.7.0", text, Stage.DOT) == (number,)
    assert patterns.match(421, "4.7.0", "no such thing", Stage.DOT) == ()
