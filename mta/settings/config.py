"""``mta.toml`` -> Settings. Every key has a default; the shipped file shows them all with what they are for."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from mta.dns.names import canonical_domain, is_host_name, literal_address
from mta.dns.nameservers import check_trust, endpoints
from mta.dns.networks import AddressPolicy
from mta.failure.standing import QuarantineRules
from mta.model.dns import DnsSettings
from mta.model.egress import Egress, EgressPool
from mta.model.errors import BadInput
from mta.model.masks import mask_fault
from mta.model.tls import TlsSettings
from mta.queue.connection_string import parse_connection_string
from mta.queue.dsn import place_of
from mta.queue.faults import FaultBounds
from mta.settings.alarms import AlarmsTable, alarm_settings
from mta.settings.bounce_rules import SHIPPED, own_file, rule_files
from mta.settings.deliverability import DeliverabilitySettings, deliverability_settings
from mta.settings.dkim import SigningSettings, SigningTable, signing_settings
from mta.settings.inbound import InboundSettings, InboundTable, inbound_settings
from mta.settings.rules_file import EGRESS_ID_MAX
from mta.settings.streams import StreamSettings, stream_settings
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, shown

DATABASE_URL_VARIABLE: Final = "MTA_DATABASE_URL"
DEFAULT_POOL: Final = "default"
EGRESSES_MAX: Final = 10_000
WEIGHT_MAX: Final = 1_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_FORM: Final = "expected 1 to 64 letters, digits, '.', '_' or '-'"


def _between(low: float, high: float) -> msgspec.Meta:
    return msgspec.Meta(ge=low, le=high)


_Weight = Annotated[int, _between(1, WEIGHT_MAX)]


class NodeSettings(msgspec.Struct, frozen=True):
    """Who this machine is among the nodes of one database, and where its journal lives."""

    name: str = ""  # empty: the host's name
    journal_dir: str = "/var/lib/mta/journal"  # relative: to the directory of the file that says so


class DatabaseSettings(msgspec.Struct, frozen=True):
    """Where the queue is. ``dsn`` may hold a password, so it is not shown by ``repr``."""

    dsn: str = "postgresql:///mta"
    pool_max: Annotated[int, _between(2, 1_000)] = 8

    def __repr__(self) -> str:
        return f"DatabaseSettings(dsn=<{place_of(self.dsn)}>, pool_max={self.pool_max})"


class MasterSettings(msgspec.Struct, frozen=True):
    """Bounds and paces of the master."""

    claim_parts_max: Annotated[int, _between(1, 10_000)] = 16  # in one claim
    ready_recipients_max: Annotated[int, _between(100, 10_000_000)] = 100_000  # in memory, over all sites
    ready_mbytes_max: Annotated[int, _between(16, 1_000_000)] = 256  # of recipients with their merge values
    ready_per_site_max: Annotated[int, _between(10, 10_000_000)] = 5_000
    lease_s: Annotated[float, _between(2, 3_600)] = 15.0  # a node that is silent for so long loses its parts
    take_over_after_s: Annotated[float, _between(0, 86_400)] = 45.0  # after the end of another node's lease
    poll_idle_s: Annotated[float, _between(0.01, 300)] = 1.0  # between claims that found nothing
    write_delay_ms: Annotated[int, _between(0, 5_000)] = 50  # outcomes are collected for so long, then stored
    write_rows_max: Annotated[int, _between(1, 100_000)] = 5_000  # with so many waiting (about), at once
    in_doubt_max: Annotated[int, _between(1, 100)] = 2  # a recipient that was in doubt so often is held


class ChildrenSettings(msgspec.Struct, frozen=True):
    """How many child processes, what each may hold, and when it is replaced."""

    count: Annotated[int, _between(0, 256)] = 0  # 0: one for each processor
    batch_recipients: Annotated[int, _between(1, 10_000)] = 50  # handed to a session at a time
    sessions_max: Annotated[int, _between(1, 100_000)] = 1_000  # open at a time in one child
    journal_segment_kbytes: Annotated[int, _between(16, 1_048_576)] = 8_192  # then its journal goes on in a new file
    silence_s: Annotated[float, _between(2, 3_600)] = 30.0  # then a child that says nothing is killed and replaced
    recycle_messages: Annotated[int, _between(1, 10**12)] = 5_000_000
    recycle_mbytes: Annotated[int, _between(64, 1_000_000)] = 512  # resident memory

    @property
    def effective_count(self) -> int:
        """Processes to start: ``count``, or one for each processor this process may use."""
        return self.count or max(1, len(os.sched_getaffinity(0)))


class JournalSettings(msgspec.Struct, frozen=True):
    """How much of the journal is kept after its commit, and for how long: a failover may make the database forget."""

    keep_s: Annotated[float, _between(0, 604_800)] = 900.0  # 0: not at all
    keep_mbytes: Annotated[int, _between(0, 10_000_000)] = 4_096  # then the oldest goes, whatever its age


class SmtpSettings(msgspec.Struct, frozen=True):
    """How MX hosts are reached."""

    port: Annotated[int, _between(1, 65_535)] = 25
    addresses_per_attempt_max: Annotated[int, _between(2, 64)] = 5  # RFC 5321 §5.1: two at least
    sessions_per_attempt_max: Annotated[int, _between(1, 64)] = 2


class FailureSettings(msgspec.Struct, frozen=True):
    """What failures mean: the shipped rules, and ``own``, which need not be there and goes before them."""

    shipped: Path = SHIPPED
    own: Path = own_file(SHIPPED)

    @property
    def rules_files(self) -> list[Path]:
        """In the order in which rules are tried."""
        return rule_files(self.shipped, self.own)


class Settings(msgspec.Struct, frozen=True):
    """All of ``mta.toml``, checked. Paths are absolute."""

    node: NodeSettings
    database: DatabaseSettings
    master: MasterSettings
    children: ChildrenSettings
    journal: JournalSettings
    dns: DnsSettings
    smtp: SmtpSettings
    tls: TlsSettings
    signing: SigningSettings
    failures: FailureSettings
    quarantine: QuarantineRules
    inbound: InboundSettings
    deliverability: DeliverabilitySettings
    alarms: FaultBounds
    egresses: tuple[Egress, ...]
    pools: dict[str, EgressPool]  # holds DEFAULT_POOL, always
    rules_file: Path | None  # None: no file, the built-in rule holds for every host
    streams: tuple[StreamSettings, ...] = ()

    @property
    def journal_dir(self) -> Path:
        return Path(self.node.journal_dir)


class _FailuresTable(msgspec.Struct):
    """``bounce_rules`` empty: the shipped set."""

    bounce_rules: str = ""


class _EgressTable(msgspec.Struct):
    """What an ``[[egress]]`` table may hold: the keys of Egress with their bounds."""

    name: str
    id: Annotated[int, _between(1, EGRESS_ID_MAX)]
    helo: str
    source_ipv4: str | None = None
    source_ipv6: str | None = None
    weight: _Weight = 1
    include_domains: list[str] = []
    exclude_domains: list[str] = []


class _RulesTable(msgspec.Struct):
    file: str | None = None


_TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "node": NodeSettings,
    "database": DatabaseSettings,
    "master": MasterSettings,
    "children": ChildrenSettings,
    "journal": JournalSettings,
    "dns": DnsSettings,
    "smtp": SmtpSettings,
    "tls": TlsSettings,
    "signing": SigningTable,
    "rules": _RulesTable,
    "failures": _FailuresTable,
    "quarantine": QuarantineRules,
    "inbound": InboundTable,
    "deliverability": DeliverabilitySettings,
    "alarms": AlarmsTable,
}
TABLE_NAMES: Final = (*_TABLES, "egress", "pools", "dkim", "stream")


def load_settings(
    path: Path | str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    host_name: str | None = None,
) -> Settings:
    """The settings of a file, or the defaults without one. Raises BadInput with file, line and key.

    ``environment`` (the process's) may name the database in MTA_DATABASE_URL, which then wins over the file.
    ``host_name`` (the machine's) is the node's name and HELO name where the file gives none.
    """
    environment = os.environ if environment is None else environment
    host_name = socket.gethostname() if host_name is None else host_name
    source = TomlSource("", "default settings") if path is None else TomlSource.read(Path(path))
    base = Path.cwd() if path is None else Path(path).absolute().parent
    source.refuse_unknown((), source.table, TABLE_NAMES)
    tables: dict[str, Any] = {
        name: source.build((name,), source.table.get(name, {}), cls) for name, cls in _TABLES.items()
    }
    _check_relations(source, tables["master"], tables["children"])
    _check_dns(source, tables["dns"])
    egresses = _egresses(source) or (Egress(name="default", id=1, helo=_helo_of(host_name)),)
    rules: _RulesTable = tables.pop("rules")
    tables["signing"] = signing_settings(source, tables["signing"], base)
    return Settings(
        **{
            **tables,
            "node": _node(source, tables["node"], base, host_name),
            "tls": _tls(source, tables["tls"], tables["dns"], base),
            "inbound": inbound_settings(source, tables["inbound"], base),
            "deliverability": deliverability_settings(source, tables["deliverability"], base),
            "alarms": alarm_settings(source, tables["alarms"]),
            "failures": FailureSettings() if path is None else _failures(source, tables["failures"], base),
            "database": _database(source, tables["database"], environment),
        },
        egresses=egresses,
        pools=_pools(source, egresses),
        rules_file=None if rules.file is None else _path(source, ("rules", "file"), rules.file, base),
        streams=stream_settings(source, base),
    )


def _path(source: TomlSource, key: KeyPath, text: str, base: Path) -> Path:
    if not text or "\0" in text:
        raise source.fault(key, f"{shown(text)} is no path")
    return base / Path(text).expanduser()


def _node(source: TomlSource, node: NodeSettings, base: Path, host_name: str) -> NodeSettings:
    # A host's name is not the operator's choice here, so it is made to fit rather than refused.
    name = node.name or re.sub(r"[^A-Za-z0-9._-]", "-", host_name).strip(".-_")[:64] or "node"
    if not _NAME.fullmatch(name):
        raise source.fault(("node", "name"), f"{shown(name)} is not allowed; {_NAME_FORM}")
    return NodeSettings(name=name, journal_dir=str(_path(source, ("node", "journal_dir"), node.journal_dir, base)))


def _failures(source: TomlSource, failures: _FailuresTable, base: Path) -> FailureSettings:
    """Own rules stand beside the file that is named; where the shipped set is meant, beside this configuration."""
    if not failures.bounce_rules:
        return FailureSettings(own=own_file(base / SHIPPED.name))
    shipped = _path(source, ("failures", "bounce_rules"), failures.bounce_rules, base)
    return FailureSettings(shipped, own_file(shipped))


def _database(source: TomlSource, database: DatabaseSettings, environment: Mapping[str, str]) -> DatabaseSettings:
    dsn = environment.get(DATABASE_URL_VARIABLE, "")
    is_from_environment = bool(dsn)
    dsn = dsn or database.dsn
    try:
        parse_connection_string(dsn, DATABASE_URL_VARIABLE)
    except BadInput as error:
        if is_from_environment:
            raise
        _, of_parameter, parameter = error.where.partition(", ")
        raise source.fault(("database", "dsn"), f"{parameter}: {error.what}" if of_parameter else error.what) from None
    return msgspec.structs.replace(database, dsn=dsn)


def _check_relations(source: TomlSource, master: MasterSettings, children: ChildrenSettings) -> None:
    if master.ready_per_site_max > master.ready_recipients_max:
        raise source.fault(
            ("master", "ready_per_site_max"),
            f"{master.ready_per_site_max:,} is more than ready_recipients_max ({master.ready_recipients_max:,})",
        )
    if children.batch_recipients > master.ready_per_site_max:
        raise source.fault(
            ("children", "batch_recipients"),
            f"{children.batch_recipients:,} is more than master.ready_per_site_max ({master.ready_per_site_max:,})",
        )
    if master.write_delay_ms / 1000 >= master.lease_s / 2:
        raise source.fault(("master", "write_delay_ms"), f"must be below half of lease_s ({master.lease_s:g} s)")


def _check_dns(source: TomlSource, dns: DnsSettings) -> None:
    """Tries what only the resolver can judge, so that a bad address is an error with a line and not one at start."""
    try:
        if dns.nameservers:
            endpoints(dns.nameservers)
        AddressPolicy(allow_networks=dns.allow_networks, own_addresses=dns.own_addresses)
    except BadInput as error:
        raise source.fault(tuple(error.where.split(".")), error.what) from None
    for i, name in enumerate(dns.own_names):
        try:
            canonical_domain(name)
        except BadInput as error:
            raise source.fault(("dns", "own_names", i), error.what) from None


def _tls(source: TomlSource, tls: TlsSettings, dns: DnsSettings, base: Path) -> TlsSettings:
    """Tries what is used only later: certificates that cannot be read would stop mail, not the start."""
    try:
        check_trust(dns, tls)
    except BadInput as error:
        raise source.fault(tuple(error.where.split(".")), error.what) from None
    if not tls.ca_file:
        return tls
    path = _path(source, ("tls", "ca_file"), tls.ca_file, base)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError, of what is no certificate, is one
        why = error.strerror or str(error)
        raise source.fault(("tls", "ca_file"), f"{path} cannot be used: {why}") from None
    return msgspec.structs.replace(tls, ca_file=str(path))


def _helo_of(host_name: str) -> str:
    name = host_name.lower().removesuffix(".")
    return name if is_host_name(name) else "localhost"


def _egresses(source: TomlSource) -> tuple[Egress, ...]:
    tables = source.table.get("egress", [])
    if not isinstance(tables, list):
        raise source.fault(("egress",), "expected an array of tables; write [[egress]], with two brackets")
    if len(tables) > EGRESSES_MAX:
        raise source.fault(("egress", EGRESSES_MAX), f"more than {EGRESSES_MAX:,} egresses")
    egresses = tuple(_egress(source, ("egress", i), table) for i, table in enumerate(tables))
    _check_distinct(source, egresses)
    return egresses


def _egress(source: TomlSource, path: KeyPath, table: object) -> Egress:
    raw = source.build(path, table, _EgressTable)
    if not _NAME.fullmatch(raw.name):
        raise source.fault((*path, "name"), f"{shown(raw.name)} is not allowed; {_NAME_FORM}")
    for key in ("include_domains", "exclude_domains"):
        for i, mask in enumerate(getattr(raw, key)):
            fault = mask_fault(mask)
            if fault is not None:
                raise source.fault((*path, key, i), fault)
    return Egress(
        name=raw.name,
        id=raw.id,
        helo=_helo(source, (*path, "helo"), raw.helo),
        source_ipv4=_address(source, (*path, "source_ipv4"), raw.source_ipv4, ipaddress.IPv4Address),
        source_ipv6=_address(source, (*path, "source_ipv6"), raw.source_ipv6, ipaddress.IPv6Address),
        weight=raw.weight,
        include_domains=tuple(raw.include_domains),
        exclude_domains=tuple(raw.exclude_domains),
    )


def _helo(source: TomlSource, path: KeyPath, text: str) -> str:
    """RFC 5321 §4.1.1.1: a host name, or an address literal where there is none."""
    name = text.lower()
    try:
        if is_host_name(name) or literal_address(name) is not None:
            return name
    except BadInput as error:
        raise source.fault(path, error.what) from None
    raise source.fault(path, f"{shown(text)} is not allowed; expected a host name or an address literal ([192.0.2.1])")


def _address(
    source: TomlSource,
    path: KeyPath,
    text: str | None,
    family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address],
) -> str | None:
    if text is None:
        return None
    try:
        return str(family(text))
    except ValueError:
        form = "an IPv4 address" if family is ipaddress.IPv4Address else "an IPv6 address"
        raise source.fault(path, f"{shown(text)} is not allowed; expected {form}") from None


def _check_distinct(source: TomlSource, egresses: tuple[Egress, ...]) -> None:
    """Names and source addresses are told apart; egresses that look alike from outside say HELO alike (§3.2)."""
    seen: dict[tuple[str, str], int] = {}
    helo_by_id: dict[int, str] = {}
    for i, egress in enumerate(egresses):
        for key in ("name", "source_ipv4", "source_ipv6"):
            value = getattr(egress, key)
            if value is None:
                continue
            first = seen.setdefault((key, value), i)
            if first != i:
                raise source.fault(
                    ("egress", i, key), f"{value!r} is taken by the egress at {source.where(('egress', first))}"
                )
        helo = helo_by_id.setdefault(egress.id, egress.helo)
        if helo != egress.helo:
            raise source.fault(
                ("egress", i, "helo"),
                f"{egress.helo!r} differs from {helo!r}, the helo of another egress with id {egress.id}; "
                "one id is one public address, which has one name",
            )


def _pools(source: TomlSource, egresses: tuple[Egress, ...]) -> dict[str, EgressPool]:
    by_name = {egress.name: egress for egress in egresses}
    table = source.table.get("pools")
    if table is None:
        return {DEFAULT_POOL: EgressPool(DEFAULT_POOL, egresses)}
    if not isinstance(table, dict):
        raise source.fault(("pools",), f"expected a table, got {shown(table)}")
    pools = {}
    for name, given in table.items():
        path: KeyPath = ("pools", name)
        if not _NAME.fullmatch(name):
            raise source.fault(path, f"{shown(name)} is not allowed as a name; {_NAME_FORM}")
        members: list[str] = source.value(path, given, list[str])
        if not members:
            raise source.fault(path, "a pool needs at least one egress")
        for i, member in enumerate(members):
            if member not in by_name:
                raise source.fault((*path, i), f"no egress is named {shown(member)}; known: {', '.join(by_name)}")
            if member in members[:i]:
                raise source.fault((*path, i), f"{shown(member)} is in this pool already; its share is its weight")
        pools[name] = EgressPool(name, tuple(by_name[member] for member in members))
    if DEFAULT_POOL not in pools:
        raise source.fault(
            ("pools",), f"a pool named {DEFAULT_POOL!r} is needed: deliveries ask for it unless told not to"
        )
    return pools
