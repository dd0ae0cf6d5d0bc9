"""Packets: what we read is what dnspython reads, and no packet does more harm than being refused (threats D11)."""

from __future__ import annotations

import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.dns.answer import Answer, Found, RecordType
from mta.dns.message import BadPacket, encode_query, encode_question, packet_id, read_packet, repeats_question

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(str)
STRING = st.text("abc =;-.", max_size=255)
OCTET = st.integers(0, 255)
TLSA = st.tuples(OCTET, OCTET, OCTET, st.binary(min_size=64, max_size=64)).map(
    lambda four: (*four[:3], four[3][:32] if four[2] == 1 else four[3])  # dnspython wants a digest of SHA-256 to be one
)
TTL = st.integers(0, 2**31 - 1)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, RecordType, dns.message.Message]:
    """A question, and an honest answer to it behind up to three aliases, beside records of other names."""
    name = draw(NAME)
    kind = draw(st.sampled_from([RecordType.MX, RecordType.A, RecordType.AAAA, RecordType.TXT, RecordType.TLSA]))
    response = dns.message.make_response(dns.message.make_query(name, kind.name))
    response.flags |= dns.flags.AD if draw(st.booleans()) else 0
    owner = name
    for target in draw(st.lists(NAME, max_size=3, unique=True)):
        if target in (owner, name):
            continue
        response.answer.append(dns.rrset.from_text(owner + ".", draw(TTL), "IN", "CNAME", target + "."))
        owner = target
    values = {
        RecordType.MX: st.tuples(st.integers(0, 65535), NAME).map(lambda pair: f"{pair[0]} {pair[1]}."),
        RecordType.A: IPV4,
        RecordType.AAAA: IPV6,
        RecordType.TXT: st.lists(STRING, min_size=1, max_size=3).map(lambda some: " ".join(f'"{one}"' for one in some)),
        RecordType.TLSA: TLSA.map(lambda four: f"{four[0]} {four[1]} {four[2]} {four[3].hex()}"),
    }[kind]
    for at, texts in (
        (owner, draw(st.lists(values, max_size=5))),
        ("other.invalid", draw(st.lists(values, max_size=2))),
    ):
        if texts:
            response.answer.append(dns.rrset.from_text(at + ".", draw(TTL), "IN", kind.name, *texts))
    return name, kind, response


def by_dnspython(response: dns.message.Message, owner: str, kind: RecordType) -> set[str]:
    rrset = response.get_rrset(response.answer, dns.name.from_text(owner), 1, dns.rdatatype.from_text(kind.name))
    if kind is RecordType.TXT:
        return {b"".join(item.strings).decode() for item in rrset} if rrset is not None else set()
    return {item.to_text().lower().removesuffix(".") for item in rrset} if rrset is not None else set()


@given(answers())
@settings(max_examples=150, deadline=None)
def test_an_honest_answer_reads_as_dnspython_reads_it(case: tuple[str, RecordType, dns.message.Message]) -> None:
    name, kind, response = case
    wire = response.to_wire()
    question = encode_question(name, kind)
    assert packet_id(wire) == response.id
    assert repeats_question(wire, question)
    answer = read_packet(wire, name, kind, question).answer
    assert answer is not None
    parsed = dns.message.from_wire(wire)
    resolved = parsed.resolve_chaining()
    assert answer.name == resolved.canonical_name.to_text(omit_final_dot=True).lower()
    hosts = {f"{preference} {exchange}" for preference, exchange in answer.hosts}
    texts = {text.decode() for text in answer.texts}
    authorities = {f"{usage} {selector} {match} {data.hex()}" for usage, selector, match, data in answer.authorities}
    assert hosts | set(answer.addresses) | texts | authorities == by_dnspython(parsed, answer.name, kind)
    assert answer.is_secure == bool(parsed.flags & dns.flags.AD)
    if answer.found is Found.RECORDS:
        assert answer.ttl_s == resolved.minimum_ttl


@given(NAME, st.sampled_from(list(RecordType)), st.integers(0, 65535), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_query_is_what_dnspython_understands(name: str, kind: RecordType, query_id: int, edns: bool) -> None:
    asks_secure = bool(query_id & 1)
    wire = encode_query(query_id, encode_question(name, kind), edns=edns, asks_secure=asks_secure)
    query = dns.message.from_wire(wire)
    assert bool(query.flags & dns.flags.AD) == asks_secure
    assert (query.id, query.question[0].name.to_text()) == (query_id, name + ".")
    assert query.question[0].rdtype == kind
    assert (query.edns >= 0) == edns


def read_whatever(wire: bytes, name: str, kind: RecordType) -> Answer | None:
    """As the transport does, with everything it may be sent."""
    question = encode_question(name, kind)
    if packet_id(wire) is None or not repeats_question(wire, question):
        return None
    try:
        return read_packet(wire, name, kind, question).answer
    except BadPacket:
        return None


@given(
    answers(),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 600),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_answer_is_read_or_refused(
    case: tuple[str, RecordType, dns.message.Message], damage: list[tuple[int, int]], cut: int
) -> None:
    name, kind, response = case
    wire = bytearray(response.to_wire())
    for at, octet in damage:
        wire[at % len(wire)] = octet
    read_whatever(bytes(wire), name, kind)
    read_whatever(bytes(wire[: cut % (len(wire) + 1)]), name, kind)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_behind_a_right_question_is_read_or_refused(noise: bytes) -> None:
    question = encode_question("a.example", RecordType.MX)
    read_whatever(bytes.fromhex("0001 8180 0001 00ff 00ff 0000") + question + noise, "a.example", RecordType.MX)


def many(record: bytes, count: int, prefix: bytes = b"") -> bytes:
    question = encode_question("a.example", RecordType.MX)
    header = bytes.fromhex("0001 8180 0001") + count.to_bytes(2, "big") + bytes(4)
    return header + question + prefix + record * count


@pytest.mark.parametrize(
    "bomb",
    [
        # An owner of 120 labels, then thousands of records that point to it (CVE-2023-29483 class).
        many(
            b"\xc0\x1b" + bytes.fromhex("000f 0001 00000001 0004 000a c01b"),
            3900,
            b"\x01a" * 120 + b"\0" + bytes.fromhex("0010 0001 00000001 0000"),
        ),
        # Each owner points to the one before.
        many(b"\x01a\xc0\x1b" + bytes.fromhex("000f 0001 00000001 0004 000a c01b"), 3500),
        many(b"\xc0\x0c" + bytes.fromhex("000f 0001 00000001 0004 000a c00c"), 4000),
        many(b"\0" + bytes.fromhex("0029 0001 00000001 0000"), 5900),
    ],
)
def test_a_bomb_costs_little_time(bomb: bytes) -> None:
    assert len(bomb) <= 65_535 + 512
    started = time.process_time()
    read_whatever(bomb, "a.example", RecordType.MX)
    assert time.process_time() - started < 0.25  # some 20 ms; the bound is for a slow machine
