"""``mta traffic``: events as an operator makes, sees, changes and ends them; no daemon runs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    return Cli(dsn, tmp_path)


def events(cli: Cli, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli.json("traffic", "events", *options)["events"]
    return found


def left_s(event: dict[str, Any]) -> float:
    until = datetime.datetime.fromisoformat(event["until_at"])
    return (until - datetime.datetime.fromisoformat(event["began_at"])).total_seconds()


def test_a_suspension_is_made_seen_changed_and_ended(cli: Cli) -> None:
    made = cli.json(
        "traffic", "suspend", "--domain", "Example.COM", "--for", "3 h", "--why", "they asked", "--by", "ann"
    )
    assert (made["kind"], made["target"], made["on"], made["by_whom"]) == ("suspend", "domain", "example.com", "ann")
    assert left_s(made) == pytest.approx(3 * 3600, abs=0.01)
    (seen,) = events(cli)
    assert (seen["id"], seen["detail"], seen["in_force"]) == (made["id"], "they asked", True)
    assert 3 * 3600 - 60 < seen["left_s"] <= 3 * 3600
    changed = cli.json("traffic", "change", str(made["id"]), "--for", "90m", "--by", "bob")
    assert (changed["touched_by"], changed["version"]) == ("bob", 2)
    assert 90 * 60 <= left_s(changed) < 90 * 60 + 60
    ended = cli.json("traffic", "resume", "--domain", "example.com", "--by", "eve")["ended"]
    assert [(one["id"], one["ended_why"], one["touched_by"]) for one in ended] == [(made["id"], "cancelled", "eve")]
    assert events(cli) == []
    (past,) = events(cli, "--all")
    assert (past["in_force"], past["left_s"], past["by_whom"]) == (False, None, "ann")
    assert events(cli, "--since", "1h ago") == [past]
    assert events(cli, "--since", "2999-01-01T00:00:00Z") == []


def test_each_target_is_written_as_the_schedule_reads_it(cli: Cli) -> None:
    delivery = cli.create()
    asked = {
        ("--egress", "b-2"): ("egress", "b-2"),
        ("--site", "MX.example.com+1-abc"): ("site", "mx.example.com+1-abc"),
        ("--rule", "google"): ("rule", "google"),
        ("--rule", "google", "--egress-id", "3"): ("rule", "google|3"),
        ("--provider", "microsoft", "--egress-id", "3"): ("provider", "provider:microsoft|3"),
        ("--tenant", "bücher.example"): ("tenant", "xn--bcher-kva.example"),
        ("--delivery", delivery): ("delivery", delivery),
        ("--path", "3,2001:DB8::0007"): ("path", "3|2001:db8::7"),
    }
    for options, expected in asked.items():
        made = cli.json("traffic", "suspend", *options, "--for", "ever")
        assert (made["target"], made["on"], made["until_at"]) == (*expected, None)
    assert len(events(cli)) == len(asked)
    for options in asked:
        cli.run("traffic", "resume", *options)
    assert events(cli) == []


def test_limits_are_lowered_and_said_again_replaces(cli: Cli) -> None:
    rule = ("--rule", "google", "--egress-id", "1")
    limits = ("--limit", "connections_max=2", "--limit", "messages_per_hour_max=1_000")
    first = cli.json("traffic", "lower", *rule, *limits, "--for", "2h")
    assert first["limits"] == {"connections_max": 2, "messages_per_hour_max": 1000}
    second = cli.json("traffic", "lower", *rule, "--limit", "connections_max=3", "--until", "2999-01-01T00:00:00+01:00")
    assert [(one["id"], one["limits"]) for one in events(cli)] == [(second["id"], {"connections_max": 3})]
    history = {one["id"]: one["ended_why"] for one in events(cli, "--all")}
    assert history == {first["id"]: "replaced", second["id"]: ""}
    # Another kind of the same rule goes beside it, and a resume ends suspensions only.
    cli.run("traffic", "suspend", *rule, "--for", "2h")
    cli.run("traffic", "resume", *rule)
    assert [one["id"] for one in events(cli)] == [second["id"]]
    assert "connections_max 3" in cli.run("traffic", "events").stdout
    cli.run("traffic", "cancel", str(second["id"]))
    assert events(cli) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("suspend", "--for", "2h"), "target: give one of --egress"),
        (("suspend", "--domain", "a.example", "--tenant", "b.example", "--for", "2h"), "target: give one of"),
        (("suspend", "--domain", "a.example"), "--for"),
        (("suspend", "--domain", "a.example", "--for", "2h", "--until", "2999-01-01T00:00:00Z"), "--for"),
        (("suspend", "--domain", "a.example", "--for", "soon"), "--for: 'soon'"),
        (("suspend", "--domain", "a.example", "--for", "0m"), "--for"),
        (("suspend", "--domain", "a.example", "--until", "2001-01-01T00:00:00Z"), "not ahead"),
        (("suspend", "--domain", "no domain", "--for", "2h"), "--domain"),
        (("suspend", "--path", "mx.example.com,3", "--for", "2h"), "--path"),
        (("suspend", "--path", "x,192.0.2.7", "--for", "2h"), "--path"),
        (("suspend", "--egress", "a|b", "--for", "2h"), "--egress"),
        (("suspend", "--site", "mx example", "--for", "2h"), "--site"),
        (("suspend", "--domain", "a.example", "--egress-id", "2", "--for", "2h"), "--egress-id"),
        (("suspend", "--delivery", "4711", "--for", "2h"), "delivery 4711: does not exist"),
        (("suspend", "--domain", "a.example", "--for", "2h", "--why", "x\x1b[2J"), "why"),
        (("lower", "--rule", "a", "--limit", "connections=2", "--for", "2h"), "connections_max"),
        (("lower", "--rule", "a", "--limit", "connections_max=0", "--for", "2h"), "at least 1"),
        (("lower", "--rule", "a", "--limit", "connections_max", "--for", "2h"), "KEY=NUMBER"),
        (("resume", "--domain", "a.example"), "is not suspended"),
        (("cancel", "4711"), "event 4711: does not exist"),
        (("change", "4711", "--for", "2h"), "event 4711: does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cli: Cli, arguments: tuple[str, ...], named: str) -> None:
    refused = cli.run("traffic", *arguments, expect=2)
    assert named in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert events(cli, "--all") == []


def test_what_is_over_cannot_be_ended_or_changed_again(cli: Cli) -> None:
    made = str(cli.json("traffic", "suspend", "--egress", "b-2", "--for", "2h")["id"])
    cli.run("traffic", "cancel", made)
    for arguments in (("cancel", made), ("change", made, "--for", "1h")):
        assert "has ended already (cancelled" in cli.run("traffic", *arguments, expect=2).stderr


def test_a_rule_that_is_not_in_force_is_refused_since_the_event_would_hold_nothing(cli: Cli) -> None:
    rules = cli.directory / "rules.toml"
    provider = '[[provider]]\nname = "example-mail"\n'
    rules.write_text(provider + '[[rule]]\nname = "google"\nmx = "*.example.com"\nprovider = "example-mail"\n')
    cli.run("rules", "apply", str(rules))
    refused = cli.run("traffic", "suspend", "--rule", "gogle", "--for", "1h", expect=2).stderr
    assert "--rule: rule set 1, in force, has none called 'gogle'; did you mean 'google'?" in refused
    lower = ("traffic", "lower", "--limit", "connections_max=1", "--for", "1h")
    assert "Known: example-mail" in cli.run(*lower, "--provider", "nobody", expect=2).stderr
    assert events(cli) == []
    cli.run("traffic", "suspend", "--rule", "default", "--for", "1h")
    cli.run(*lower, "--provider", "example-mail", "--egress-id", "3")
    cli.run("traffic", "suspend", "--rule", "google", "--egress-id", "3", "--for", "1h")
    assert len(events(cli)) == 3


def test_an_egress_that_nothing_has_left_from_is_asked_about_and_suspended_all_the_same(cli: Cli) -> None:
    told = cli.run("traffic", "suspend", "--egress", "out-7", "--for", "1h")
    assert "nothing has left from an egress called out-7" in " ".join(told.stderr.split())
    assert [one["on"] for one in events(cli)] == ["out-7"]
