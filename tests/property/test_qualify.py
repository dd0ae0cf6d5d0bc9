"""Of any text: qualification and normalisation never raise, and hold what they promise."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from mta.failure.normalise import normalise, text_key
from mta.failure.qualify import RECIPIENT_STAGES, STAGES, Qualifier, is_temporary
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import OF_RECIPIENT, OUR_FAULT, Category, Evidence, FailureType
from mta.settings.bounce_rules import SHIPPED, load_bounce_rules

CHANGING = """a 1 . @ < > # * [ ] : / - _ = 550 550- 5.1.1 4.2.2 192.0.2.1 example.com x@example.com http:// www. ID
#ID# Mon, Jan 2027 12:00 A1B2C3 \u00e9 ( ) ' , ; #NUMBER# 2001:db8::1 ffff:: https://a.example/c?x"""
SAID = """user unknown mailbox full spam blocked relay denied temporarily later sender domain not exist disabled closed
timed out \u4e0d\u5b58\u5728 unbekannt said: smtp;"""
PIECES = f"{CHANGING} {SAID}".split()
SENTENCES = st.lists(st.sampled_from([*PIECES, " ", " ", "\n"]), max_size=24).map("".join) | st.lists(
    st.sampled_from(PIECES), max_size=24
).map(" ".join)
TEXTS = SENTENCES | st.text(max_size=200)
CODES = st.sampled_from([0, 250, 421, 450, 451, 452, 499, 500, 550, 551, 552, 553, 554, 556])
ENHANCED = st.just("") | st.builds("{}.{}.{}".format, st.sampled_from("245"), st.integers(0, 8), st.integers(0, 40))


@functools.cache
def shipped() -> Qualifier:
    return Qualifier(load_bounce_rules([SHIPPED]))


@given(
    CODES, ENHANCED, TEXTS, st.sampled_from(["", *STAGES]), st.sampled_from(["", "mx.example.com", "mx.docomo.ne.jp"])
)
def test_no_text_makes_a_temporary_failure_or_our_fault_hard(
    code: int, enhanced: str, text: str, stage: str, provider: str
) -> None:
    verdict = shipped().qualify(Evidence(code, enhanced, text, stage, provider))
    assert not (verdict.type is FailureType.HARD and is_temporary(code, enhanced))
    if verdict.category in OUR_FAULT:
        assert verdict.type is not FailureType.HARD
    if stage not in RECIPIENT_STAGES:
        assert verdict.type is not FailureType.HARD
        assert verdict.category not in OF_RECIPIENT
    if verdict.category is Category.MAILBOX_FULL:
        assert verdict.type is FailureType.SOFT
    assert (verdict.category is Category.NOT_A_FAILURE) == (verdict.type is FailureType.NOT_DEFINED)


@given(CODES, ENHANCED, TEXTS)
def test_a_verdict_is_the_same_when_it_is_asked_for_again(code: int, enhanced: str, text: str) -> None:
    evidence = Evidence(code, enhanced, text)
    first = shipped().qualify(evidence)
    assert shipped().qualify(Evidence(code, enhanced, text)) == first
    assert shipped()._qualify(evidence._replace(text=" ".join(text.split()))).type in FailureType


@given(TEXTS)
def test_what_is_normalised_stays_as_it_is(text: str) -> None:
    normal = normalise(text)
    assert normalise(normal) == normal
    assert text_key(normal) == text_key(text)


@given(TEXTS)
def test_any_line_is_taken_apart(line: str) -> None:
    evidence = parse_reply_text(line)
    assert evidence.code == 0 or 200 <= evidence.code < 600
    assert evidence.enhanced == "" or evidence.enhanced[0] in "245"
    assert len(evidence.text) <= len(line)
