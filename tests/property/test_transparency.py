from __future__ import annotations

import re
from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.smtp.transparency import normalise, stuff

# Small alphabet: what matters is where CR, LF and dots meet the cuts.
BODIES = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b"\n.\r\n", b"bc", b""]), max_size=24)


def _expected(body: bytes) -> bytes:
    """The rule, said once more and slowly: for the whole body, without cuts."""
    text = re.sub(rb"\r\n|\r|\n", b"\n", body)
    if not text:
        return b""
    lines = text.removesuffix(b"\n").split(b"\n")
    return b"".join(line + b"\r\n" for line in lines)


def _received(octets: bytes) -> tuple[bytes, bytes]:
    """What the strictest server makes of it: the message, and what it would take for commands."""
    if octets.startswith(b".\r\n"):
        return b"", octets[3:]
    message, _, rest = octets.partition(b"\r\n.\r\n")
    lines = (message + b"\r\n").split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines), rest


@given(BODIES)
@settings(max_examples=400)
@example([b"\r", b"\n."])
@example([b"\r", b"", b"\n", b".\r\n"])
@example([b"a\n.\nMAIL FROM:<b@example.com>\n"])
@example([b"a\r.\r"])
def test_any_body_cut_anywhere_arrives_as_its_lines_and_nothing_else(segments: list[bytes]) -> None:
    octets = b"".join(stuff(segments)) + b".\r\n"
    message, rest = _received(octets)
    assert message == _expected(b"".join(segments))
    assert rest == b""
    # No server, however lenient about line ends, can see an end before the end.
    assert re.search(rb"(?:^|[\r\n])\.[\r\n]", octets[:-3]) is None
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")


@given(BODIES)
def test_bdat_gets_the_same_lines_without_dots_stuffed(segments: list[bytes]) -> None:
    assert b"".join(normalise(segments)) == _expected(b"".join(segments))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_cuts_make_no_difference(body: bytes, at: int) -> None:
    assert b"".join(stuff([body[:at], body[at:]])) == b"".join(stuff([body]))


# Dots at line starts of every kind of line end, doubled, alone, in a row, first and last.
_BODY = b".\r\n..\r\n.x\r\na.\r\n\r\n.\r\nb\n.\nc\r.\r\r\n\n.d\n\r\n."
_STUFFED = b"..\r\n...\r\n..x\r\na.\r\n\r\n..\r\nb\r\n..\r\nc\r\n..\r\n\r\n\r\n..d\r\n\r\n..\r\n"


def test_every_cut_into_two_or_three_segments_gives_the_same_octets() -> None:
    for first, second in combinations(range(len(_BODY) + 1), 2):
        segments = [_BODY[:first], _BODY[first:second], _BODY[second:]]
        assert b"".join(stuff(segments)) == _STUFFED, segments
        assert b"".join(normalise(segments)) == re.sub(rb"(?m)^\.", b"", _STUFFED), segments


def test_single_octets_with_nothing_between_them_give_the_same_octets() -> None:
    segments = [piece for octet in _BODY for piece in (bytes([octet]), b"")]
    assert b"".join(stuff(segments)) == _STUFFED


def test_segments_in_good_order_are_handed_back_uncopied() -> None:
    segments = [b"Subject: x\r\n\r\n", b"one\r\ntwo", b" three\r\n"]
    assert all(given is back for given, back in zip(segments, stuff(segments), strict=True))
