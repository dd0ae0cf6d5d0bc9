"""Files of qualification rules -> BounceRules. The language is described for operators in ``docs/failures.md``.

The operator's own file stands beside the shipped one as ``bounce-rules.local.toml``; its rules come first, and no
update touches it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

import mta
from mta.failure.automaton import Automaton, begins
from mta.failure.codes import OUR_FAULT_TYPE, REASONS, TYPES
from mta.failure.qualify import RECIPIENT_STAGES, STAGES, BounceRule, Qualifier, is_by_rule
from mta.failure.reply_text import parse_reply_text
from mta.model.errors import BadInput
from mta.model.failure import OUR_FAULT, Category, Evidence, FailureType
from mta.model.masks import compile_masks, covers, split_masks
from mta.model.outcome import Reason
from mta.settings.rules_values import check_pattern, masks_of, name_of
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import FILE_BYTES_MAX, TomlSource, decode, one_of, read_whole, shown
from mta.traffic.findings import Check, Finding, Severity

_HOME: Final = Path(mta.__file__).resolve().parent
# Installed, the shipped files lie in the package (setup.py puts them there); in a checkout, beside it.
_INSTALLED: Final = _HOME / "config" / "bounce-rules.toml"
SHIPPED: Final = _INSTALLED if _INSTALLED.exists() else _HOME.parent / "config" / "bounce-rules.toml"
RULES_MAX: Final = 2_000
PATTERN_CHARS_MAX: Final = 2_000
PATTERNS_PER_RULE_MAX: Final = 200
SAMPLES_MAX: Final = 50
# A pattern is found where a word begins, so "rate" is not found in "generated". Neither do digits and underscores
# belong to words here: servers write "550User unknown" and "recipient_unknown".
WORD_BEGINS: Final = r"(?:^|[^A-Za-z\x{C0}-\x{24F}])"
_FIRST: Final = re.compile(r"[(?:]*(.?)", re.DOTALL)
_WORD: Final = re.compile(r"(?<!\\[pPx])\{([a-z_]+)\}")
_CODE: Final = re.compile(r"[45][0-9]{0,2}|0")
_ENHANCED: Final = re.compile(r"[45](\.[0-9]{1,3}){0,2}")
_CATEGORIES: Final = {one.label: one for one in Category if one is not Category.NONE}
_TYPES: Final = {one.name.lower(): one for one in FailureType if one is not FailureType.NOT_DEFINED}
_REASONS: Final = {one.name.lower(): one for one in Reason}
_ChoiceT = TypeVar("_ChoiceT")


class BounceRuleTable(msgspec.Struct, kw_only=True):
    """One ``[[rule]]`` as it is written."""

    name: str
    category: str
    type: str = ""
    reason: str = ""
    pattern: Annotated[str, msgspec.Meta(max_length=PATTERN_CHARS_MAX)] | list[str] = ""
    unless: Annotated[str, msgspec.Meta(max_length=PATTERN_CHARS_MAX)] | list[str] = ""
    codes: list[int | str] = []
    enhanced: list[str] = []
    stages: list[str] = []
    mx: str | list[str] = ""
    weak: bool = False
    samples: list[str] = []
    counter_samples: list[str] = []


def own_file(shipped: Path) -> Path:
    """Where an operator's own rules stand: beside this file."""
    return shipped.with_suffix(".local.toml")


def rule_files(shipped: Path = SHIPPED, own: Path | None = None) -> list[Path]:
    """The operator's own file, if there is one, then the shipped one: the order in which rules are asked."""
    own = own_file(shipped) if own is None else own
    return [own, shipped] if own.exists() else [shipped]


def read_texts(paths: Iterable[Path]) -> dict[str, str]:
    """Files by name, in order: what ``parse_bounce_rules`` takes. Raises BadInput at a file that cannot be read."""
    return {str(path): decode(read_whole(path, FILE_BYTES_MAX)[0], str(path)) for path in paths}


def load_bounce_rules(paths: Iterable[Path] | None = None) -> tuple[BounceRule, ...]:
    """The rules of all files, in order; by default of ``rule_files()``. Raises BadInput with file, line and key."""
    return parse_bounce_rules(read_texts(rule_files() if paths is None else paths))


def parse_bounce_rules(texts: Mapping[str, str]) -> tuple[BounceRule, ...]:
    """As ``load_bounce_rules``, from texts by the names of their files.

    A rule takes the place of one with its name in a later file: that one is left out.
    """
    rules: list[BounceRule] = []
    names: set[str] = set()
    for file, text in texts.items():
        source = TomlSource(text, file)
        source.refuse_unknown((), source.table, {"rule", "words"})
        words = _words(source)
        tables = source.table.get("rule", [])
        if not isinstance(tables, list):
            raise source.fault(("rule",), "expected an array of tables; write [[rule]], with two brackets")
        here: dict[str, str] = {}
        for i, table in enumerate(tables):
            path = ("rule", i)
            rule = _read(source, path, source.build(path, table, BounceRuleTable), words)
            if rule.name in here:
                raise source.fault((*path, "name"), f"the name {rule.name!r} is taken by the rule at {here[rule.name]}")
            here[rule.name] = rule.source
            if rule.name not in names:
                rules.append(rule)
            if len(rules) > RULES_MAX:
                raise source.fault(path, f"more than {RULES_MAX} rules")
        names.update(here)
    return tuple(rules)


def _read(source: TomlSource, path: KeyPath, raw: BounceRuleTable, words: Mapping[str, str]) -> BounceRule:
    codes = _conditions(source, path, raw)
    category, kind = _type_of(source, path, raw)
    if kind is FailureType.HARD and codes and all(code.startswith("4") for code in codes):
        raise source.fault((*path, "codes"), "these codes are temporary, and type 'hard' is final; write type = 'soft'")
    reason = REASONS.get(category, Reason.UNREACHABLE)
    if raw.reason:
        reason = _choice(source, (*path, "reason"), raw.reason, _REASONS)
    masks = masks_of(source, (*path, "mx"), raw.mx) if raw.mx else ""
    if kind is FailureType.HARD:
        _check_stages_of_hard(source, path, raw)
    for key, samples in (("samples", raw.samples), ("counter_samples", raw.counter_samples)):
        if len(samples) > SAMPLES_MAX:
            raise source.fault((*path, key), f"more than {SAMPLES_MAX}")
    return BounceRule(
        name=name_of(source, (*path, "name"), raw.name),
        codes=codes,
        enhanced=tuple(raw.enhanced),
        pattern=_pattern(source, (*path, "pattern"), raw.pattern, words, begins=WORD_BEGINS),
        unless=_pattern(source, (*path, "unless"), raw.unless, words, begins=WORD_BEGINS),
        stages=tuple(raw.stages),
        providers=split_masks(masks),
        is_weak=raw.weak,
        type=kind,
        reason=reason,
        category=category,
        source=source.where(path),
        samples=tuple(raw.samples),
        counter_samples=tuple(raw.counter_samples),
    )


def _type_of(source: TomlSource, path: KeyPath, raw: BounceRuleTable) -> tuple[Category, FailureType]:
    category = _choice(source, (*path, "category"), raw.category, _CATEGORIES)
    kind = TYPES.get(category, OUR_FAULT_TYPE)
    if raw.type:
        kind = _choice(source, (*path, "type"), raw.type, _TYPES)
    if kind is FailureType.HARD and category is Category.MAILBOX_FULL:
        raise source.fault((*path, "type"), "'hard' is not allowed: a full mailbox may be emptied; write 'soft'")
    if kind is FailureType.HARD and category in OUR_FAULT:
        raise source.fault(
            (*path, "type"),
            f"{raw.type!r} is not allowed with category {category.label!r}: our own fault never counts against "
            "an address; write 'soft'",
        )
    return category, kind


def _check_stages_of_hard(source: TomlSource, path: KeyPath, raw: BounceRuleTable) -> None:
    """A verdict that takes an address out for good says at which stages it is given: where a recipient is named."""
    allowed = one_of(sorted(RECIPIENT_STAGES - {""}))
    if not raw.stages:
        what = f"is needed by a rule of type 'hard': it must say where it holds; expected {allowed}"
        raise source.fault((*path, "stages"), what)
    for i, stage in enumerate(raw.stages):
        if stage not in RECIPIENT_STAGES:
            what = f"no recipient is named there, so nothing said there is final; expected {allowed}"
            raise source.fault((*path, "stages", i), f"{shown(stage)} is not allowed: {what}")


def _conditions(source: TomlSource, path: KeyPath, raw: BounceRuleTable) -> tuple[str, ...]:
    """Checks codes, enhanced codes and stages; gives the codes as text."""
    codes = tuple(str(code) for code in raw.codes)
    for i, code in enumerate(codes):
        if not _CODE.fullmatch(code):
            what = "expected a code of a refusal (550), how such codes begin (5), or 0: no code is known"
            raise source.fault((*path, "codes", i), f"{shown(raw.codes[i])} is not allowed; {what}")
    for i, enhanced in enumerate(raw.enhanced):
        if not _ENHANCED.fullmatch(enhanced):
            what = "expected an enhanced code ('5.7.1'), or how such codes begin ('5.7')"
            raise source.fault((*path, "enhanced", i), f"{shown(enhanced)} is not allowed; {what}")
    for i, stage in enumerate(raw.stages):
        if stage not in STAGES:
            raise source.fault((*path, "stages", i), f"{shown(stage)} is not allowed; expected {one_of(STAGES)}")
    if not (codes or raw.enhanced or raw.pattern or raw.stages):
        raise source.fault(path, "needs pattern, codes, enhanced or stages: else it would decide about everything")
    return codes


def _choice(source: TomlSource, path: KeyPath, given: str, choices: Mapping[str, _ChoiceT]) -> _ChoiceT:
    if given not in choices:
        raise source.fault(path, f"{shown(given)} is not allowed; expected {one_of(choices)}")
    return choices[given]


def _pattern(
    source: TomlSource, path: KeyPath, given: str | list[str], words: Mapping[str, str], *, begins: str = ""
) -> str:
    """One expression for all that is given; ``begins`` stands before each, but before one that begins beyond ASCII."""
    pieces = [given] if isinstance(given, str) else given
    expanded = []
    if len(pieces) > PATTERNS_PER_RULE_MAX:
        raise source.fault(path, f"more than {PATTERNS_PER_RULE_MAX} patterns")
    for i, piece in enumerate(pieces):
        at = path if isinstance(given, str) else (*path, i)
        if len(piece) > PATTERN_CHARS_MAX:
            raise source.fault(at, f"more than {PATTERN_CHARS_MAX:,} characters")
        if not piece and not isinstance(given, str):
            raise source.fault(at, "is empty, and would be found in every text")
        whole = _expanded(source, at, piece, words)
        if begins and piece and _FIRST.match(piece)[1].isascii():  # type: ignore[index]  # it fits anything
            whole = f"{begins}(?:{whole})"
        expanded.append(whole)
    return expanded[0] if len(expanded) == 1 else "|".join(f"(?:{piece})" for piece in expanded)


def _words(source: TomlSource) -> dict[str, str]:
    """The table of words that patterns of this file may use; a word may use those above it."""
    table = source.value(("words",), source.table.get("words", {}), dict[str, str])
    words: dict[str, str] = {}
    for word, piece in table.items():
        if not re.fullmatch("[a-z_]{1,32}", word):
            raise source.fault(("words", word), "is not allowed; expected 1 to 32 small letters or '_'")
        words[word] = _expanded(source, ("words", word), piece, words)
    return words


def _expanded(source: TomlSource, path: KeyPath, piece: str, words: Mapping[str, str]) -> str:
    """The pattern with its words put in, each as a group. Refused if RE2 does not take it."""
    for word in _WORD.findall(piece):
        if word not in words:
            raise source.fault(path, f"no word is named {shown(word)}; known: {', '.join(sorted(words)) or 'none'}")
    full = _WORD.sub(lambda word: f"(?:{words[word[1]]})", piece)
    check_pattern(source, path, full)
    return full


def lint_bounce_rules(rules: Sequence[BounceRule]) -> list[Finding]:
    """What is most likely not what is meant; in the order of the rules."""
    qualifier = Qualifier(rules)
    findings: list[Finding] = []
    for i, rule in enumerate(rules):
        if rule.pattern and Automaton([(0, rule.pattern)]).match(""):
            findings.append(
                _finding(Check.BAD_PATTERN, rule, "its pattern is found in the empty text, so in every text")
            )
        if "\\\\" in rule.pattern:
            what = r"its pattern has a doubled backslash: between '...' TOML takes one as it is"
            findings.append(_finding(Check.DOUBLED_BACKSLASH, rule, what))
        taker = next((one for one in rules[:i] if _takes_all(one, rule)), None)
        if taker is not None:
            what = f"never decides: {taker.label!r} at {taker.source} fits whatever it fits, and comes first"
            findings.append(_finding(Check.SHADOWED, rule, what))
        findings += _of_samples(qualifier, rule)
    return findings


def _of_samples(qualifier: Qualifier, rule: BounceRule) -> list[Finding]:
    found = []
    for sample in rule.samples:
        evidence = _evidence_of(sample, rule)
        if rule not in qualifier.fitting(evidence):
            found.append(_finding(Check.SAMPLE_MISSED, rule, f"does not fit its own sample {shown(sample)}"))
        elif (verdict := qualifier.qualify(evidence)).rule != rule.label:
            who = verdict.rule if is_by_rule(verdict) else f"its code ({verdict.rule})"
            found.append(_finding(Check.COLLISION, rule, f"its sample {shown(sample)} is decided by {who}"))
    found.extend(
        _finding(Check.SAMPLE_MISSED, rule, f"fits its own counter-sample {shown(sample)}")
        for sample in rule.counter_samples
        if rule in qualifier.fitting(_evidence_of(sample, rule))
    )
    return found


def _evidence_of(sample: str, rule: BounceRule) -> Evidence:
    """A sample as it would be met where the rule holds."""
    evidence = parse_reply_text(sample)
    if rule.providers:
        evidence = evidence._replace(provider=rule.providers[0].replace("*", "a").replace("?", "a"))
    if rule.stages and not evidence.stage:
        evidence = evidence._replace(stage=rule.stages[0])
    return evidence


def _takes_all(first: BounceRule, later: BounceRule) -> bool:
    """Whether ``first`` fits wherever ``later`` does. Sound; patterns are compared as they are written."""
    hosts = compile_masks(first.providers)
    return (
        not first.unless
        and (not first.is_weak or later.is_weak)
        and (not first.pattern or first.pattern == later.pattern)
        and (not first.codes or (bool(later.codes) and all(code.startswith(first.codes) for code in later.codes)))
        and (not first.enhanced or (bool(later.enhanced) and all(begins(e, first.enhanced) for e in later.enhanced)))
        and (not first.stages or (bool(later.stages) and set(later.stages) <= set(first.stages)))
        and (not first.providers or (bool(later.providers) and all(covers(hosts, one) for one in later.providers)))
    )


def _finding(check: Check, rule: BounceRule, what: str) -> Finding:
    return Finding(check, Severity.WARNING, rule.source, f"rule {rule.name}", what)


__all__ = [
    "SHIPPED",
    "BadInput",
    "lint_bounce_rules",
    "load_bounce_rules",
    "own_file",
    "parse_bounce_rules",
    "read_texts",
    "rule_files",
]
