"""Refusals about the session: what words hint at, what goes back, and what proves that it was a number."""

from __future__ import annotations

import pytest

from mta.child.session_watch import RETURNED_MAX, RETURNS_MAX, SUSPICIONS_MAX, SessionCounts, SessionWatch
from mta.failure.session_words import may_end_session, session_limit
from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.envelope import Stage

MESSAGES, CONNECTIONS = HostFact.MESSAGES_PER_SESSION, HostFact.CONNECTIONS
HOST = ("192.0.2.1", 25)


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "expected"),
    [
        (452, "4.4.5", "anything", MESSAGES),
        (452, "4.3.2", "system not accepting messages", MESSAGES),
        (450, "4.7.28", "slow down", MESSAGES),
        (452, "4.5.3", "too many messages in this connection", MESSAGES),
        (452, "", "Too many mails per session", MESSAGES),
        (550, "5.7.1", "message limit per session exceeded", MESSAGES),
        (451, "4.7.1", "Please try again on a new connection", MESSAGES),
        (450, "", "maximum of 10 messages allowed for this SMTP session, reconnect", MESSAGES),
        (451, "", "too many concurrent connections", CONNECTIONS),
        (550, "5.7.0", "Too many connections from your host", CONNECTIONS),
        (452, "", "connection limit exceeded", CONNECTIONS),
        (451, "4.3.2", "maximum number of SMTP connections reached", CONNECTIONS),
        (451, "", "too many simultaneous sessions", CONNECTIONS),
        (450, "4.7.0", "connection rate limit exceeded", None),
        (450, "4.7.0", "too many connections per minute", None),
        (550, "5.1.1", "user unknown", None),
        (451, "4.7.1", "greylisted, try again later", None),
        (452, "4.2.2", "mailbox full", None),
        (421, "4.4.5", "too many messages in this session", None),
    ],
)
def test_words_and_codes(code: int, enhanced: str, text: str, expected: HostFact | None) -> None:
    reply = Reply(code, text, enhanced)
    assert session_limit(Stage.MAIL, reply, 5) is expected
    assert session_limit(Stage.DATA, reply, 5) is expected
    assert session_limit(Stage.DOT, reply, 5) is None  # its content was sent: it is an attempt
    # Of a session that has delivered nothing no refusal is about how many it has delivered.
    assert session_limit(Stage.MAIL, reply, 0) is (None if expected is MESSAGES else expected)


def test_codes_alone_say_nothing_at_rcpt() -> None:
    assert session_limit(Stage.RCPT, Reply(452, "busy", "4.4.5"), 5) is None


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        (Reply(451, "no", "4.7.1"), True),
        (Reply(554, "no"), True),
        (Reply(552, "too large", "5.3.4"), False),
        (Reply(450, "bad sender address", "4.1.8"), False),
        (Reply(530, "Must issue STARTTLS"), False),
        (Reply(503, "bad sequence"), False),
        (Reply(421, "bye"), False),
    ],
)
def test_which_refusals_without_words_may_be_about_the_session(reply: Reply, may: bool) -> None:
    assert may_end_session(Stage.MAIL, reply) is may
    assert not may_end_session(Stage.RCPT, reply)


class Sessions:
    """Sessions of one child with one host."""

    def __init__(self) -> None:
        self.watch = SessionWatch()
        self.now_s = 0.0
        self._ids = 0

    def open(self, accepted: int = 0, delivery: int = 1) -> SessionCounts:
        self.now_s += 1
        self._ids += 1
        session = SessionCounts(self._ids, HOST, self.now_s)
        for _ in range(accepted):
            self.accept(session, delivery)
        return session

    def accept(self, session: SessionCounts, delivery: int = 1) -> None:
        self.watch.accepted(session, delivery)
        session.decided += 1

    def refuse(self, session: SessionCounts, reply: Reply, number: int = 1, delivery: int = 1) -> bool:
        return self.watch.is_about_session(session, Stage.MAIL, reply, (delivery, number), self.now_s)


NO_WORDS = Reply(451, "not now", "4.7.1")


def test_a_number_is_learnt_when_a_session_opened_later_delivers() -> None:
    sessions = Sessions()
    beside = sessions.open(5)
    session = sessions.open(10)
    assert sessions.refuse(session, NO_WORDS)
    assert session.leaving
    sessions.accept(beside)
    assert sessions.watch.observed == []  # it was open before: it proves nothing
    later = sessions.open(1)
    [(by, fact, value, cause)] = sessions.watch.observed
    assert (by, fact, value) == (later.session, MESSAGES, 10)
    assert "451 4.7.1 not now" in cause
    sessions.open(1)
    assert len(sessions.watch.observed) == 1


def test_nothing_is_learnt_where_new_sessions_are_refused_too() -> None:
    sessions = Sessions()
    assert sessions.refuse(sessions.open(10), NO_WORDS)
    fresh = sessions.open()
    assert not sessions.refuse(fresh, NO_WORDS)
    assert not fresh.leaving
    sessions.open(3)
    assert sessions.watch.observed == []


def test_of_two_sessions_the_smaller_number_is_kept() -> None:
    sessions = Sessions()
    sessions.refuse(sessions.open(10), NO_WORDS, 1)
    sessions.refuse(sessions.open(8), NO_WORDS, 2)
    sessions.now_s += 1
    sessions.open(1)
    assert [value for _, _, value, _ in sessions.watch.observed][-1] in (8, 10)


def test_one_delivered_message_is_too_few_without_words_and_enough_with_them() -> None:
    sessions = Sessions()
    assert not sessions.refuse(sessions.open(1), NO_WORDS)
    assert sessions.refuse(sessions.open(1), Reply(452, "one message per session", "4.5.3"))


def test_another_sender_is_not_the_session() -> None:
    sessions = Sessions()
    session = sessions.open(10, delivery=1)
    assert not sessions.refuse(session, NO_WORDS, delivery=2)
    sessions.accept(session, 2)
    assert not sessions.refuse(session, NO_WORDS, delivery=2)
    sessions.accept(session, 2)
    assert sessions.refuse(session, NO_WORDS, delivery=2)


def test_nobody_goes_back_for_ever() -> None:
    sessions = Sessions()
    answers = [sessions.refuse(sessions.open(20 - place), NO_WORDS, number=7) for place in range(RETURNS_MAX + 2)]
    assert answers == [True] * RETURNS_MAX + [False] * 2
    assert sessions.refuse(sessions.open(10), NO_WORDS, number=8)


def test_whoever_stands_at_the_proved_number_goes_back_however_often() -> None:
    sessions = Sessions()
    assert sessions.refuse(sessions.open(10), NO_WORDS, number=1)
    answers = [sessions.refuse(sessions.open(10), NO_WORDS, number=7) for _ in range(RETURNS_MAX + 3)]
    assert answers == [True] * (RETURNS_MAX + 3)  # each time ten others were delivered
    answers = [sessions.refuse(sessions.open(9 - place), NO_WORDS, number=7) for place in range(RETURNS_MAX + 1)]
    assert answers == [True] * RETURNS_MAX + [False]  # at other numbers it may be the recipient


def test_too_many_connections_are_told_once_a_session_and_go_back_each_time() -> None:
    sessions = Sessions()
    session = sessions.open()
    for number in range(3):
        assert sessions.refuse(session, Reply(451, "too many concurrent connections"), number)
    assert sessions.watch.observed == [(session.session, CONNECTIONS, 0, "451 too many concurrent connections")]
    assert session.leaving


def test_memory_is_bounded() -> None:
    sessions = Sessions()
    for number in range(RETURNED_MAX + 10):
        session = SessionCounts(number, (f"h{number}", 25), 1.0)
        session.delivery_id, session.accepted, session.accepted_alike, session.decided = 1, 5, 5, 5
        sessions.refuse(session, NO_WORDS, number)
    assert len(sessions.watch.suspicions) == SUSPICIONS_MAX
    assert len(sessions.watch._returned) == RETURNED_MAX
    for number in range(2 * SUSPICIONS_MAX):
        refused = SessionCounts(number, (f"p{number}", 25), 1.0)
        refused.delivery_id, refused.accepted, refused.accepted_alike, refused.decided = 1, 5, 5, 5
        sessions.refuse(refused, NO_WORDS, number)
        sessions.watch.accepted(SessionCounts(number, refused.host, sessions.now_s + 1), 1)
    assert len(sessions.watch._proved) == SUSPICIONS_MAX
