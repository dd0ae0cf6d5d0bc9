from __future__ import annotations

import itertools

import pytest

from mta.model.errors import LocalFault
from mta.smtp.dialogue import PIPELINED_BODY_BYTES_MAX, Dialogue, Envelope, Kind, Stage, Verdict
from mta.smtp.extensions import Extensions
from tests.support.dialogue_taken import kinds, taken

PIPELINING = Extensions(pipelining=True, size_max=1_000_000)
CHUNKING = Extensions(pipelining=True, chunking=True)
BODY = [b"Subject: x\r\n\r\n", b"hello\r\n"]
GROUP_OK = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n"


def envelope(token: int = 1, recipients: int = 1, size_bytes: int = 0) -> Envelope:
    return Envelope(token, b"news@example.com", tuple(b"r%d@example.test" % n for n in range(recipients)), size_bytes)


def due(dialogue: Dialogue) -> list[int]:
    bodies, dialogue.bodies_due = dialogue.bodies_due, []
    return [each.token for each in bodies]


def opened(extensions: Extensions = PIPELINING, tokens: int = 1, recipients: int = 1, **switches: bool) -> Dialogue:
    dialogue = Dialogue(extensions, **switches)
    for token in range(1, tokens + 1):
        dialogue.offer(envelope(token, recipients))
    return dialogue


def test_a_group_is_one_write_and_no_octet_of_the_body_goes_before_it_is_given() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(envelope(1, recipients=2, size_bytes=42))
    assert len(dialogue.output) == 1
    assert taken(dialogue) == (
        b"MAIL FROM:<news@example.com> SIZE=42\r\nRCPT TO:<r0@example.test>\r\nRCPT TO:<r1@example.test>\r\nDATA\r\n"
    )
    assert dialogue.awaiting is Stage.MAIL
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    assert dialogue.awaiting is None
    assert due(dialogue) == [1]
    assert taken(dialogue) == b""
    dialogue.body(1, BODY, is_transparent=True)
    assert taken(dialogue) == b"Subject: x\r\n\r\nhello\r\n.\r\n"
    assert dialogue.awaiting is Stage.DOT
    dialogue.receive(b"250 2.0.0 queued\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT), (1, 1, Kind.ACCEPTED, Stage.DOT)]
    assert dialogue.is_idle
    assert dialogue.replies_seen == 5


def test_the_next_group_goes_with_the_end_of_a_body_and_no_further() -> None:
    dialogue = opened(tokens=3)
    taken(dialogue)
    dialogue.receive(GROUP_OK)
    assert dialogue.load == 3
    dialogue.body(1, BODY)
    assert taken(dialogue).endswith(
        b"hello\r\n.\r\nMAIL FROM:<news@example.com>\r\nRCPT TO:<r0@example.test>\r\nDATA\r\n"
    )
    dialogue.receive(b"250 queued\r\n" + GROUP_OK)
    assert due(dialogue) == [1, 2]
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT)]


def test_an_envelope_offered_while_the_dot_is_unanswered_goes_at_once() -> None:
    dialogue = opened()
    dialogue.receive(GROUP_OK)
    dialogue.body(1, BODY)
    taken(dialogue)
    dialogue.offer(envelope(2))
    dialogue.offer(envelope(3))
    assert taken(dialogue).count(b"MAIL") == 1


def test_without_pipelining_an_offer_waits_for_the_reply_to_the_dot() -> None:
    dialogue = opened(Extensions())
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        assert taken(dialogue).count(b"\r\n") == 1
        dialogue.receive(reply)
    dialogue.body(1, BODY)
    taken(dialogue)
    dialogue.offer(envelope(2))
    assert taken(dialogue) == b""
    dialogue.receive(b"250 ok\r\n")
    assert taken(dialogue) == b"MAIL FROM:<news@example.com>\r\n"


def test_bdat_goes_with_its_envelope_in_one_write() -> None:
    dialogue = opened(CHUNKING, tokens=2)
    assert taken(dialogue) == b""
    assert due(dialogue) == [1]
    dialogue.body(1, [b".one\n", b"two"])
    assert taken(dialogue) == (
        b"MAIL FROM:<news@example.com>\r\nRCPT TO:<r0@example.test>\r\nBDAT 11 LAST\r\n.one\r\ntwo\r\n"
    )
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    assert dialogue.awaiting is Stage.DOT
    assert due(dialogue) == []
    dialogue.receive(b"451 4.3.0 later\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.REFUSED, Stage.DOT)]
    assert taken(dialogue) == b"RSET\r\n"
    assert (dialogue.awaiting, due(dialogue)) == (Stage.RSET, [])
    dialogue.receive(b"250 flushed\r\n")
    assert due(dialogue) == [2]
    dialogue.body(2, BODY)
    assert taken(dialogue).startswith(b"MAIL")


@pytest.mark.parametrize("offered", [Extensions(chunking=True), PIPELINING, Extensions()])
def test_bdat_needs_chunking_and_pipelining(offered: Extensions) -> None:
    assert b"MAIL" in taken(opened(offered))
    assert b"MAIL" in taken(opened(CHUNKING, chunking=False))


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("pattern", list(itertools.product((True, False), repeat=4)), ids=str)
def test_each_pattern_of_recipient_replies_gives_each_its_own_outcome(
    pattern: tuple[bool, ...], chunking: bool
) -> None:
    dialogue = opened(CHUNKING if chunking else PIPELINING, recipients=len(pattern))
    if chunking:
        dialogue.body(1, BODY)
    taken(dialogue)
    rcpt = b"".join(b"250 ok\r\n" if good else b"550 5.1.1 no\r\n" for good in pattern)
    last = b"" if chunking else b"354 go\r\n"
    dialogue.receive(b"250 ok\r\n" + rcpt + last)
    if not chunking and any(pattern):
        assert due(dialogue) == [1]
        dialogue.body(1, BODY)
    if not chunking:
        assert taken(dialogue) == (b"".join(BODY) if any(pattern) else b"") + b".\r\n"
    dialogue.receive(b"250 queued\r\n" if any(pattern) else b"554 no valid recipients\r\n")
    found = {recipient: kind for _, recipient, kind, _ in kinds(dialogue)}
    assert found == {n: Kind.ACCEPTED if good else Kind.REFUSED for n, good in enumerate(pattern)}
    assert dialogue.is_idle


@pytest.mark.parametrize("failed", range(10))
@pytest.mark.parametrize("reply", [b"550 5.7.1 no\r\n", b"451 4.3.0 later\r\n", b"421 4.3.2 bye\r\n", b""], ids=repr)
def test_in_a_batch_of_ten_the_failed_dot_is_matched_by_order(failed: int, reply: bytes) -> None:
    dialogue = opened(tokens=10)
    dialogue.receive(GROUP_OK)
    for n in range(10):
        dialogue.body(due(dialogue)[0], BODY)
        taken(dialogue)
        if n == failed:
            dialogue.receive(reply) if reply else dialogue.connection_lost("reset")
            if dialogue.is_closed:
                break
            dialogue.receive(GROUP_OK if n < 9 else b"")
        else:
            dialogue.receive(b"250 queued\r\n" + (GROUP_OK if n < 9 else b""))
    found = {token: kind for token, _, kind, _ in kinds(dialogue)}
    is_last = not reply or reply.startswith(b"421")
    expected = dict.fromkeys(range(1, 11), Kind.ACCEPTED)
    expected[failed + 1] = Kind.REFUSED if reply else Kind.IN_DOUBT
    if is_last:
        expected |= dict.fromkeys(range(failed + 2, 11), Kind.NOT_ATTEMPTED)
    assert found == expected


LOSSES = [
    (b"", Kind.NOT_ATTEMPTED, Stage.MAIL),
    (b"250 ok\r\n", Kind.NOT_ATTEMPTED, Stage.RCPT),
    (b"250 ok\r\n250 ok\r\n", Kind.NOT_ATTEMPTED, Stage.DATA),
    (GROUP_OK, Kind.NOT_ATTEMPTED, Stage.BODY),
    (GROUP_OK + b"body", Kind.IN_DOUBT, Stage.DOT),
    (GROUP_OK + b"body250 ", Kind.IN_DOUBT, Stage.DOT),
]


@pytest.mark.parametrize(("course", "kind", "stage"), LOSSES)
@pytest.mark.parametrize("how", ["lost", "timed out"])
def test_what_a_lost_link_means_at_each_stage(course: bytes, kind: Kind, stage: Stage, how: str) -> None:
    dialogue = opened(tokens=2)
    replies, is_body, partial = course.partition(b"body")
    dialogue.receive(replies)
    if is_body:
        dialogue.body(1, BODY)
        dialogue.receive(partial)
    taken(dialogue)
    if how == "lost":
        dialogue.connection_lost("reset by peer")
    else:
        dialogue.timed_out()
    second = (2, 0, Kind.NOT_ATTEMPTED, Stage.MAIL if is_body else Stage.IDLE)
    assert kinds(dialogue) == [(1, 0, kind, stage), second]
    assert dialogue.is_closed
    assert dialogue.closing_cause
    dialogue.body(1, BODY)  # the caller may not know yet
    dialogue.receive(b"250 late\r\n")
    dialogue.connection_lost("again")
    assert (taken(dialogue), kinds(dialogue)) == (b"", [])


def test_output_that_was_never_taken_is_not_in_doubt() -> None:
    dialogue = opened()
    dialogue.receive(GROUP_OK)
    taken(dialogue)
    dialogue.body(1, BODY)
    dialogue.connection_lost("reset")
    assert kinds(dialogue) == [(1, 0, Kind.NOT_ATTEMPTED, Stage.BODY)]


@pytest.mark.parametrize(("unsent_bytes", "kind"), [(0, Kind.IN_DOUBT), (1, Kind.NOT_ATTEMPTED)])
def test_unsent_octets_prove_that_the_dot_of_a_large_body_did_not_leave(unsent_bytes: int, kind: Kind) -> None:
    dialogue = opened(tokens=2)
    dialogue.receive(GROUP_OK)
    dialogue.body(1, [b"x" * PIPELINED_BODY_BYTES_MAX + b"\r\n"], is_transparent=True)
    dialogue.offer(envelope(3))
    assert taken(dialogue).endswith(b"\r\n.\r\n")  # nothing behind it
    dialogue.connection_lost("reset", unsent_bytes)
    assert kinds(dialogue)[0][2] is kind


def test_unsent_octets_of_the_next_group_prove_nothing() -> None:
    dialogue = opened(tokens=2)
    dialogue.receive(GROUP_OK)
    dialogue.body(1, BODY)
    group = taken(dialogue).partition(b".\r\n")[2]
    dialogue.connection_lost("reset", len(group))
    assert kinds(dialogue)[0][2] is Kind.IN_DOUBT


def test_recall_takes_back_only_what_is_not_begun() -> None:
    dialogue = opened(tokens=4)
    dialogue.recall({1, 3})
    assert kinds(dialogue) == [(3, 0, Kind.NOT_ATTEMPTED, Stage.IDLE)]
    dialogue.recall()
    assert [token for token, *_ in kinds(dialogue)] == [2, 4]
    assert dialogue.load == 1


def test_quit_comes_after_what_is_under_way() -> None:
    dialogue = opened(tokens=2)
    taken(dialogue)
    dialogue.quit()
    dialogue.quit()
    assert kinds(dialogue) == [(2, 0, Kind.NOT_ATTEMPTED, Stage.IDLE)]
    dialogue.offer(envelope(3))
    assert kinds(dialogue) == [(3, 0, Kind.NOT_ATTEMPTED, Stage.IDLE)]
    dialogue.receive(GROUP_OK)
    dialogue.body(1, BODY)
    assert b"QUIT" not in taken(dialogue)
    dialogue.receive(b"250 queued\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT)]
    assert taken(dialogue) == b"QUIT\r\n"
    assert dialogue.awaiting is Stage.QUIT
    dialogue.receive(b"221 bye\r\n")
    assert dialogue.is_closed
    assert dialogue.closing_cause == ""


@pytest.mark.parametrize("chunking", [False, True])
def test_quit_while_a_body_is_due_waits_for_it(chunking: bool) -> None:
    dialogue = opened(CHUNKING if chunking else PIPELINING)
    if not chunking:
        dialogue.receive(GROUP_OK)
    dialogue.quit()
    taken(dialogue)
    dialogue.body(1, BODY)
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 queued\r\n" if chunking else b"250 queued\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT)]
    assert taken(dialogue).endswith(b"QUIT\r\n")


def test_octets_that_are_not_owed_never_become_the_start_of_an_answer() -> None:
    idle = Dialogue(PIPELINING)
    idle.receive(b"250 forg")
    idle.offer(envelope())
    assert taken(idle) == b""
    assert kinds(idle) == [(1, 0, Kind.NOT_ATTEMPTED, Stage.IDLE)]
    before_body = opened()
    before_body.receive(GROUP_OK)
    taken(before_body)
    before_body.receive(b"250 forg")
    before_body.body(1, BODY)
    assert taken(before_body) == b""
    assert kinds(before_body) == [(1, 0, Kind.NOT_ATTEMPTED, Stage.BODY)]


def test_octets_that_follow_the_last_owed_reply_are_ahead_of_the_next_command() -> None:
    dialogue = opened(Extensions())
    dialogue.receive(b"250 ok\r\n250 for")  # RCPT is not on the wire yet
    assert dialogue.is_closed
    assert taken(dialogue) == b""
    assert kinds(dialogue) == [(1, 0, Kind.NOT_ATTEMPTED, Stage.RCPT)]


def test_421_to_rset_in_front_of_bdat_leaves_no_doubt() -> None:
    dialogue = opened(CHUNKING, tokens=2)
    dialogue.body(1, BODY)
    dialogue.receive(b"250 ok\r\n250 ok\r\n554 5.7.1 no\r\n")
    assert taken(dialogue).endswith(b"RSET\r\n")
    assert dialogue.awaiting is Stage.RSET
    dialogue.receive(b"421 4.3.2 bye\r\n")
    assert [kind for _, _, kind, _ in kinds(dialogue)] == [Kind.REFUSED, Kind.NOT_ATTEMPTED]


def test_421_while_idle_is_an_orderly_end_with_its_reply_as_the_cause() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.receive(b"421 4.4.2 idle too long\r\n")
    assert dialogue.is_closed
    assert "idle too long" in dialogue.closing_cause


def test_the_limit_of_recipients_is_learnt_from_the_server() -> None:
    dialogue = opened(recipients=3)
    dialogue.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n452 4.5.3 too many\r\n354 go\r\n")
    verdict: Verdict = dialogue.verdicts[0]
    assert (verdict.recipient, verdict.kind, verdict.cause) == (2, Kind.NOT_ATTEMPTED, "too many recipients")
    assert dialogue.recipients_max == 2
    dialogue.verdicts.clear()
    dialogue.body(1, BODY)
    dialogue.offer(envelope(2, recipients=3))
    assert taken(dialogue).count(b"RCPT") == 2 + 3
    assert kinds(dialogue) == [(2, 2, Kind.NOT_ATTEMPTED, Stage.RCPT)]


@pytest.mark.parametrize(
    "bad",
    [
        Envelope(1, b"a@example.com>\r\nRCPT TO:<x", (b"b@example.test",)),
        Envelope(1, b"a@example.com", (b"b@example.test\nDATA",)),
        Envelope(1, b"a@example.com", (b"b\x00@example.test",)),
        Envelope(1, b"a@example.com", (b"",)),
        Envelope(1, b"a@example.com", ()),
    ],
)
def test_an_envelope_that_would_break_the_command_line_never_reaches_it(bad: Envelope) -> None:
    dialogue = Dialogue(PIPELINING)
    with pytest.raises(LocalFault):
        dialogue.offer(bad)
    assert taken(dialogue) == b""


def test_a_body_that_is_not_due_is_our_own_fault() -> None:
    dialogue = opened()
    with pytest.raises(LocalFault):
        dialogue.body(1, BODY)
    dialogue.receive(GROUP_OK)
    with pytest.raises(LocalFault):
        dialogue.body(2, BODY)
