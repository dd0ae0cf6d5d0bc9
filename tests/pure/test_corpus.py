"""What we read in real bounces and replies, scored on a corpus that other people have labelled.

It is other people's mail, so it is not in the repository: ``MTA_CORPUS`` names its folder (`tests.support.corpus`), and
without it the test is skipped, which the summary of the run says. Scores and disagreements stand in the summary, too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from mta.failure.qualify import Qualifier
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import load_settings
from tests.support.corpus import FOLDER, score

_FULL: Final = (
    "a full mailbox is hard here, and soft in the labels of all other sources; it is never hard (RFC 3463 §3.3)"
)
_UNKNOWN: Final = "an unknown user is soft here, by a text that is hard in"
_DISABLED: Final = "5.2.1 beside an unknown user: soft, hard and account_disabled in labels of one text; see"
# What is set aside, and why. Not counted: these aspects of these labels.
CONTRADICTED: Final[dict[str, tuple[frozenset[str], str]]] = {
    ident: (frozenset(aspects.split()), reason)
    for ident, aspects, reason in (
        ("bounce_email--tt_1234211931.txt", "type", "a mail loop is hard here, soft in sendmail-20 and rfc3464-40"),
        ("bounce_email--tt_1234241664.txt", "kind recipient", "two labels: an automatic answer, and no bounce at all"),
        ("bounce_email--tt_bounce_08.txt", "type", "a connection that timed out is hard here, soft in gmail-10"),
        ("bounce_email--tt_bounce_13.txt", "type", _FULL),
        ("bounce_email--unknown_code_bounce_01.txt", "type", _FULL),
        ("flufl--dsn_04.txt", "type", _FULL),
        ("flufl--hotpop_01.txt", "type", _FULL),
        ("flufl--simple_09.txt", "type", _FULL),
        ("flufl--simple_38.txt", "type", _FULL),
        ("flufl--yahoo_02.txt", "type", _FULL),
        ("flufl--postfix_03.txt", "type", "a command that died is hard here, soft in exim-53 and dsn_08"),
        ("flufl--simple_42.txt", "kind type", "a failure by RFC 3464; the label says that its source reads none"),
        ("sisimai--lhost-dragonfly-09.eml", "type", f"{_DISABLED} messagingserver-06"),
        ("sisimai--lhost-mailru-03.eml", "type", f"{_DISABLED} messagingserver-06"),
        ("sisimai--lhost-yandex-02.eml", "type", f"{_DISABLED} messagingserver-06"),
        ("sisimai--lhost-powermta-01.eml", "category", f"{_DISABLED} mailru-03 and yandex-02"),
        ("replies.tsv:49", "category", f"{_DISABLED} replies.tsv:64"),
        ("replies.tsv:64", "type", f"{_DISABLED} replies.tsv:49"),
        ("replies.tsv:63", "type", "5.1.351 is hard here, soft in office365-04, by the same text"),
        ("sisimai--lhost-mcafee-04.eml", "type", f"{_UNKNOWN} x3-01 and simple_30"),
        ("sisimai--lhost-x1-01.eml", "type", f"{_UNKNOWN} rfc3464-58"),
        ("sisimai--lhost-x2-01.eml", "type", f"{_UNKNOWN} yahoo_10"),
        ("sisimai--lhost-x2-02.eml", "type", f"{_UNKNOWN} yahoo_10"),
        ("sisimai--rfc3464-42.eml", "type", f"{_UNKNOWN} rfc3464-65 and zed"),
        ("replies.tsv:27", "type", f"{_UNKNOWN} replies.tsv:2"),
        ("replies.tsv:28", "type", f"{_UNKNOWN} replies.tsv:2"),
        ("replies.tsv:29", "type", f"{_UNKNOWN} replies.tsv:2"),
        ("replies.tsv:2", "category", "an unknown user is other here, user_unknown in replies.tsv:28"),
        (
            "sisimai--rhost-nttdocomo-03.eml",
            "category",
            "user_unknown in nttdocomo-01, by the same text of the same host",
        ),
        ("sisimai--not-rb-issue-368-bug.eml", "kind type", "a full mailbox that a postmaster reports; no bounce here"),
    )
}


def _qualifier() -> Qualifier:
    return Qualifier(load_bounce_rules(load_settings(None).failures.rules_files))


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no corpus at {FOLDER}; MTA_CORPUS can name another place")
def test_the_corpus_is_read_as_its_labels_say(record_property: Callable[[str, object], None]) -> None:
    scores = score(FOLDER, _qualifier(), {ident: aspects for ident, (aspects, _) in CONTRADICTED.items()})
    record_property("scores", f"{FOLDER}\n{scores}")
    for aspect, least in (("kind", 97), ("recipient", 97), ("category", 95), ("reason", 95), ("type", 95)):
        assert scores.percent(aspect) >= least, scores
    for aspect in ("reply category", "reply reason", "reply type"):
        assert scores.percent(aspect) >= 95, scores
    # What a wrong reading costs most: an address given up, one that gets nothing for good, an operator woken.
    assert not scores.false_hard, scores
    assert not scores.false_denylisting, scores
    assert not scores.false_alarms, scores


def test_a_label_that_is_set_aside_has_a_reason() -> None:
    for ident, (aspects, reason) in CONTRADICTED.items():
        assert aspects <= {"kind", "recipient", "category", "type"}, ident
        assert len(reason) > 20, ident


# --- the scores themselves, on mails of our own ----------------------------------------------------

_MAIL: Final = """From: Mail Delivery System <MAILER-DAEMON@mx.example.net>
To: return@shop.example
Subject: Undelivered
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

{blocks}
--b--
"""
_BLOCK: Final = """Final-Recipient: rfc822; {name}@d.example
Action: failed
Status: {status}
Diagnostic-Code: smtp; 550 {status} {text}
"""
_HEAD: Final = "file\tkind\tcategory\ttype\tstatus\trecipients\n"


def _corpus(folder: Path, labels: str, replies: str = "") -> Path:
    blocks = [
        _BLOCK.format(name=name, status=status, text=text)
        for name, status, text in (("ann", "5.1.1", "No such user"), ("bob", "5.2.2", "The mailbox is over its quota"))
    ]
    (folder / "bounces").mkdir()
    (folder / "bounces" / "one").write_text(_MAIL.format(blocks="\n".join(blocks)))
    (folder / "labels.tsv").write_text(_HEAD + labels)
    (folder / "replies.tsv").write_text("reply\tcategory\ttype\n" + replies)
    return folder


def test_labels_of_several_recipients_take_one_verdict_each(tmp_path: Path) -> None:
    labels = "one\tbounce\tmailbox_full\tsoft\t\t\none\tbounce\tuser_unknown\thard\t\tann@d.example\n"
    scores = score(_corpus(tmp_path, labels), _qualifier(), {})
    assert (scores.met, scores.disagreements) == (scores.given, [])
    assert scores.given == {"kind": 1, "recipient": 1, "category": 2, "reason": 2, "type": 2}
    assert (scores.false_hard, scores.false_denylisting, scores.false_alarms) == ([], [], [])


@pytest.mark.parametrize(
    ("labels", "of", "found"),
    [
        ("one\tbounce\tmailbox_full\tsoft\t\t\none\tbounce\tmailbox_full\tsoft\t\t\n", "false_hard", ["one"]),
        ("one\tbounce\tuser_unknown\tsoft\t\tann@d.example\n", "false_hard", ["one"]),
        ("one\tbounce\tuser_unknown|policy\t\t\tcarl@d.example\n", "disagreements", 1),
        ("one\tautoreply\tnot_a_failure\tnone\t\t\n", "disagreements", 4),
    ],
)
def test_what_is_read_wrongly_is_said(tmp_path: Path, labels: str, of: str, found: object) -> None:
    said = getattr(score(_corpus(tmp_path, labels), _qualifier(), {}), of)
    assert (len(said) if isinstance(found, int) else said) == found


def test_an_alarm_for_what_is_no_fault_of_ours_is_false(tmp_path: Path) -> None:
    replies = "554 5.7.1 Blocked by the list for 192.0.2.9\tmailbox_full\tsoft\n550 5.1.1 No such user\t\tsoft\n"
    folder = _corpus(tmp_path, "", replies)
    scores = score(folder, _qualifier(), {})
    assert scores.false_alarms == ["replies.tsv:2: ip_blocked"]
    assert scores.false_hard == ["replies.tsv:3"]
    aside = {"replies.tsv:2": frozenset({"category"}), "replies.tsv:3": frozenset({"type"})}
    scores = score(folder, _qualifier(), aside)
    assert (scores.false_alarms, scores.false_hard) == ([], [])
    assert scores.set_aside == {"reply category": 1, "reply reason": 1, "reply type": 1}
