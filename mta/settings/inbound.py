"""``[inbound]`` of the settings: where mail that comes back is taken, for whom, and within which bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.settings.toml_source import TomlSource, shown

_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class InboundTable(msgspec.Struct, frozen=True):
    """The keys of ``[inbound]``."""

    listen: tuple[str, ...] = ("0.0.0.0:25", "[::]:25")
    domains: tuple[str, ...] = ()  # the host parts of return paths, and of where complaints are sent
    feedback_local_parts: tuple[str, ...] = ("fbl", "feedback")
    spool_dir: str = "/var/lib/mta/inbound"
    name: str = ""  # that it says of itself; empty: the host's
    size_mbytes_max: Annotated[int, msgspec.Meta(ge=1, le=50)] = 20
    connections_max: _Count = 500
    connections_per_client_max: _Count = 50
    certificate_file: str = ""  # PEM; with it STARTTLS is offered
    key_file: str = ""


class InboundSettings(InboundTable, frozen=True):
    """Checked; paths are absolute."""

    addresses: tuple[tuple[str, int], ...] = ()


def inbound_settings(source: TomlSource, table: InboundTable, base: Path) -> InboundSettings:
    """Raises BadInput with file, line and key."""
    domains = []
    for i, domain in enumerate(table.domains):
        try:
            domains.append(parse_mailbox(f"any@{domain}", "domain").text.rpartition("@")[2].lower())
        except BadInput as error:
            raise source.fault(("inbound", "domains", i), f"{shown(domain)}: {error.what}") from None
    addresses = []
    for i, text in enumerate(table.listen):
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 <= int(port) <= 65_535:
            raise source.fault(("inbound", "listen", i), f"{shown(text)} is not allowed; expected 'address:port'")
        addresses.append((host.strip("[]"), int(port)))
    paths = {
        key: str(base / Path(text).expanduser())
        for key in ("spool_dir", "certificate_file", "key_file")
        if (text := getattr(table, key))
    }
    given = {**msgspec.structs.asdict(table), **paths, "domains": tuple(domains)}
    return InboundSettings(**given, addresses=tuple(addresses))
