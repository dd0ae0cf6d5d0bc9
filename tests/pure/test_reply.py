from __future__ import annotations

import time

import pytest

from mta.model.errors import RemoteProtocolError
from mta.model.reply import REPLY_TEXT_BYTES_MAX, Reply
from mta.smtp import reply as module
from mta.smtp.reply import (
    CACHED_LINES_MAX,
    KEPT_BYTES_MAX,
    KEPT_LINES_MAX,
    LINE_BYTES_MAX,
    REPLY_BYTES_MAX,
    REPLY_LINES_MAX,
    ReplyParser,
)

GOOD = [
    (b"250 ok\r\n", Reply(250, "ok")),
    (b"250 ok\n", Reply(250, "ok")),
    (b"250\r\n", Reply(250)),
    (b"250 \r\n", Reply(250)),
    (b"250 2.1.0 ok\r\n", Reply(250, "ok", "2.1.0")),
    (b"250 2.1.0\r\n", Reply(250, "", "2.1.0")),
    (b"550 5.7.515 not you\r\n", Reply(550, "not you", "5.7.515")),
    (b"550 2.1.0 class of another code\r\n", Reply(550, "2.1.0 class of another code")),
    (b"421 4.7.0x glued\r\n", Reply(421, "4.7.0x glued")),
    (b"550 5.1.1.1 four numbers\r\n", Reply(550, "5.1.1.1 four numbers")),
    (b"550 5.1234.1 too long a number\r\n", Reply(550, "5.1234.1 too long a number")),
    (b"354 go\r\n", Reply(354, "go")),
    (b"299 the second digit may be any\r\n", Reply(299, "the second digit may be any")),
    (b"250-one\r\n250 two\r\n", Reply(250, "one two")),
    (b"250-\r\n250 two\r\n", Reply(250, "two")),
    (b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n", Reply(550, "one two three", "5.7.1")),
    (b"550-5.7.1 one\r\n550 5.7.2 two\r\n", Reply(550, "one 5.7.2 two", "5.7.1")),
    (b"550-one\n550 two\r\n", Reply(550, "one two")),
    (b"550 \x1b[2Jx\x00\x07\r\n", Reply(550, "\\x1b[2Jx\\x00\\x07")),
    (b"550 lone\rCR\r\n", Reply(550, "lone\\rCR")),
    (b"550 \xff\xfe caf\xc3\xa9\r\n", Reply(550, "\\xff\\xfe café")),
    ("550 \u202egnp\u2028\r\n".encode(), Reply(550, "\\u202egnp\\u2028")),
]

BAD = [
    b"hello\r\n",
    b"\r\n",
    b"25\r\n",
    b"2500 ok\r\n",
    b"999 ok\r\n",
    b"150 ok\r\n",
    b"050 ok\r\n",
    b"+50 ok\r\n",
    b"25a ok\r\n",
    b" 250 ok\r\n",
    b"250\tok\r\n",
    b"250_ok\r\n",
    b"\xb2\xb5\xb0 ok\r\n",
    b"250-one\r\n251 two\r\n",
    b"250-one\r\ntwo\r\n",
    b"x" * (LINE_BYTES_MAX + 1),
    b"250 " + b"x" * REPLY_BYTES_MAX + b"\r\n",
    b"250-x\r\n" * (REPLY_LINES_MAX + 1),
    (b"250-" + b"x" * 4000 + b"\r\n") * 270,
]


@pytest.mark.parametrize(("octets", "expected"), GOOD)
def test_reply_is_read_whole_and_octet_by_octet(octets: bytes, expected: Reply) -> None:
    assert ReplyParser().feed(octets) == [expected]
    parser = ReplyParser()
    found = [reply for at in range(len(octets)) for reply in parser.feed(octets[at : at + 1])]
    assert found == [expected]
    assert not parser.is_mid_reply


@pytest.mark.parametrize("octets", BAD, ids=lambda octets: repr(octets[:16]))
def test_what_is_no_reply_breaks_the_parser_for_good(octets: bytes) -> None:
    parser = ReplyParser()
    with pytest.raises(RemoteProtocolError):
        parser.feed(octets)
    with pytest.raises(RemoteProtocolError):
        parser.feed(b"250 ok\r\n")


def test_replies_before_a_fault_are_not_lost() -> None:
    parser = ReplyParser()
    assert parser.feed(b"250 a\r\n250 b\r\nnonsense\r\n250 c\r\n") == [Reply(250, "a"), Reply(250, "b")]
    assert parser.fault is not None
    with pytest.raises(RemoteProtocolError):
        parser.feed(b"")


def test_a_line_seen_before_is_not_taken_for_a_whole_reply_inside_another() -> None:
    parser = ReplyParser()
    parser.feed(b"250 ok\r\n250 ok\r\n")
    assert parser.feed(b"250-first\r\n250 ok\r\n") == [Reply(250, "first ok")]
    with pytest.raises(RemoteProtocolError):
        parser.feed(b"550-first\r\n250 ok\r\n")


def test_many_replies_in_one_segment_keep_their_order() -> None:
    replies = ReplyParser().feed(b"".join(b"250 %d\r\n" % n for n in range(1000)))
    assert [reply.text for reply in replies] == [str(n) for n in range(1000)]


def test_remembered_lines_are_bounded() -> None:
    parser = ReplyParser()
    for n in range(5 * CACHED_LINES_MAX):
        parser.feed(b"250 queued as %d\r\n" % n)
    assert len(module._young) + len(module._old) <= 2 * CACHED_LINES_MAX
    before = len(module._young)
    parser.feed(b"250 " + b"x" * 1000 + b"\r\n")
    assert len(module._young) == before


def test_text_is_cut_by_octets_not_in_the_middle_of_a_character() -> None:
    [reply] = ReplyParser().feed(b"550-" + "é".encode() * 900 + b"\r\n550 " + "é".encode() * 900 + b"\r\n")
    assert REPLY_TEXT_BYTES_MAX - 2 <= len(reply.text.encode()) <= REPLY_TEXT_BYTES_MAX
    assert set(reply.text) == {"é", " "}


def test_an_endless_reply_holds_no_more_than_its_caps() -> None:
    parser = ReplyParser()
    chunk = b"250-endless\r\n" * 10
    while parser.fault is None:
        try:
            parser.feed(chunk)
        except RemoteProtocolError:
            break
        assert sum(map(len, parser._lines)) <= KEPT_BYTES_MAX
        assert len(parser._lines) <= KEPT_LINES_MAX
    assert parser.fault is not None
    assert not parser.is_mid_reply


LONG = [
    b"550-5.7.1 no\r\n" * (KEPT_LINES_MAX + 1) + b"550 5.7.1 end\r\n",
    b"550-5.7.1 no\r\n" * (REPLY_LINES_MAX - 1) + b"550 5.7.1 end\r\n",
    (b"550-5.7.1 " + b"x" * 4_000 + b"\r\n") * 200 + b"550 5.7.1 end\r\n",
    b"550 5.7.1 " + b"x" * (REPLY_BYTES_MAX - 100) + b"\r\n",
    b"550-5.7.1 " + b"x" * 500_000 + b"\r\n550 5.7.1 " + b"y" * 500_000 + b"\n",
]


@pytest.mark.parametrize("octets", LONG, ids=lambda octets: f"{octets.count(10)} lines of {len(octets)}")
@pytest.mark.parametrize("step", [333, 8_191, 8_192, 8_193, 1 << 21])
def test_of_a_long_reply_the_code_and_the_first_of_the_text_are_taken(octets: bytes, step: int) -> None:
    parser = ReplyParser()
    found: list[Reply] = []
    for at in range(0, len(octets), step):
        found += parser.feed(octets[at : at + step])
        assert sum(map(len, parser._lines)) + len(parser._rest) <= KEPT_BYTES_MAX + LINE_BYTES_MAX
    [reply] = found
    assert (reply.code, reply.enhanced) == (550, "5.7.1")
    assert 0 < len(reply.text.encode()) <= REPLY_TEXT_BYTES_MAX
    assert not parser.is_mid_reply
    assert parser.feed(b"250 ok\r\n") == [Reply(250, "ok")]


def test_a_long_reply_takes_time_in_proportion_to_its_length() -> None:
    parser = ReplyParser()
    began_s = time.process_time()
    parser.feed(b"250 ")
    for _ in range(REPLY_BYTES_MAX // 2):
        assert parser.feed(b"x") == []
    assert [reply.code for reply in parser.feed(b"\r\n")] == [250]
    # Half a megabyte octet by octet; by copying what came before it would be some minutes.
    assert time.process_time() - began_s < 10
