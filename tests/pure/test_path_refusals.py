"""When a path rests after refusals, and what it knows."""

from __future__ import annotations

from mta.failure.scope import Rest, Scope
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.traffic.refusals import REFUSALS_IN_A_ROW, REST_S_FIRST, REST_S_MAX, PathRefusal, PathRefusals


def refusal(rest: Rest, text: str = "refused") -> PathRefusal:
    reply = Reply(554, text, "5.7.1")
    return PathRefusal(
        Scope.EGRESS, rest, "RCPT", reply, Status.DEFERRED, Reason.REFUSED, "1\t12", "s", "out", "mx.test", "192.0.2.1"
    )


def test_an_unmistakable_refusal_rests_the_path_at_once_with_growing_pauses_until_something_is_accepted() -> None:
    path = PathRefusals()
    now_s, pauses = 100.0, []
    for _ in range(9):
        assert path.met(refusal(Rest.AT_ONCE), 1, now_s)
        assert not path.met(refusal(Rest.AT_ONCE), 5, now_s + 1), "of attempts begun before: one rest, not several"
        pauses.append(path.until_s - now_s)
        now_s = path.until_s
        assert not path.is_resting(now_s)
        assert path.is_remembered(now_s), "one session tries it"
    assert pauses[:3] == [REST_S_FIRST, 2 * REST_S_FIRST, 4 * REST_S_FIRST]
    assert pauses[-1] == REST_S_MAX
    assert path.refused == 54
    assert path.accepted()
    assert path.is_clean
    assert path.is_forgotten(now_s)
    assert path.met(refusal(Rest.AT_ONCE), 1, now_s)
    assert path.until_s - now_s == REST_S_FIRST


def test_doubtful_refusals_rest_it_in_a_row_only() -> None:
    path = PathRefusals()
    for _ in range(5):
        assert not path.met(refusal(Rest.IN_A_ROW), REFUSALS_IN_A_ROW - 1, 0.0)
        assert not path.accepted(), "there was no rest to end"
    assert not path.met(refusal(Rest.IN_A_ROW), REFUSALS_IN_A_ROW - 1, 0.0)
    assert path.met(refusal(Rest.IN_A_ROW), 1, 0.0)
    # Nothing was accepted since: one more is enough.
    assert path.met(refusal(Rest.IN_A_ROW), 1, path.until_s)


def test_what_may_be_about_the_message_rests_it_when_others_took_the_message() -> None:
    path = PathRefusals()
    assert not path.met(refusal(Rest.BY_CONTRAST), 500, 0.0), "a message that everybody refuses rests nothing"
    assert not path.outdone(REFUSALS_IN_A_ROW - 1, 0.0)
    assert path.outdone(1, 0.0)
    assert path.is_resting(0.0)


def test_what_is_about_one_sender_rests_nothing_and_the_cause_of_a_rest_stays_known() -> None:
    path = PathRefusals()
    assert not path.met(refusal(Rest.NEVER, "spf"), 500, 0.0)
    assert not path.outdone(500, 0.0)
    assert path.met(refusal(Rest.AT_ONCE, "listed"), 1, 0.0)
    assert not path.met(refusal(Rest.NEVER, "spf"), 1, 1.0)
    assert path.last is not None
    assert path.last.reply.text == "listed"


def test_quiet_time_halves_what_is_remembered() -> None:
    path = PathRefusals()
    path.met(refusal(Rest.AT_ONCE), 1, 0.0)
    day_s = 86_400.0
    assert not path.is_remembered(day_s)
    assert path.is_forgotten(day_s)
