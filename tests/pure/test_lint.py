"""The linter finds rules, limits, plans and patterns that do not do what is written, and nothing where all is well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mta.model.egress import Egress
from mta.model.errors import BadInput
from mta.model.timeouts import SessionTimeouts
from mta.settings.rules_file import load_bundle, parse_bundle
from mta.settings.rules_named import named_tables
from mta.traffic.automations import Act, Automation, ReplyMatch
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.limits import Limits
from mta.traffic.lint import in_order, lint_addresses, lint_place, lint_rules
from mta.traffic.lint_limits import is_always_quiet
from mta.traffic.lint_replies import Reply, cover, parse_reply
from mta.traffic.rules import DEFAULT_RULE, QuietHours, Rule, RuleSet

SHIPPED = Path(__file__).parents[2] / "config" / "mx-rules.toml"
SLOW = {"act": Act.SUSPEND, "for_s": 3_600}


def lint(text: str) -> list[Finding]:
    """Findings in a file ``f``, whose first line is that of ``text``."""
    texts = {"f": text}
    return lint_rules(parse_bundle("f", texts), named_tables(texts))


def found(findings: Iterable[Finding], *, notes: bool = False) -> list[tuple[str, str, str]]:
    return [(f.check.value, f.subject, f.where) for f in findings if notes or f.severity is not Severity.NOTE]


def rule(name: str, mx: str = "*.example", **more: object) -> Rule:
    return Rule(name=name, mx=mx, origin=f"f:{more.pop('line', 1)}", **more)  # type: ignore[arg-type]


def automation(name: str, pattern: str = "", **more: object) -> Automation:
    match = ReplyMatch(pattern=pattern, codes=more.pop("codes", ()), enhanced=more.pop("enhanced", ()))  # type: ignore[arg-type]
    return Automation(name=name, match=match, origin=f"f:{name}", **{**SLOW, **more})  # type: ignore[arg-type]


# --- mistakes that are in use elsewhere -------------------------------------------------------

MISTAKES = r"""
[[provider]]
name = "gmail"
total = { connections_max = 5 }
automations = ["no-authentication"]

[[automation]]
name = "no-authentication"
pattern = 'no authentication information'
act = "suspend"
samples = ["550 5.7.26 This mail has no authentication information"]

[[rule]]
name = "google"
mx = ["*.google.com", "*.googlemail.com"]

[[automation]]
name = "apple-hcm1"
pattern = '\\[HCM1\\] deferred'
act = "suspend"
samples = ["451 4.7.1 [HCM1] deferred, come again"]

[[rule]]
name = "apple"
mx = "*.icloud.com"
automations = ["apple-hcm1"]

[[automation]]
name = "comcast-throttled"
pattern = 'RL0000'
replies = 2
act = "lower"
limits = { connections_per_hour_max = 10_000 }
samples = ["421 4.2.0 Throttled, see RL000003"]

[[automation]]
name = "comcast-domain-throttled"
pattern = 'RL000010'
act = "suspend"
target = "tenant"
for_s = 300
samples = ["421 4.2.0 Domain throttled, see RL000010"]

[[rule]]
name = "comcast"
mx = "*.comcast.net"
automations = ["comcast-throttled", "comcast-domain-throttled"]

[[automation]]
name = "busy-stop"
pattern = 'server busy'
replies = 5
act = "suspend"
for_s = 1_800
samples = ["451 4.7.500 Server busy"]

[[automation]]
name = "busy-slow"
pattern = 'server busy'
replies = 3
act = "lower"
limits = { messages_per_minute_max = 1 }
for_s = 900
samples = ["451 4.7.500 Server busy. Try later"]

[[rule]]
name = "outlook"
mx = "*.olc.protection.outlook.com"
automations = ["busy-stop", "busy-slow"]

[[automation]]
name = "policy-slow"
pattern = 'policy restrictions'
replies = 5
act = "lower"
limits = { messages_per_minute_max = 1 }
samples = ["450 4.7.1 Refused by policy restrictions"]

[[automation]]
name = "policy-stop"
codes = [4, 554]
pattern = 'policy restrictions'
replies = 5
act = "suspend"
for_s = 7_200
samples = ["554 5.7.1 Refused by policy restrictions"]

[[rule]]
name = "gmx"
mx = ["*.gmx.net", "*.web.de"]
automations = ["policy-slow", "policy-stop"]
"""


def line_of(name: str) -> str:
    """The place of the table with this name in MISTAKES."""
    return "f:" + str(MISTAKES.splitlines().index(f'name = "{name}"'))


def test_each_mistake_of_well_known_rules_is_found_and_nothing_else() -> None:
    assert sorted(found(lint(MISTAKES))) == sorted(
        [
            ("unused-provider", "provider gmail", line_of("gmail")),
            ("unused-automation", "automation no-authentication", line_of("no-authentication")),
            ("doubled-backslash", "automation apple-hcm1 of rule apple", line_of("apple-hcm1")),
            ("sample-missed", "automation apple-hcm1 of rule apple", line_of("apple-hcm1")),
            ("collision", "automation comcast-domain-throttled of rule comcast", line_of("comcast-domain-throttled")),
            ("collision", "automation busy-slow of rule outlook", line_of("busy-slow")),
            ("collision", "automation policy-stop of rule gmx", line_of("policy-stop")),
        ]
    )


@pytest.mark.parametrize("mask", ["*.barracudanetworks.com.", "*.netvigator.com.", "*.kpnmail.nl.", ".google.com"])
def test_a_mask_with_a_dot_too_many_is_refused_and_found_where_it_is_not(mask: str) -> None:
    with pytest.raises(BadInput, match=r"f:3: rule.mx: .* can never fit"):
        parse_bundle("f", {"f": f'[[rule]]\nname = "a"\nmx = "{mask}"\n'})
    checks = {finding.check for finding in lint_rules(RuleSet([rule("a", mask)]))}
    assert Check.IMPOSSIBLE_MASK in checks


def test_what_is_found_says_what_to_do() -> None:
    by_check = {finding.check: finding.what for finding in lint(MISTAKES)}
    assert "delete it" in by_check[Check.UNUSED_PROVIDER]
    assert r"write \[ and not \\[" in by_check[Check.DOUBLED_BACKSLASH]
    assert "'451 4.7.1 [HCM1] deferred, come again'" in by_check[Check.SAMPLE_MISSED]
    assert "make one of the patterns narrower" in by_check[Check.COLLISION]


def test_the_shipped_rules_are_clean() -> None:
    rules, texts = load_bundle(SHIPPED)
    assert len(rules) > 10
    assert found(lint_rules(rules, named_tables(texts))) == []


# --- masks ------------------------------------------------------------------------------------


def test_a_rule_that_several_rules_take_together_is_dead() -> None:
    rules = RuleSet(
        [
            rule("some", "mx.a.example", line=1),
            rule("low", "mx?*.a.example", egress_ids=((1, 5),), line=2),
            rule("high", "mx?*.a.example, other.example", egress_ids=((6, 2**31 - 1),), line=3),
            rule("dead", "mx?.a.example", line=4),
            rule("alive", "mx*.a.example, b.example", line=5),
        ]
    )
    dead = [finding for finding in lint_rules(rules) if finding.check is Check.DEAD_RULE]
    assert found(dead) == [("dead-rule", "rule dead", "f:4")]
    assert "low (f:2), high (f:3)" in dead[0].what


def test_a_mask_that_is_taken_while_its_rule_lives_is_told_of() -> None:
    rules = RuleSet([rule("a", "*.a.example"), rule("b", "*.x.a.example, *.b.example", line=2)])
    assert found(lint_rules(rules)) == [("dead-mask", "rule b", "f:2")]


@pytest.mark.parametrize(
    ("above", "below", "is_dead"),
    [
        ({"domains": "*.b"}, {"domains": "x.b"}, True),
        ({"domains": "x.b"}, {"domains": "*.b"}, False),
        ({"domains": "x.b"}, {}, False),
        ({}, {"domains": "x.b"}, True),
        ({"sites": "mx.a+1.*"}, {"sites": "mx.a+1.x"}, True),
        ({"sites": "mx.a"}, {}, False),
        ({"egress_ids": ((1, 3),)}, {"egress_ids": ((2, 2),)}, True),
        ({"egress_ids": ((1, 3),)}, {"egress_ids": ((2, 4),)}, False),
    ],
)
def test_sites_domains_and_egresses_let_rules_live(above: dict, below: dict, is_dead: bool) -> None:  # type: ignore[type-arg]
    rules = RuleSet([rule("a", "*.example", **above), rule("b", "*.example", line=2, **below)])
    assert ([f.check for f in lint_rules(rules)] == [Check.DEAD_RULE]) is is_dead


def test_very_many_rules_are_looked_at_in_little_time() -> None:
    """The search for names is bounded, also where masks are made to be hard."""
    hard = [rule(f"h{n}", f"*a{n % 3}*b{n}*c*.d{n % 7}.example", line=n) for n in range(200)]
    plain = [rule(f"r{n}", f"*.d{n}.example, mx?.e{n}.example", line=n + 200) for n in range(400)]
    dead = [finding.subject for finding in lint_rules(RuleSet([*hard, *plain, rule("again", "*.x.d5.example")]))]
    assert "rule again" in dead


def test_a_rule_for_everybody_with_one_count_is_told_of() -> None:
    assert found(lint('[[rule]]\nname = "all"\nmx = "*"\n')) == [("shared-catch-all", "rule all", "f:1")]
    assert found(lint('[[rule]]\nname = "all"\nmx = ["*.*", "?*"]\n')) == [("shared-catch-all", "rule all", "f:1")]
    assert found(lint('[[rule]]\nname = "all"\nmx = "*"\nscope = "path"\n')) == []


# --- limits -----------------------------------------------------------------------------------


def limits(given: str, before: str = "") -> list[tuple[str, str]]:
    """(check, line of the finding) with these keys from line 4 on of one rule."""
    text = f'{before}[[rule]]\nname = "r"\nmx = "*.example"\n{given}\n'
    return [(check, where) for check, _, where in found(lint(text))]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("messages_per_hour_max = 6_001\nmessages_per_minute_max = 100", 4),
        ("messages_per_minute_max = 101\nmessages_per_hour_max = 1_200", 4),  # 100 in five minutes
        ("messages_per_second_max = 9\nmessages_per_minute_max = 8", 4),
        ("messages_per_day_max = 100_000\nmessages_per_hour_max = 1_200", 4),
        ("bytes_per_hour_max = 70_000\nbytes_per_minute_max = 1_000", 4),
        ("connections_per_hour_max = 61\nconnections_per_minute_max = 1", 4),
        ("connections_max = 5\nconnections_per_path_max = 6", 5),
        ('connections_max = 7\nconnections_per_path_max = 6\nscope = "path"', 4),
        ("messages_per_hour_max = 6_100\nmessages_per_connection_max = 10\nconnections_per_minute_max = 10", 4),
        ("messages_per_connection_max = 10\nrecipients_per_transaction_max = 11", 5),
    ],
)
def test_a_limit_that_another_one_makes_idle_is_found_at_its_line(given: str, line: int) -> None:
    assert limits(given) == [("limit-unreachable", f"f:{line}")]


@pytest.mark.parametrize(
    "given",
    [
        "messages_per_hour_max = 6_000\nmessages_per_minute_max = 100",
        "messages_per_minute_max = 100\nmessages_per_hour_max = 1_200",
        "messages_per_day_max = 20_000\nmessages_per_hour_max = 1_200",
        "connections_max = 6\nconnections_per_path_max = 5",
        "messages_per_hour_max = 6_000\nmessages_per_connection_max = 10\nconnections_per_minute_max = 10",
        "messages_per_hour_max = 7",
    ],
)
def test_limits_that_can_all_be_reached_are_left_alone(given: str) -> None:
    assert limits(given) == []


PROVIDER = '[[provider]]\nname = "p"\ntotal = {{ connections_max = 5, messages_per_minute_max = 10, scope = "{}" }}\n'


@pytest.mark.parametrize(
    ("scopes", "given", "is_idle"),
    [
        (("egress", "egress"), "connections_max = 6", True),
        (("egress", "egress"), "connections_max = 5", False),
        (("egress", "shared"), "connections_max = 6", False),  # five for each of several egresses
        (("shared", "shared"), "connections_max = 6", True),
        (("shared", "path"), "messages_per_hour_max = 601", True),
        (("egress", "egress"), "messages_per_hour_max = 600", False),
    ],
)
def test_a_rule_is_held_against_its_provider(scopes: tuple[str, str], given: str, is_idle: bool) -> None:
    text = f'provider = "p"\nscope = "{scopes[1]}"\n{given}'
    assert bool(limits(text, PROVIDER.format(scopes[0]))) is is_idle


def test_what_was_inherited_is_a_note_only() -> None:
    text = '[defaults]\nmessages_per_second_max = 100\n[[rule]]\nname = "r"\nmx = "*.a"\nmessages_per_minute_max = 30\n'
    assert [(f.check, f.severity, f.where) for f in lint(text)] == [
        (Check.LIMIT_UNREACHABLE, Severity.NOTE, "f:2"),
    ]


def test_twin_limits_must_be_tighter() -> None:
    slower = automation("slow", "busy", act=Act.BACKOFF, samples=("421 busy",))
    usual = Limits(connections_max=5, messages_per_hour_max=100, ramp_up_s=10)

    def checks(backoff: Limits | None, *automations: Automation) -> list[tuple[str, str]]:
        given = {key: getattr(usual, key) for key in ("connections_max", "messages_per_hour_max", "ramp_up_s")}
        one = rule("r", backoff=backoff, automations=automations, **given)
        return [(f.check.value, f.what.split(" ")[1]) for f in lint_rules(RuleSet([one]))]

    assert checks(Limits(connections_max=1, messages_per_hour_max=10, ramp_up_s=60), slower) == []
    assert checks(Limits(connections_max=6, messages_per_hour_max=10, ramp_up_s=5), slower) == [
        ("backoff-looser", "connections_max"),
        ("backoff-looser", "ramp_up_s"),
    ]
    assert checks(Limits(connections_max=1, ramp_up_s=60), slower) == [("backoff-looser", "messages_per_hour_max")]
    assert checks(Limits(connections_max=1, messages_per_minute_max=2, ramp_up_s=60), slower) == [
        ("backoff-looser", "messages_per_hour_max")
    ]
    assert checks(Limits(connections_max=1, messages_per_minute_max=1, ramp_up_s=60), slower) == []
    assert [check for check, _ in checks(Limits(connections_max=1, messages_per_hour_max=10, ramp_up_s=60))] == [
        "backoff-unused"
    ]
    assert [check for check, _ in checks(None, slower)] == ["no-effect"]


@pytest.mark.parametrize(("a_minute", "idle_s", "is_kept"), [(1, 5, True), (5, 5, True), (6, 5, False), (5, 12, False)])
def test_few_messages_keep_sessions_short_by_themselves(a_minute: int, idle_s: float, is_kept: bool) -> None:
    one = rule(
        "r",
        messages_per_connection_max=5,
        timeouts=SessionTimeouts(idle_s=idle_s),
        backoff=Limits(messages_per_minute_max=a_minute),
        automations=(automation("slow", "busy", act=Act.BACKOFF, samples=("421 busy",)),),
    )
    assert found(lint_rules(RuleSet([one]))) == ([] if is_kept else [("backoff-looser", "rule r", "f:1")])


@pytest.mark.parametrize(
    ("spans", "is_quiet"),
    [
        (((0, 1440),), True),
        (((0, 720), (720, 1440)), True),
        (((720, 720),), True),
        (((22 * 60, 6 * 60), (6 * 60, 22 * 60)), True),
        (((22 * 60, 6 * 60),), False),
        (((0, 1439),), False),
    ],
)
def test_hours_that_leave_no_minute_are_an_error(spans: tuple[tuple[int, int], ...], is_quiet: bool) -> None:
    assert is_always_quiet(QuietHours(spans=spans)) is is_quiet
    findings = lint_rules(RuleSet([rule("r", quiet_hours=QuietHours(spans=spans))]))
    assert ([(f.check, f.severity) for f in findings] == [(Check.NEVER_SENDS, Severity.ERROR)]) is is_quiet


# --- plans, pools, addresses ------------------------------------------------------------------


def test_plans_and_blocks_that_others_stand_before_are_found() -> None:
    text = """\
[[rule]]
name = "r"
mx = "*.example"
[[warm_up]]
name = "first"
egress_ids = ["1-5"]
starts = 2026-01-01
ladders = { "*" = [10, 20] }
[[warm_up]]
name = "second"
egress_ids = ["4-9"]
starts = 2026-01-01
ladders = { r = [10, 20] }
[[error_block]]
domain = "*.example"
[[error_block]]
domain = "a.example"
"""
    findings = lint(text)
    assert found(findings) == [
        ("warm-up-shadowed", "warm-up second", "f:9"),
        ("error-block-dead", "error block a.example", "f:16"),
    ]
    assert "egress 4-5 belong to warm-up first" in findings[0].what


def test_what_is_not_there_where_the_rules_are_used_is_found() -> None:
    text = """\
[[automation]]
name = "leave"
pattern = "listed"
act = "pool"
pool = "spare"
samples = ["550 listed"]
[[rule]]
name = "r"
mx = "*.example"
egress_ids = [7, "9-12"]
pool = "warm"
automations = ["leave"]
[[warm_up]]
name = "new"
egress_ids = [3]
starts = 2026-01-01
ladders = { "*" = [10, 20] }
"""
    rules = parse_bundle("f", {"f": text})
    here = [Egress("a", 10, "a.example"), Egress("b", 3, "b.example")]
    assert found(lint_place(rules, here, ["warm", "spare", "default"])) == []
    assert sorted(found(lint_place(rules, here[:0], ["default"]))) == [
        ("egress-unknown", "rule r", "f:7"),
        ("egress-unknown", "warm-up new", "f:13"),
        ("pool-unknown", "automation leave of rule r", "f:1"),
        ("pool-unknown", "rule r", "f:11"),
    ]


def test_addresses_of_others_are_told_of() -> None:
    egress = Egress("a", 1, "a.example", source_ipv4="192.0.2.1", source_ipv6="2001:db8::1")
    findings = lint_addresses([egress], "mta.toml", lambda address: "not ours" if ":" in address else "")
    assert found(findings) == [("address-not-here", "egress a", "mta.toml")]
    assert "2001:db8::1 is not owned by this machine (not ours)" in findings[0].what


# --- patterns ---------------------------------------------------------------------------------


def of(*automations: Automation, **more: object) -> list[tuple[str, str]]:
    findings = lint_rules(RuleSet([rule("r", automations=automations, **more)]))
    return [(f.check.value, f.subject.split(" ")[1]) for f in findings if f.severity is not Severity.NOTE]


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"pattern": "a(b"}, "bad-pattern"),
        ({"pattern": r"^421 too many", "samples": ("421 too many",)}, "code-in-pattern"),
        ({"codes": ("250",)}, "code-never"),
        ({"codes": ("4",), "enhanced": ("5.7",)}, "code-never"),
        ({"pattern": "a", "samples": ("421 a", "421 b")}, "sample-missed"),
        ({"pattern": "a", "codes": ("421",), "samples": ("450 a",)}, "sample-missed"),
        ({"act": Act.LOWER, "factor": 0.5}, "no-effect"),
        ({"act": Act.LOWER, "limits": Limits(connections_max=20)}, "no-effect"),
    ],
)
def test_faults_of_one_automation(given: dict, check: str) -> None:  # type: ignore[type-arg]
    more = {} if given.get("factor") else {"connections_max": 20}
    assert (check, "a") in of(automation("a", **given), **more)


def test_two_that_do_the_same_are_one_too_many() -> None:
    wide = automation("wide", "too many", samples=("421 too many",))
    narrow = automation("narrow", "too many connections", samples=("421 too many connections",), replies=3)
    assert of(wide, narrow) == [("shadowed", "narrow")]
    assert of(narrow, wide) == [("shadowed", "narrow")]
    # Where the narrow one comes sooner, or does something else, they collide.
    sooner = automation("sooner", "too many connections", samples=("421 too many connections",))
    later = automation("later", "too many", samples=("421 too many",), replies=3)
    assert of(later, sooner) == [("collision", "sooner")]


def test_those_that_never_meet_are_left_alone() -> None:
    one = automation("one", "too many", codes=("421",), samples=("421 too many",))
    two = automation("two", "too many", codes=("5",), samples=("550 too many",))
    other = automation("other", "", codes=("4",), enhanced=("4.7",), samples=("451 4.7.1 wait",))
    assert of(one, two, other) == []
    # In different rules they never meet.
    rules = RuleSet([rule("a", "a", automations=(one,)), rule("b", "b", automations=(automation("x", "too many"),))])
    assert found(lint_rules(rules)) == []


def test_a_pattern_without_samples_is_tried_by_itself() -> None:
    assert of(automation("one", "too many"), automation("two", "too", replies=5)) == [("collision", "two")]
    notes = lint_rules(RuleSet([rule("r", automations=(automation("one", "too many"),))]))
    assert [f.check for f in notes] == [Check.NO_SAMPLE]


def test_an_automation_of_many_rules_is_told_of_once() -> None:
    broken = automation("broken", "a", samples=("421 b",))
    rules = RuleSet([rule(f"r{n}", f"*.{n}.example", automations=(broken,)) for n in range(3)])
    assert [f.check for f in lint_rules(rules)] == [Check.SAMPLE_MISSED]


# --- a corpus ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("421 4.7.28 Slow down", (421, "4.7.28", "Slow down")),
        ("550-5.7.26 Not authenticated", (550, "5.7.26", "Not authenticated")),
        ("450", (450, "", "")),
        ("No such user here", (0, "", "No such user here")),
        ("452 4.2.2: mailbox full", (452, "4.2.2", "mailbox full")),
        ("550 10.0.0.1 refused", (550, "", "10.0.0.1 refused")),
    ],
)
def test_a_line_is_taken_apart(line: str, reply: tuple[int, str, str]) -> None:
    parsed = parse_reply(line)
    assert (parsed.code, parsed.enhanced, parsed.text) == reply


def test_a_corpus_says_what_matches_nothing() -> None:
    one = automation("one", "too many", samples=("421 too many",))
    idle = automation("idle", "never said", samples=("421 never said",))
    rules = RuleSet([rule("a", "*.a", automations=(one, idle)), rule("b", "*.b")])
    corpus = [
        Reply(421, "4.7.0", "Too many from 192.0.2.7", 3, ("a",)),
        Reply(421, "4.7.0", "Too many from 192.0.2.8", 2, ("b",)),  # of a rule that does not ask for it
        Reply(550, "5.1.1", "<ann@example.com> unknown, id 7f3a99c0d2e1", 4),
        Reply(550, "5.1.1", "<bob@example.org> unknown, id 11223344aaff", 1),
        Reply(250, "2.0.0", "accepted", 99),
    ]
    coverage, findings = cover(rules, corpus)
    assert (coverage.replies, coverage.matched) == (10, 3)
    assert coverage.by_automation == {"one": 3, "idle": 0}
    assert [(u.like, u.count) for u in coverage.unmatched] == [
        ("550 5.1.1 <address> unknown, id <id>", 5),
        ("421 4.7.0 Too many from <ip>", 2),
    ]
    assert coverage.unmatched[0].example == "550 5.1.1 <ann@example.com> unknown, id 7f3a99c0d2e1"
    assert [(f.check, f.severity) for f in findings] == [
        (Check.NEVER_MATCHED, Severity.NOTE),
        (Check.REPLY_UNMATCHED, Severity.NOTE),
    ]


def test_a_corpus_shows_collisions_that_samples_do_not() -> None:
    busy = automation("busy", "server busy", samples=("421 server busy",))
    later = automation("later", "try (again )?later", act=Act.LOWER, factor=0.5, samples=("421 try later",))
    rules = RuleSet([rule("r", automations=(busy, later), connections_max=4)])
    assert found(lint_rules(rules)) == []
    _, findings = cover(rules, [parse_reply("421 Server busy, try again later")])
    assert found(findings) == [("collision", "automation later of rule r", "f:later")]
    assert "421 Server busy, try again later" in findings[0].what


def test_findings_are_in_the_order_of_the_file_and_each_once() -> None:
    a = Finding(Check.DEAD_RULE, Severity.ERROR, "f:10", "rule a", "x")
    b = Finding(Check.DEAD_MASK, Severity.WARNING, "f:9", "rule b", "x")
    c = Finding(Check.REPLY_UNMATCHED, Severity.NOTE, "", "corpus", "x")
    assert in_order([a, c, b, a]) == [c, b, a]


def test_the_default_rule_is_clean() -> None:
    assert lint_rules(RuleSet([DEFAULT_RULE])) == []
