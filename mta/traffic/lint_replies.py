"""Automations against replies: which patterns match what they are meant for, which get in each other's way.

A reply is looked at as a child looks at it: its code, its enhanced code, and its text without the two.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from mta.failure.patterns import ReplyPatterns, Wanted
from mta.model.errors import BadInput
from mta.smtp.envelope import Stage
from mta.traffic.automations import Act, Automation, ReplyMatch
from mta.traffic.effects import Target
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.limits import LIMIT_KEYS
from mta.traffic.rules import Rule, RuleSet, Tls

UNMATCHED_SHOWN_MAX: Final = 20
_SHOWN_CHARS: Final = 100
_ANY_STAGE: Final = Stage.RCPT
_LINE: Final = re.compile(
    r"(?:([2-5]\d\d)(?:[ -]|$))?(?:([245]\.\d{1,3}\.\d{1,3})(?=[\s:;,]|$)[\s:;,]*)?(.*)", re.DOTALL
)
# What changes from one reply to the next, in the order in which it is replaced.
_CHANGING: Final = (
    (re.compile(r"\bhttps?://\S+"), "<url>"),
    (re.compile(r"<?[^\s<>@]+@[^\s<>@]+>?"), "<address>"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "<ip>"),
    (re.compile(r"\b(?:[0-9a-f]{1,4}:){2,7}[0-9a-f:]*\b", re.IGNORECASE), "<ip>"),
    (re.compile(r"(?=[\w.-]*\d)(?=[\w.-]*[A-Za-z])[\w.-]{10,}"), "<id>"),
    (re.compile(r"\d+"), "#"),
)


class Reply(msgspec.Struct, frozen=True):
    """A reply of a corpus. ``code`` 0: none was given. ``rules``: names of those that it may concern; None: any."""

    code: int
    enhanced: str
    text: str
    count: int = 1
    rules: tuple[str, ...] | None = None

    @property
    def line(self) -> str:
        return " ".join(part for part in (str(self.code or ""), self.enhanced, self.text) if part)


class Unmatched(msgspec.Struct, frozen=True):
    """Replies that are alike and that no automation waits for."""

    like: str  # with what changes taken out
    count: int
    example: str


class Coverage(msgspec.Struct, frozen=True):
    """What became of a corpus."""

    replies: int
    matched: int
    unmatched: tuple[Unmatched, ...]  # the most frequent
    by_automation: dict[str, int]  # replies by the name of the automation


def parse_reply(line: str) -> Reply:
    """``421 4.7.28 text``, also ``421-4.7.28 text``; without a code, a text only."""
    match = _LINE.fullmatch(line.strip())
    assert match is not None, "every part of it may be missing"
    return Reply(int(match[1] or 0), match[2] or "", match[3].strip())


class _Matcher:
    """One automation made ready. Raises BadInput for a pattern that RE2 refuses."""

    def __init__(self, rule: Rule, automation: Automation) -> None:
        self.rule = rule
        self.automation = automation
        self.match = automation.match
        self.samples = [parse_reply(sample) for sample in automation.samples]
        self._patterns = ReplyPatterns([_wanted(automation.match)])
        self.hits = 0

    @property
    def key(self) -> str:
        return f"{self.rule.name}/{self.automation.name}"

    def fits(self, reply: Reply) -> bool:
        return bool(self._patterns.match(reply.code, reply.enhanced, reply.text, _ANY_STAGE))

    def probes(self) -> list[Reply]:
        """Replies that it is meant for: its samples, else one made from a pattern without any operators."""
        if self.samples:
            return self.samples
        if any(char in self.match.pattern for char in "\\[](){}*+?|^$."):
            return []
        code = (self.match.codes or ("451",))[0].ljust(3, "0")
        enhanced = (self.match.enhanced or ("",))[0]
        missing = 2 - enhanced.count(".") if enhanced else 0
        return [Reply(int(code), enhanced + ".0" * missing, self.match.pattern)]


def _wanted(match: ReplyMatch) -> Wanted:
    """At which stage a reply of a corpus was given is not known, so any will do."""
    return Wanted(match.codes, match.enhanced, match.pattern, ())


# --- automations of themselves ----------------------------------------------------------------


def find_reply_faults(rules: RuleSet) -> Iterator[Finding]:
    """Patterns that miss what they are meant for, and automations of one rule that fire together."""
    told: set[tuple[Check, str, str]] = set()
    for rule in rules.rules:
        matchers = []
        found: list[Finding] = []
        for automation in rule.automations:
            subject = f"automation {automation.name} of rule {rule.name}"
            try:
                matchers.append(_Matcher(rule, automation))
            except BadInput as error:
                what = str(error)
                found.append(Finding(Check.BAD_PATTERN, Severity.ERROR, automation.origin, subject, what))
            found += _of_match(automation, subject)
            found += _of_action(rule, automation, subject)
        for matcher in matchers:
            found += _of_samples(matcher)
        found += _together(matchers)
        # An automation that many rules share is told of once.
        for one in found:
            key = (one.check, one.where, one.what)
            if not one.where or key not in told:
                told.add(key)
                yield one


def _of_match(automation: Automation, subject: str) -> Iterator[Finding]:
    match = automation.match
    if "\\\\" in match.pattern:
        what = (
            f"pattern {_short(match.pattern)} asks for a backslash in the reply, which replies do not hold; in single "
            "quotes TOML takes nothing away, so write \\[ and not \\\\["
        )
        yield Finding(Check.DOUBLED_BACKSLASH, Severity.ERROR, automation.origin, subject, what)
    if re.match(r"\^?\(?(?:\?:)?[245](?:\d\d|\\d\\d|\.\.|xx)\b", match.pattern):
        what = f"pattern {_short(match.pattern)} begins with a code, which the text does not hold; write it in codes"
        yield Finding(Check.CODE_IN_PATTERN, Severity.WARNING, automation.origin, subject, what)
    for code in match.codes:
        if code[:1] in ("1", "2", "3"):
            what = f"codes: {code} is no refusal, and only refusals are looked at; write a code that begins with 4 or 5"
            yield Finding(Check.CODE_NEVER, Severity.ERROR, automation.origin, subject, what)
    classes = {code[:1] for code in match.codes} & {"4", "5"}
    if classes and match.enhanced and not any(one[:1] in classes for one in match.enhanced):
        what = f"codes {', '.join(match.codes)} and enhanced {', '.join(match.enhanced)} hardly ever come together"
        yield Finding(Check.CODE_NEVER, Severity.WARNING, automation.origin, subject, what)


def _of_samples(matcher: _Matcher) -> Iterator[Finding]:
    automation = matcher.automation
    subject = f"automation {automation.name} of rule {matcher.rule.name}"
    if not automation.samples:
        if automation.match.pattern:
            what = "has no samples, so nothing shows that its pattern fits; give it a reply or two that it is meant for"
            yield Finding(Check.NO_SAMPLE, Severity.NOTE, automation.origin, subject, what)
        return
    missed = [reply for reply in matcher.samples if not matcher.fits(reply)]
    if len(missed) == len(matcher.samples):
        what = f"matches none of its samples, so it cannot fire as it is meant to; {_why_not(matcher, missed[0])}"
        yield Finding(Check.SAMPLE_MISSED, Severity.ERROR, automation.origin, subject, what)
    elif missed:
        what = f"misses {len(missed)} of its {len(matcher.samples)} samples; {_why_not(matcher, missed[0])}"
        yield Finding(Check.SAMPLE_MISSED, Severity.ERROR, automation.origin, subject, what)


def _why_not(matcher: _Matcher, reply: Reply) -> str:
    match = matcher.match
    only = ReplyMatch(pattern=match.pattern)
    if _Matcher(matcher.rule, msgspec.structs.replace(matcher.automation, match=only)).fits(reply):
        return (
            f"{_short(reply.line)}: its text fits, but not its code {reply.code or '(none)'} {reply.enhanced}".rstrip()
        )
    return f"{_short(reply.line)}: its text does not fit the pattern {_short(match.pattern)}"


def _of_action(rule: Rule, automation: Automation, subject: str) -> Iterator[Finding]:
    what = ""
    match automation.act:
        case Act.BACKOFF if rule.backoff is None:
            what = "puts the rule into backoff, but the rule has no twin limits; give it a backoff table"
        case Act.NO_TLS if rule.tls is not Tls.OPPORTUNISTIC:
            what = f"stops using TLS, but the rule says tls = {rule.tls.value!r}, which it cannot change"
        case Act.LOWER:
            what = _idle_lowering(rule, automation)
    if what:
        yield Finding(Check.NO_EFFECT, Severity.WARNING, automation.origin, subject, what)


def _idle_lowering(rule: Rule, automation: Automation) -> str:
    owner = rule.provider if automation.target is Target.PROVIDER else rule
    if owner is None:
        return "lowers the limits of a provider, but the rule has none"
    set_keys = [key for key in LIMIT_KEYS if getattr(owner, key) is not None]
    if automation.factor is not None:
        if automation.factor >= 1:
            return f"factor {automation.factor:g} lowers nothing; it must be below 1"
        return "" if set_keys else "lowers limits by a factor, but none is set that it could lower"
    given = [key for key in LIMIT_KEYS if getattr(automation.limits, key) is not None]
    for key in given:
        usual, lowered = getattr(owner, key), getattr(automation.limits, key)
        if usual is None or (lowered > usual if key == "ramp_up_s" else lowered < usual):
            return ""
    return f"lowers {', '.join(given)} to no less than what always holds" if given else ""


# --- automations against each other -----------------------------------------------------------


def _together(matchers: Sequence[_Matcher]) -> Iterator[Finding]:
    for number, later in enumerate(matchers):
        for earlier in matchers[:number]:
            shared = [
                reply for reply in (*earlier.probes(), *later.probes()) if earlier.fits(reply) and later.fits(reply)
            ]
            if shared:
                yield _clash(earlier, later, shared[0])


def _clash(earlier: _Matcher, later: _Matcher, reply: Reply) -> Finding:
    one, other = earlier.automation, later.automation
    subject = f"automation {other.name} of rule {later.rule.name}"
    for idle, kept in ((later, earlier), (earlier, later)):
        if _adds_nothing(idle, kept):
            what = (
                f"adds nothing to automation {kept.automation.name} ({kept.automation.origin}), which does the same "
                f"for the same replies and no later, such as {_short(reply.line)}; delete one, or narrow one"
            )
            subject = f"automation {idle.automation.name} of rule {later.rule.name}"
            return Finding(Check.SHADOWED, Severity.WARNING, idle.automation.origin, subject, what)
    what = (
        f"fires together with automation {one.name} ({one.origin}) on {_short(reply.line)}: {_in_words(other)}, and "
        f"{_in_words(one)}; make one of the patterns narrower, so that each reply leads to one thing"
    )
    return Finding(Check.COLLISION, Severity.WARNING, other.origin, subject, what)


def _does(automation: Automation) -> tuple[object, ...]:
    return (automation.act, automation.target, automation.factor, automation.limits, automation.pool)


def _adds_nothing(idle: _Matcher, kept: _Matcher) -> bool:
    """True when ``kept`` does the same, and is in force whenever ``idle`` would be, as far as samples show."""
    less, more = idle.automation, kept.automation
    return (
        _does(less) == _does(more)
        and more.replies <= less.replies
        and more.within_s >= less.within_s
        and more.for_s >= less.for_s
        and all(kept.fits(reply) for reply in idle.probes())
    )


def _in_words(automation: Automation) -> str:
    return f"{automation.act.value} for {automation.for_s} s after {automation.replies} in {automation.within_s} s"


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."


# --- a corpus ---------------------------------------------------------------------------------


def cover(rules: RuleSet, corpus: Iterable[Reply]) -> tuple[Coverage, list[Finding]]:
    """Every pattern over every refusal of a corpus; what matches nothing, and what nothing matched.

    Of recorded replies only those automations count whose rule they may concern.
    """
    matchers = list(_matchers(rules))
    patterns = ReplyPatterns([_wanted(one.match) for one in matchers])
    total = matched = 0
    left: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    together: dict[tuple[str, str], tuple[_Matcher, _Matcher, Reply]] = {}
    for reply in corpus:
        if 0 < reply.code < 400:
            continue
        total += reply.count
        fitting = patterns.match(reply.code, reply.enhanced, reply.text, _ANY_STAGE)
        hits = [matchers[number] for number in fitting if _concerns(matchers[number], reply.rules)]
        for one in hits:
            one.hits += reply.count
        for number, later in enumerate(hits):
            for earlier in hits[:number]:
                if earlier.rule is later.rule:
                    together.setdefault((earlier.key, later.key), (earlier, later, reply))
        if hits:
            matched += reply.count
        else:
            like = _like(reply)
            left[like] += reply.count
            examples.setdefault(like, reply.line)
    unmatched = tuple(Unmatched(like, count, examples[like]) for like, count in left.most_common(UNMATCHED_SHOWN_MAX))
    found = [_clash(*pair) for pair in together.values()]
    return Coverage(total, matched, unmatched, _hits(matchers)), found + list(_of_corpus(matchers, total, matched))


def _hits(matchers: Sequence[_Matcher]) -> dict[str, int]:
    """Replies by the name of the automation, in all rules that have it."""
    found: dict[str, int] = {}
    for one in matchers:
        found[one.automation.name] = found.get(one.automation.name, 0) + one.hits
    return found


def _matchers(rules: RuleSet) -> Iterator[_Matcher]:
    for rule in rules.rules:
        for automation in rule.automations:
            try:
                yield _Matcher(rule, automation)
            except BadInput:
                continue  # told of by `find_reply_faults`


def _concerns(matcher: _Matcher, names: Collection[str] | None) -> bool:
    return names is None or matcher.rule.name in names


def _of_corpus(matchers: Sequence[_Matcher], total: int, matched: int) -> Iterator[Finding]:
    hits = _hits(matchers)
    idle = [name for name, count in hits.items() if not count]
    if idle and total:
        what = f"none of the {total:,} replies matches {len(idle)} of {len(hits)} automations: {', '.join(idle)}"
        yield Finding(Check.NEVER_MATCHED, Severity.NOTE, "", "corpus", what)
    if matched < total:
        what = f"{total - matched:,} of {total:,} replies match no automation; the most frequent are listed"
        yield Finding(Check.REPLY_UNMATCHED, Severity.NOTE, "", "corpus", what)


def _like(reply: Reply) -> str:
    text = reply.text
    for changing, by in _CHANGING:
        text = changing.sub(by, text)
    return Reply(reply.code, reply.enhanced, " ".join(text.split())[:200]).line
