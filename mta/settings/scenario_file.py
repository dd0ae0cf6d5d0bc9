"""Scenarios of `mta simulate`: a TOML file -> `mta.simulation.scenario.Scenario`. The keys: docs/simulation.md."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from mta.model.egress import Egress, EgressPool
from mta.model.errors import BadInput
from mta.settings.rules_file import load_rules, parse_rules
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, one_of, shown
from mta.simulation.scenario import Block, DeliveryModel, NodeModel, Outage, OutageKind, ProviderModel, Scenario
from mta.traffic.retry import PRESETS, RetrySchedule
from mta.traffic.rules import RuleSet

DEFAULT_POOL: Final = "default"
RECIPIENTS_MAX: Final = 100_000_000
PROVIDERS_MAX: Final = 1_000
SITES_MAX: Final = 100_000
NODES_MAX: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_HOST: Final = re.compile(r"[a-z0-9_{}]([a-z0-9_{}-]*[a-z0-9_{}])?(\.[a-z0-9_{}]([a-z0-9_{}-]*[a-z0-9_{}])?)*")
_REPLY: Final = re.compile(r"[45][0-9][0-9] [ -~]{1,500}")


def _between(least: float, most: float) -> msgspec.Meta:
    return msgspec.Meta(ge=least, le=most)


_Seconds = Annotated[float, _between(0, 366 * 86_400)]
_Limit = Annotated[int, _between(1, 1_000_000_000)]
_Percent = Annotated[float, _between(0, 100)]


class _ScenarioTable(msgspec.Struct):
    """The keys of the root, but for the tables in it."""

    name: str
    seed: Annotated[int, _between(0, 2**62)] = 1
    starts_at: datetime.datetime | None = None
    duration_s: Annotated[float, _between(1, 366 * 86_400)] = 86_400.0
    nodes: Annotated[int, _between(1, NODES_MAX)] = 1
    rules: str | None = None
    rules_text: str | None = None


class _NodeTable(msgspec.Struct):
    children: Annotated[int, _between(1, 256)] = 2
    batch_recipients: Annotated[int, _between(1, 10_000)] = 50
    sessions_max: Annotated[int, _between(1, 100_000)] = 1_000
    ready_recipients_max: Annotated[int, _between(100, 10_000_000)] = 100_000
    ready_per_site_max: Annotated[int, _between(10, 10_000_000)] = 5_000
    claim_parts_max: Annotated[int, _between(1, 10_000)] = 16


class _EgressTable(msgspec.Struct):
    name: str
    id: Annotated[int, _between(1, 2**31 - 1)]
    weight: Annotated[int, _between(1, 1_000)] = 1


class _OutageTable(msgspec.Struct):
    from_s: _Seconds
    for_s: _Seconds
    kind: OutageKind = OutageKind.REFUSED


class _BlockTable(msgspec.Struct):
    refusals: Annotated[int, _between(1, 1_000_000)] = 10
    within_s: Annotated[int, _between(1, 86_400)] = 60
    for_s: _Seconds = 900.0
    reply: str = Block().reply
    at_greeting: bool = True


class _ProviderTable(msgspec.Struct):
    name: str
    share: Annotated[float, _between(0, 1_000_000_000)]
    hosts: list[str]
    domains: list[str] = []
    sites: Annotated[int, _between(1, SITES_MAX)] = 1
    falloff: Annotated[float, _between(0, 10)] = 0.0
    is_one_house: bool = True
    addresses: Annotated[int, _between(1, 64)] = 1
    connect_s: Annotated[float, _between(0.0001, 600)] = 0.15
    message_s: Annotated[float, _between(0.0001, 600)] = 0.05
    spread: Annotated[float, _between(0, 2)] = 0.35
    connections_max: _Limit | None = None
    connections_per_minute_max: _Limit | None = None
    messages_per_connection_max: _Limit | None = None
    messages_per_minute_max: _Limit | None = None
    messages_per_hour_max: _Limit | None = None
    refusal: str = "450 4.7.28 too many messages, slow down"
    connection_refusal: str = "421 4.7.0 too many connections"
    failed_percent: _Percent = 0.0
    deferred_percent: _Percent = 0.0
    failed_reply: str = "550 5.1.1 no such user"
    deferred_reply: str = "451 4.3.0 try again later"
    greylist_s: _Seconds = 0.0
    greylist_percent: _Percent = 100.0
    greylist_reply: str = "451 4.7.1 greylisted, try again later"
    block: _BlockTable | None = None
    outage: tuple[_OutageTable, ...] = ()


class _DeliveryTable(msgspec.Struct):
    name: str
    recipients: Annotated[int, _between(1, RECIPIENTS_MAX)]
    start_s: _Seconds = 0.0
    over_s: _Seconds = 0.0
    weight: Annotated[int, _between(1, 1_000)] = 1
    priority: Annotated[int, _between(0, 4)] = 2
    pool: str = DEFAULT_POOL
    retry: str | dict[str, int] = "classic"
    validity_s: Annotated[float, _between(1, 366 * 86_400)] = 5 * 86_400.0
    message_bytes: Annotated[int, _between(1, 100_000_000)] = 40_000
    only: list[str] = []


_REPLIES: Final = ("refusal", "connection_refusal", "failed_reply", "deferred_reply", "greylist_reply")
# By table, for the reference in docs/simulation.md, which a test compares.
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "": _ScenarioTable,
    "node": _NodeTable,
    "egress": _EgressTable,
    "provider": _ProviderTable,
    "provider.block": _BlockTable,
    "provider.outage": _OutageTable,
    "delivery": _DeliveryTable,
}
_ROOT_TABLES: Final = ("node", "egress", "pools", "provider", "delivery")


def load_scenario(path: Path | str) -> Scenario:
    """A scenario file with its rules, all of it or nothing. Raises BadInput with file, line and key."""
    return parse_scenario(TomlSource.read(Path(path)), Path(path).parent)


def parse_scenario(source: TomlSource, base: Path) -> Scenario:
    """As `load_scenario`, for a source that was read already; paths in it begin at ``base``."""
    root_keys = [field.name for field in msgspec.structs.fields(_ScenarioTable)]
    source.refuse_unknown((), source.table, (*root_keys, *_ROOT_TABLES))
    root = source.build((), {k: v for k, v in source.table.items() if k not in _ROOT_TABLES}, _ScenarioTable)
    node = source.build(("node",), source.table.get("node", {}), _NodeTable)
    pools = _pools(source)
    providers = tuple(_provider(source, path, table) for path, table in _tables(source, "provider", PROVIDERS_MAX))
    _check_distinct(source, "provider", [provider.name for provider in providers])
    if sum(provider.share for provider in providers) <= 0:
        raise source.fault(("provider", 0, "share"), "one provider at least must have a share above 0")
    deliveries = tuple(
        _delivery(source, path, table, [pool.name for pool in pools], providers)
        for path, table in _tables(source, "delivery", PROVIDERS_MAX)
    )
    _check_distinct(source, "delivery", [delivery.name for delivery in deliveries])
    scenario = Scenario(
        name=_name(source, ("name",), root.name),
        seed=root.seed,
        duration_s=root.duration_s,
        nodes=root.nodes,
        rules=_rules(source, root, base),
        pools=pools,
        providers=providers,
        deliveries=deliveries,
        node=NodeModel(**msgspec.structs.asdict(node)),
    )
    if root.starts_at is None:
        return scenario
    return msgspec.structs.replace(scenario, starts_unix_s=_unix_s(source, root.starts_at))


def _tables(source: TomlSource, key: str, most: int) -> list[tuple[KeyPath, Any]]:
    tables = source.table.get(key, [])
    if not isinstance(tables, list):
        raise source.fault((key,), f"expected an array of tables; write [[{key}]], with two brackets")
    if not 1 <= len(tables) <= most:
        raise source.fault((key,) if tables else (), f"{len(tables)} tables [[{key}]]; expected 1 to {most:,}")
    return [((key, at), table) for at, table in enumerate(tables)]


def _check_distinct(source: TomlSource, key: str, names: list[str]) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            raise source.fault((key, at, "name"), f"the name {name!r} is taken by another [[{key}]]")


def _name(source: TomlSource, path: KeyPath, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise source.fault(
            path, f"{shown(text)} is not allowed; expected 1 to 64 letters, digits, blanks, '.', '_', '-'"
        )
    return text


def _unix_s(source: TomlSource, starts_at: datetime.datetime) -> float:
    if starts_at.tzinfo is None:
        raise source.fault(("starts_at",), "has no time zone; write it as 2026-01-31T08:00:00Z")
    return starts_at.timestamp()


def _rules(source: TomlSource, root: _ScenarioTable, base: Path) -> RuleSet:
    if (root.rules is None) is (root.rules_text is None):
        raise source.fault(("rules",), "give rules (a file) or rules_text (rules as they stand in one), one of them")
    if root.rules_text is not None:
        return parse_rules(TomlSource(root.rules_text, f"{source.where(('rules_text',))}: rules_text"))
    assert root.rules is not None
    if not root.rules or "\0" in root.rules:
        raise source.fault(("rules",), f"{shown(root.rules)} is no path")
    return load_rules(os.path.normpath(base / root.rules))


def _pools(source: TomlSource) -> tuple[EgressPool, ...]:
    egresses = []
    for path, table in _tables(source, "egress", 1_000):
        raw = source.build(path, table, _EgressTable)
        name = _name(source, (*path, "name"), raw.name)
        egresses.append(Egress(name, raw.id, f"{name.replace(' ', '-').lower()}.example", weight=raw.weight))
    _check_distinct(source, "egress", [egress.name for egress in egresses])
    given = source.table.get("pools")
    if given is None:
        return (EgressPool(DEFAULT_POOL, tuple(egresses)),)
    by_name = {egress.name: egress for egress in egresses}
    pools = []
    for name, members in source.value(("pools",), given, dict[str, list[str]]).items():
        for at, member in enumerate(members):
            if member not in by_name:
                raise source.fault(("pools", name, at), f"no egress is named {shown(member)}; {one_of(by_name)}")
        if not members:
            raise source.fault(("pools", name), "a pool needs at least one egress")
        pools.append(EgressPool(name, tuple(by_name[member] for member in members)))
    if not pools:
        raise source.fault(("pools",), "names no pool")
    return tuple(pools)


def _provider(source: TomlSource, path: KeyPath, table: object) -> ProviderModel:
    raw = source.build(path, table, _ProviderTable)
    _name(source, (*path, "name"), raw.name)
    if not raw.hosts:
        raise source.fault((*path, "hosts"), "a provider needs at least one MX host")
    for key in ("hosts", "domains"):
        for at, host in enumerate(getattr(raw, key)):
            if not _HOST.fullmatch(host) or set(re.findall(r"[{}]", host.replace("{n}", ""))):
                raise source.fault((*path, key, at), f"{shown(host)} is no name; {{n}} stands for the site's number")
    if raw.sites > 1 and not any("{n}" in host for host in raw.hosts):
        raise source.fault((*path, "hosts"), "several sites need hosts that differ: write {n} where the number stands")
    for key in _REPLIES:
        _check_reply(source, (*path, key), getattr(raw, key))
    if raw.block is not None:
        _check_reply(source, (*path, "block", "reply"), raw.block.reply)
    fields: dict[str, Any] = msgspec.structs.asdict(raw)
    outages: tuple[_OutageTable, ...] = fields.pop("outage")
    fields["outages"] = tuple(Outage(**msgspec.structs.asdict(outage)) for outage in outages)
    fields["block"] = None if raw.block is None else Block(**msgspec.structs.asdict(raw.block))
    fields |= {"hosts": tuple(raw.hosts), "domains": tuple(raw.domains)}
    return ProviderModel(**fields)


def _check_reply(source: TomlSource, path: KeyPath, reply: str) -> None:
    if not _REPLY.fullmatch(reply):
        raise source.fault(path, f"{shown(reply)} is no refusal; write a code from 400 to 599, a blank and a text")


def _delivery(
    source: TomlSource, path: KeyPath, table: object, pools: list[str], providers: tuple[ProviderModel, ...]
) -> DeliveryModel:
    raw = source.build(path, table, _DeliveryTable)
    _name(source, (*path, "name"), raw.name)
    if raw.pool not in pools:
        raise source.fault((*path, "pool"), f"no pool is named {shown(raw.pool)}; expected {one_of(pools)}")
    known = [provider.name for provider in providers]
    for at, name in enumerate(raw.only):
        if name not in known:
            raise source.fault((*path, "only", at), f"no provider is named {shown(name)}; expected {one_of(known)}")
    if raw.only and not sum(provider.share for provider in providers if provider.name in raw.only):
        raise source.fault((*path, "only"), "none of these providers has a share above 0")
    fields = msgspec.structs.asdict(raw)
    return DeliveryModel(**{**fields, "only": tuple(raw.only), "retry": _retry(source, (*path, "retry"), raw.retry)})


def _retry(source: TomlSource, path: KeyPath, given: str | dict[str, int]) -> RetrySchedule:
    if isinstance(given, str):
        if given not in PRESETS:
            raise source.fault(path, f"unknown schedule {shown(given)}; expected {one_of(PRESETS)}, or a table")
        return PRESETS[given]
    try:
        return msgspec.convert(given, RetrySchedule)
    except (msgspec.ValidationError, BadInput) as error:
        raise source.fault(path, f"{error}; expected first_count, first_period_s and then_period_s") from None
