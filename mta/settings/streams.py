"""``[[stream]]`` of the settings: where events go, and which.

The key ``sink`` says which of the structs below a table is read as.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from mta.model.event import KINDS
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, one_of, shown

STREAMS_MAX: Final = 50
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")  # as Kafka has it
_SUBJECT: Final = re.compile(r"[^\s.*>\0]+(\.[^\s.*>\0]+)*")  # as NATS has it, without wildcards
_HEADER: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
# A path is set in the table, and absolute once it is checked.
_PATHS: Final = (
    "refused_dir",
    "directory",
    "secret_file",
    "authorization_file",
    "ca_file",
    "password_file",
    "credentials_file",
)


class Begin(enum.StrEnum):
    """Where a stream begins that never ran."""

    NOW = "now"
    BEGINNING = "beginning"


class OnRefused(enum.StrEnum):
    """What is done with a batch that the sink will never take."""

    STOP = "stop"
    SKIP = "skip"


class BodyFormat(enum.StrEnum):
    JSON = "json"  # an array
    NDJSON = "ndjson"


class KafkaKey(enum.StrEnum):
    """What events share a partition, and so keep their order."""

    DELIVERY = "delivery"
    RECIPIENT = "recipient"


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every stream has. ``where`` is its ``file:line``, and no key."""

    name: str
    sink: str
    kinds: tuple[str, ...] = ()  # empty: all
    deliveries: tuple[int, ...] = ()  # empty: all
    begin: Begin = Begin.NOW
    batch_events_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 500
    batch_kbytes_max: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 1_000
    batch_ms: Annotated[int, msgspec.Meta(ge=10, le=600_000)] = 1_000  # events are collected for so long
    on_refused: OnRefused = OnRefused.STOP
    refused_dir: str = "/var/lib/mta/events/refused"  # where a batch goes that is given up
    where: str = ""


class WebhookSettings(StreamSettings, frozen=True, kw_only=True):
    """Batches by HTTP POST, signed as Standard Webhooks are. The secret and its file's mode are looked at in use."""

    url: str
    secret_file: str
    format: BodyFormat = BodyFormat.JSON
    timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 30.0  # of a whole request
    ca_file: str = ""  # PEM: who is trusted; empty: the system
    authorization_file: str = ""  # holds the value of the header Authorization
    insecure_http: bool = False  # http:// to another machine


class FilesSettings(StreamSettings, frozen=True, kw_only=True):
    """NDJSON files: NAME.ndjson, and beside it those that are complete."""

    directory: str
    batch_events_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 5_000
    batch_kbytes_max: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 8_000
    rotate_mbytes: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100
    rotate_s: Annotated[float, msgspec.Meta(ge=1, le=31_536_000)] = 3_600.0
    keep_files: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # complete ones; 0: all


class KafkaSettings(StreamSettings, frozen=True, kw_only=True):
    """One record an event; needs the extra ``kafka``."""

    servers: tuple[str, ...]
    topic: str
    key: KafkaKey = KafkaKey.DELIVERY
    timeout_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 30.0
    tls: bool = False
    ca_file: str = ""
    user: str = ""  # SASL; empty: none
    password_file: str = ""
    mechanism: str = "SCRAM-SHA-512"


class NatsSettings(StreamSettings, frozen=True, kw_only=True):
    """One message an event, to a JetStream that takes ``SUBJECT.KIND``; needs the extra ``nats``."""

    servers: tuple[str, ...]
    subject: str
    timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 10.0
    ca_file: str = ""
    credentials_file: str = ""


SINKS: Final[dict[str, type[StreamSettings]]] = {
    "webhook": WebhookSettings,
    "files": FilesSettings,
    "kafka": KafkaSettings,
    "nats": NatsSettings,
}
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def stream_settings(source: TomlSource, base: Path) -> tuple[StreamSettings, ...]:
    """All ``[[stream]]`` tables; paths are relative to ``base``. Raises BadInput with file, line and key."""
    tables = source.table.get("stream", [])
    if not isinstance(tables, list):
        raise source.fault(("stream",), "expected an array of tables; write [[stream]], with two brackets")
    if len(tables) > STREAMS_MAX:
        raise source.fault(("stream", STREAMS_MAX), f"more than {STREAMS_MAX} streams")
    streams = tuple(_stream(source, ("stream", i), table, base) for i, table in enumerate(tables))
    seen: dict[str, str] = {}
    for i, one in enumerate(streams):
        if one.name in seen:
            raise source.fault(("stream", i, "name"), f"{shown(one.name)} is the name of {seen[one.name]} too")
        seen[one.name] = one.where
    return streams


def _stream(source: TomlSource, path: KeyPath, table: object, base: Path) -> StreamSettings:
    if not isinstance(table, dict):
        raise source.fault(path, f"expected a table, got {shown(table)}")
    sink = table.get("sink")
    if not isinstance(sink, str) or sink not in SINKS:
        what = "the key 'sink' is missing" if sink is None else f"{shown(sink)} is not allowed"
        raise source.fault((*path, "sink"), f"{what}; expected {one_of(SINKS)}")
    stream = source.build(path, table, SINKS[sink], omit=("where",))
    _check_common(source, path, stream)
    match stream:
        case WebhookSettings():
            _check_url(source, (*path, "url"), stream)
        case KafkaSettings():
            _check_kafka(source, path, stream)
        case NatsSettings():
            _check_nats(source, path, stream)
    paths = {}
    for key in _PATHS:
        if text := getattr(stream, key, ""):
            if "\0" in text:
                raise source.fault((*path, key), f"{shown(text)} is no path")
            paths[key] = str(base / Path(text).expanduser())
    return msgspec.structs.replace(stream, where=source.where(path), **paths)


def _check_common(source: TomlSource, path: KeyPath, stream: StreamSettings) -> None:
    if not _NAME.fullmatch(stream.name):
        what = f"{shown(stream.name)} is not allowed; expected 1 to 64 letters, digits, '.', '_' or '-'"
        raise source.fault((*path, "name"), what)
    for i, kind in enumerate(stream.kinds):
        if kind not in KINDS:
            raise source.fault((*path, "kinds", i), f"{shown(kind)} is no kind of event; expected {one_of(KINDS)}")
    for i, delivery in enumerate(stream.deliveries):
        if not 0 < delivery < 2**63:
            raise source.fault((*path, "deliveries", i), f"{delivery} is no number of a delivery")
    for key in ("directory", "secret_file", "refused_dir"):
        if getattr(stream, key, "-") == "":
            raise source.fault((*path, key), "is empty; expected a path")


def _check_url(source: TomlSource, path: KeyPath, stream: WebhookSettings) -> None:
    form = "expected https://host/path"
    try:
        url = urlsplit(stream.url)
        host, _ = url.hostname, url.port
    except ValueError:
        raise source.fault(path, f"is no URL; {form}") from None  # not quoted: it may hold a secret
    if url.scheme not in ("https", "http") or not host or not _HEADER.fullmatch(stream.url) or " " in stream.url:
        raise source.fault(path, f"is no URL; {form}")
    if url.username is not None or url.password is not None or url.fragment:
        raise source.fault(path, f"may hold no user, password or fragment; {form}, and authorization_file")
    if url.scheme == "http" and not stream.insecure_http and not _is_here(host):
        what = "http to another machine shows addresses to whoever listens; use https, or say insecure_http = true"
        raise source.fault(path, what)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_kafka(source: TomlSource, path: KeyPath, stream: KafkaSettings) -> None:
    if not stream.servers:
        raise source.fault((*path, "servers"), "is empty; expected 'host:port', one or more")
    for i, server in enumerate(stream.servers):
        host, _, port = server.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise source.fault((*path, "servers", i), f"{shown(server)} is not allowed; expected 'host:port'")
    if not _TOPIC.fullmatch(stream.topic):
        raise source.fault((*path, "topic"), f"{shown(stream.topic)} is no name of a topic")
    if stream.mechanism not in _MECHANISMS:
        raise source.fault((*path, "mechanism"), f"{shown(stream.mechanism)} is not allowed: {one_of(_MECHANISMS)}")
    if bool(stream.user) != bool(stream.password_file):
        raise source.fault((*path, "user"), "user and password_file go together")


def _check_nats(source: TomlSource, path: KeyPath, stream: NatsSettings) -> None:
    if not stream.servers:
        raise source.fault((*path, "servers"), "is empty; expected 'nats://host:4222', one or more")
    for i, server in enumerate(stream.servers):
        try:
            url = urlsplit(server)
            is_url = url.scheme in ("nats", "tls") and bool(url.hostname) and (url.port or 1) > 0
            is_open = url.username is None and url.password is None
        except ValueError:
            is_url = is_open = False
        if not is_url or not is_open:
            what = "is not allowed; expected 'nats://host:4222' or 'tls://host:4222', and credentials_file for a user"
            raise source.fault((*path, "servers", i), what)
    if not _SUBJECT.fullmatch(stream.subject):
        raise source.fault((*path, "subject"), f"{shown(stream.subject)} is no subject, or has wildcards")
