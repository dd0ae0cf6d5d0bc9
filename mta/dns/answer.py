"""What a lookup came to: the one value that message, transport, mx and resolver hand to each other."""

from __future__ import annotations

import enum

import msgspec

from mta.model.tls import Authorities


class RecordType(enum.IntEnum):
    """The record types that mail routing asks for or meets (RFC 1035 §3.2.2, RFC 3596 §2.1, RFC 6698 §7.1)."""

    A = 1
    CNAME = 5
    SOA = 6
    MX = 15
    TXT = 16
    AAAA = 28
    TLSA = 52


class Found(enum.Enum):
    """How a lookup ended. The first four are definite; ``TEMPORARY`` says nothing about the name."""

    RECORDS = "records"
    NO_RECORDS = "no records"  # the name exists, without records of this type (NODATA, RFC 2308 §2.2)
    NO_NAME = "no such name"  # NXDOMAIN
    LOOP = "alias loop"
    TEMPORARY = "temporary"


class Answer(msgspec.Struct, frozen=True, gc=False):
    """``name`` is where the aliases led; ``ttl_s`` as received, unclamped.

    ``hosts`` are (preference, exchange) of MX records, ``addresses`` the IP literals of A or AAAA records, ``texts``
    those of TXT records with their strings joined, ``authorities`` TLSA records (`mta.model.tls.Authorities`).
    ``open_alias``: the answer ends in an alias whose target must be asked for in its own right.
    ``is_secure``: the name server says that it has validated all of it (AD; RFC 4035 §3.2.3), which it was asked for.
    """

    found: Found
    name: str
    ttl_s: int = 0
    hosts: tuple[tuple[int, str], ...] = ()
    addresses: tuple[str, ...] = ()
    aliases: int = 0  # CNAME records followed
    open_alias: bool = False
    text: str = ""  # why, for LOOP and TEMPORARY
    texts: tuple[bytes, ...] = ()
    authorities: Authorities = ()
    is_secure: bool = False
    is_of_machine: bool = False  # TEMPORARY, as no name server could be asked: no route there, no files, nobody listens
