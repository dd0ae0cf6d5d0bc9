"""``mx-rules.toml`` -> RuleSet. The language is described for operators in ``docs/rules.md``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

from mta.model.masks import mask_fault
from mta.model.timeouts import SessionTimeouts
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, shown
from mta.traffic.rules import DEFAULT_RULE, Rule, RuleSet, Scope, Tls, first_unreachable

RULES_MAX: Final = 2_000
MASKS_PER_RULE_MAX: Final = 100
RANGES_PER_RULE_MAX: Final = 100
EGRESS_ID_MAX: Final = 2**31 - 1
TIMEOUT_S_MIN: Final = 0.05
TIMEOUT_S_MAX: Final = 86_400.0

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANGE: Final = re.compile(r"\s*([0-9]{1,10})\s*(?:-\s*([0-9]{1,10})\s*)?")
# 0 would hold mail back for ever without saying so, and is what people write who mean "no limit".
_Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class _RuleTable(msgspec.Struct):
    """What a ``[[rule]]`` table may hold; its keys are those of Rule."""

    name: str
    mx: str | list[str]
    egress_ids: list[int | str] = []
    scope: Scope = Scope.EGRESS
    connections_max: _Limit | None = None
    connections_per_path_max: _Limit | None = None
    messages_per_connection_max: _Limit | None = None
    messages_per_hour_max: _Limit | None = None
    tls: Tls = Tls.OPPORTUNISTIC
    pipelining: bool = True
    chunking: bool = True
    timeouts: SessionTimeouts = SessionTimeouts()


RULE_KEYS: Final = tuple(field.name for field in msgspec.structs.fields(_RuleTable))


def load_rules(path: Path | str) -> RuleSet:
    """The rules of a file, all of them or none. Raises BadInput with file, line and key.

    Refused besides wrong keys and values: two rules of one name, and a rule that can never hold because
    rules above it take all its hosts.
    """
    return parse_rules(TomlSource.read(Path(path)))


def parse_rules(source: TomlSource) -> RuleSet:
    """As ``load_rules``, for a source that was read already."""
    source.refuse_unknown((), source.table, ("rule",))
    tables = source.table.get("rule", [])
    if not isinstance(tables, list):
        raise source.fault(("rule",), "expected an array of tables; write [[rule]], with two brackets")
    if len(tables) > RULES_MAX:
        raise source.fault(("rule", RULES_MAX), f"more than {RULES_MAX} rules")
    rules: list[Rule] = []
    places: dict[str, KeyPath] = {}
    for i, table in enumerate(tables):
        path: KeyPath = ("rule", i)
        rule = _rule(source, path, table)
        if rule.name == DEFAULT_RULE.name:
            raise source.fault(
                (*path, "name"), f"{rule.name!r} is the name of the built-in rule, whose counters it would share"
            )
        if rule.name in places:
            raise source.fault(
                (*path, "name"), f"the name {rule.name!r} is taken by the rule at {source.where(places[rule.name])}"
            )
        places[rule.name] = path
        rules.append(rule)
    dead = first_unreachable(rules)
    if dead is not None:
        rule, taker = dead
        raise source.fault(
            (*places[rule.name], "mx"),
            f"rule {rule.name!r} can never be reached: rule {taker.name!r} at {taker.origin} takes its hosts; "
            "the first rule that fits wins, so the more general one must stand below",
        )
    return RuleSet(rules)


def _rule(source: TomlSource, path: KeyPath, table: object) -> Rule:
    raw = source.build(path, table, _RuleTable)
    if not _NAME.fullmatch(raw.name):
        raise source.fault(
            (*path, "name"), f"{shown(raw.name)} is not allowed; expected 1 to 64 letters, digits, '.', '_' or '-'"
        )
    _check_timeouts(source, (*path, "timeouts"), raw.timeouts)
    return Rule(
        name=raw.name,
        mx=_masks(source, (*path, "mx"), raw.mx),
        egress_ids=_ranges(source, (*path, "egress_ids"), raw.egress_ids),
        scope=raw.scope,
        connections_max=raw.connections_max,
        connections_per_path_max=raw.connections_per_path_max,
        messages_per_connection_max=raw.messages_per_connection_max,
        messages_per_hour_max=raw.messages_per_hour_max,
        tls=raw.tls,
        pipelining=raw.pipelining,
        chunking=raw.chunking,
        timeouts=raw.timeouts,
        origin=source.where(path),
    )


def _masks(source: TomlSource, path: KeyPath, given: str | list[str]) -> str:
    masks = [given] if isinstance(given, str) else given
    if not masks:
        raise source.fault(path, "at least one mask is needed; '*' fits every host")
    if len(masks) > MASKS_PER_RULE_MAX:
        raise source.fault(path, f"more than {MASKS_PER_RULE_MAX} masks")
    for i, mask in enumerate(masks):
        at = path if isinstance(given, str) else (*path, i)
        if "," in mask:
            raise source.fault(at, f'{shown(mask)}: write several masks as an array, ["*.a.example", "*.b.example"]')
        fault = mask_fault(mask)
        if fault is not None:
            raise source.fault(at, fault)
    return ", ".join(masks)


def _ranges(source: TomlSource, path: KeyPath, given: list[int | str]) -> tuple[tuple[int, int], ...]:
    if len(given) > RANGES_PER_RULE_MAX:
        raise source.fault(path, f"more than {RANGES_PER_RULE_MAX} ranges")
    ranges = []
    for i, value in enumerate(given):
        at = (*path, i)
        match = _RANGE.fullmatch(str(value))
        if match is None:
            raise source.fault(at, f'{shown(value)} is not allowed; expected an egress id (7) or a range ("1-5")')
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= EGRESS_ID_MAX:
            raise source.fault(at, f"{shown(value)} is not allowed; egress ids go from 1 to {EGRESS_ID_MAX}, upwards")
        ranges.append((first, last))
    return tuple(ranges)


def _check_timeouts(source: TomlSource, path: KeyPath, timeouts: SessionTimeouts) -> None:
    values: dict[str, float] = msgspec.structs.asdict(timeouts)
    for key, value in values.items():
        if not TIMEOUT_S_MIN <= value <= TIMEOUT_S_MAX:
            raise source.fault(
                (*path, key), f"{value} is not allowed; expected seconds from {TIMEOUT_S_MIN} to {TIMEOUT_S_MAX:.0f}"
            )
    for key in ("connect_s", "greeting_s", "command_s"):
        if values[key] > timeouts.setup_s:
            raise source.fault(
                (*path, key),
                f"{values[key]:g} is more than setup_s ({timeouts.setup_s:g}), the bound of all of it; raise that too",
            )
