"""DNS packets (RFC 1035 §4): queries written, answers read as far as mail routing needs them.

dnspython's whole-message parser costs 50 to 200 µs an answer, most of it for sections and record
classes that nobody here reads. So the header and the record frames are read with ``struct``, and only
names go through dnspython: their compression is where hostile packets bite (CVE-2023-29483 class).
The labels of a packet are counted, so that no packet holds the process for more than some 10 ms.
"""

from __future__ import annotations

import re
import socket
from struct import Struct
from typing import Final

import dns.name
import msgspec

from mta.dns.answer import Answer, Found, RecordType

ALIASES_MAX: Final = 16  # CNAME records followed for one question (threats D2)
EDNS_PAYLOAD_BYTES: Final = 1232  # fits an unfragmented packet on any link (DNS flag day 2020)
_LABELS_MAX: Final = 20_000  # of one packet: 1,000 MX records of a large zone need half of it

NOERROR: Final = 0
FORMERR: Final = 1
NXDOMAIN: Final = 3
NOTIMP: Final = 4
RCODE_NAMES: Final = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED", 9: "NOTAUTH"}

_IN: Final = 1
_NS: Final = 2
_QR, _AA, _TC, _RD, _AD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0020
_OPCODE: Final = 0x7800
_HEADER: Final = Struct("!6H")
_QUESTION_TAIL: Final = Struct("!2H")
_RECORD: Final = Struct("!HHIH")
_POINTER_TO_QUESTION: Final = 0xC00C
_UINT16: Final = Struct("!H")
_UINT32: Final = Struct("!I")
_ID_AND_FLAGS: Final = Struct("!2H")
_TLSA: Final = Struct("!3B")  # RFC 6698 §2.1
# Root name, type OPT, our payload size, no flags, no options (RFC 6891 §6.1.2).
_OPT: Final = b"\0" + _RECORD.pack(41, EDNS_PAYLOAD_BYTES, 0, 0)
_PLAIN_NAME: Final = re.compile(rb"[\x21-\x5b\x5d-\x7e]+")


class BadPacket(Exception):  # noqa: N818 - says what was received
    """The packet is not a well-formed answer; nothing of it may be used."""


class Packet(msgspec.Struct, frozen=True, gc=False):
    """An answer's header as far as it decides what to do next. ``answer`` is None unless it decides the question."""

    rcode: int
    is_truncated: bool
    answer: Answer | None


def encode_question(name: str, kind: RecordType) -> bytes:
    """The question section for a canonical domain name. Also the form in which an answer must repeat it."""
    labels = b"".join(bytes((len(label),)) + label for label in name.encode("ascii").split(b"."))
    return labels + b"\0" + _QUESTION_TAIL.pack(kind, _IN)


def encode_query(query_id: int, question: bytes, *, edns: bool, asks_secure: bool = False) -> bytes:
    """A recursive query, with an EDNS record unless the server does not understand it.

    ``asks_secure``: whether the answer is validated is to be said in its AD bit (RFC 6840 §5.7).
    """
    flags = _RD | _AD if asks_secure else _RD
    if edns:
        return _HEADER.pack(query_id, flags, 1, 0, 0, 1) + question + _OPT
    return _HEADER.pack(query_id, flags, 1, 0, 0, 0) + question


def packet_id(wire: bytes) -> int | None:
    """The id of a packet that claims to be an answer; None for anything else."""
    if len(wire) < _HEADER.size:
        return None
    query_id, flags = _ID_AND_FLAGS.unpack_from(wire)
    return query_id if flags & _QR else None


def repeats_question(wire: bytes, question: bytes) -> bool:
    """Whether the answer is one to our question, letter case aside. A FORMERR may come without it."""
    questions = _UINT16.unpack_from(wire, 4)[0]
    if questions == 0:
        return wire[3] & 0x0F == FORMERR
    end = _HEADER.size + len(question)
    return questions == 1 and wire[_HEADER.size : end].lower() == question


def read_packet(wire: bytes, name: str, kind: RecordType, question: bytes) -> Packet:
    """Reads an answer whose id and question were found right. ``BadPacket`` if the rest is not."""
    _, flags, _, answers, authorities, _ = _HEADER.unpack_from(wire)
    rcode = flags & 0x0F
    if flags & _OPCODE:
        raise BadPacket("an opcode that was not asked for")
    if flags & _TC or rcode not in (NOERROR, NXDOMAIN):
        return Packet(rcode, bool(flags & _TC), None)
    reader = _Reader(wire, _HEADER.size + len(question), name, kind)
    try:
        for _ in range(answers):
            reader.read_answer_record()
        answer = reader.conclude(rcode)
        if answer is None:
            answer = reader.read_negative(rcode, authorities, is_authoritative=bool(flags & _AA))
    except Exception as problem:  # struct, dnspython and socket each have their own; none may reach the event loop
        raise BadPacket(f"malformed answer ({type(problem).__name__})") from problem
    if flags & _AD:
        answer = msgspec.structs.replace(answer, is_secure=True)
    return Packet(rcode, is_truncated=False, answer=answer)


class _Reader:
    """One pass over the records of a packet; gives up at the first thing that is not as RFC 1035 §4.1.3 has it."""

    __slots__ = (
        "_kind",
        "_labels",
        "_name",
        "_position",
        "_wire",
        "addresses",
        "aliases",
        "authorities",
        "hosts",
        "texts",
        "ttls",
    )

    def __init__(self, wire: bytes, position: int, name: str, kind: RecordType) -> None:
        self._wire = wire
        self._position = position
        self._name = name
        self._kind = kind
        self._labels = 0
        self.aliases: dict[str, tuple[str, int]] = {}  # owner -> (target, TTL)
        self.hosts: dict[str, list[tuple[int, str]]] = {}  # by owner
        self.addresses: dict[str, list[str]] = {}  # by owner
        self.texts: dict[str, list[bytes]] = {}  # by owner
        self.authorities: dict[str, list[tuple[int, int, int, bytes]]] = {}  # by owner
        self.ttls: dict[str, int] = {}  # smallest TTL of an owner's records

    def _read_name(self, position: int) -> tuple[str, int]:
        if _UINT16.unpack_from(self._wire, position)[0] == _POINTER_TO_QUESTION:
            return self._name, position + 2  # nearly every owner name
        name, size = dns.name.from_wire(self._wire, position)
        self._labels += len(name.labels)
        if self._labels > _LABELS_MAX:
            raise ValueError("too many labels")
        return _name_text(name), position + size

    def _read_frame(self) -> tuple[str, int, int, int, int]:
        """Owner, type, class, TTL, start of the record's content; moves to the record behind."""
        # RFC 6891 and the root's own records: an owner of one zero octet has no second one to peek at.
        if self._wire[self._position] == 0:
            owner, position = ".", self._position + 1
        else:
            owner, position = self._read_name(self._position)
        kind, record_class, ttl_s, size = _RECORD.unpack_from(self._wire, position)
        start = position + _RECORD.size
        self._position = start + size
        if self._position > len(self._wire):
            raise ValueError("record beyond the end")
        # RFC 2181 §8: a TTL with its first bit set counts as zero.
        return owner, kind, record_class, (0 if ttl_s >> 31 else ttl_s), start

    def read_answer_record(self) -> None:
        owner, kind, record_class, ttl_s, start = self._read_frame()
        if record_class != _IN:
            return
        if kind == self._kind:
            self._read_value(owner, start)
            known = self.ttls.get(owner)
            self.ttls[owner] = ttl_s if known is None else min(known, ttl_s)
        elif kind == RecordType.CNAME and owner not in self.aliases:
            self.aliases[owner] = (self._read_last_name(start), ttl_s)

    def _read_value(self, owner: str, start: int) -> None:
        content = self._wire[start : self._position]
        if self._kind is RecordType.MX:
            exchange = self._read_last_name(start + 2)
            self.hosts.setdefault(owner, []).append((_UINT16.unpack_from(content)[0], exchange))
        elif self._kind is RecordType.TXT:
            self.texts.setdefault(owner, []).append(_joined(content))
        elif self._kind is RecordType.TLSA:
            usage, selector, matching = _TLSA.unpack_from(content)
            self.authorities.setdefault(owner, []).append((usage, selector, matching, content[_TLSA.size :]))
        else:
            family = socket.AF_INET if self._kind is RecordType.A else socket.AF_INET6
            self.addresses.setdefault(owner, []).append(socket.inet_ntop(family, content))

    def _read_last_name(self, start: int) -> str:
        """A name that must fill the rest of the record's content."""
        if self._wire[start] == 0:
            name, end = ".", start + 1
        else:
            name, end = self._read_name(start)
        if end != self._position:
            raise ValueError("name and record differ in length")
        return name

    def conclude(self, rcode: int) -> Answer | None:
        """The answer, if the answer section alone gives one: records, or a loop of aliases."""
        name, ttl_s = self._name, 0x7FFFFFFF
        seen = {name}
        while name in self.aliases:
            name, alias_ttl_s = self.aliases[name]
            ttl_s = min(ttl_s, alias_ttl_s)
            if name in seen or len(seen) > ALIASES_MAX:
                return Answer(Found.LOOP, name, ttl_s, text=f"aliases of {self._name} never end")
            seen.add(name)
        aliases = len(seen) - 1
        if name not in self.ttls:
            return None
        if rcode == NXDOMAIN:
            raise ValueError("records of a name that is said not to exist")
        return Answer(
            Found.RECORDS,
            name,
            min(ttl_s, self.ttls[name]),
            tuple(self.hosts.get(name, ())),
            tuple(self.addresses.get(name, ())),
            aliases,
            texts=tuple(self.texts.get(name, ())),
            authorities=tuple(self.authorities.get(name, ())),
        )

    def read_negative(self, rcode: int, authorities: int, *, is_authoritative: bool) -> Answer:
        """NXDOMAIN or NODATA, with the time it holds (RFC 2308 §5), or an alias to be asked for."""
        name, seen, alias_ttl_s = self._name, 0, 0x7FFFFFFF
        while name in self.aliases:
            name, record_ttl_s = self.aliases[name]
            alias_ttl_s = min(alias_ttl_s, record_ttl_s)
            seen += 1
        ttl_s: int | None = None
        has_referral = False
        for _ in range(authorities):
            _, kind, record_class, record_ttl_s, _ = self._read_frame()
            if kind == RecordType.SOA and record_class == _IN and ttl_s is None:
                minimum = _UINT32.unpack_from(self._wire, self._position - 4)[0]
                ttl_s = min(record_ttl_s, minimum)
            has_referral = has_referral or kind == _NS
        if rcode == NXDOMAIN:
            return Answer(Found.NO_NAME, name, min(ttl_s or 0, alias_ttl_s), aliases=seen)
        if ttl_s is None and seen:
            return Answer(Found.NO_RECORDS, name, alias_ttl_s, aliases=seen, open_alias=True)
        if ttl_s is None and has_referral and not is_authoritative:
            # RFC 2308 §2.2: a referral is no statement about the name; this server does not know the zone.
            return Answer(Found.TEMPORARY, name, text="a referral in place of an answer")
        return Answer(Found.NO_RECORDS, name, min(ttl_s or 0, alias_ttl_s), aliases=seen)


def _joined(content: bytes) -> bytes:
    """The strings of a TXT record, one after the other (RFC 1035 §3.3.14)."""
    pieces, at = [], 0
    while at < len(content):
        end = at + 1 + content[at]
        if end > len(content):
            raise ValueError("string beyond the record's end")
        pieces.append(content[at + 1 : end])
        at = end
    return b"".join(pieces)


def _name_text(name: dns.name.Name) -> str:
    """Lower case, no trailing dot, ``.`` for the root; odd octets escaped, so that it fits no host name."""
    labels = name.labels[:-1]
    joined = b".".join(labels)
    if _PLAIN_NAME.fullmatch(joined) and joined.count(b".") == len(labels) - 1:
        return joined.decode("ascii").lower()
    return name.to_text(omit_final_dot=True).lower()
