"""Probes in a dialogue: MAIL and RCPT are asked, no content ever follows, and the session serves the next as ever."""

from __future__ import annotations

import msgspec
import pytest

from mta.smtp.dialogue import Dialogue, Kind, Stage
from mta.smtp.envelope import Envelope, Probe
from mta.smtp.extensions import Extensions
from tests.support.dialogue_taken import kinds, taken

PIPELINING = Extensions(pipelining=True, size_max=1_000_000)
CHUNKING = Extensions(pipelining=True, chunking=True)
LOCKSTEP = Extensions()
MAIL = b"MAIL FROM:<news@example.com>\r\n"


def probe(token: int = 1, recipients: int = 1) -> Probe:
    return Probe(token, b"news@example.com", tuple(b"r%d@example.test" % n for n in range(recipients)))


def letter(token: int) -> Envelope:
    return Envelope(token, b"news@example.com", (b"l%d@example.test" % token,))


@pytest.mark.parametrize("extensions", [PIPELINING, CHUNKING], ids=["pipelining", "chunking"])
def test_probes_follow_one_another_with_a_reset_between_and_no_content(extensions: Extensions) -> None:
    dialogue = Dialogue(extensions)
    dialogue.offer(probe(1, recipients=2))
    dialogue.offer(probe(2))
    assert taken(dialogue) == MAIL + b"RCPT TO:<r0@example.test>\r\nRCPT TO:<r1@example.test>\r\n"
    dialogue.receive(b"250 ok\r\n250 2.1.5 ok\r\n550 5.1.1 unknown\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.PROBED, Stage.RCPT), (1, 1, Kind.REFUSED, Stage.RCPT)]
    assert taken(dialogue) == b"RSET\r\n" + MAIL + b"RCPT TO:<r0@example.test>\r\n"
    dialogue.quit()
    dialogue.receive(b"250 reset\r\n250 ok\r\n451 4.7.1 later\r\n")
    assert kinds(dialogue) == [(2, 0, Kind.REFUSED, Stage.RCPT)]
    assert taken(dialogue) == b"QUIT\r\n"
    assert dialogue.bodies_due == []


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    dialogue = Dialogue(LOCKSTEP)
    dialogue.offer(probe(1))
    dialogue.offer(letter(2))
    said = [taken(dialogue)]
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"250 reset\r\n", b"250 ok\r\n", b"250 ok\r\n"):
        dialogue.receive(reply)
        said.append(taken(dialogue))
    assert said == [
        MAIL,
        b"RCPT TO:<r0@example.test>\r\n",
        b"RSET\r\n",
        MAIL,
        b"RCPT TO:<l2@example.test>\r\n",
        b"DATA\r\n",
    ]
    assert kinds(dialogue) == [(1, 0, Kind.PROBED, Stage.RCPT)]


def test_a_letter_behind_a_probe_is_sent_and_a_probe_may_stand_behind_its_dot() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(letter(1))
    dialogue.offer(probe(2))
    dialogue.offer(letter(3))
    taken(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.body(1, [b"x\r\n"], is_transparent=True)
    assert taken(dialogue) == b"x\r\n.\r\n" + MAIL + b"RCPT TO:<r0@example.test>\r\n"
    dialogue.receive(b"250 queued\r\n250 ok\r\n250 ok\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT), (2, 0, Kind.PROBED, Stage.RCPT)]
    assert taken(dialogue) == b"RSET\r\n" + MAIL + b"RCPT TO:<l3@example.test>\r\nDATA\r\n"
    dialogue.receive(b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.bodies_due.clear()
    dialogue.body(3, [b"x\r\n"], is_transparent=True)
    dialogue.receive(b"250 queued\r\n")
    assert kinds(dialogue) == [(3, 0, Kind.ACCEPTED, Stage.DOT)]
    assert dialogue.is_idle


def test_a_letter_in_chunks_behind_a_probe_resets_first() -> None:
    dialogue = Dialogue(CHUNKING)
    dialogue.offer(probe(1))
    dialogue.offer(letter(2))
    taken(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    assert taken(dialogue) == b"RSET\r\n"
    dialogue.receive(b"250 flushed\r\n")
    dialogue.body(2, [b"x\r\n"], is_transparent=True)
    assert taken(dialogue) == MAIL + b"RCPT TO:<l2@example.test>\r\nBDAT 3 LAST\r\nx\r\n"


def test_a_refused_mail_refuses_the_probe_and_needs_no_reset() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1))
    dialogue.offer(probe(2))
    taken(dialogue)
    dialogue.receive(b"550 5.7.1 no\r\n503 no MAIL\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.REFUSED, Stage.MAIL)]
    assert taken(dialogue) == MAIL + b"RCPT TO:<r0@example.test>\r\n"


def test_a_link_that_ends_leaves_a_probe_not_attempted_never_in_doubt() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1, recipients=2))
    taken(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n")
    dialogue.connection_lost("reset by peer")
    assert kinds(dialogue) == [(1, 0, Kind.PROBED, Stage.RCPT), (1, 1, Kind.NOT_ATTEMPTED, Stage.RCPT)]


@pytest.mark.parametrize("said", [b"452 4.5.3 too many", b"452 too many recipients", b"552 too many recipients"])
def test_what_a_server_takes_in_one_transaction_is_kept_from_then_on(said: bytes) -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1, recipients=4))
    taken(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n550 5.1.1 unknown\r\n250 ok\r\n" + said + b"\r\n")
    assert kinds(dialogue) == [
        (1, 0, Kind.PROBED, Stage.RCPT),
        (1, 1, Kind.REFUSED, Stage.RCPT),
        (1, 2, Kind.PROBED, Stage.RCPT),
        (1, 3, Kind.NOT_ATTEMPTED, Stage.RCPT),
    ]
    assert dialogue.recipients_max == 2
    dialogue.offer(probe(2, recipients=3))
    assert taken(dialogue).count(b"RCPT") == 2
    assert kinds(dialogue) == [(2, 2, Kind.NOT_ATTEMPTED, Stage.RCPT)]


def test_it_falls_and_never_rises() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1, recipients=4))
    dialogue.receive(b"250 ok\r\n250 ok\r\n452 too many\r\n250 ok\r\n452 too many\r\n")
    assert dialogue.recipients_max == 1


@pytest.mark.parametrize("said", [b"452 4.2.2 over quota", b"552 5.2.2 mailbox full", b"452 4.3.1 no storage"])
def test_a_refusal_that_says_what_it_is_belongs_to_its_recipient(said: bytes) -> None:
    """By itself, at the head of a transaction, it would have been one too."""
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1, recipients=3))
    dialogue.receive(b"250 ok\r\n250 ok\r\n" + said + b"\r\n250 ok\r\n")
    assert [kind for _, _, kind, _ in kinds(dialogue)] == [Kind.PROBED, Kind.REFUSED, Kind.PROBED]
    assert dialogue.recipients_max is None


def test_a_421_in_the_middle_decides_who_has_no_answer_yet() -> None:
    dialogue = Dialogue(PIPELINING)
    dialogue.offer(probe(1, recipients=3))
    dialogue.receive(b"250 ok\r\n250 ok\r\n421 4.7.0 enough\r\n")
    assert kinds(dialogue) == [
        (1, 0, Kind.PROBED, Stage.RCPT),
        (1, 1, Kind.REFUSED, Stage.RCPT),
        (1, 2, Kind.REFUSED, Stage.RCPT),
    ]
    assert dialogue.is_closed


@pytest.mark.parametrize("extensions", [PIPELINING, LOCKSTEP], ids=["pipelining", "lockstep"])
def test_a_session_names_no_more_domains_than_the_server_allows(extensions: Extensions) -> None:
    """RFC 9422 §4.3: in a session, whatever the transactions."""
    dialogue = Dialogue(msgspec.structs.replace(extensions, rcpt_domain_max=2))
    dialogue.offer(
        Probe(1, b"news@example.com", (b"a@One.test", b"b@two.test", b"c@one.test", b"d@three.test", b"e@one.test"))
    )
    said = b""
    for _ in range(4):
        said += taken(dialogue)
        dialogue.receive(b"250 ok\r\n")
    assert said.count(b"RCPT") == 3
    assert sorted(kinds(dialogue)) == [
        *[(1, index, Kind.PROBED, Stage.RCPT) for index in range(3)],
        *[(1, index, Kind.NOT_ATTEMPTED, Stage.RCPT) for index in (3, 4)],
    ]
    # Domains that were named may be named again; another ends the session.
    dialogue.offer(Probe(2, b"news@example.com", (b"f@TWO.test",)))
    dialogue.offer(Probe(3, b"news@example.com", (b"g@three.test",)))
    for _ in range(3):
        taken(dialogue)
        dialogue.receive(b"250 ok\r\n")
    assert sorted(kinds(dialogue)) == [
        (2, 0, Kind.PROBED, Stage.RCPT),
        (3, 0, Kind.NOT_ATTEMPTED, Stage.IDLE),
    ]
    assert taken(dialogue) == b"QUIT\r\n"
