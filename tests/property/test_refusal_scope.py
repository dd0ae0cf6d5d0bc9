"""Of any reply: what it is about. No words of a server cost a recipient what was said of us."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.failure.judge import Amended, Judge, judged
from mta.failure.normalise import text_key
from mta.failure.qualify import BounceRule, Qualifier
from mta.failure.scope import OPENING_STAGES, UNNAMED_POLICY, Rest, Scope, ends_with_last_path, rest_of, scope_of
from mta.failure.triage import triage
from mta.model.failure import OUR_FAULT, Category, Evidence, FailureType, Verdict
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.settings.bounce_rules import SHIPPED, load_bounce_rules
from mta.smtp.envelope import Kind, Stage

SAID = """user unknown no such mailbox does not exist is full over quota disabled closed deleted account recipient
address rejected domain not found blocked listed spamhaus ip reverse dns PTR spf dkim dmarc helo host
name tls starttls required must issue authentication greylisted try again later in 5 minutes spam content
virus relay denied policy refused sender temporarily too many connections messages 192.0.2.1
x@example.com"""
TEXTS = st.lists(st.sampled_from(SAID.split()), max_size=14).map(" ".join) | st.text(max_size=120)
ENHANCED = st.just("") | st.builds("{}.{}.{}".format, st.sampled_from("45"), st.integers(0, 8), st.integers(0, 40))
BEFORE_RCPT = [*sorted(OPENING_STAGES), Stage.MAIL]
TRANSACTION = [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT]


@functools.cache
def qualifier() -> Qualifier:
    """The shipped rules, and before them an operator's that takes every text for a dead address."""
    hard = BounceRule(
        name="all-dead",
        pattern="unknown|exist|.",
        type=FailureType.HARD,
        reason=Reason.USER_UNKNOWN,
        category=Category.USER_UNKNOWN,
        source="bounce-rules.local.toml:1",
    )
    return Qualifier((hard, *load_bounce_rules([SHIPPED])))


@functools.cache
def shipped() -> Qualifier:
    return Qualifier(load_bounce_rules([SHIPPED]))


def type_of(columns: str) -> FailureType:
    return FailureType(int(columns.partition("\t")[0]))


@given(st.sampled_from(BEFORE_RCPT), st.integers(400, 599), ENHANCED, TEXTS, st.booleans())
def test_nothing_said_before_rcpt_is_hard_or_about_a_recipient(
    stage: Stage, code: int, enhanced: str, text: str, is_own: bool
) -> None:
    rules = qualifier() if is_own else shipped()
    word = Verdict(FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN, "operator")
    for asked in (rules, Amended(rules, {text_key(text): word})):
        verdict = asked.qualify(Evidence(code, enhanced, text, stage.name.lower(), "mx.example.com"))
        assert verdict.type is not FailureType.HARD
        assert verdict.category not in (Category.USER_UNKNOWN, Category.ACCOUNT_DISABLED, Category.MAILBOX_FULL)
        if code >= 500 and stage is not Stage.MAIL:
            assert scope_of(stage, Reply(code, text, enhanced), verdict) is not Scope.RECIPIENT


@given(st.sampled_from(TRANSACTION), st.integers(400, 499), ENHANCED, TEXTS)
def test_no_4yz_is_hard_and_none_fails_a_recipient(stage: Stage, code: int, enhanced: str, text: str) -> None:
    word = Verdict(FailureType.HARD, Reason.USER_UNKNOWN, Category.USER_UNKNOWN, "operator")
    for asked in (qualifier(), Amended(qualifier(), {text_key(text): word})):
        reply = Reply(code, text, enhanced)
        decision = Judge(asked).complete(triage(Kind.REFUSED, stage, reply, ""), stage, "mx.example.com")
        assert decision.status in (Status.DEFERRED, None)
        assert type_of(decision.judged) is not FailureType.HARD


@given(st.sampled_from(TRANSACTION), st.integers(400, 599), ENHANCED, TEXTS, st.booleans())
def test_each_reply_has_a_scope_and_a_path_rests_only_for_what_is_of_a_path(
    stage: Stage, code: int, enhanced: str, text: str, is_plain: bool
) -> None:
    reply = Reply(code, text, enhanced)
    verdict = shipped().qualify(Evidence(code, enhanced, text, stage.name.lower(), ""))
    scope = scope_of(stage, reply, verdict, is_plain=is_plain)
    rest = rest_of(scope, stage, reply, verdict)
    if not scope.is_of_path:
        assert rest is Rest.NEVER
        assert not ends_with_last_path(scope, stage, verdict)
    if stage is Stage.MAIL and reply.is_permanent:
        assert scope is not Scope.RECIPIENT
    if verdict.category in (Category.SPAM_CONTENT, Category.VIRUS, Category.TOO_BIG) and stage is Stage.DOT:
        assert rest is not Rest.IN_A_ROW, "what one message holds must not stop the others"
    if scope is Scope.EGRESS:
        assert verdict.category in OUR_FAULT or stage is Stage.MAIL


@pytest.mark.parametrize(
    ("stage", "line", "scope", "rest"),
    [
        (Stage.MAIL, "554 5.7.1 refused", Scope.EGRESS, Rest.IN_A_ROW),
        (Stage.MAIL, "550 5.1.1 <sender>: user unknown", Scope.EGRESS, Rest.NEVER),
        (Stage.MAIL, "554 5.7.1 Client host [192.0.2.9] blocked using zen.spamhaus.org", Scope.EGRESS, Rest.AT_ONCE),
        (Stage.RCPT, "554 5.7.1 Client host [192.0.2.9] blocked using zen.spamhaus.org", Scope.EGRESS, Rest.AT_ONCE),
        (Stage.RCPT, "450 4.7.1 Client host rejected: cannot find your reverse hostname", Scope.EGRESS, Rest.IN_A_ROW),
        (Stage.RCPT, "550 5.7.25 The sending address has no PTR record", Scope.EGRESS, Rest.AT_ONCE),
        (Stage.RCPT, "550 5.7.23 SPF validation failed", Scope.EGRESS, Rest.NEVER),
        (Stage.RCPT, "554 5.7.1 Sender address rejected: access denied", Scope.EGRESS, Rest.NEVER),
        (Stage.RCPT, "554 5.7.1 refused", Scope.EGRESS, Rest.IN_A_ROW),
        (Stage.DOT, "554 5.7.1 refused", Scope.EGRESS, Rest.BY_CONTRAST),
        (Stage.RCPT, "554 5.7.1 Relay access denied", Scope.ROUTE, Rest.NEVER),
        (Stage.MAIL, "530 5.7.0 Must issue a STARTTLS command first", Scope.TRANSPORT, Rest.AT_ONCE),
        (Stage.RCPT, "550 5.7.10 Encryption needed", Scope.TRANSPORT, Rest.AT_ONCE),
        (Stage.DOT, "550 5.7.1 DMARC policy of the sender says reject", Scope.MESSAGE, Rest.NEVER),
        (Stage.DOT, "550 5.7.20 No valid DKIM signature", Scope.MESSAGE, Rest.NEVER),
        (Stage.DOT, "554 5.7.1 Message contains spam", Scope.MESSAGE, Rest.NEVER),
        (Stage.DOT, "554 5.6.0 Virus found", Scope.MESSAGE, Rest.NEVER),
        (Stage.DOT, "552 5.3.4 Message too big", Scope.MESSAGE, Rest.NEVER),
        (Stage.MAIL, "552 5.3.4 Message size exceeds the limit", Scope.MESSAGE, Rest.NEVER),
        (Stage.RCPT, "550 5.1.1 No such user", Scope.RECIPIENT, Rest.NEVER),
        (Stage.RCPT, "452 4.2.2 Mailbox full", Scope.RECIPIENT, Rest.NEVER),
        (Stage.RCPT, "450 4.7.1 Try again later", Scope.RECIPIENT, Rest.NEVER),
        (Stage.RCPT, "451 4.7.1 Greylisted, your host has no reverse DNS", Scope.RECIPIENT, Rest.NEVER),
    ],
)
def test_replies_that_servers_give(stage: Stage, line: str, scope: Scope, rest: Rest) -> None:
    code, _, text = line.partition(" ")
    enhanced = text.split()[0] if text[1] == "." else ""
    reply = Reply(int(code), text.removeprefix(enhanced).strip(), enhanced)
    verdict = shipped().qualify(Evidence(reply.code, enhanced, reply.text, stage.name.lower(), ""))
    assert (scope_of(stage, reply, verdict), rest_of(scope, stage, reply, verdict)) == (scope, rest), verdict


def test_530_for_want_of_a_log_in_is_about_tls_only_where_tls_has_failed_before() -> None:
    reply = Reply(530, "Authentication required", "5.7.0")
    verdict = shipped().qualify(Evidence(530, "5.7.0", reply.text, "mail", ""))
    assert scope_of(Stage.MAIL, reply, verdict) is Scope.EGRESS
    assert scope_of(Stage.MAIL, reply, verdict, is_plain=True) is Scope.TRANSPORT


def test_an_operators_own_rule_with_a_final_type_ends_the_recipient_and_another_does_not() -> None:
    reply = Reply(554, "blocked", "5.7.1")
    final = Verdict(FailureType.IGNORED, Reason.REFUSED, Category.IP_BLOCKED, "bounce-rules.local.toml: ours")
    assert scope_of(Stage.RCPT, reply, final) is Scope.RECIPIENT
    for other in (final._replace(type=FailureType.SOFT), final._replace(rule="bounce-rules.toml: ip-blocked")):
        assert scope_of(Stage.RCPT, reply, other) is Scope.EGRESS
    assert judged(final).startswith(str(int(FailureType.IGNORED)))


def test_the_shipped_rules_have_the_one_that_takes_what_is_refused_and_says_no_more() -> None:
    assert UNNAMED_POLICY in {rule.label for rule in shipped().rules}
