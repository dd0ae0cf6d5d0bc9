"""The sink's script: rules by file, and the language of local parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.errors import BadInput
from mta.sink.script import Action, Disconnect, Rule, Script, Situation, Step, dice, read_local_part, read_script

HERE = Situation(client="127.0.0.9", helo="out1.example", mail_from="news@shop.example")


def script(*rules: Rule, local_parts: bool = True, seed: int = 1) -> Script:
    return Script(rules, local_parts=local_parts, randomness=dice(seed))


@pytest.mark.parametrize(
    ("local_part", "step", "reply"),
    [
        ("550", Step.RCPT, "550 5.1.1 no such user"),
        ("550+u17", Step.RCPT, "550 5.1.1 no such user"),
        ("u17+451", Step.RCPT, "451 4.3.0 local error, try again later"),
        ("anna--552-5.2.3", Step.RCPT, "552 5.2.3 mailbox full"),
        ("rcpt-450", Step.RCPT, "450 4.2.1 mailbox unavailable"),
        ("data-554", Step.DATA, "554 5.7.1 refused"),
        ("dot-421", Step.DOT, "421 4.3.2 service not available, closing the connection"),
        ("451-after-dot", Step.DOT, "451 4.3.0 local error, try again later"),
    ],
)
def test_local_part_asks_for_a_reply_at_a_step(local_part: str, step: Step, reply: str) -> None:
    spoken = read_local_part(local_part)
    assert spoken is not None
    assert (step, reply, False) == (spoken[0], spoken[1].reply, spoken[1].store)


@pytest.mark.parametrize(
    ("local_part", "expected"),
    [
        ("drop-after-dot", (Step.DOT, Action(disconnect=Disconnect.BEFORE_REPLY))),
        ("reset-after-dot", (Step.DOT, Action(disconnect=Disconnect.BEFORE_REPLY, reset=True))),
        ("lose+5", (Step.DOT, Action(disconnect=Disconnect.BEFORE_REPLY, store=False))),
        ("rcpt-drop", (Step.RCPT, Action(disconnect=Disconnect.BEFORE_REPLY))),
        ("delay-200", (Step.DOT, Action(delay_ms=200))),
        ("rcpt-delay-5", (Step.RCPT, Action(delay_ms=5))),
        ("dot-hang", (Step.DOT, Action(never_answer=True, store=False))),
    ],
)
def test_local_part_asks_for_an_action(local_part: str, expected: tuple[Step, Action]) -> None:
    assert expected == read_local_part(local_part)


@pytest.mark.parametrize("local_part", ["ok", "anna", "anna--smith", "u+tag", "250", "5500", "rcpt-drop-after-dot", ""])
def test_ordinary_local_parts_are_accepted(local_part: str) -> None:
    assert read_local_part(local_part) is None


def test_first_rule_that_fits_wins_and_goes_before_the_local_part() -> None:
    far = script(
        Rule(step=Step.RCPT, recipient="*@other.example", code=450),
        Rule(step=Step.RCPT, local_part="INFO", mail_from="news@*", helo="*.example", client="127.0.0.?", code=451),
        Rule(step=Step.RCPT, code=452),
    )
    codes = [far.at(Step.RCPT, HERE, to) for to in ("x@Other.Example", "info@a.example", "550@a.example")]
    assert [action.code for action in codes if action] == [450, 451, 452]


def test_a_rule_of_another_step_is_not_asked() -> None:
    far = script(Rule(step=Step.DATA, code=451))
    assert far.at(Step.RCPT, HERE, "a@b.example") is None
    assert far.for_message(Step.DATA, HERE, ["a@b.example"]) is not None


def test_first_recipient_with_an_action_decides_for_the_message() -> None:
    action = script().for_message(Step.DOT, HERE, ["a@x.example", "dot-452@x.example", "dot-554@x.example"])
    assert action is not None
    assert action.code == 452


def test_local_parts_can_be_switched_off() -> None:
    assert script(local_parts=False).at(Step.RCPT, HERE, "550@x.example") is None


def test_odds_are_kept_and_a_seed_repeats_them() -> None:
    def drawn(seed: int) -> list[bool]:
        far = script(Rule(step=Step.RCPT, odds=0.25, code=451), seed=seed)
        return [far.at(Step.RCPT, HERE, "a@b.example") is not None for _ in range(2000)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert 400 < sum(drawn(7)) < 600


def test_a_mask_takes_brackets_literally() -> None:
    far = script(Rule(step=Step.RCPT, recipient="[ab]@x.example", code=451))
    assert far.at(Step.RCPT, HERE, "a@x.example") is None


def test_a_message_is_kept_when_its_reply_is_positive_or_never_comes() -> None:
    assert Rule(step=Step.DOT, delay_ms=5).action().store
    assert Rule(step=Step.DOT, disconnect=Disconnect.BEFORE_REPLY).action().store
    assert not Rule(step=Step.DOT, code=451).action().store
    assert Rule(step=Step.DOT, code=451, store=True).action().store


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[[rule]]\nstep = "connect"\nrecipient = "*@a.example"\ncode = 421', "rule 1.recipient"),
        ('[[rule]]\nstep = "helo"\nmail_from = "*"\ncode = 421', "rule 1.mail_from"),
        ('[[rule]]\nstep = "rcpt"\ncode = 99', "rule 1.code"),
        ('[[rule]]\nstep = "data"\ncode = 250', "rule 1.code"),
        ('[[rule]]\nstep = "connect"\ncode = 220', "rule 1.code"),
        ('[[rule]]\nstep = "rcpt"\ncode = 451\n[[rule]]\nstep = "rcpt"\nodds = 0.0', "rule 2.odds"),
        ('[[rule]]\nstep = "rcpt"\nodds = nan', "rule 1.odds"),
        ('[[rule]]\nstep = "rcpt"\ncode = 451\ntext = "a\\r\\n250 b"', "rule 1.text"),
        ('[[rule]]\nstep = "rcpt"\ntext = "a"', "rule 1.text"),
        ('[[rule]]\nstep = "rcpt"\ndelay_ms = -1', "rule 1.delay_ms"),
        ('[[rule]]\nstep = "rcpt"\nnever_answer = true\ncode = 451', "rule 1.never_answer"),
        ('[[rule]]\nstep = "rcpt"\ndisconnect = "before-reply"\ncode = 451', "rule 1.disconnect"),
        ('[[rule]]\nstep = "rcpt"\nreset = true', "rule 1.reset"),
        ('[[rule]]\nstep = "rcpt"\nstore = true', "rule 1.store"),
        ('[[rule]]\nstep = "rcpt"\nrecipient = ""', "rule 1.recipient"),
        ('[[rule]]\nstep = "rcpt"\ncolour = 1', "rule 1"),
        ("[[rules]]", "script.toml"),
        ("rule = [", "script.toml"),
    ],
)
def test_a_bad_script_names_file_rule_and_key(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_script(path, dice(1))
    assert str(path) in caught.value.where
    assert caught.value.where.endswith(where)


def test_a_script_file_is_carried_out(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text('local_parts = false\n[[rule]]\nstep = "mail"\nmail_from = "bad@*"\ncode = 550\ntext = "5.7.1 no"')
    far = read_script(path, dice(1))
    action = far.at(Step.MAIL, Situation(mail_from="bad@x.example"))
    assert action is not None
    assert action.reply == "550 5.7.1 no"
    assert far.at(Step.MAIL, HERE) is None
    assert far.at(Step.RCPT, HERE, "550@x.example") is None


def test_a_script_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_script(tmp_path / "absent.toml", dice(1))
