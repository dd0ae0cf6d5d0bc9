"""What a rules file can say besides plain rules: cascade, providers, other files, automations, plans, blocks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import re2

from mta.model.errors import BadInput
from mta.settings.rules_file import load_bundle, load_rules, parse_bundle, parse_rules, unknown_pools
from mta.settings.toml_source import TomlSource
from mta.traffic.automations import Act, Recovery, ReplyMatch
from mta.traffic.effects import Target
from mta.traffic.limits import Limits
from mta.traffic.retry import FREQUENT, RetrySchedule
from mta.traffic.rules import NextMx, QuietHours, RuleSet, Scope, Tls

CONFIG = Path(__file__).parents[2] / "config"


def parsed(text: str) -> RuleSet:
    return parse_rules(TomlSource(text, "r.toml"))


def refused(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parsed(text)
    return str(caught.value)


def test_a_value_comes_from_the_nearest_place_that_gives_it() -> None:
    rules = parsed(
        """\
[defaults]
tls = "required"
connections_max = 9
timeouts = { connect_s = 7 }
automations = ["slow"]

[[automation]]
name = "slow"
codes = [421]
act = "suspend"

[[automation]]
name = "other"
codes = [4]
act = "suspend"

[[provider]]
name = "large"
total = { scope = "shared", connections_max = 50 }
connections_max = 5
automations = ["other"]

[[rule]]
name = "own"
provider = "large"
mx = "*.a.example"
connections_max = 3

[[rule]]
name = "inherits"
provider = "large"
mx = "*.b.example"
automations = ["-slow"]

[[rule]]
name = "plain"
mx = "*"
"""
    )
    own, inherits, plain = rules.rules
    assert (own.connections_max, inherits.connections_max, plain.connections_max) == (3, 5, 9)
    assert {rule.tls for rule in rules.rules} == {Tls.REQUIRED}
    assert own.provider is not None
    assert (own.provider.name, own.provider.scope, own.provider.connections_max) == ("large", Scope.SHARED, 50)
    assert plain.provider is None
    names = [[one.name for one in rule.automations] for rule in rules.rules]
    assert names == [["slow", "other"], ["other"], ["slow"]]
    assert rules.origins["own", "connections_max"] == "r.toml:27"
    assert rules.origins["inherits", "connections_max"] == "r.toml:20"
    assert rules.origins["plain", "connections_max"] == "r.toml:3"
    assert rules.origins["provider:large", "connections_max"] == "r.toml:19"
    assert ("plain", "port") not in rules.origins


def test_every_other_key_of_a_rule_arrives() -> None:
    rules = parsed(
        """\
[[automation]]
name = "enter"
codes = [4]
act = "backoff"

[[rule]]
name = "r"
domain = ["vip.example", "*.vip.example"]
site = "mx1.example+2-*"
connections_per_second_max = 1
ramp_up_s = 30
messages_per_second_max = 2
messages_per_day_max = 900
bytes_per_hour_max = 1_000_000
tls = "verified"
mta_sts = false
dane = false
port = 2525
helo = "mail.example.com"
next_mx = "when-full"
pool = "slow"
retry = "frequent"
quiet_hours = { hours = ["22:00-07:30"], time_zone = "Europe/Paris" }
backoff = { connections_max = 1 }
automations = ["enter"]
recovery = { interval_s = 5, step_percent = 50 }
"""
    )
    (rule,) = rules.rules
    assert (rule.mx, rule.domains, rule.sites) == ("*", "vip.example, *.vip.example", "mx1.example+2-*")
    assert (rule.connections_per_second_max, rule.ramp_up_s, rule.messages_per_second_max) == (1, 30, 2)
    assert (rule.messages_per_day_max, rule.bytes_per_hour_max) == (900, 1_000_000)
    assert (rule.tls, rule.mta_sts, rule.dane) == (Tls.VERIFIED, False, False)
    assert (rule.port, rule.helo, rule.next_mx, rule.pool) == (2525, "mail.example.com", NextMx.WHEN_FULL, "slow")
    assert rule.retry == FREQUENT
    assert rule.quiet_hours == QuietHours(spans=((22 * 60, 7 * 60 + 30),), zone="Europe/Paris")
    assert rule.backoff == Limits(connections_max=1)
    assert rule.recovery == Recovery(interval_s=5, step_percent=50)
    assert rules.domain_class("a.vip.example") == "r"
    assert unknown_pools(rules, ["default"]) == [("r.toml:21", "slow")]
    assert not unknown_pools(rules, ["slow"])


def test_a_retry_schedule_of_its_own_is_checked_like_that_of_a_delivery() -> None:
    rule = '[[rule]]\nname = "r"\nmx = "*"\nretry = '
    (found,) = parsed(rule + "{ first_count = 2, first_period_s = 60, then_period_s = 600 }").rules
    assert found.retry == RetrySchedule(2, 60, 600)
    assert "r.toml:4: rule.retry: 'often' is not allowed; expected one of 'classic', 'frequent'" in refused(
        rule + '"often"'
    )
    assert "rule.retry.first_count: 5000 is not allowed" in refused(rule + "{ first_count = 5000 }")
    assert "did you mean 'first_count'?" in refused(rule + "{ frist_count = 5 }")


AUTOMATION = """\
[[rule]]
name = "r"
mx = "*"
automations = ["a"]
[[automation]]
name = "a"
"""


def test_an_automation_arrives() -> None:
    rules = parsed(
        AUTOMATION
        + """\
codes = [421, "45"]
enhanced = ["4.7"]
pattern = 'too (many|fast)'
stages = ["greeting", "dot"]
replies = 3
within_s = 600
act = "lower"
target = "provider"
factor = 0.5
for_s = 60
samples = ["421 4.7.0 too many"]
"""
    )
    (automation,) = rules.rules[0].automations
    assert automation.match == ReplyMatch(("421", "45"), ("4.7",), "too (many|fast)", ("greeting", "dot"))
    assert (automation.replies, automation.within_s, automation.for_s, automation.factor) == (3, 600, 60, 0.5)
    assert (automation.act, automation.target) == (Act.LOWER, Target.PROVIDER)
    assert automation.origin == "r.toml:5"


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("act = 'suspend'", "automation: needs codes, enhanced or pattern"),
        ("codes = [4]", "the key 'act' is missing; expected one of 'suspend', 'lower'"),
        ("codes = [4]\nact = 'stop'", "automation.act: 'stop' is not allowed; expected one of 'suspend'"),
        ("codes = [600]\nact = 'suspend'", "automation.codes: 600 is not allowed; expected a code (421)"),
        ("enhanced = ['7']\nact = 'suspend'", "automation.enhanced: '7' is not allowed"),
        ("pattern = '(?=a)'\nact = 'suspend'", "RE2 has no look-around"),
        ("pattern = '(a)\\1'\nact = 'suspend'", "RE2 has no look-around and no back-references"),
        ("pattern = '((a{100}){100}){100}'\nact = 'suspend'", "automation.pattern: "),
        ("codes = [4]\nstages = ['dots']\nact = 'suspend'", "expected one of 'connect', 'greeting'"),
        ("codes = [4]\nact = 'suspend'\nreplies = 0", "automation.replies: 0 is not allowed"),
        ("codes = [4]\nact = 'lower'", "needs either factor (0.5) or limits"),
        ("codes = [4]\nact = 'lower'\nfactor = 1.5", "1.5 is not allowed; expected a number between 0 and 1"),
        ("codes = [4]\nact = 'lower'\nfactor = 0.5\nlimits = { connections_max = 1 }", "needs either"),
        ("codes = [4]\nact = 'suspend'\nfactor = 0.5", "is only of act 'lower'"),
        ("codes = [4]\nact = 'lower'\nlimits = { connection_max = 1 }", "did you mean 'connections_max'?"),
        ("codes = [4]\nact = 'no-tls'\ntarget = 'site'", "is not allowed with act 'no-tls'; expected one of 'path'"),
        ("codes = [4]\nact = 'pool'", "automation.pool: is for act 'pool', which needs it"),
        ("codes = [4]\nact = 'suspend'\npool = 'x'", "automation.pool: is for act 'pool'"),
        ("codes = [4]\nact = 'backoff'", "one of them enters backoff, and the rule has no 'backoff' limits"),
    ],
)  # fmt: skip
def test_an_automation_that_makes_no_sense_is_refused(lines: str, what: str) -> None:
    said = refused(AUTOMATION + lines)
    assert what in said
    assert re.match(r"r\.toml:\d+: ", said)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            '[[rule]]\nname = "r"\nmx = "*"\nautomations = ["none"]',
            "r.toml:4: rule.automations: no automation is",
        ),
        ('[[rule]]\nname = "r"\nmx = "*"\nprovider = "none"', "no provider is named 'none'; known: none"),
        ('[[provider]]\nname = "p"\ntotal = { messages_per_connection_max = 5 }', "is not of a provider as a whole"),
        ('[[provider]]\nname = "p"\ntotal = { scope = "path" }', "'path' is not allowed; expected one of 'egress'"),
        ('[[provider]]\nname = "p"\n[[provider]]\nname = "p"', "the name 'p' is taken by the provider at r.toml:1"),
        ('[[provider]]\nname = "p"\nmx = "*"', "provider.mx: unknown key"),
        ("[defaults]\nname = 'x'", "defaults.name: unknown key"),
        ('[[rule]]\nname = "r"\nmx = "*"\nramp_up_s = 0', "rule.ramp_up_s: 0 is not allowed"),
        ('[[rule]]\nname = "r"\nmx = "*"\nbytes_per_day_max = 10', "rule.bytes_per_day_max: 10 is not allowed"),
        ('[[rule]]\nname = "r"\nmx = "*"\nport = 70000', "rule.port: 70000 is not allowed"),
        ('[[rule]]\nname = "r"\nmx = "*"\nhelo = "a b"', "rule.helo: 'a b' is not allowed"),
        ('[[rule]]\nname = "r"\nmx = "*"\nbackoff = { tls = "required" }', "rule.backoff.tls: unknown key"),
        ('[[rule]]\nname = "r"\nmx = "*"\nquiet_hours = { hours = ["22-7"] }', "'22-7' is not allowed; expected times"),
        ('[[rule]]\nname = "r"\nmx = "*"\nquiet_hours = { hours = ["24:30-07:00"] }', "is not allowed; expected times"),
        (
            '[[rule]]\nname = "r"\nmx = "*"\nquiet_hours = { hours = ["22:00-07:00"], time_zone = "Mars" }',
            "rule.quiet_hours.time_zone: 'Mars' is no time zone",
        ),
        ('[[warm_up]]\nname = "w"\nstarts = 2027-01-04\nladders = { "*" = [5] }', "the key 'egress_ids' is missing"),
        (
            '[[warm_up]]\nname = "w"\negress_ids = [1]\nstarts = "soon"\nladders = { "*" = [5] }',
            "'soon' is not allowed; expected a date",
        ),
        (
            '[[warm_up]]\nname = "w"\negress_ids = [1]\nstarts = 2027-01-04\nladders = { g = [5] }',
            "no rule and no provider is named 'g'",
        ),
        (
            '[[warm_up]]\nname = "w"\negress_ids = [1]\nstarts = 2027-01-04\nladders = { "*" = [5, 4] }',
            "goes down: a ladder is climbed",
        ),
        ("[[error_block]]\nerror_percent = 0", "error_block.error_percent: 0 is not allowed"),
        ("[error_block]\nerror_percent = 50", "write [[error_block]], with two brackets"),
        ('include = ["/etc/passwd"]', "expected a name relative to this file"),
        ("include = 5", "include: 5 is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(text: str, what: str) -> None:
    assert what in refused(text)


def test_plans_and_blocks_arrive() -> None:
    rules = parsed(
        """\
[[rule]]
name = "google"
mx = "*.google.com"
[[warm_up]]
name = "new"
egress_ids = ["7-8"]
starts = 2027-01-04
ladders = { google = [5, 10], "*" = [50] }
[[error_block]]
domain = "*.vip.example"
messages_min = 1_000
[[error_block]]
"""
    )
    plan = rules.warm_up(8)
    assert plan is not None
    assert (plan.starts_unix_s, plan.ladders) == (1_799_020_800, (("google", (5, 10)), ("*", (50,))))
    assert rules.warm_up(9) is None
    special, general = rules.error_block("a.vip.example"), rules.error_block("b.example")
    assert special is not None
    assert general is not None
    assert (special.messages_min, general.messages_min, general.for_s) == (1_000, 300, 10_800)


# --- files in files -------------------------------------------------------------------------------


def rule(name: str, mx: str) -> str:
    return f'[[rule]]\nname = "{name}"\nmx = "{mx}"\n'


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".toml").write_text(text)
    return directory / "root.toml"


def test_an_include_stands_where_it_is_written(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        root='include = ["first.toml"]\n'
        + rule("own", "*.own")
        + '[[rule]]\ninclude = "d/*.toml"\n'
        + rule("rest", "*"),
        first=rule("first", "*.first"),
        d__b='include = "deeper.toml"\n' + rule("b", "*.b"),
        d__a=rule("a", "*.a"),
    )
    (tmp_path / "d" / "deeper.toml").write_text("[defaults]\nconnections_max = 4\n")
    root.write_text(root.read_text().replace("d/*.toml", "d/[ab].toml"))
    rules, texts = load_bundle(root)
    assert [one.name for one in rules.rules] == ["first", "own", "a", "b", "rest"]
    assert {one.connections_max for one in rules.rules} == {4}
    assert rules.rules[3].origin == f"{tmp_path}/d/b.toml:2"
    assert list(texts) == ["root.toml", "first.toml", "d/a.toml", "d/b.toml", "d/deeper.toml"]
    again = parse_bundle("root.toml", texts)
    assert [one.name for one in again.rules] == [one.name for one in rules.rules]
    assert again.origins["b", "connections_max"] == "d/deeper.toml:2"


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"root": 'include = "a.toml"', "a": 'include = "root.toml"'}, "a.toml:1: include: a loop: root.toml -> a"),
        ({"root": 'include = "root.toml"'}, "include: a loop: root.toml -> root.toml"),
        ({"root": 'include = ["a.toml", "a.toml"]', "a": ""}, "a.toml is included at"),
        ({"root": 'include = "none.toml"'}, "root.toml:1: include: "),
        (
            {"root": 'include = "a.toml"\n' + rule("r", "*.x"), "a": rule("r", "*.y")},
            "the name 'r' is taken by the rule",
        ),
        ({"root": 'include = "a.toml"\n[defaults]\n', "a": "[defaults]\n"}, "one file has them"),
        ({"root": '[[rule]]\ninclude = "a.toml"\nname = "x"\n', "a": ""}, "stands alone"),
        ({"root": '\ninclude = "a.toml"', "a": "[[rule]]\nname = 5"}, "a.toml:2: rule.name: 5 is not allowed"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, files: dict[str, str], what: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_rules(write(tmp_path, **files))
    assert what in str(caught.value)


def test_a_long_chain_is_refused(tmp_path: Path) -> None:
    chain = {f"f{n}": f'include = "f{n + 1}.toml"' for n in range(12)}
    with pytest.raises(BadInput, match=r"more than 8 files deep: root\.toml -> f0\.toml"):
        load_rules(write(tmp_path, root='include = "f0.toml"', f12="", **chain))


# --- what is shipped ------------------------------------------------------------------------------


def test_every_automation_that_is_shipped_fits_its_own_samples_and_is_used() -> None:
    rules = load_rules(CONFIG / "mx-rules.toml")
    options = re2.Options()
    options.case_sensitive = False
    used = {automation.name: automation for rule in rules.rules for automation in rule.automations}
    declared = re.findall(
        r'^\[\[automation\]\]\nname = "([\w-]+)"', (CONFIG / "providers.toml").read_text(), re.MULTILINE
    )
    assert set(declared) == set(used)
    for automation in used.values():
        assert automation.samples, automation.name
        for sample in automation.samples:
            code = sample.split(" ")[0]
            assert re2.search(automation.match.pattern, sample, options), (automation.name, sample)
            assert not automation.match.codes or code.startswith(automation.match.codes), (automation.name, sample)
