"""What a sink is asked to be; checked once, before a process is started."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

import msgspec

from mta.model.errors import BadInput
from mta.sink.far import EXTENSIONS

PROCESSES_MAX: Final = 64
ADDRESSES_MAX: Final = 1000  # each is one socket in every process


class SinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``record`` is the directory that receives what the sink writes; ``port`` 0 chooses a free one."""

    record: Path
    addresses: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1"])
    port: int = 0
    processes: int = 1
    script: Path | None = None
    provider: Path | None = None
    tls: bool = False
    hide: tuple[str, ...] = ()
    hostname: str = "sink.test"
    seed: int = 1
    bodies: bool = False


def check_options(options: SinkOptions) -> None:
    """BadInput for what cannot be started; the script and the provider file are read by their own modules."""
    if not 1 <= len(options.addresses) <= ADDRESSES_MAX:
        raise BadInput("addresses", f"{len(options.addresses)} were given, 1 to {ADDRESSES_MAX} are possible")
    for address in options.addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise BadInput("addresses", f"{address!r} is not an IP address") from error
    if len(set(options.addresses)) < len(options.addresses):
        raise BadInput("addresses", "one is given twice")
    if not 0 <= options.port <= 65535:
        raise BadInput("port", f"{options.port} is not within 0 and 65535")
    if not 1 <= options.processes <= PROCESSES_MAX:
        raise BadInput("processes", f"{options.processes} is not within 1 and {PROCESSES_MAX}")
    for name in options.hide:
        if name not in EXTENSIONS:
            raise BadInput("hide", f"{name!r} is not an extension of the sink; there are {', '.join(EXTENSIONS)}")
    name = options.hostname
    if not name.isascii() or not name.isprintable() or not 0 < len(name) <= 255 or " " in name:
        raise BadInput("hostname", f"{name!r} is not a host name")
