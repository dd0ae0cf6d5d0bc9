"""Rules files -> RuleSet. The language is described for operators in ``docs/rules.md``.

Values cascade: what is built in, then ``[defaults]``, then the rule's provider, then the rule itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.model.errors import BadInput
from mta.model.masks import mask_fault
from mta.model.timeouts import SessionTimeouts
from mta.settings.rules_automations import read_automation, read_error_block, read_warm_up
from mta.settings.rules_includes import Disk, Stored, Tables
from mta.settings.rules_tables import (
    EGRESS_ID_MAX,
    TOP_KEYS,
    VALUE_KEYS,
    AutomationTable,
    DefaultsTable,
    ErrorBlockTable,
    LimitsTable,
    ProviderTable,
    QuietTable,
    RecoveryTable,
    RuleTable,
    WarmUpTable,
)
from mta.settings.rules_values import limits_of, masks_of, name_of, quiet_of, ranges_of, retry_of
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, shown
from mta.traffic.automations import Automation, Recovery
from mta.traffic.limits import LIMIT_KEYS
from mta.traffic.rules import DEFAULT_RULE, Provider, Rule, RuleSet, Scope, first_unreachable

RULES_MAX: Final = 2_000
TIMEOUT_S_MIN: Final = 0.05
TIMEOUT_S_MAX: Final = 86_400.0

Where = tuple[TomlSource, KeyPath]


def load_rules(path: Path | str) -> RuleSet:
    """The rules of a file and of those that it includes, all of them or none. Raises BadInput with file, line and key.

    Refused besides wrong keys and values: two rules of one name, and a rule that can never hold because
    rules above it take all its hosts.
    """
    return load_bundle(path)[0]


def load_bundle(path: Path | str) -> tuple[RuleSet, dict[str, str]]:
    """As ``load_rules``; and the texts it was read from by name, the root's first: ``parse_bundle`` takes them back."""
    root = Path(path)
    disk = Disk(root)
    rules = _Reader(Tables(disk, root.name)).rule_set()
    if any(not text.strip() for text in disk.texts.values()):
        # What an editor or a copy leaves for a moment; as a set it would lift every limit.
        name = next(name for name, text in disk.texts.items() if not text.strip())
        raise BadInput(str(root.parent / name), "is empty; a file without rules holds a comment at least")
    return rules, {root.name: disk.texts[root.name], **disk.texts}


def parse_bundle(root: str, texts: Mapping[str, str]) -> RuleSet:
    """As ``load_rules``, from texts by name. ``root`` is the name of the one that includes the others."""
    return _Reader(Tables(Stored(texts), root)).rule_set()


class _One:
    """A single text that includes nothing from elsewhere."""

    def __init__(self, source: TomlSource) -> None:
        self._source = source

    def read(self, name: str) -> TomlSource:
        if name:
            raise BadInput(name, "cannot be opened: a text alone includes nothing")
        return self._source

    def matching(self, pattern: str) -> list[str]:
        return []


def parse_rules(source: TomlSource) -> RuleSet:
    """As ``load_rules``, for a source that was read already, and that includes nothing."""
    return _Reader(Tables(_One(source), "")).rule_set()


def unknown_pools(rules: RuleSet, pools: Iterable[str]) -> list[tuple[str, str]]:
    """Pools that rules or automations ask for and that are none of these: (where, pool)."""
    known = {"", *pools}
    asked = [(rules.origins.get((rule.name, "pool"), rule.origin), rule.pool) for rule in rules.rules]
    asked += [(one.origin, one.pool) for rule in rules.rules for one in rule.automations]
    return sorted({(where, pool) for where, pool in asked if pool not in known})


class _Reader:
    """Turns the tables of all files into one rule set."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._names: dict[tuple[str, str], str] = {}  # (kind, name) -> where
        self._origins: dict[tuple[str, str], str] = {}
        self._defaults: tuple[DefaultsTable, Where] | None = None
        self._providers: dict[str, tuple[ProviderTable, Where, Provider]] = {}
        self._automations: dict[str, Automation] = {}

    def rule_set(self) -> RuleSet:
        for source in self._tables.sources:
            source.refuse_unknown((), source.table, TOP_KEYS)
            self._read_defaults(source)
        for source, path, table in self._each("automation"):
            raw = source.build(path, table, AutomationTable)
            self._take_name("automation", raw.name, source, path)
            self._automations[raw.name] = read_automation(source, path, raw)
        for source, path, table in self._each("provider"):
            self._read_provider(source, path, table)
        if len(self._tables.rules) > RULES_MAX:
            source, path, _ = self._tables.rules[RULES_MAX]
            raise source.fault(path, f"more than {RULES_MAX} rules")
        rules = [(self._rule(source, path, table), source, path) for source, path, table in self._tables.rules]
        _refuse_unreachable(rules)
        names = {rule.name for rule, _, _ in rules} | set(self._providers)
        warm_ups = []
        for source, path, table in self._each("warm_up"):
            raw_plan = source.build(path, table, WarmUpTable)
            self._take_name("warm_up", raw_plan.name, source, path)
            warm_ups.append(read_warm_up(source, path, raw_plan, names))
        blocks = [
            read_error_block(source, path, source.build(path, table, ErrorBlockTable))
            for source, path, table in self._each("error_block")
        ]
        return RuleSet([rule for rule, _, _ in rules], warm_ups=warm_ups, error_blocks=blocks, origins=self._origins)

    def _each(self, kind: str) -> Iterable[tuple[TomlSource, KeyPath, object]]:
        for source in self._tables.sources:
            tables = source.table.get(kind, [])
            if not isinstance(tables, list):
                raise source.fault((kind,), f"expected an array of tables; write [[{kind}]], with two brackets")
            for i, table in enumerate(tables):
                yield source, (kind, i), table

    def _take_name(self, kind: str, name: str, source: TomlSource, path: KeyPath) -> None:
        name_of(source, (*path, "name"), name)
        if (kind, name) in self._names:
            taken = self._names[kind, name]
            raise source.fault((*path, "name"), f"the name {name!r} is taken by the {kind} at {taken}")
        self._names[kind, name] = source.where(path)

    def _read_defaults(self, source: TomlSource) -> None:
        if "defaults" not in source.table:
            return
        if self._defaults is not None:
            other, at = self._defaults[1]
            raise source.fault(("defaults",), f"stand at {other.where(at)} already; one file has them")
        self._defaults = (source.build(("defaults",), source.table["defaults"], DefaultsTable), (source, ("defaults",)))

    def _read_provider(self, source: TomlSource, path: KeyPath, table: object) -> None:
        raw = source.build(path, table, ProviderTable)
        self._take_name("provider", raw.name, source, path)
        total = limits_of(raw.total)
        for key in ("connections_per_path_max", "messages_per_connection_max"):
            if getattr(raw.total, key) is not None:
                raise source.fault((*path, "total", key), "is not of a provider as a whole; write it outside of total")
        if raw.total.scope is Scope.PATH:
            raise source.fault((*path, "total", "scope"), "'path' is not allowed; expected one of 'egress', 'shared'")
        where = source.where(path)
        provider = Provider(name=raw.name, scope=raw.total.scope, origin=where, **_given(total))
        self._providers[raw.name] = (raw, (source, path), provider)
        for key in _keys_given(source, (*path, "total")):
            self._origins[f"provider:{raw.name}", key] = source.where((*path, "total", key))

    # --- rules --------------------------------------------------------------------------------

    def _rule(self, source: TomlSource, path: KeyPath, table: object) -> Rule:
        raw = source.build(path, table, RuleTable)
        if raw.name == DEFAULT_RULE.name:
            raise source.fault(
                (*path, "name"), f"{raw.name!r} is the name of the built-in rule, whose counters it would share"
            )
        self._take_name("rule", raw.name, source, path)
        levels: list[tuple[Any, Where]] = [] if self._defaults is None else [self._defaults]
        provider: Provider | None = None
        if raw.provider:
            if raw.provider not in self._providers:
                known = ", ".join(sorted(self._providers)) or "none"
                raise source.fault((*path, "provider"), f"no provider is named {raw.provider!r}; known: {known}")
            of_provider, where, provider = self._providers[raw.provider]
            levels.append((of_provider, where))
        levels.append((raw, (source, path)))
        values, given_at = self._cascade(raw.name, levels)
        mx = masks_of(source, (*path, "mx"), raw.mx) if raw.mx != "" else ""
        site = masks_of(source, (*path, "site"), raw.site, is_site=True) if raw.site != "" else ""
        domain = masks_of(source, (*path, "domain"), raw.domain) if raw.domain != "" else ""
        if not (mx or site or domain) or ("mx" in _keys_given(source, path) and not mx):
            if "mx" in _keys_given(source, path):
                raise source.fault((*path, "mx"), mask_fault("") or "")
            raise source.fault(path, "the key 'mx' is missing; expected a string or an array, or 'site' or 'domain'")
        return Rule(
            name=raw.name,
            mx=mx or "*",
            sites=site,
            domains=domain,
            egress_ids=ranges_of(source, (*path, "egress_ids"), raw.egress_ids),
            provider=provider,
            origin=source.where(path),
            **_converted(values, given_at, self._automations),
        )

    def _cascade(self, name: str, levels: list[tuple[Any, Where]]) -> tuple[dict[str, Any], dict[str, list[Where]]]:
        """The value of each key that is given anywhere, and where: the last place wins; automations add up."""
        values: dict[str, Any] = {}
        given_at: dict[str, list[Where]] = {}
        for raw, (source, path) in levels:
            for key in _keys_given(source, path):
                if key not in VALUE_KEYS:
                    continue
                at = (source, (*path, key))
                value = getattr(raw, key)
                if key == "automations":
                    values[key] = values.get(key, []) + [(one, at) for one in value]
                else:
                    values[key] = value
                given_at[key] = [at]
                self._origins[name, key] = source.where((*path, key))
        return values, given_at


def _keys_given(source: TomlSource, path: KeyPath) -> list[str]:
    table: Any = source.table
    for step in path:
        if isinstance(table, dict) and step not in table:
            return []
        table = table[step]
    return list(table)


def _given(limits: object) -> dict[str, Any]:
    found = {key: getattr(limits, key) for key in LIMIT_KEYS}
    return {key: value for key, value in found.items() if value is not None}


def _converted(
    values: dict[str, Any], given_at: dict[str, list[Where]], automations: Mapping[str, Automation]
) -> dict[str, Any]:
    """Values as a rule has them."""
    done: dict[str, Any] = {}
    for key, value in values.items():
        source, path = given_at[key][-1]
        if isinstance(value, SessionTimeouts):
            _check_timeouts(source, path, value)
            done[key] = value
        elif isinstance(value, QuietTable):
            done[key] = quiet_of(source, path, value)
        elif isinstance(value, RecoveryTable):
            done[key] = Recovery(**msgspec.structs.asdict(value))
        elif isinstance(value, LimitsTable):
            done[key] = limits_of(value)
        elif key == "retry":
            done[key] = retry_of(source, path, value)
        elif key == "helo":
            done[key] = name_of(source, path, value, what="helo") if value else ""
        elif key == "automations":
            done[key] = _automations_of(value, automations)
        else:
            done[key] = value
    if any(one.act.value == "backoff" for one in done.get("automations", ())) and "backoff" not in done:
        source, path = given_at["automations"][-1]
        raise source.fault(path, "one of them enters backoff, and the rule has no 'backoff' limits")
    return done


def _automations_of(named: list[tuple[str, Where]], automations: Mapping[str, Automation]) -> tuple[Automation, ...]:
    """By name, in order, each once; ``-name`` takes away one that was inherited."""
    found: dict[str, Automation] = {}
    for name, (source, path) in named:
        wanted = name.removeprefix("-")
        if wanted not in automations:
            known = ", ".join(sorted(automations)) or "none"
            raise source.fault(path, f"no automation is named {shown(wanted)}; known: {known}")
        if name != wanted:
            found.pop(wanted, None)
        else:
            found[name] = automations[name]
    return tuple(found.values())


def _refuse_unreachable(rules: list[tuple[Rule, TomlSource, KeyPath]]) -> None:
    dead = first_unreachable([rule for rule, _, _ in rules])
    if dead is not None:
        rule, taker = dead
        source, path = next((source, path) for other, source, path in rules if other is rule)
        raise source.fault(
            (*path, "mx"),
            f"rule {rule.name!r} can never be reached: rule {taker.name!r} at {taker.origin} takes its hosts; "
            "the first rule that fits wins, so the more general one must stand below",
        )


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


__all__ = [
    "EGRESS_ID_MAX",
    "RULES_MAX",
    "load_bundle",
    "load_rules",
    "parse_bundle",
    "parse_rules",
    "unknown_pools",
]
