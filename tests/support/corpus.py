"""A corpus of labelled bounces and replies, and how what we read in them agrees with its labels.

The corpus is other people's mail and stays outside of the repository: `FOLDER`, or ``MTA_CORPUS``. Its form: a folder
``bounces`` of mails; ``labels.tsv`` with file, kind, category, type, status, recipients, several rows for a mail of
several recipients; ``replies.tsv`` with reply, category, type. ``a|b``: either is right. Empty: no label.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mta.bounces import Kind, read_letter
from mta.failure.qualify import Qualifier
from mta.failure.reply_text import parse_reply_text
from mta.model.failure import OUR_FAULT, Category, FailureType, Verdict

FOLDER: Final = Path(os.environ.get("MTA_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))
_OUR_FAULT: Final = {category.label for category in OUR_FAULT}
# Numbers of reasons by category, as docs/failures.md has them: those of the engine that this one replaces.
_OF_REFUSAL: Final = ("spam_content", "virus", "policy", "ip_blocked", "auth_failure", "sender_refused", "relay_denied")
_REASONS: Final = {
    **dict.fromkeys((category.label for category in Category), 3),
    **dict.fromkeys(_OF_REFUSAL, 20),
    **{"user_unknown": 1, "invalid_domain": 2, "account_disabled": 4, "mailbox_full": 5, "not_a_failure": 0},
}
_NO_BOUNCES: Final = frozenset({Kind.NOT_BOUNCE.value, "not-bounce-or-unparsed"})


@dataclass(frozen=True)
class Label:
    """A row of a table, as far as it has these columns."""

    id: str  # file, or reply
    kind: str
    categories: frozenset[str]
    types: frozenset[str]
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, row: dict[str, str], ident: str) -> Label:
        addresses = (row.get("recipients") or "").replace(",", " ").lower().split()
        return cls(ident, row.get("kind") or "", _either(row["category"]), _either(row["type"]), tuple(addresses))


def _either(cell: str | None) -> frozenset[str]:
    return frozenset((cell or "").split("|")) - {""}


@dataclass
class Scores:
    """How many labels of each aspect were met, and what was not."""

    met: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    false_hard: list[str] = field(default_factory=list)  # a hard verdict that no label allows
    false_denylisting: list[str] = field(default_factory=list)  # a complaint that is none
    false_alarms: list[str] = field(default_factory=list)  # our own fault, where the labels name none of ours

    def count(self, aspect: str, ident: str, *, is_met: bool, what: str, is_aside: bool) -> None:
        if is_aside:
            self.set_aside[aspect] += 1
            return
        self.given[aspect] += 1
        self.met[aspect] += is_met
        if not is_met:
            self.disagreements.append(f"{aspect:9} {ident}: {what}")

    def percent(self, aspect: str) -> float:
        return 100 * self.met[aspect] / max(self.given[aspect], 1)

    def __str__(self) -> str:
        lines = [
            f"{aspect:15} {self.met[aspect]:4} of {self.given[aspect]:4} = {self.percent(aspect):5.1f} %"
            f" ({self.set_aside[aspect]} set aside)"
            for aspect in sorted(self.given)
        ]
        lines += [
            f"{name:15} {len(found):4} {found or ''}"
            for name, found in (
                ("false hard", self.false_hard),
                ("denylisting", self.false_denylisting),
                ("false alarms", self.false_alarms),
            )
        ]
        return "\n".join([*lines, *self.disagreements])


def score(folder: Path, qualifier: Qualifier, contradicted: dict[str, frozenset[str]]) -> Scores:
    """``contradicted``: aspects of labels that are set aside, by file or reply."""
    scores = Scores()
    for file, labels in _mails(folder):
        _score_mail(scores, labels, (folder / "bounces" / file).read_bytes(), qualifier, contradicted.get(file, _NONE))
    with (folder / "replies.tsv").open(encoding="utf-8") as table:
        for number, row in enumerate(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
            label = Label.of(row, f"replies.tsv:{number}")
            verdict = qualifier.qualify(parse_reply_text(row["reply"]))
            _score_verdicts(scores, "reply ", [label], [("", verdict)], contradicted.get(label.id, _NONE))
    return scores


_NONE: Final[frozenset[str]] = frozenset()


def _mails(folder: Path) -> Iterator[tuple[str, list[Label]]]:
    found: defaultdict[str, list[Label]] = defaultdict(list)
    with (folder / "labels.tsv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            found[row["file"]].append(Label.of(row, row["file"]))
    yield from sorted(found.items())


def _score_mail(
    scores: Scores, labels: Sequence[Label], raw: bytes, qualifier: Qualifier, aside: frozenset[str]
) -> None:
    letter = read_letter(raw)
    file, kinds = labels[0].id, {label.kind for label in labels}
    is_met = letter.kind.value in kinds or (letter.kind is Kind.NOT_BOUNCE and bool(kinds & _NO_BOUNCES))
    scores.count("kind", file, is_met=is_met, what=f"{letter.kind}, not {sorted(kinds)}", is_aside="kind" in aside)
    if letter.kind is Kind.FEEDBACK and Kind.FEEDBACK.value not in kinds:
        scores.false_denylisting.append(file)
    addresses = {one.address.lower() for one in letter.recipients}
    for address in (address for label in labels for address in label.recipients):
        what = f"{address} is not among {sorted(addresses)}"
        scores.count("recipient", file, is_met=address in addresses, what=what, is_aside="recipient" in aside)
    if letter.kind is Kind.BOUNCE:
        verdicts = [(one.address.lower(), qualifier.qualify(one.evidence)) for one in letter.recipients]
        _score_verdicts(scores, "", labels, verdicts, aside)
        return
    for label in labels:  # of what is no bounce nothing is said
        for aspect, given, nothing in (("category", label.categories, "not_a_failure"), ("type", label.types, "none")):
            if given:
                what = f"{letter.kind}, not {sorted(given)}"
                scores.count(aspect, file, is_met=nothing in given, what=what, is_aside=aspect in aside)


def _score_verdicts(
    scores: Scores, of: str, labels: Sequence[Label], verdicts: Sequence[tuple[str, Verdict]], aside: frozenset[str]
) -> None:
    """Each label takes one verdict: of its recipient where it names one, else one that is right and not yet taken."""
    for aspect, given_by, what in _ASPECTS:
        free = list(verdicts)
        is_aside = ("category" if aspect == "reason" else aspect) in aside
        for label in labels:
            if not (given := given_by(label)):
                continue
            able = [one for one in free if one[0] in label.recipients] or free or list(verdicts)
            right = [one for one in able if what(one[1]) in given]
            if right and right[0] in free:
                free.remove(right[0])
            said = f"{[f'{what(one[1])} by {one[1].rule!r}' for one in able]}, not {sorted(given)}"
            scores.count(of + aspect, label.id, is_met=bool(right), what=said, is_aside=is_aside)
    _score_harm(scores, labels, [verdict for _, verdict in verdicts], aside)


def _score_harm(scores: Scores, labels: Sequence[Label], verdicts: Sequence[Verdict], aside: frozenset[str]) -> None:
    ident = labels[0].id
    types = [label.types for label in labels if label.types]
    hard = sum(verdict.type is FailureType.HARD for verdict in verdicts)
    if types and hard and "type" not in aside:
        allowed = sum("hard" in one for one in types)
        if not allowed or (len(types) == len(verdicts) and hard > allowed):
            scores.false_hard.append(ident)
    named = frozenset[str]().union(*(label.categories for label in labels))
    if named and not named & _OUR_FAULT and "category" not in aside:
        ours = [_category(verdict) for verdict in verdicts if _category(verdict) in _OUR_FAULT]
        scores.false_alarms += [f"{ident}: {one}" for one in ours]


def _category(verdict: Verdict) -> str:
    return verdict.category.label


def _reason(verdict: Verdict) -> str:
    return str(int(verdict.reason))


def _reasons_of(label: Label) -> frozenset[str]:
    return frozenset(str(_REASONS[category]) for category in label.categories)


def _type(verdict: Verdict) -> str:
    return "none" if verdict.type is FailureType.NOT_DEFINED else verdict.type.name.lower()


# Aspect, what a label gives, what a verdict says.
_ASPECTS: Final[tuple[tuple[str, Callable[[Label], frozenset[str]], Callable[[Verdict], str]], ...]] = (
    ("category", lambda label: label.categories, _category),
    ("reason", _reasons_of, _reason),
    ("type", lambda label: label.types, _type),
)
