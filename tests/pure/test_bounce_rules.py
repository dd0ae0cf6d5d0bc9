"""Files of qualification rules: what is read, what is refused and where, and the rules that are shipped."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mta.failure.qualify import BounceRule, Qualifier, is_by_rule
from mta.failure.reply_text import parse_reply_text
from mta.model.errors import BadInput
from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason
from mta.settings.bounce_rules import (
    SHIPPED,
    WORD_BEGINS,
    lint_bounce_rules,
    load_bounce_rules,
    parse_bounce_rules,
    read_texts,
    rule_files,
)
from mta.traffic.findings import Check

FULL = """\
[words]
box = 'mailbox|inbox'
my_box = 'my {box}'

[[rule]]
name = "first"
category = "account_disabled"
type = "hard"
reason = "unreachable"
codes = [550, "55", 5]
enhanced = ["5.1", "5.7.1"]
pattern = ['{my_box} closed', 'gone \\p{Greek}']
unless = '{box} open'
stages = ["rcpt", "bounce"]
mx = ["*.example.com", "mx?.example.org"]
weak = true
samples = ["550 5.7.1 my mailbox closed"]
counter_samples = ["550 5.7.1 my mailbox open"]

[[rule]]
name = "second"
category = "policy"
codes = [0]
"""


def parse(text: str, file: str = "own.toml") -> tuple[BounceRule, ...]:
    return parse_bounce_rules({file: text})


def one(lines: str) -> str:
    return f'[[rule]]\nname = "a"\n{lines}\n'


def test_every_key_arrives() -> None:
    first, second = parse(FULL)
    assert first == BounceRule(
        name="first",
        codes=("550", "55", "5"),
        enhanced=("5.1", "5.7.1"),
        pattern=f"(?:{WORD_BEGINS}(?:(?:my (?:mailbox|inbox)) closed))|(?:{WORD_BEGINS}(?:gone \\p{{Greek}}))",
        unless=f"{WORD_BEGINS}(?:(?:mailbox|inbox) open)",
        stages=("rcpt", "bounce"),
        providers=("*.example.com", "mx?.example.org"),
        is_weak=True,
        type=FailureType.HARD,
        reason=Reason.UNREACHABLE,
        category=Category.ACCOUNT_DISABLED,
        source="own.toml:5",
        samples=("550 5.7.1 my mailbox closed",),
        counter_samples=("550 5.7.1 my mailbox open",),
    )
    assert (second.type, second.reason, second.pattern) == (FailureType.SOFT, Reason.REFUSED, "")


def test_rules_go_to_other_processes_and_back() -> None:
    rules = parse(FULL)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rules), type=tuple[BounceRule, ...]) == rules
    assert msgspec.json.decode(msgspec.json.encode(rules), type=tuple[BounceRule, ...]) == rules


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[[rules]]\n", "own.toml:1", "did you mean 'rule'?"),
        ("[rule]\nname = 'a'", "own.toml:1", "two brackets"),
        (one("category = 'policy'\nkode = 5"), "own.toml:4", "unknown key"),
        (one("codes = [5]"), "own.toml:1", "the key 'category' is missing"),
        (one("category = 'gone'\ncodes = [5]"), "own.toml:3", "expected one of 'user_unknown'"),
        (one("category = 'none'\ncodes = [5]"), "own.toml:3", "'none' is not allowed"),
        (
            one("category = 'other'\ncodes = [5]\ntype = 'firm'"),
            "own.toml:5",
            "expected one of 'soft', 'hard', 'ignored'",
        ),
        (one("category = 'other'\ncodes = [5]\nreason = 'why'"), "own.toml:5", "expected one of 'not_defined'"),
        (one("category = 'other'\ncodes = [250]"), "own.toml:4", "a code of a refusal"),
        (one("category = 'other'\ncodes = [5500]"), "own.toml:4", "5500 is not allowed"),
        (one("category = 'other'\nenhanced = ['5.x']"), "own.toml:4", "'5.x' is not allowed"),
        (one("category = 'other'\nenhanced = ['2.1.1']"), "own.toml:4", "'2.1.1' is not allowed"),
        (one("category = 'other'\nstages = ['later']"), "own.toml:4", "expected one of 'connect'"),
        (one("category = 'other'\npattern = '(?=a)'"), "own.toml:4", "RE2 has no look-around"),
        (one("category = 'other'\npattern = ['a', '(']"), "own.toml:4", "missing )"),
        (one("category = 'other'\npattern = ['a', '']"), "own.toml:4", "is empty"),
        (one("category = 'other'\npattern = '{a}'"), "own.toml:4", "no word is named 'a'"),
        (one(f"category = 'other'\npattern = '{'x' * 2001}'"), "own.toml:4", "2,000 characters"),
        (one("category = 'other'\ncodes = [5]\nmx = '*..a'"), "own.toml:5", "two dots"),
        (one("category = 'other'"), "own.toml:1", "it would decide about everything"),
        (one("category = 'other'\nmx = '*'"), "own.toml:1", "it would decide about everything"),
        (one("category = 'mailbox_full'\ncodes = [5]\ntype = 'hard'"), "own.toml:5", "may be emptied"),
        (one("category = 'user_unknown'\ncodes = [5]"), "own.toml:1", "is needed by a rule of type 'hard'"),
        (
            one("category = 'user_unknown'\ncodes = [5]\nstages = ['rcpt', 'mail']"),
            "own.toml:5",
            "no recipient is named there",
        ),
        (one("category = 'policy'\ncodes = [5]\ntype = 'hard'"), "own.toml:5", "never counts against an address"),
        (one("category = 'user_unknown'\ncodes = [4, 450]"), "own.toml:4", "these codes are temporary"),
        (one("category = 'other'\ncodes = [5]") * 2, "own.toml:6", "is taken by the rule at own.toml:1"),
        ("[words]\nBad = 'x'\n", "own.toml:2", "small letters"),
        ("[words]\na = '('\n", "own.toml:2", "missing )"),
        ("[words]\na = '{b}'\nb = 'x'\n", "own.toml:2", "no word is named 'b'"),
        ("[[rule]]\nname = 'a b'\ncategory = 'other'\ncodes = [5]", "own.toml:2", "1 to 64 letters"),
    ],
)
def test_what_is_wrong_is_refused_at_its_line(text: str, where: str, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert caught.value.where == where
    assert what in caught.value.what


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be opened"):
        load_bounce_rules([tmp_path / "none.toml"])


def test_the_operators_own_file_comes_first_and_takes_the_place_of_names(tmp_path: Path) -> None:
    shipped = tmp_path / "bounce-rules.toml"
    shipped.write_text(FULL)
    assert rule_files(shipped) == [shipped]
    own = tmp_path / "bounce-rules.local.toml"
    own.write_text('[[rule]]\nname = "second"\ncategory = "other"\ncodes = [4]\n')
    assert rule_files(shipped) == [own, shipped]
    rules = load_bounce_rules(rule_files(shipped))
    assert [(rule.name, rule.category) for rule in rules] == [
        ("second", Category.OTHER),
        ("first", Category.ACCOUNT_DISABLED),
    ]
    assert rules[0].label == "bounce-rules.local.toml: second"
    assert parse_bounce_rules(read_texts(rule_files(shipped))) == rules


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (one("category = 'other'\npattern = 'x*'"), Check.BAD_PATTERN),
        (one(r"category = 'other'\npattern = 'a\\\\.b'".replace("\\n", "\n")), Check.DOUBLED_BACKSLASH),
        (one("category = 'other'\npattern = 'x'\nsamples = ['550 y']"), Check.SAMPLE_MISSED),
        (
            one("category = 'other'\npattern = 'x'")
            + "[[rule]]\nname = 'b'\ncategory = 'policy'\npattern = 'xy'\nsamples = ['550 xy']",
            Check.COLLISION,
        ),
        (
            one("category = 'other'\ncodes = [5]") + "[[rule]]\nname = 'b'\ncategory = 'policy'\ncodes = [55]",
            Check.SHADOWED,
        ),
        (
            one("category = 'other'\nenhanced = ['5.1']\nmx = '*.com'")
            + "[[rule]]\nname = 'b'\ncategory = 'policy'\nenhanced = ['5.1.2']\nmx = '*.example.com'\npattern = 'x'",
            Check.SHADOWED,
        ),
    ],
)
def test_what_is_most_likely_not_meant_is_found(text: str, check: Check) -> None:
    (finding,) = lint_bounce_rules(parse(text))
    assert finding.check is check
    assert finding.where.startswith("own.toml:")


def test_what_is_in_order_is_not_complained_about() -> None:
    assert lint_bounce_rules(parse(FULL)) == []


# --- the shipped rules ----------------------------------------------------------------------------


def test_the_shipped_rules_have_no_findings_and_decide_their_samples() -> None:
    rules = load_bounce_rules([SHIPPED])
    assert lint_bounce_rules(rules) == []
    assert sum(len(rule.samples) for rule in rules) > 60
    assert {rule.category for rule in rules} >= set(Category) - {Category.NONE, Category.OTHER, Category.NOT_A_FAILURE}


HARD, SOFT = FailureType.HARD, FailureType.SOFT


@pytest.mark.parametrize(
    ("line", "category", "kind"),
    [
        ("550 5.1.1 The account <a@example.com> does not exist here", Category.USER_UNKNOWN, HARD),
        ("550 <a@example.com>: Recipient address rejected: User unknown in table", Category.USER_UNKNOWN, HARD),
        (
            "554 delivery error: This user doesn't have an example.com account (a@example.com)",
            Category.USER_UNKNOWN,
            HARD,
        ),
        ("550 Der Empfänger ist nicht bekannt", Category.USER_UNKNOWN, HARD),
        ("550 Cette boîte n'existe plus", Category.USER_UNKNOWN, HARD),
        ("550 La casilla no existe", Category.USER_UNKNOWN, HARD),
        ("550 该用户不存在", Category.USER_UNKNOWN, HARD),
        ("550 宛先が見つかりません", Category.USER_UNKNOWN, HARD),
        ("450 4.1.1 User unknown", Category.USER_UNKNOWN, SOFT),
        ("550 5.1.2 No such domain at this location", Category.INVALID_DOMAIN, HARD),
        ("550 The mailbox for a@example.com has been deleted", Category.ACCOUNT_DISABLED, HARD),
        ("550 5.2.1 Mailbox inactive", Category.ACCOUNT_DISABLED, SOFT),
        ("552 5.2.2 Quota exceeded for this recipient", Category.MAILBOX_FULL, SOFT),
        ("550 5.1.1 Boite du destinataire pleine", Category.MAILBOX_FULL, SOFT),
        ("452 4.3.1 Insufficient system storage", Category.SYSTEM_ERROR, SOFT),
        ("552 5.3.4 The message is larger than 10 MB", Category.TOO_BIG, SOFT),
        ("421 4.7.0 Too many connections from 192.0.2.1, slow down", Category.RATE_LIMITED, SOFT),
        ("451 4.7.1 Greylisted, come back in 5 minutes", Category.RATE_LIMITED, SOFT),
        (
            "554 5.7.1 [192.0.2.1] blocked using bl.example.net; the mailbox is full of your spam",
            Category.IP_BLOCKED,
            SOFT,
        ),
        ("550 The reputation of your address is too low", Category.IP_BLOCKED, SOFT),
        ("550 5.7.26 The message passes neither SPF nor DKIM", Category.AUTH_FAILURE, SOFT),
        ("550 192.0.2.1 has no PTR record", Category.AUTH_FAILURE, SOFT),
        ("553 5.1.8 <b@example.org> sender domain does not exist", Category.SENDER_REFUSED, SOFT),
        ("550 5.7.1 Relaying denied for a@example.com", Category.RELAY_DENIED, SOFT),
        ("550 5.7.1 The content of the message is considered spam", Category.SPAM_CONTENT, SOFT),
        ("554 A virus was found in the attachment", Category.VIRUS, SOFT),
        ("550 Denied by policy", Category.POLICY, SOFT),
        ("503 5.5.1 Bad sequence of commands", Category.PROTOCOL_ERROR, SOFT),
        ("connect to mx.example.com[192.0.2.1]:25: Connection refused", Category.UNREACHABLE, SOFT),
        ("550 <spam@example.com>: user unknown", Category.USER_UNKNOWN, HARD),
    ],
)
def test_the_shipped_rules_know_the_usual_words(line: str, category: Category, kind: FailureType) -> None:
    verdict = Qualifier(load_bounce_rules([SHIPPED])).qualify(parse_reply_text(line))
    assert (verdict.category, verdict.type) == (category, kind), verdict
    assert is_by_rule(verdict)


def test_said_after_the_content_it_is_a_filter_that_speaks() -> None:
    qualifier = Qualifier(load_bounce_rules([SHIPPED]))
    said = parse_reply_text("550 Unknown user a@example.com")
    assert qualifier.qualify(said._replace(stage="rcpt")).type is HARD
    assert qualifier.qualify(said._replace(stage="dot")).type is SOFT
    assert qualifier.qualify(said._replace(provider="mx.docomo.ne.jp")).type is SOFT
