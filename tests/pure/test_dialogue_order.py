"""What a dialogue learns of its host from replies about order, from silence and from RSET; and how it is left."""

from __future__ import annotations

import pytest

from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.dialogue import Dialogue, Envelope, Kind, Stage
from mta.smtp.extensions import Extensions
from mta.smtp.order import is_about_order
from tests.support.dialogue_taken import kinds, taken

PIPELINING = Extensions(pipelining=True)
CHUNKING = Extensions(pipelining=True, chunking=True)
BODY = [b"Subject: x\r\n\r\n", b"hello\r\n"]
GROUP_OK = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n"
DISORDER = b"503 5.5.1 bad sequence\r\n" * 3


def opened(extensions: Extensions = PIPELINING, tokens: int = 2, **switches: bool | int) -> Dialogue:
    dialogue = Dialogue(extensions, **switches)  # type: ignore[arg-type]
    for token in range(1, tokens + 1):
        dialogue.offer(Envelope(token, b"news@example.com", (b"r%d@example.test" % token,)))
    return dialogue


def body(dialogue: Dialogue) -> None:
    [due], dialogue.bodies_due = dialogue.bodies_due, []
    dialogue.body(due.token, BODY)


def facts(dialogue: Dialogue) -> list[tuple[HostFact, int]]:
    found, dialogue.observations = dialogue.observations, []
    return [(one.fact, one.value) for one in found]


@pytest.mark.parametrize(
    ("reply", "is_of_order"),
    [
        (Reply(503), True),
        (Reply(503, "bad sequence of commands", "5.5.1"), True),
        (Reply(550, "nested MAIL command", "5.5.1"), True),
        (Reply(554, "need MAIL first"), True),
        (Reply(502, "sender already specified", "5.5.1"), True),
        (Reply(550, "no such user", "5.1.1"), False),
        (Reply(550, "mail from you is refused", "5.7.1"), False),
        (Reply(554, "send mail first to postmaster", "5.7.1"), False),
        (Reply(451, "bad sequence"), False),
        (Reply(250, "nested MAIL"), False),
    ],
)
def test_replies_about_order_are_known_by_code_or_text(reply: Reply, is_of_order: bool) -> None:
    assert is_about_order(reply) is is_of_order


def test_a_host_that_refuses_what_comes_with_the_end_of_a_message_gets_it_later() -> None:
    dialogue = opened(tokens=3)
    dialogue.receive(GROUP_OK)
    body(dialogue)
    taken(dialogue)
    dialogue.receive(b"250 queued\r\n" + DISORDER)
    assert facts(dialogue) == [(HostFact.NO_PIPELINING_BEHIND_END, 0)]
    assert taken(dialogue) == b"RSET\r\n"
    dialogue.receive(b"250 flushed\r\n")
    assert taken(dialogue).count(b"\r\n") == 3  # a group still: only what stood behind the end is left
    dialogue.receive(GROUP_OK)
    body(dialogue)
    assert taken(dialogue).endswith(b"hello\r\n.\r\n")
    dialogue.receive(b"250 queued\r\n")
    assert [token for token, _, kind, _ in kinds(dialogue) if kind is Kind.ACCEPTED] == [1, 2]


def test_a_host_that_refuses_a_group_is_asked_command_by_command() -> None:
    dialogue = opened(tokens=1)
    taken(dialogue)
    dialogue.receive(DISORDER)
    assert facts(dialogue) == [(HostFact.NO_PIPELINING, 0)]
    for said in (b"RSET\r\n", b"MAIL FROM:<news@example.com>\r\n", b"RCPT TO:<r1@example.test>\r\n", b"DATA\r\n"):
        assert taken(dialogue) == said
        dialogue.receive(b"354 go\r\n" if said == b"DATA\r\n" else b"250 ok\r\n")
    body(dialogue)
    dialogue.receive(b"250 queued\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.ACCEPTED, Stage.DOT)]


def test_a_transaction_that_is_kept_after_a_refusal_says_nothing_of_pipelining() -> None:
    dialogue = opened()
    dialogue.receive(GROUP_OK)
    body(dialogue)
    taken(dialogue)
    dialogue.receive(b"550 5.7.1 content\r\n" + DISORDER)
    assert facts(dialogue) == []
    assert taken(dialogue) == b"RSET\r\n"


def test_a_second_reply_about_order_gives_back_and_ends_the_session() -> None:
    dialogue = opened(tokens=3)
    dialogue.receive(GROUP_OK)
    body(dialogue)
    dialogue.receive(b"250 queued\r\n" + DISORDER)
    dialogue.receive(b"250 flushed\r\n")
    taken(dialogue)
    dialogue.receive(DISORDER)
    assert facts(dialogue) == [(HostFact.NO_PIPELINING_BEHIND_END, 0), (HostFact.NO_PIPELINING, 0)]
    assert [(token, kind) for token, _, kind, _ in kinds(dialogue)] == [
        (1, Kind.ACCEPTED),
        (2, Kind.NOT_ATTEMPTED),
        (3, Kind.NOT_ATTEMPTED),
    ]
    assert taken(dialogue) == b"QUIT\r\n"


def test_a_refused_bdat_is_not_attempted_and_told() -> None:
    dialogue = opened(CHUNKING)
    body(dialogue)
    taken(dialogue)
    dialogue.receive(b"250 ok\r\n250 ok\r\n503 5.5.1 no BDAT here\r\n")
    assert facts(dialogue) == [(HostFact.NO_CHUNKING, 0)]
    [verdict] = dialogue.verdicts
    assert (verdict.kind, verdict.reply) == (Kind.NOT_ATTEMPTED, Reply(503, "no BDAT here", "5.5.1"))
    dialogue.receive(b"250 flushed\r\n")
    assert taken(dialogue).endswith(b"DATA\r\n")


def test_what_a_host_did_with_a_command_it_refused_is_in_doubt_when_it_takes_what_came_behind() -> None:
    dialogue = opened(CHUNKING, tokens=1)
    body(dialogue)
    dialogue.receive(b"503 5.5.1 nested\r\n250 ok\r\n250 queued\r\n")
    assert kinds(dialogue) == [(1, 0, Kind.IN_DOUBT, Stage.DOT)]


def test_nothing_goes_with_the_end_of_a_message_where_the_host_does_not_bear_it() -> None:
    dialogue = opened(pipelines_behind_end=False)
    dialogue.receive(GROUP_OK)
    body(dialogue)
    assert taken(dialogue).endswith(b"hello\r\n.\r\n")
    dialogue.receive(b"250 queued\r\n")
    assert taken(dialogue).startswith(b"MAIL")


def test_commands_that_are_lost_behind_an_end_cost_no_message() -> None:
    dialogue = opened()
    dialogue.receive(GROUP_OK)
    body(dialogue)
    assert not dialogue.is_behind_end  # the dot itself is waited for
    dialogue.receive(b"250 queued\r\n")
    assert dialogue.is_behind_end
    dialogue.silent_behind_end()
    assert facts(dialogue) == [(HostFact.NO_PIPELINING_BEHIND_END, 0)]
    assert [(token, kind) for token, _, kind, _ in kinds(dialogue)] == [(1, Kind.ACCEPTED), (2, Kind.NOT_ATTEMPTED)]
    assert dialogue.is_closed


@pytest.mark.parametrize("end", ["554 5.5.0 too many nonmail commands", "421 4.7.0 too many errors", "lost"])
def test_how_many_rsets_a_host_takes_is_told(end: str) -> None:
    dialogue = opened(tokens=4)
    for _ in range(3):
        taken(dialogue)
        if dialogue.awaiting is Stage.RSET:
            dialogue.receive(b"250 flushed\r\n")
        dialogue.receive(b"250 ok\r\n550 5.1.1 unknown\r\n554 no valid recipients\r\n")
    assert dialogue.awaiting is Stage.RSET
    dialogue.connection_lost("reset") if end == "lost" else dialogue.receive(end.encode() + b"\r\n")
    assert facts(dialogue) == [(HostFact.RESETS, 2)]


def test_a_first_rset_that_is_refused_says_nothing_of_their_number() -> None:
    dialogue = opened()
    dialogue.receive(b"250 ok\r\n550 5.1.1 unknown\r\n554 no valid recipients\r\n502 not implemented\r\n")
    dialogue.receive(GROUP_OK)
    assert facts(dialogue) == []


@pytest.mark.parametrize("extensions", [PIPELINING, CHUNKING, Extensions()])
def test_a_host_that_takes_no_rset_gets_none(extensions: Extensions) -> None:
    dialogue = opened(extensions, resets_max=0)
    if extensions.chunking:
        body(dialogue)
    dialogue.receive(b"550 5.7.1 no\r\n")
    dialogue.receive(b"503 x\r\n503 x\r\n" if extensions.pipelining else b"")
    said = taken(dialogue)
    assert b"RSET" not in said
    assert b"QUIT" in said or b"MAIL" in said


def test_who_leaves_sends_no_body_more_and_waits_for_the_reply_that_is_owed() -> None:
    dialogue = opened(tokens=3)
    dialogue.receive(GROUP_OK)
    body(dialogue)
    taken(dialogue)
    dialogue.leave("too many messages")
    assert [(token, kind) for token, _, kind, _ in kinds(dialogue)] == [(3, Kind.NOT_ATTEMPTED)]
    assert not dialogue.is_closed
    dialogue.receive(b"250 queued\r\n" + GROUP_OK)
    assert [(token, kind) for token, _, kind, _ in kinds(dialogue)] == [(1, Kind.ACCEPTED), (2, Kind.NOT_ATTEMPTED)]
    assert dialogue.is_closed
    assert dialogue.messages_accepted == 1


@pytest.mark.parametrize(("extensions", "is_closed"), [(PIPELINING, True), (CHUNKING, False)])
def test_who_leaves_while_a_body_is_due_does_not_send_it(extensions: Extensions, is_closed: bool) -> None:
    dialogue = opened(extensions, tokens=1)
    if not extensions.chunking:
        dialogue.receive(GROUP_OK)
    taken(dialogue)
    dialogue.leave("too many messages")
    assert [kind for _, _, kind, _ in kinds(dialogue)] == [Kind.NOT_ATTEMPTED]
    assert (dialogue.is_closed, dialogue.bodies_due) == (is_closed, [])
    assert taken(dialogue) == (b"" if is_closed else b"QUIT\r\n")


def test_who_leaves_with_nothing_under_way_quits() -> None:
    dialogue = opened(tokens=0)
    dialogue.leave("enough")
    assert taken(dialogue) == b"QUIT\r\n"
    dialogue.leave("enough")
    assert taken(dialogue) == b""
