"""What each verdict of the protocol means for its recipient."""

from __future__ import annotations

import pytest

from mta.failure.triage import reason_of, triage
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.smtp.dialogue import Kind, Stage


def test_accepted_is_delivered_with_the_servers_words() -> None:
    decision = triage(Kind.ACCEPTED, Stage.DOT, Reply(250, "queued as 1"), "")
    assert (decision.status, decision.reply.text) == (Status.DELIVERED, "queued as 1")


@pytest.mark.parametrize("code", [450, 451, 452, 499])
def test_refused_for_now_is_deferred(code: int) -> None:
    assert triage(Kind.REFUSED, Stage.RCPT, Reply(code), "").status is Status.DEFERRED


@pytest.mark.parametrize("code", [500, 521, 550, 552, 554, 599])
def test_refused_for_good_has_failed(code: int) -> None:
    assert triage(Kind.REFUSED, Stage.DOT, Reply(code), "").status is Status.FAILED


def test_a_probe_that_was_accepted_is_simulated_and_a_refused_one_as_any_other() -> None:
    decision = triage(Kind.PROBED, Stage.RCPT, Reply(250, "ok"), "")
    assert (decision.status, decision.reply.text) == (Status.SIMULATED, "ok")
    assert Status.SIMULATED.is_final
    assert triage(Kind.REFUSED, Stage.RCPT, Reply(550), "").status is Status.FAILED


def test_an_unanswered_final_dot_is_in_doubt_never_failed_or_delivered() -> None:
    decision = triage(Kind.IN_DOUBT, Stage.DOT, None, "closed by the server")
    assert decision.status is Status.IN_DOUBT
    assert "closed by the server" in decision.reply.text


def test_content_that_was_cut_off_counts_as_an_attempt() -> None:
    decision = triage(Kind.NOT_ATTEMPTED, Stage.BODY, None, "reset by peer")
    assert (decision.status, decision.reply.enhanced) == (Status.DEFERRED, "4.4.2")


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA])
def test_a_link_lost_before_the_content_is_no_attempt(stage: Stage) -> None:
    assert triage(Kind.NOT_ATTEMPTED, stage, None, "reset by peer").status is None


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA])
def test_a_421_before_the_content_speaks_of_the_session_not_of_the_recipient(stage: Stage) -> None:
    assert triage(Kind.REFUSED, stage, Reply(421, "too busy"), "").status is None


def test_a_421_to_the_final_dot_is_a_reply() -> None:
    assert triage(Kind.REFUSED, Stage.DOT, Reply(421, "too busy"), "").status is Status.DEFERRED


def test_what_was_never_begun_is_handed_out_again() -> None:
    assert triage(Kind.NOT_ATTEMPTED, Stage.IDLE, None, "recalled").status is None


def test_what_a_421_to_another_transaction_cut_off_is_handed_out_again() -> None:
    assert triage(Kind.NOT_ATTEMPTED, Stage.MAIL, Reply(421, "closing"), "421").status is None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(550, "", "5.1.1"), Reason.USER_UNKNOWN),
        (Reply(550, "", "5.1.2"), Reason.INVALID_DOMAIN),
        (Reply(556, "", "5.1.10"), Reason.INVALID_DOMAIN),
        (Reply(550, "", "5.2.1"), Reason.ACCOUNT_DISABLED),
        (Reply(452, "", "4.2.2"), Reason.MAILBOX_FULL),
        (Reply(550, "", "5.7.1"), Reason.REFUSED),
        (Reply(421, "", "4.7.0"), Reason.NOT_CONNECTED),
        (Reply(550, "user unknown"), Reason.UNREACHABLE),  # the text alone decides nothing here
    ],
)
def test_reasons_that_the_codes_alone_can_tell(reply: Reply, reason: Reason) -> None:
    assert reason_of(reply) is reason
