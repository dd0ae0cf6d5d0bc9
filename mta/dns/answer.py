"""What a lookup came to: the one value that message, transport, mx and resolver hand to each other."""

from __future__ import annotations

import enum

import msgspec


class RecordType(enum.IntEnum):
    """The record types that mail routing asks for or meets (RFC 1035 §3.2.2, RFC 3596 §2.1)."""

    A = 1
    CNAME = 5
    SOA = 6
    MX = 15
    AAAA = 28


class Found(enum.Enum):
    """How a lookup ended. The first four are definite; ``TEMPORARY`` says nothing about the name."""

    RECORDS = "records"
    NO_RECORDS = "no records"  # the name exists, without records of this type (NODATA, RFC 2308 §2.2)
    NO_NAME = "no such name"  # NXDOMAIN
    LOOP = "alias loop"
    TEMPORARY = "temporary"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """``name`` is where the aliases led; ``ttl_s`` as received, unclamped.

    ``hosts`` are (preference, exchange) of MX records, ``addresses`` the IP literals of A or AAAA records.
    ``open_alias``: the answer ends in an alias whose target must be asked for in its own right.
    """

    found: Found
    name: str
    ttl_s: int = 0
    hosts: tuple[tuple[int, str], ...] = ()
    addresses: tuple[str, ...] = ()
    aliases: int = 0  # CNAME records followed
    open_alias: bool = False
    text: str = ""  # why, for LOOP and TEMPORARY
