"""Qualification: why a recipient failed and how final that is, from what a server or a bounce says.

The first rule that fits decides, in the order of the rules. Then the codes do: those that mean one thing
before rules that are marked as weak, the others after them (`mta.failure.codes`). What nobody knows is soft and
"unreachable" (campaign-mta §4). The verdict is about the address; whether this *session* goes on is not decided here.

Held for whatever a rule says: a temporary failure (4yz, 4.x.x, or words that promise another try) is never hard,
neither is a full mailbox, and what is our own fault never counts against the address. What is said before a recipient
is named, at MAIL for one, is about none (RFC 5321 §3.3): no verdict that only a recipient can have is given there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from mta.failure.automaton import Automaton, begins
from mta.failure.boilerplate import without_boilerplate
from mta.failure.codes import BY_CODES, OUR_FAULT_TYPE, exact, vague, verdict_of
from mta.model.failure import OF_RECIPIENT, OUR_FAULT, Category, Evidence, FailureType, Verdict
from mta.model.masks import canonical_name, compile_masks
from mta.model.outcome import Reason
from mta.smtp.envelope import Stage

REPLY_CHARS_MAX: Final = 4_096  # what is looked at of a reply,
BOUNCE_CHARS_MAX: Final = 65_536  # and of a bounce
STAGES: Final = (*(stage.name.lower() for stage in Stage), "dns", "bounce")  # of sessions, and two that are none
# At which a recipient is named. So is one whose stage is not known: such are bounces, and lists of replies.
RECIPIENT_STAGES: Final = frozenset({"", "rcpt", "data", "body", "dot", "dns", "bounce"})
PERMANENT_MIN: Final = 500
_KEPT: Final = 8_192  # verdicts, by what was said: servers repeat themselves
_KEPT_CHARS_MAX: Final = 1_024  # longer texts are looked at anew
_MEMORY_BYTES: Final = 4 << 20  # of one automaton
_TOGETHER_CHARS: Final = 3_000  # of patterns that share one
_ADDRESS: Final = re.compile(r"[^\s<>()\[\]\"',;:@|]{1,128}+@[^\s<>()\[\]\"',;:@|]{1,255}+")
_IP: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_OUR_ADDRESS: Final = re.compile(r"[?&]ip=[^\s&]*", re.IGNORECASE)  # in links to a provider's help
_FAILURE_MIN: Final = 400
_PROMISE: Final = re.compile(
    r"temporar(?:y|il)"
    r"|(?:try|retry|come back|resend|send)(?: (?:it|this|again|back|the|your|message|mail|e-?mail))* later",
    re.IGNORECASE,
)


class BounceRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: all that is given must fit; what is empty fits everything. See docs/failures.md."""

    name: str
    codes: tuple[str, ...] = ()  # how the SMTP code may begin: "5", "45", "550"
    enhanced: tuple[str, ...] = ()  # how the enhanced code may begin: "5.7", "4.7.28"
    pattern: str = ""  # RE2, looked for in the text
    unless: str = ""  # RE2; where it is found the rule does not fit
    stages: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()  # masks on the MX host
    is_weak: bool = False  # asked only after enhanced codes that mean one thing
    type: FailureType
    reason: Reason
    category: Category
    source: str = ""  # "file:line"
    samples: tuple[str, ...] = ()  # replies that it decides, as lines
    counter_samples: tuple[str, ...] = ()  # replies that it does not fit, though they look like it

    @property
    def label(self) -> str:
        """``bounce-rules.toml: mailbox-full``, as `Verdict.rule` shows it."""
        return f"{self.source.rpartition(':')[0].rpartition('/')[2] or 'rule'}: {self.name}"


def is_by_rule(verdict: Verdict) -> bool:
    """False where codes decided, or nothing did: such texts are listed for the operator."""
    return bool(verdict.rule) and not verdict.rule.startswith(BY_CODES)


def is_temporary(code: int, enhanced: str) -> bool:
    """4yz or 4.x.x: whatever else is said, it may be otherwise later (RFC 5321 §4.2.1, RFC 3463 §3.1)."""
    return 400 <= code < 500 or enhanced.startswith("4.")


def within_stage(verdict: Verdict, evidence: Evidence) -> Verdict:
    """The verdict, as far as code and stage allow it, whoever gave it.

    Nothing temporary is hard. Nothing that is said before RCPT is about a recipient, as none was named: a reply to
    MAIL concerns the reverse-path (RFC 5321 §3.3), one before it the client.
    """
    if evidence.stage not in RECIPIENT_STAGES and verdict.category in OF_RECIPIENT:
        if evidence.stage == "mail":
            category = Category.SENDER_REFUSED
        else:
            category = Category.IP_BLOCKED if evidence.code >= PERMANENT_MIN else Category.UNREACHABLE
        verdict = verdict_of(category, verdict.rule)
    if verdict.type is FailureType.HARD and (
        evidence.stage not in RECIPIENT_STAGES or is_temporary(evidence.code, evidence.enhanced)
    ):
        verdict = verdict._replace(type=FailureType.SOFT)
    return verdict


def looked_at(text: str, stage: str = "") -> str:
    """The text as patterns see it: cut, spaces folded, addresses as ``*``, IPv4 addresses as ``#addr#``.

    They are the sender's and the recipient's own, and must not be taken for the server's words; nor must what mail
    programs write around these (`mta.failure.boilerplate`).
    """
    text = text[: BOUNCE_CHARS_MAX if stage == "bounce" else REPLY_CHARS_MAX]
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    if "@" in text:
        text = _ADDRESS.sub("*", text)
    if "ip=" in text:
        text = _OUR_ADDRESS.sub("", text)
    return without_boilerplate(" ".join(_IP.sub("#addr#", text).split()))


class Qualifier:
    """Verdicts by rules. Memory is bounded, and time is linear in the text."""

    def __init__(self, rules: Sequence[BounceRule]) -> None:
        """Raises BadInput for a pattern that cannot be used."""
        self.rules = tuple(rules)
        self._groups = [(group, _automaton(self.rules, group)) for group in _grouped(self.rules)]
        self._unless = [Automaton([(0, rule.unless)], _MEMORY_BYTES) if rule.unless else None for rule in self.rules]
        self._hosts = [compile_masks(rule.providers) if rule.providers else None for rule in self.rules]
        self._verdicts = [_bounded(rule) for rule in self.rules]
        self._kept: dict[Evidence, Verdict] = {}
        self._kept_folded: dict[Evidence, Verdict] = {}

    def qualify(self, evidence: Evidence) -> Verdict:
        """What the evidence means. ``rule`` is empty where nothing at all was known about it."""
        found = self._kept.get(evidence)
        if found is not None:
            return found
        text = looked_at(evidence.text, evidence.stage)
        folded = evidence._replace(text=text)
        found = self._kept_folded.get(folded)
        if found is None:
            found = self._qualify(folded)
        if len(evidence.text) <= _KEPT_CHARS_MAX:
            _keep(self._kept, evidence, found)
            _keep(self._kept_folded, folded, found)
        return found

    def fitting(self, evidence: Evidence) -> list[BounceRule]:
        """All rules that fit, the strong ones first: the first decides, unless an exact code goes before a weak one."""
        seen = evidence._replace(text=looked_at(evidence.text, evidence.stage))
        found = [self.rules[number] for number in self._fitting(seen)]
        return sorted(found, key=lambda rule: rule.is_weak)

    def _qualify(self, seen: Evidence) -> Verdict:
        if 0 < seen.code < _FAILURE_MIN or (seen.code == 0 and seen.enhanced.startswith("2.")):
            return verdict_of(Category.NOT_A_FAILURE, f"{BY_CODES}{seen.code or seen.enhanced}")
        verdict = self._by_rule(seen, exact(seen.code, seen.enhanced))
        if verdict is None:
            verdict = vague(seen.code, seen.enhanced, seen.stage) or verdict_of(Category.OTHER, "")
        if verdict.type is FailureType.HARD and _PROMISE.search(seen.text) is not None:
            verdict = verdict._replace(type=FailureType.SOFT)
        return within_stage(verdict, seen)

    def _by_rule(self, seen: Evidence, by_code: Verdict | None) -> Verdict | None:
        """Of the first strong rule; else what the code says; else of the first weak rule."""
        weak: Verdict | None = None
        for number in self._fitting(seen):
            if not self.rules[number].is_weak:
                return self._verdicts[number]
            weak = weak or self._verdicts[number]
        return by_code or weak

    def _fitting(self, seen: Evidence) -> Iterator[int]:
        """Numbers of the rules that fit, in order, each sought when it is asked for."""
        for group, automaton in self._groups:
            able = [number for number in group if self._fits(number, seen)]
            said = automaton.match(seen.text) if able and automaton is not None else ()
            for number in able:
                unless = self._unless[number]
                is_said = number in said or not self.rules[number].pattern
                if is_said and (unless is None or not unless.match(seen.text)):
                    yield number

    def _fits(self, number: int, seen: Evidence) -> bool:
        """All but the text."""
        rule, hosts = self.rules[number], self._hosts[number]
        return (
            (not rule.codes or str(seen.code).startswith(rule.codes))
            and (not rule.enhanced or begins(seen.enhanced, rule.enhanced))
            and (not rule.stages or (seen.stage or "rcpt") in rule.stages)
            and (seen.stage in RECIPIENT_STAGES or rule.category not in OF_RECIPIENT)
            and (hosts is None or hosts.fullmatch(canonical_name(seen.provider)) is not None)
        )


def _grouped(rules: Sequence[BounceRule]) -> list[list[int]]:
    """Numbers of rules that stand together and whose patterns are looked for at once.

    Large ones are on their own: the states of two automatons add up, those of their union multiply.
    """
    groups: list[list[int]] = []
    chars = _TOGETHER_CHARS + 1
    for number, rule in enumerate(rules):
        chars += len(rule.pattern)
        if chars > _TOGETHER_CHARS:
            groups.append([])
            chars = len(rule.pattern)
        groups[-1].append(number)
    return groups


def _automaton(rules: Sequence[BounceRule], numbers: list[int]) -> Automaton | None:
    numbered = [(number, rules[number].pattern) for number in numbers if rules[number].pattern]
    return Automaton(numbered, _MEMORY_BYTES) if numbered else None


def _bounded(rule: BounceRule) -> Verdict:
    """A rule's verdict within what holds for all: no rule makes an address pay for a full mailbox or for our fault."""
    kind = rule.type
    if kind is FailureType.HARD and rule.category is Category.MAILBOX_FULL:
        kind = FailureType.SOFT
    if kind is FailureType.HARD and rule.category in OUR_FAULT:
        kind = OUR_FAULT_TYPE
    return Verdict(kind, rule.reason, rule.category, rule.label)


def _keep(kept: dict[Evidence, Verdict], evidence: Evidence, verdict: Verdict) -> None:
    if len(kept) >= _KEPT:
        kept.clear()
    kept[evidence] = verdict
