"""The connection string of the database, read before anything is dialled.

asyncpg hands every parameter that it does not know to the server as a setting, and a server (or a pooler) refuses an
unknown setting each time it is asked. So each parameter of libpq is either obeyed here or by asyncpg, or is named as
not supported. The names are those of PostgreSQL's manual, "Parameter Key Words".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode

import msgspec

from mta.model.errors import BadInput
from mta.queue.dsn import check_dsn

CONNECT_TIMEOUT_S: Final = 10.0
WHERE: Final = "database connection string"


class Keepalive(msgspec.Struct, frozen=True):
    """How a TCP connection finds out that its peer is gone (tcp(7)). Zero: as the system has it."""

    is_on: bool = True
    idle_s: int = 10
    interval_s: int = 5
    probes: int = 3
    user_timeout_ms: int = 30_000  # for what was sent and is not acknowledged


class ConnectionOptions(msgspec.Struct, frozen=True):
    """What a connection string says. It may hold a password, so it is not shown by ``repr``."""

    dsn: str  # for asyncpg: without the parameters that stand below
    hosts: tuple[tuple[str, int | None], ...] = ()  # in the order in which they are tried; empty: asyncpg's defaults
    target_session_attrs: str | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S  # for each host
    application_name: str | None = None
    service_file: str | None = None
    keepalive: Keepalive = Keepalive()

    def __repr__(self) -> str:
        return f"ConnectionOptions(hosts={self.hosts})"


# asyncpg obeys these.
_PASSED_ON: Final = frozenset(
    (
        *("dbname", "database", "user", "password", "passfile", "service", "options"),
        *("sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
    )
)
# These are obeyed by this program.
_TAKEN: Final = frozenset(
    (
        *("host", "hostaddr", "port", "connect_timeout", "target_session_attrs", "servicefile"),
        *("application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        "tcp_user_timeout",
    )
)
# What asyncpg does anyway. Any other value asks for something that it cannot do.
_AS_IT_IS: Final[Mapping[str, frozenset[str]]] = {
    "channel_binding": frozenset(("disable", "prefer")),
    "client_encoding": frozenset(("auto", "utf8", "utf-8", "unicode")),
    "gssdelegation": frozenset(("0",)),
    "gssencmode": frozenset(("disable", "prefer")),
    "load_balance_hosts": frozenset(("disable",)),
    "max_protocol_version": frozenset(("3.0", "3.2", "latest")),
    "min_protocol_version": frozenset(("3.0",)),
    "replication": frozenset(("false", "off", "no", "0")),
    "sslcertmode": frozenset(("allow",)),
    "sslcompression": frozenset(("0",)),
    "sslsni": frozenset(("1",)),
}
_NOT_SUPPORTED: Final = frozenset(
    (
        *("oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope", "require_auth", "requirepeer"),
        *("requiressl", "scram_client_key", "scram_server_key", "sslcrldir", "sslkeylogfile"),
    )
)
_NOT_NEEDED: Final = "fallback_application_name"  # this program always gives a name
PARAMETERS: Final = _PASSED_ON | _TAKEN | _AS_IT_IS.keys() | _NOT_SUPPORTED | {_NOT_NEEDED}
_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


def parse_connection_string(text: str, where: str = WHERE) -> ConnectionOptions:
    """Raises BadInput that names the parameter, and never shows what may be a password.

    ``where``: what is named when it is no connection string at all.
    """
    check_dsn(text, where)
    base, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise BadInput(WHERE, "has a parameter without a value; write ?name=value&name=value") from None
    given = {name: value for name, value in pairs if value}
    if given.get("ssl") == "true":  # libpq takes this from JDBC's strings
        del given["ssl"]
        given["sslmode"] = "require"
    passed_on = {name: value for name, value in given.items() if _is_passed_on(name, value)}
    dsn = base + ("?" + urlencode(passed_on) if passed_on else "")
    idle_s, interval_s, probes = (
        _number(given, name, default)
        for name, default in (("keepalives_idle", 10), ("keepalives_interval", 5), ("keepalives_count", 3))
    )
    return ConnectionOptions(
        dsn=dsn,
        hosts=_hosts(base, given),
        target_session_attrs=_one_of(given, "target_session_attrs", _ATTRIBUTES),
        connect_timeout_s=float(_number(given, "connect_timeout", 0)) or CONNECT_TIMEOUT_S,
        application_name=given.get("application_name"),
        service_file=given.get("servicefile"),
        keepalive=Keepalive(
            is_on=_one_of(given, "keepalives", ("0", "1")) != "0",
            idle_s=idle_s,
            interval_s=interval_s,
            probes=probes,
            user_timeout_ms=_number(given, "tcp_user_timeout", Keepalive().user_timeout_ms),
        ),
    )


def _is_passed_on(name: str, value: str) -> bool:
    """Raises BadInput for a parameter that nobody obeys."""
    if name in _PASSED_ON:
        return True
    if name in _TAKEN or name == _NOT_NEEDED:
        return False
    if name in _AS_IT_IS:
        if value.lower() in _AS_IT_IS[name]:
            return False
        known = " or ".join(sorted(_AS_IT_IS[name]))
        raise BadInput(f"{WHERE}, {name}", f"{value!a} is not supported; leave it out, or give {known}")
    if name in _NOT_SUPPORTED:
        raise BadInput(f"{WHERE}, {name}", "is not supported by this program; leave it out")
    what = "is no parameter of a connection string; a setting of the server goes into options=-c%20name%3Dvalue"
    raise BadInput(f"{WHERE}, {name!a}", what)


def _hosts(base: str, given: Mapping[str, str]) -> tuple[tuple[str, int | None], ...]:
    """Of the parameters, else of what stands before the database's name."""
    if "hostaddr" in given:
        if given.get("sslmode") == "verify-full" and "host" in given:
            raise BadInput(f"{WHERE}, hostaddr", "is not supported with sslmode=verify-full; give host only")
        names = given["hostaddr"].split(",")
        ports = _ports(given, names, [None] * len(names))
        return tuple(zip(names, ports, strict=True))
    if "host" in given:
        pairs = [_host_and_port(one, lambda name: name) for one in given["host"].split(",")]
    else:
        _, _, authority = base.partition("://")[2].partition("/")[0].rpartition("@")
        pairs = [_host_and_port(one, unquote) for one in authority.split(",")] if authority else []
    if "service" in given and not pairs:
        return ()
    names = [name for name, _ in pairs]
    return tuple(zip(names, _ports(given, names, [port for _, port in pairs]), strict=True))


def _host_and_port(text: str, decode: Callable[[str], str]) -> tuple[str, int | None]:
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.startswith("/"):
        name, port = text, ""
    else:
        name, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        # It may be half a password that holds an "@" or a ":" as it is.
        raise BadInput(
            WHERE, "has a host with a port that is no number; in a password write / : @ ? as %2F %3A %40 %3F"
        )
    return decode(name), int(port) if port else None


def _ports(given: Mapping[str, str], names: list[str], default: list[int | None]) -> list[int | None]:
    if "port" not in given:
        return default
    texts = given["port"].split(",")
    if len(texts) == 1:
        texts *= len(names)
    if len(texts) != len(names):
        raise BadInput(f"{WHERE}, port", f"names {len(texts)} ports for {len(names)} hosts")
    ports: list[int | None] = []
    for text in texts:
        if text and not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
            raise BadInput(f"{WHERE}, port", f"{text!a} is no port")
        ports.append(int(text) if text else None)
    return ports


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    """Zero or less, which libpq takes for its own default, is the default here."""
    text = given.get(name, "")
    if not text:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise BadInput(f"{WHERE}, {name}", f"{text!a} is no whole number")
    return int(text) if int(text) > 0 else default


def _one_of(given: Mapping[str, str], name: str, known: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in known:
        raise BadInput(f"{WHERE}, {name}", f"{value!a} is not known; known are {', '.join(known)}")
    return value
