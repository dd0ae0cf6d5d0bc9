from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.model.errors import RemoteProtocolError
from mta.model.reply import REPLY_TEXT_BYTES_MAX, Reply
from mta.smtp.reply import KEPT_BYTES_MAX, LINE_BYTES_MAX, ReplyParser

PIECES = st.sampled_from(
    [
        b"250 ok\r\n",
        b"250-more\r\n",
        b"550 5.1.1 no\n",
        b"354 go\r\n",
        b"421 4",
        b"\r",
        b"\n",
        b"2",
        b"50 x\r\n",
        b"-",
        b"\xff",
        b"999 x\r\n",
    ]
)
OCTETS = st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=30).map(b"".join))


def _fed(chunks: list[bytes]) -> tuple[list[Reply], bool]:
    parser = ReplyParser()
    found: list[Reply] = []
    for chunk in chunks:
        try:
            found += parser.feed(chunk)
        except RemoteProtocolError:
            return found, True
    return found, parser.fault is not None


@given(OCTETS, st.integers(1, 7))
@settings(max_examples=300)
def test_any_octets_give_the_same_replies_however_they_are_cut(octets: bytes, size: int) -> None:
    whole = _fed([octets])
    assert _fed([octets[at : at + size] for at in range(0, len(octets), size)]) == whole
    for reply in whole[0]:
        assert 200 <= reply.code <= 599
        assert len(reply.text.encode()) <= REPLY_TEXT_BYTES_MAX
        assert reply.text.isprintable()
        assert not reply.enhanced or int(reply.enhanced[0]) == reply.code // 100


@given(st.lists(PIECES, max_size=50))
def test_what_is_held_between_calls_is_bounded(pieces: list[bytes]) -> None:
    parser = ReplyParser()
    try:
        for piece in pieces * 40:
            parser.feed(piece)
            assert sum(map(len, parser._lines)) + len(parser._rest) <= KEPT_BYTES_MAX + LINE_BYTES_MAX
    except RemoteProtocolError:
        assert not parser.is_mid_reply
