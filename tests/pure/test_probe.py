"""Probes in a dialogue: MAIL and RCPT are asked, no content ever follows, and the session serves the next as ever."""

from __future__ import annotations

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
    dialogue.body(2, [b"x\r\n"], is_transparent=True)
    assert taken(dialogue) == b"RSET\r\n" + MAIL + b"RCPT TO:<l2@example.test>\r\nBDAT 3 LAST\r\nx\r\n"


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
