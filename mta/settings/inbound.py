"""``[inbound]`` of the settings: where mail that comes back is taken, for whom, and within which bounds."""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, shown

_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_LOCAL_PART: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
PORTS: Final = {("imap", True): 993, ("imap", False): 143, ("pop3", True): 995, ("pop3", False): 110}


class MailboxKind(enum.StrEnum):
    MAILDIR = "maildir"
    IMAP = "imap"
    POP3 = "pop3"


class MailboxTls(enum.StrEnum):
    YES = "yes"  # from the first octet on
    STARTTLS = "starttls"
    NO = "no"


class AfterReading(enum.StrEnum):
    SEEN = "seen"  # marked as read, and left where it is
    DELETE = "delete"


class MailboxTable(msgspec.Struct, frozen=True):
    """``[[inbound.mailbox]]``: where a site's bounces are delivered already."""

    kind: MailboxKind
    path: str = ""  # of a Maildir
    host: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0  # 0: the usual one
    tls: MailboxTls = MailboxTls.YES
    ca_file: str = ""  # authorities; empty: those of the system
    user: str = ""
    password_file: str = ""
    folder: str = "INBOX"
    after: AfterReading = AfterReading.SEEN
    every_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0

    @property
    def name(self) -> str:
        """As the log names it."""
        return f"maildir:{self.path}" if self.kind is MailboxKind.MAILDIR else f"{self.kind}:{self.user}@{self.host}"


class InboundTable(msgspec.Struct, frozen=True):
    """The keys of ``[inbound]``."""

    listen: tuple[str, ...] = ("0.0.0.0:25", "[::]:25")
    domains: tuple[str, ...] = ()  # the host parts of return paths, and of where complaints are sent
    feedback_local_parts: tuple[str, ...] = ("fbl", "feedback")
    unsubscribe_local_parts: tuple[str, ...] = ("unsubscribe", "leave")
    feedback_networks: tuple[str, ...] = ()  # of feedback loops: believed without a signed address
    unsubscribe_by_sender: bool = False  # believe the From of a mail that has no token
    spool_dir: str = "/var/lib/mta/inbound"
    spool_mbytes_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 10_000
    name: str = ""  # that it says of itself; empty: the host's
    size_mbytes_max: Annotated[int, msgspec.Meta(ge=1, le=50)] = 20
    connections_max: _Count = 500
    connections_per_client_max: _Count = 50
    certificate_file: str = ""  # PEM; with it STARTTLS is offered
    key_file: str = ""
    forward_to: str = ""  # where mail goes that cannot be placed; empty: it is only filed
    forward_host: str = ""  # 'host:port' that takes it
    mailbox: tuple[MailboxTable, ...] = ()


class InboundSettings(InboundTable, frozen=True):
    """Checked; paths are absolute."""

    addresses: tuple[tuple[str, int], ...] = ()
    forward_address: tuple[str, int] | None = None


def inbound_settings(source: TomlSource, table: InboundTable, base: Path) -> InboundSettings:
    """Raises BadInput with file, line and key."""
    where: KeyPath = ("inbound",)
    domains = []
    for i, domain in enumerate(table.domains):
        try:
            domains.append(parse_mailbox(f"any@{domain}", "domain").text.rpartition("@")[2].lower())
        except BadInput as error:
            raise source.fault((*where, "domains", i), f"{shown(domain)}: {error.what}") from None
    names = {}
    for key in ("feedback_local_parts", "unsubscribe_local_parts"):
        names[key] = tuple(one.lower() for one in getattr(table, key))
        for i, one in enumerate(names[key]):
            if _LOCAL_PART.fullmatch(one) is None or one.startswith(("b-", "u-")):
                what = (
                    f"{shown(one)} is not allowed; expected letters, digits, '.', '_', '-', and no 'b-' or 'u-' first"
                )
                raise source.fault((*where, key, i), what)
    addresses = [_address(source, (*where, "listen", i), text) for i, text in enumerate(table.listen)]
    for i, network in enumerate(table.feedback_networks):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise source.fault((*where, "feedback_networks", i), f"{shown(network)} is no network: {error}") from None
    paths = {
        key: str(base / Path(text).expanduser())
        for key in ("spool_dir", "certificate_file", "key_file")
        if (text := getattr(table, key))
    }
    if table.key_file and not table.certificate_file:
        raise source.fault((*where, "key_file"), "has no certificate_file beside it")
    given = {
        **msgspec.structs.asdict(table),
        **paths,
        **names,
        "domains": tuple(domains),
        "mailbox": tuple(_mailbox(source, (*where, "mailbox", i), one, base) for i, one in enumerate(table.mailbox)),
    }
    return InboundSettings(
        **given, addresses=tuple(addresses), forward_address=_forward(source, table, frozenset(domains))
    )


def _forward(source: TomlSource, table: InboundTable, domains: frozenset[str]) -> tuple[str, int] | None:
    if bool(table.forward_to) != bool(table.forward_host):
        key = "forward_to" if table.forward_to else "forward_host"
        raise source.fault(("inbound", key), "forward_to and forward_host are needed both")
    if not table.forward_to:
        return None
    try:
        mailbox = parse_mailbox(table.forward_to, "forward_to")
    except BadInput as error:
        raise source.fault(("inbound", "forward_to"), f"{shown(table.forward_to)}: {error.what}") from None
    if mailbox.text.rpartition("@")[2].lower() in domains:
        raise source.fault(("inbound", "forward_to"), "is in a domain of inbound.domains: it would come back here")
    return _address(source, ("inbound", "forward_host"), table.forward_host)


def _address(source: TomlSource, where: KeyPath, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65_535:
        raise source.fault(where, f"{shown(text)} is not allowed; expected 'address:port'")
    return host.strip("[]"), int(port)


def _mailbox(source: TomlSource, where: KeyPath, table: MailboxTable, base: Path) -> MailboxTable:
    is_maildir = table.kind is MailboxKind.MAILDIR
    needed = ("path",) if is_maildir else ("host", "user", "password_file")
    for key in needed:
        if not getattr(table, key):
            raise source.fault(where, f"the key {key!r} is missing, which a mailbox of kind {table.kind.value!r} needs")
    if table.kind is MailboxKind.POP3 and table.after is AfterReading.SEEN:
        raise source.fault((*where, "after"), "POP3 knows no marks: a mailbox of kind 'pop3' needs after = \"delete\"")
    for key in ("folder", "user"):
        if any(ord(character) < 0x20 or character == "\x7f" for character in getattr(table, key)):
            raise source.fault((*where, key), "has a control character")
    absolute = {
        key: str(base / Path(text).expanduser())
        for key in ("path", "password_file", "ca_file")
        if (text := getattr(table, key))
    }
    if not is_maildir and table.port == 0:
        absolute["port"] = PORTS[table.kind.value, table.tls is MailboxTls.YES]  # type: ignore[assignment]
    return msgspec.structs.replace(table, **absolute)
