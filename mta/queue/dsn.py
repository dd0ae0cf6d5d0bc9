"""The name of the database (a libpq URI): checked before it is used, and never told with its password.

A DSN is read by asyncpg, whose own faults quote what they stumble over: half a password, as a rule. So what it could
stumble over is refused here, by a sentence that quotes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote

from mta.model.errors import BadInput

FORM: Final = "expected postgresql://user@host:port/name"
_SCHEME: Final = re.compile(r"postgres(?:ql)?://")
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.-]+)?\]|[^\[\]:]+)(?::(\d{1,5}))?")
_RESERVED: Final = "'/', '?', '#' and '@' in a user or a password are written %2F, %3F, %23 and %40"
_SECRET_PARAMETERS: Final = ("password", "sslpassword")
_VARIABLES: Final = ("MTA_DATABASE_URL",)
_PORT_MAX: Final = 65_535


def check_dsn(dsn: str, where: str) -> None:
    """Raises BadInput at ``where`` for what is no URI of PostgreSQL; its text shows nothing of the DSN."""
    scheme = _SCHEME.match(dsn)
    if scheme is None:
        raise BadInput(where, FORM)
    if any(not char.isprintable() or char == " " for char in dsn):
        raise BadInput(where, "has a space or a control character; write it as %20, or by its number")
    if _PERCENT.search(dsn):
        raise BadInput(where, "has a '%' without two hexadecimal digits behind it; a '%' itself is written %25")
    if "#" in dsn:
        raise BadInput(where, f"has a '#'; {_RESERVED}")
    authority, path, query = _parts(dsn[scheme.end() :])
    if authority.count("@") > 1 or "@" in path:
        raise BadInput(where, f"has an '@' that separates nothing; {_RESERVED}")
    hosts = authority.rpartition("@")[2]
    for host in hosts.split(",") if hosts else ():
        found = _HOST.fullmatch(host)
        if found is None or not 0 < int(found[1] or 1) <= _PORT_MAX:
            raise BadInput(where, f"has no valid host and port; {_RESERVED}, and an IPv6 address stands in brackets")
    _check_parameters(query, where)


def _check_parameters(query: str, where: str) -> None:
    """Only their form. Which of libpq's parameters are supported belongs here, too: one more sentence of this kind."""
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise BadInput(where, f"has parameters that are not name=value, joined by '&'; {_RESERVED}") from None
    for port in given.get("port", "").split(","):
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= _PORT_MAX):
            raise BadInput(where, "port is not a number from 1 to 65,535")


def _parts(rest: str) -> tuple[str, str, str]:
    """Authority, path and query of what follows the scheme."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    return authority, slash + path, query


def place_of(dsn: str) -> str:
    """Where the database is, for logs and people: hosts and name, no user and no password.

    >>> place_of("postgresql://me:secret@db1:5432,db2/mta?sslmode=require")
    'db1:5432,db2/mta'
    >>> place_of("postgresql:///mta")
    'local/mta'
    """
    scheme = _SCHEME.match(dsn)
    if scheme is None:
        return "?"
    authority, path, query = _parts(dsn[scheme.end() :])
    if "@" in path + query and "@" not in authority:
        return "?"  # what stands before it may be a password
    hosts = authority.rpartition("@")[2] or dict(parse_qsl(query)).get("host", "local")
    return hosts + path


def redact(text: str, dsn: str) -> str:
    """``text``, which may quote the DSN, without its passwords."""
    for secret in sorted(_secrets(dsn), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(dsn: str) -> set[str]:
    scheme = _SCHEME.match(dsn)
    if scheme is None:
        return {dsn}
    authority, _, query = _parts(dsn[scheme.end() :])
    raw = {authority.rpartition("@")[0].partition(":")[2]}
    raw |= {value for key, value in parse_qsl(query, keep_blank_values=True) if key in _SECRET_PARAMETERS}
    return {secret for one in raw for secret in (one, unquote(one)) if secret}


def without_database(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes that have no business with the database: nothing in it leads there."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _VARIABLES and not re.fullmatch(r"PG[A-Z]+", name)
    }
