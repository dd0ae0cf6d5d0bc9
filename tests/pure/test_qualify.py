"""Verdicts: the first rule, then codes, and what no rule may say."""

from __future__ import annotations

import msgspec
import pytest

from mta.failure.codes import exact, vague
from mta.failure.qualify import (
    BOUNCE_CHARS_MAX,
    REPLY_CHARS_MAX,
    STAGES,
    BounceRule,
    Qualifier,
    is_by_rule,
    looked_at,
)
from mta.failure.reply_text import classify_replies, parse_reply_text
from mta.model.errors import BadInput
from mta.model.failure import OUR_FAULT, Category, Evidence, FailureType, Verdict
from mta.model.outcome import Reason
from mta.smtp.envelope import Stage


def rule(name: str = "one", **given: object) -> BounceRule:
    values: dict[str, object] = {
        "type": FailureType.HARD,
        "reason": Reason.USER_UNKNOWN,
        "category": Category.USER_UNKNOWN,
        "source": "/etc/mta/own.toml:7",
    }
    return msgspec.convert({"name": name, **values, **given}, BounceRule)


def decided(one: BounceRule, evidence: Evidence) -> bool:
    return is_by_rule(Qualifier([one]).qualify(evidence))


@pytest.mark.parametrize(
    ("given", "does_fit"),
    [
        ({"pattern": "no such user"}, True),
        ({"pattern": "^user"}, False),
        ({"pattern": "NO SUCH"}, True),
        ({"pattern": "user", "unless": "such"}, False),
        ({"pattern": "user", "unless": "other"}, True),
        ({"codes": ("5",)}, True),
        ({"codes": ("55", "4")}, True),
        ({"codes": ("4",)}, False),
        ({"enhanced": ("5.1",)}, True),
        ({"enhanced": ("5.1.1",)}, True),
        ({"enhanced": ("5.1.10",)}, False),
        ({"stages": ("rcpt", "dot")}, True),
        ({"stages": ("dot",)}, False),
        ({"providers": ("*.example.com",)}, True),
        ({"providers": ("*.example.net",)}, False),
        ({"pattern": "user", "codes": ("5",), "stages": ("dot",)}, False),
    ],
)
def test_all_that_is_given_must_fit(given: dict[str, object], does_fit: bool) -> None:
    evidence = Evidence(550, "5.1.1", "No such user here", "rcpt", "MX1.example.com.")
    assert decided(rule(**given), evidence) is does_fit


def test_the_first_rule_decides_and_says_so() -> None:
    rules = [
        rule("full", pattern="full", category=Category.MAILBOX_FULL, reason=Reason.MAILBOX_FULL, type=FailureType.SOFT),
        rule("unknown", pattern="mailbox"),
    ]
    qualifier = Qualifier(rules)
    verdict = qualifier.qualify(Evidence(550, "", "the mailbox is full"))
    assert verdict == Verdict(FailureType.SOFT, Reason.MAILBOX_FULL, Category.MAILBOX_FULL, "own.toml: full")
    assert qualifier.qualify(Evidence(550, "", "no mailbox")).rule == "own.toml: unknown"
    assert qualifier.fitting(Evidence(550, "", "mailbox full")) == rules


def test_a_rule_is_found_whichever_automaton_it_stands_in() -> None:
    words = [f"word{i:03}" for i in range(400)]
    rules = [rule(f"r{i}", pattern=f"{word} {'x?' * 40}y") for i, word in enumerate(words)]
    qualifier = Qualifier(rules)
    assert len(qualifier._groups) > 10
    for i in (0, 17, 399):
        assert qualifier.qualify(Evidence(550, "", f"{words[i]} y")).rule == f"own.toml: r{i}"


def test_a_weak_rule_comes_after_codes_of_one_meaning_and_before_the_others() -> None:
    qualifier = Qualifier([rule("weak", pattern="refused", is_weak=True, category=Category.OTHER)])
    assert qualifier.qualify(Evidence(550, "5.1.1", "refused")).rule == "codes: 5.1.1"
    assert qualifier.qualify(Evidence(550, "5.7.1", "refused")).rule == "own.toml: weak"


@pytest.mark.parametrize("code", [0, 421, 450, 451, 550, 554])
@pytest.mark.parametrize("enhanced", ["", "4.1.1", "5.1.1"])
@pytest.mark.parametrize("text", ["User unknown", "User unknown, try again later", "User is temporarily unknown"])
def test_what_may_be_otherwise_later_is_never_hard(code: int, enhanced: str, text: str) -> None:
    verdict = Qualifier([rule(pattern="unknown")]).qualify(Evidence(code, enhanced, text))
    is_final = code not in (421, 450, 451) and enhanced != "4.1.1" and text == "User unknown"
    assert verdict.type is (FailureType.HARD if is_final else FailureType.SOFT)
    assert verdict.category is Category.USER_UNKNOWN


@pytest.mark.parametrize("category", sorted(OUR_FAULT))
def test_our_own_fault_is_ignored_whatever_a_rule_says(category: Category) -> None:
    one = rule(pattern="x", category=category)
    assert Qualifier([one]).qualify(Evidence(550, "5.1.1", "x")).type is FailureType.SOFT


def test_a_full_mailbox_is_soft_whatever_a_rule_says() -> None:
    one = rule(pattern="x", category=Category.MAILBOX_FULL)
    assert Qualifier([one]).qualify(Evidence(550, "5.1.1", "x")).type is FailureType.SOFT


@pytest.mark.parametrize(
    ("evidence", "kind", "category", "by"),
    [
        (Evidence(550, "5.1.1"), FailureType.HARD, Category.USER_UNKNOWN, "codes: 5.1.1"),
        (Evidence(450, "4.1.1"), FailureType.SOFT, Category.USER_UNKNOWN, "codes: 4.1.1"),
        (Evidence(556, "5.1.10"), FailureType.HARD, Category.INVALID_DOMAIN, "codes: 5.1.10"),
        (Evidence(552, "5.2.2"), FailureType.SOFT, Category.MAILBOX_FULL, "codes: 5.2.2"),
        (Evidence(550, "5.2.1"), FailureType.SOFT, Category.ACCOUNT_DISABLED, "codes: 5.2.1"),
        (Evidence(552, "5.3.4"), FailureType.SOFT, Category.TOO_BIG, "codes: 5.3.4"),
        (Evidence(550, "5.2.121"), FailureType.SOFT, Category.RATE_LIMITED, "codes: 5.2.121"),
        (Evidence(550, "5.2.122"), FailureType.SOFT, Category.RATE_LIMITED, "codes: 5.2.122"),
        (Evidence(550, "5.7.129"), FailureType.SOFT, Category.SENDER_REFUSED, "codes: 5.7.129"),
        (Evidence(550, "5.7.26"), FailureType.SOFT, Category.AUTH_FAILURE, "codes: 5.7.26"),
        (Evidence(550, "5.7.1"), FailureType.SOFT, Category.POLICY, "codes: 5.7.1"),
        (Evidence(0, "5.4.7"), FailureType.SOFT, Category.UNREACHABLE, "codes: 5.4.7"),
        (Evidence(552, "", "", "rcpt"), FailureType.SOFT, Category.MAILBOX_FULL, "codes: 552"),
        (Evidence(552, "", "", "dot"), FailureType.SOFT, Category.TOO_BIG, "codes: 552"),
        (Evidence(550, "", "", "mail"), FailureType.SOFT, Category.SENDER_REFUSED, "codes: 550"),
        (Evidence(554, "", "", "greeting"), FailureType.SOFT, Category.IP_BLOCKED, "codes: 554"),
        (Evidence(550, "5.0.0", "", "dot"), FailureType.SOFT, Category.POLICY, "codes: 550"),
        (Evidence(502), FailureType.SOFT, Category.PROTOCOL_ERROR, "codes: 502"),
        (Evidence(550, "", "Qwertz", "rcpt"), FailureType.SOFT, Category.OTHER, ""),
        (Evidence(0, "", "Qwertz"), FailureType.SOFT, Category.OTHER, ""),
        (Evidence(599, "5.9.9"), FailureType.SOFT, Category.OTHER, ""),
        (Evidence(250, "2.6.0", "queued"), FailureType.NOT_DEFINED, Category.NOT_A_FAILURE, "codes: 250"),
        (Evidence(0, "2.6.0"), FailureType.NOT_DEFINED, Category.NOT_A_FAILURE, "codes: 2.6.0"),
    ],
)
def test_without_a_rule_codes_decide(evidence: Evidence, kind: FailureType, category: Category, by: str) -> None:
    verdict = Qualifier([]).qualify(evidence)
    assert (verdict.type, verdict.category, verdict.rule) == (kind, category, by)
    assert not is_by_rule(verdict)


def test_what_nobody_knows_is_unreachable() -> None:
    assert Qualifier([]).qualify(Evidence(550, "", "Qwertz", "rcpt")).reason is Reason.UNREACHABLE


def test_no_code_of_the_tables_makes_a_temporary_failure_hard() -> None:
    qualifier = Qualifier([])
    for code in [0, *range(400, 500)]:
        for subject in range(8):
            for detail in range(32):
                verdict = qualifier.qualify(Evidence(code, f"4.{subject}.{detail}"))
                assert verdict.type is not FailureType.HARD
    assert exact(550, "bad") is None
    assert vague(0, "", "") is None


def test_addresses_are_not_the_words_of_the_server() -> None:
    one = rule(pattern="spam|full")
    assert not decided(one, Evidence(550, "", "<spam@full.example.com>: refused"))
    assert decided(one, Evidence(550, "", "spam <a@example.com>"))
    assert looked_at(" 1\t<a@example.com>\n from 192.0.2.1 see http://example.com/help?ip=192.0.2.1&c=1") == (
        "1 <*> from #addr# see http://example.com/help&c=1"
    )


def test_texts_are_cut() -> None:
    one = rule(pattern="unknown$")
    text = "x" * (REPLY_CHARS_MAX - 8) + " unknown"
    assert decided(one, Evidence(550, "", text))
    assert not decided(one, Evidence(550, "", "x" + text))
    assert decided(one, Evidence(550, "", "x" + text, "bounce"))
    assert len(looked_at("y" * 2 * BOUNCE_CHARS_MAX, "bounce")) == BOUNCE_CHARS_MAX


def test_what_was_seen_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.failure.qualify._KEPT", 10)
    qualifier = Qualifier([rule(pattern="user")])
    for i in range(100):
        assert qualifier.qualify(Evidence(550, "", f"user {i}")).rule == "own.toml: one"
        assert qualifier.qualify(Evidence(550, "", f"user {i}")).rule == "own.toml: one"
    assert len(qualifier._kept) <= 10
    assert len(qualifier._kept_folded) <= 10


def test_a_lone_surrogate_does_no_harm() -> None:
    assert decided(rule(pattern="user"), Evidence(550, "", "user \udc80"))


@pytest.mark.parametrize("pattern", ["(?=a)", "((x{900}|y{900}|z{900})(x{900}|y{900})){300}", "(x{500}){2}" * 500])
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(BadInput, match=r"cannot be used|is too large"):
        Qualifier([rule(pattern=pattern)])


def test_stages_are_those_of_a_session_and_two_more() -> None:
    assert set(STAGES) == {stage.name.lower() for stage in Stage} | {"dns", "bounce"}


@pytest.mark.parametrize(
    ("line", "evidence"),
    [
        ("550 5.1.1 No such user", Evidence(550, "5.1.1", "No such user")),
        ("550-5.1.1 No such 550-5.1.1 user, 550 5.1.1 sorry", Evidence(550, "5.1.1", "No such user, sorry")),
        ("550-No such 550 user", Evidence(550, "", "No such user")),
        ("5.2.3 Message too large", Evidence(0, "5.2.3", "Message too large")),
        ("550 #5.1.0 Address rejected.", Evidence(550, "5.1.0", "Address rejected.")),
        ("Mailbox gone (#5.1.1)", Evidence(0, "5.1.1", "Mailbox gone (#5.1.1)")),
        ("Bad, ERR_CODE :5.2.1 gone", Evidence(0, "5.2.1", "Bad, ERR_CODE :5.2.1 gone")),
        ("version: 5.2.1", Evidence(0, "", "version: 5.2.1")),
        ("No such user", Evidence(0, "", "No such user")),
        ("smtp; 550 5.1.1 Gone", Evidence(550, "5.1.1", "Gone")),
        ("<<< 421 4.3.0 Later", Evidence(421, "4.3.0", "Later")),
        ("smtp; MAIL+RCPT 550 5.1.1 Gone", Evidence(550, "5.1.1", "Gone")),
        ("RCPT: 450 4.2.1 Busy", Evidence(450, "4.2.1", "Busy", "rcpt")),
        ("DATA closing 554 5.7.1 No", Evidence(554, "5.7.1", "No", "data")),
        ("550: Gone", Evidence(550, "", "Gone")),
        ("SMTP error 451: mx.d.example said: not now", Evidence(451, "", "mx.d.example said: not now")),
        ("Mail 500 users at most", Evidence(0, "", "Mail 500 users at most")),
        ("550", Evidence(550, "", "")),
        ("", Evidence(0, "", "")),
        ("5500 things", Evidence(0, "", "5500 things")),
        ("250 2.0.0 Ok", Evidence(250, "2.0.0", "Ok")),
        (
            "host mx.example.com[192.0.2.1] said: 452 4.2.2 Over quota (in reply to RCPT TO command)",
            Evidence(452, "4.2.2", "Over quota (in reply to RCPT TO command)", "rcpt"),
        ),
        (
            "SMTP error from remote mail server after end of data: host mx.example.com: 552 too large",
            Evidence(552, "", "too large", "dot"),
        ),
    ],
)
def test_lines_of_many_forms_are_taken_apart(line: str, evidence: Evidence) -> None:
    assert parse_reply_text(line) == evidence


def test_lists_are_classified_line_by_line() -> None:
    found = list(classify_replies(["550 user gone\r\n", "\n", "451 later\n"], Qualifier([rule(pattern="gone")])))
    assert [(one.line, one.text, one.evidence.code) for one in found] == [
        (1, "550 user gone", 550),
        (3, "451 later", 451),
    ]
    assert found[0].verdict.type is FailureType.HARD
