"""What a failed attempt means for its recipient: the table at the head of `mta.failure.judge`."""

from __future__ import annotations

import pytest

from mta.failure.judge import Amended, Judge, is_greylisted, judged
from mta.failure.normalise import text_key
from mta.failure.triage import NOT_JUDGED, RETURNED, Decision, triage
from mta.model.failure import Category, Evidence, FailureType, Verdict
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.smtp.dialogue import Kind
from mta.smtp.envelope import Stage

HARD = Verdict(FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN, "r")
SOFT = Verdict(FailureType.SOFT, Reason.MAILBOX_FULL, Category.MAILBOX_FULL, "r")
OURS = Verdict(FailureType.SOFT, Reason.REFUSED, Category.IP_BLOCKED, "r")
IGNORED = Verdict(FailureType.IGNORED, Reason.REFUSED, Category.OTHER, "r")


class Says:
    """A qualifier of one verdict, that keeps what it was asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[Evidence] = []

    def qualify(self, evidence: Evidence) -> Verdict:
        self.asked.append(evidence)
        return self.verdict


def completed(verdict: Verdict, reply: Reply, stage: Stage = Stage.RCPT) -> Decision:
    return Judge(Says(verdict)).complete(triage(Kind.REFUSED, stage, reply, ""), stage, "mx.example.com")


@pytest.mark.parametrize(
    ("verdict", "code", "status"),
    [
        (HARD, 550, Status.FAILED),
        (HARD, 450, Status.DEFERRED),
        (SOFT, 552, Status.DEFERRED),
        (SOFT, 452, Status.DEFERRED),
        (OURS, 554, Status.FAILED),
        (OURS, 451, Status.DEFERRED),
        (IGNORED, 550, Status.FAILED),
        (IGNORED, 450, Status.DEFERRED),
    ],
)
def test_the_type_and_the_code_say_whether_it_is_tried_again(verdict: Verdict, code: int, status: Status) -> None:
    decision = completed(verdict, Reply(code, "no"))
    assert decision.status is status
    assert decision.reason is verdict.reason
    assert decision.judged == f"{verdict.type:d}\t{verdict.category:d}" == judged(verdict)


def test_what_was_said_is_asked_with_its_stage_and_host_and_only_once() -> None:
    says = Says(HARD)
    judge = Judge(says)
    refused = triage(Kind.REFUSED, Stage.RCPT, Reply(550, "no such user", "5.1.1"), "")
    first = judge.complete(refused, Stage.RCPT, "mx.example.com")
    assert judge.complete(refused, Stage.RCPT, "mx.example.com") is first
    assert says.asked == [Evidence(550, "5.1.1", "no such user", "rcpt", "mx.example.com")]
    judge.use(Says(SOFT))
    assert judge.complete(refused, Stage.RCPT, "mx.example.com").status is Status.DEFERRED


def test_what_is_no_failure_stays_as_it_is() -> None:
    judge = Judge(Says(HARD))
    for decision in (
        RETURNED,
        triage(Kind.IN_DOUBT, Stage.DOT, None, "gone"),
        triage(Kind.ACCEPTED, Stage.DOT, Reply(250), ""),
    ):
        assert judge.complete(decision, Stage.DOT, "mx.example.com") is decision
        assert decision.judged == NOT_JUDGED


def test_a_message_that_cannot_be_made_never_counts_against_its_recipient() -> None:
    local = Decision(Status.FAILED, Reason.UNREACHABLE, Reply(0, "local: no field", "5.6.0"))
    decision = Judge(Says(HARD)).complete(local, Stage.IDLE, "mx.example.com")
    assert decision.status is Status.FAILED
    assert decision.judged == f"{FailureType.IGNORED:d}\t{Category.OTHER:d}"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (450, "Greylisted, please come back"),
        (451, "you are being grey-listed"),
        (451, "Recipient not accepted. Please try again in 300 seconds"),
        (450, "graylisting in effect"),
    ],
)
def test_greylisting_is_known_by_its_words(code: int, text: str) -> None:
    assert is_greylisted(Reply(code, text), Stage.RCPT)
    assert completed(SOFT, Reply(code, text)).is_greylisted


@pytest.mark.parametrize(
    ("code", "text", "stage"),
    [
        (451, "try again later", Stage.RCPT),
        (550, "greylisted", Stage.RCPT),
        (450, "greylisted", Stage.GREETING),
        (452, "mailbox full", Stage.RCPT),
    ],
)
def test_what_does_not_speak_of_it_is_no_greylisting(code: int, text: str, stage: Stage) -> None:
    assert not is_greylisted(Reply(code, text), stage)


def test_what_an_operator_said_of_a_text_goes_before_the_rules_for_all_its_recipients() -> None:
    amended = Amended(Says(HARD), {text_key("mailbox of ann@example.com moved"): IGNORED})
    assert amended.qualify(Evidence(550, "", "mailbox of bob@example.net moved")) is IGNORED
    assert amended.qualify(Evidence(550, "", "mailbox moved")) is HARD
