"""What one set of rules changes about another: in effect, not in its text."""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from mta.traffic.automations import Automation
from mta.traffic.rules import Provider, Rule, RuleSet

_APART: Final = ("name", "origin", "provider", "automations")  # told of in their own way
_IN_PIECES: Final = ("timeouts", "recovery", "backoff")  # told of key by key


class ChangeKind(enum.StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    MOVED = "moved"
    CHANGED = "changed"


class Change(msgspec.Struct, frozen=True):
    """One value, or one thing as a whole (``key`` empty). ``old`` and ``new`` are plain values, ready for JSON.

    ``old_where`` and ``new_where``: "file:line", or "default" where the file says nothing.
    """

    kind: ChangeKind
    subject: str  # "rule google"
    key: str = ""
    old: Any = None
    new: Any = None
    old_where: str = ""
    new_where: str = ""


def diff_rules(old: RuleSet, new: RuleSet) -> list[Change]:
    """Rules first, in their new order; then providers, automations, warm-ups and error blocks."""
    return [
        *_of_rules(old, new),
        *_of_named("provider", _providers(old), _providers(new), old, new),
        *_of_named("automation", _automations(old), _automations(new), old, new),
        *_of_named("warm-up", {w.name: w for w in old.warm_ups}, {w.name: w for w in new.warm_ups}, old, new),
        *_of_named(
            "error block", {b.domains: b for b in old.error_blocks}, {b.domains: b for b in new.error_blocks}, old, new
        ),
    ]


def _of_rules(old: RuleSet, new: RuleSet) -> Iterator[Change]:
    before = {rule.name: rule for rule in old.rules}
    after = {rule.name: rule for rule in new.rules}
    places = {rule.name: number for number, rule in enumerate(old.rules)}
    common = [rule.name for rule in new.rules if rule.name in before]
    stayed = _longest_rise([places[name] for name in common])
    moved = {name for number, name in enumerate(common) if number not in stayed}
    for name, rule in after.items():
        subject = f"rule {name}"
        if name not in before:
            yield Change(ChangeKind.ADDED, subject, new=rule.mx, new_where=rule.origin)
            continue
        was = before[name]
        if name in moved:
            places_now = (_above(old, was), _above(new, rule))
            yield Change(ChangeKind.MOVED, subject, "", places_now[0], places_now[1], was.origin, rule.origin)
        yield from _values(subject, _plain_rule(was), _plain_rule(rule), _Origins(old, name), _Origins(new, name))
    for name, was in before.items():
        if name not in after:
            yield Change(ChangeKind.REMOVED, f"rule {name}", old=was.mx, old_where=was.origin)


def _above(rules: RuleSet, rule: Rule) -> str:
    place = rules.rules.index(rule)
    return f"below {rules.rules[place - 1].name}" if place else "first"


def _longest_rise(numbers: Sequence[int]) -> set[int]:
    """Indexes of a longest increasing subsequence: what need not be moved."""
    tops: list[int] = []  # smallest end of a rise of each length
    at: list[int] = []
    before: list[int] = []
    for index, number in enumerate(numbers):
        length = bisect.bisect_left(tops, number)
        before.append(at[length - 1] if length else -1)
        tops[length : length + 1] = [number]
        at[length : length + 1] = [index]
    found: set[int] = set()
    index = at[-1] if at else -1
    while index >= 0:
        found.add(index)
        index = before[index]
    return found


class _Origins:
    """Where the values of one thing stand."""

    def __init__(self, rules: RuleSet, owner: str, otherwise: str = "default") -> None:
        self._origins: Mapping[tuple[str, str], str] = rules.origins
        self._owner = owner
        self._otherwise = otherwise

    def __getitem__(self, key: str) -> str:
        found = self._origins.get((self._owner, key)) or self._origins.get((self._owner, key.partition(".")[0]))
        return found or self._otherwise


def _plain_rule(rule: Rule) -> dict[str, Any]:
    """Every value of a rule by its key, as JSON has it."""
    found: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(rule).items():
        if key in _IN_PIECES:
            found.update({f"{key}.{piece}": one for piece, one in (value or {}).items() if one is not None})
        elif key not in _APART:
            found[key] = value
    found["provider"] = "" if rule.provider is None else rule.provider.name
    found["automations"] = [one.name for one in rule.automations]
    return found


def _values(
    subject: str, old: Mapping[str, Any], new: Mapping[str, Any], old_at: _Origins, new_at: _Origins
) -> Iterator[Change]:
    for key in dict.fromkeys([*old, *new]):
        was, becomes = old.get(key), new.get(key)
        if was != becomes:
            yield Change(ChangeKind.CHANGED, subject, key, was, becomes, old_at[key], new_at[key])


def _providers(rules: RuleSet) -> dict[str, Provider]:
    return {rule.provider.name: rule.provider for rule in rules.rules if rule.provider is not None}


def _automations(rules: RuleSet) -> dict[str, Automation]:
    return {one.name: one for rule in rules.rules for one in rule.automations}


def _of_named(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any], old: RuleSet, new: RuleSet
) -> Iterator[Change]:
    for name, thing in after.items():
        subject = f"{kind} {name}"
        if name not in before:
            yield Change(ChangeKind.ADDED, subject, new_where=thing.origin)
            continue
        was = before[name]
        owner = f"{kind}:{name}"
        yield from _values(
            subject, _plain(was), _plain(thing), _Origins(old, owner, was.origin), _Origins(new, owner, thing.origin)
        )
    for name, was in before.items():
        if name not in after:
            yield Change(ChangeKind.REMOVED, f"{kind} {name}", old_where=was.origin)


def _plain(thing: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(thing).items():
        if key in ("match", "limits"):
            found.update(value)
        elif key not in ("name", "origin"):
            found[key] = value
    return found
