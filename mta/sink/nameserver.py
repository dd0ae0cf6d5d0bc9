"""A name server on loopback that seems to be in charge of every name: for tests, demo and benchmarks.

::

    async with Nameserver({"example.test": {"MX": [(10, "mx1.example.test")]}, ...}) as ns:
        ...ns.address, ns.port; ns.queries["example.test", "MX"]

UDP and TCP on one port. Answers carry the addresses of the MX hosts they name where there is room, a
SOA where there is nothing (RFC 2308), and TC where 512 octets, or what EDNS allows, do not suffice.
Answers are rendered once (the plain ones here, all others by dnspython) and kept; for each further question only its
id, its flags and its letters' case are put in (the zones never change while a server runs).
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from mta.model.errors import BadInput
from mta.sink.zones import CNAME_CHAIN_MAX, Entry, Fault, RecordSet, Synthetic, Zones, canonical, read_zones

__all__ = ["Nameserver", "ThreadedNameserver", "Zones", "read_zones"]

UDP_BYTES: Final = 512  # RFC 1035 §4.2.1
EDNS_BYTES_MAX: Final = 1232  # what is sent over UDP at most, whatever EDNS allows
ANSWERS_KEPT_MAX: Final = 200_000
NEGATIVE_TTL_S: Final = 60
TCP_IDLE_S: Final = 10.0
PORT_ATTEMPTS_MAX: Final = 20

RECEIVE_BUFFER_BYTES: Final = 1 << 22  # a sender that begins asks thousands of questions in one breath
PACKETS_PER_WAKE_MAX: Final = 64

_FLAG_RD: Final = 0x0100
_FLAG_TC: Final = 0x0200
_FLAG_AD: Final = 0x0020
_RCODES: Final = {
    Fault.SERVFAIL: dns.rcode.SERVFAIL,
    Fault.REFUSED: dns.rcode.REFUSED,
    Fault.NXDOMAIN: dns.rcode.NXDOMAIN,
}

ZonesGiven = Zones | Mapping[str, RecordSet]


class _Answer:
    """A rendered answer; ``question_end`` is where the question's section ends."""

    __slots__ = ("name", "question_end", "wire", "wrong_id")

    def __init__(self, name: tuple[str, str], question_end: int, wire: bytes | None, wrong_id: bool) -> None:
        self.name = name
        self.question_end = question_end
        self.wire = wire  # None: silence
        self.wrong_id = wrong_id


class Responder:
    """Question in, answer out; no sockets. ``queries`` counts by (canonical name, type), and so does ``lookups``,
    for which a packet that is sent again under its id is none.
    """

    def __init__(self, zones: Zones, *, negative_ttl_s: int = NEGATIVE_TTL_S) -> None:
        self._zones = zones
        self._negative_ttl_s = negative_ttl_s
        self._kept: OrderedDict[tuple[bytes, bool], _Answer] = OrderedDict()
        self._addresses: dict[dns.name.Name, list[dns.rrset.RRset]] = {}  # of MX hosts, made once
        self.queries: Counter[tuple[str, str]] = Counter()
        self.lookups: Counter[tuple[str, str]] = Counter()
        self._last_ids: dict[tuple[str, str], bytes] = {}

    def respond(self, question: bytes, *, over_tcp: bool = False) -> bytes | None:
        """The answer to a message, None for silence (also to what is no question)."""
        end = _question_end(question)
        if end is None:
            return None
        # Everything after the id and the RD flag decides the answer; a name's case does not.
        rest = question[3:12] + question[12:end].lower() + question[end:]
        answer = self._kept.get((rest, over_tcp))
        if answer is None:
            answer = self._plain(question, end)
            if answer is None:
                try:
                    query = dns.message.from_wire(question)
                except dns.exception.DNSException:
                    return _format_error(question)
                answer = self._render(query, end, over_tcp)
            self._kept[rest, over_tcp] = answer
            if len(self._kept) > ANSWERS_KEPT_MAX:
                self._kept.popitem(last=False)
        self.queries[answer.name] += 1
        if self._last_ids.get(answer.name) != question[:2]:
            self._last_ids[answer.name] = question[:2]
            self.lookups[answer.name] += 1
        if answer.wire is None:
            return None
        flags = (
            struct.unpack_from("!H", answer.wire, 2)[0] & ~_FLAG_RD
            | struct.unpack_from("!H", question, 2)[0] & _FLAG_RD
        )
        first, second = question[0], question[1]
        if answer.wrong_id:
            second ^= 0x55
        return (
            bytes((first, second, flags >> 8, flags & 0xFF)) + answer.wire[4:12] + question[12:end] + answer.wire[end:]
        )

    def _plain(self, question: bytes, end: int) -> _Answer | None:
        """The answer to what nearly all ask: records of a name that has them and no fault, or that there is no such
        name; None for all else.

        dnspython takes a quarter of a millisecond for it, which a bench of a hundred thousand domains would feel.
        """
        kind = _KINDS.get(question[end - 4 : end])  # without DO, AD in the question asks for it in the answer
        opt = question[end:]
        if (
            kind is None
            or question[6:12] != (_WITH_OPT if opt else _WITHOUT_OPT)
            or not (not opt or (len(opt) == 11 and opt.startswith(b"\0\0\x29") and opt.endswith(bytes(6))))
        ):
            return None
        labels = question[12 : end - 5].lower()
        name = _plain_name(labels)
        entry = self._zones.find(name) if name else None
        is_secure = bool(question[3] & _FLAG_AD) and self._zones.is_secure(name)
        if name and entry is None:
            return self._no_such_name(name, kind, question[12:end], opt, is_secure)
        rdatas = entry.rdatas.get(kind) if entry is not None else None
        if entry is None or not rdatas or entry.fault(kind) is not None:
            return None
        answers = [_POINTER_TO_QUESTION + _record(kind, entry.ttl_s, rdata) for rdata in rdatas]
        more = self._additional(rdatas) if kind == "MX" else []
        counts = struct.pack("!4H", 1, len(answers), 0, len(more) + bool(opt))
        flags = b"\x84\xa0" if is_secure else b"\x84\x80"
        wire = b"".join((b"\0\0", flags, counts, question[12:end], *answers, *more, _OPT if opt else b""))
        room = max(UDP_BYTES, struct.unpack_from("!H", opt, 3)[0]) if opt else UDP_BYTES
        return _Answer((name, kind), end, wire, False) if len(wire) <= min(EDNS_BYTES_MAX, room) else None

    def _no_such_name(self, name: str, kind: str, asked: bytes, opt: bytes, is_secure: bool) -> _Answer:
        soa = self._soa(name)
        owner, rdata = soa.name.to_wire(), soa[0]
        assert owner is not None
        counts = struct.pack("!4H", 1, 0, 1, int(bool(opt)))
        flags = b"\x84\xa3" if is_secure else b"\x84\x83"
        record = owner + _record("SOA", soa.ttl, rdata)
        wire = b"".join((b"\0\0", flags, counts, asked, record, _OPT if opt else b""))
        return _Answer((name, kind), 12 + len(asked), wire, False)

    def _additional(self, rdatas: tuple[dns.rdata.Rdata, ...]) -> list[bytes]:
        records = []
        for host in dict.fromkeys(rdata.exchange for rdata in rdatas):  # type: ignore[attr-defined]
            owner = host.to_wire()
            for rrset in self._known_addresses(host):
                kind = dns.rdatatype.to_text(rrset.rdtype)
                records += [owner + _record(kind, rrset.ttl, rdata) for rdata in rrset]
        return records

    def _render(self, query: dns.message.Message, end: int, over_tcp: bool) -> _Answer:
        asked = query.question[0]
        kind = dns.rdatatype.to_text(asked.rdtype)
        name = canonical(asked.name.to_text())
        entry = self._zones.find(name)
        fault = entry.fault(kind) if entry is not None else None
        response = dns.message.make_response(query, recursion_available=True, our_payload=EDNS_BYTES_MAX)
        response.flags |= dns.flags.AA
        wants_secure = bool(query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO)
        if fault is Fault.SILENT:
            return _Answer((name, kind), end, None, False)
        if fault in _RCODES:
            response.set_rcode(_RCODES[fault])
            if fault is Fault.NXDOMAIN:
                response.authority.append(self._soa(name))
        elif fault is Fault.TRUNCATED and not over_tcp:
            response.flags |= dns.flags.TC
        else:
            self._fill(response, asked.name, kind, entry)
            names = [asked.name, *(rrset[0].target for rrset in response.answer if rrset.rdtype == dns.rdatatype.CNAME)]
            if wants_secure and all(self._zones.is_secure(canonical(one.to_text())) for one in names):
                response.flags |= dns.flags.AD
        room = 65_535 if over_tcp else min(EDNS_BYTES_MAX, max(UDP_BYTES, query.payload if query.edns >= 0 else 0))
        return _Answer((name, kind), end, _to_wire(response, room), fault is Fault.WRONG_ID)

    def _fill(self, response: dns.message.Message, asked: dns.name.Name, kind: str, entry: Entry | None) -> None:
        """Answer, additional and authority; follows CNAMEs as far as this server knows them."""
        owner = asked
        for _ in range(CNAME_CHAIN_MAX):
            if entry is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            rdatas = entry.rdatas.get(kind)
            if rdatas:
                response.answer.append(dns.rrset.from_rdata_list(owner, entry.ttl_s, rdatas))
                self._add_addresses(response, kind, rdatas)
                return
            alias = entry.rdatas.get("CNAME")
            if not alias:
                break
            response.answer.append(dns.rrset.from_rdata_list(owner, entry.ttl_s, alias))
            owner = alias[0].target  # type: ignore[attr-defined]
            entry = self._zones.find(canonical(owner.to_text()))
        response.authority.append(self._soa(canonical(owner.to_text())))

    def _add_addresses(self, response: dns.message.Message, kind: str, rdatas: tuple[dns.rdata.Rdata, ...]) -> None:
        """The addresses of MX hosts come along with the answer (RFC 1035 §3.3.9)."""
        if kind != "MX":
            return
        for host in dict.fromkeys(rdata.exchange for rdata in rdatas):  # type: ignore[attr-defined]
            response.additional.extend(self._known_addresses(host))

    def _known_addresses(self, host: dns.name.Name) -> list[dns.rrset.RRset]:
        known = self._addresses.get(host)
        if known is None:
            known = self._addresses_of(host)
            if len(self._addresses) < ANSWERS_KEPT_MAX:
                self._addresses[host] = known
        return known

    def _addresses_of(self, host: dns.name.Name) -> list[dns.rrset.RRset]:
        entry = self._zones.find(canonical(host.to_text()))
        return [
            dns.rrset.from_rdata_list(host, entry.ttl_s, entry.rdatas[family])
            for family in ("A", "AAAA")
            if entry is not None and entry.rdatas.get(family) and entry.fault(family) is None
        ]

    def _soa(self, name: str) -> dns.rrset.RRset:
        return _soa_of(name.rpartition(".")[2] or ".", self._negative_ttl_s)


# What `Responder._plain` puts together.
_KINDS: Final = {
    struct.pack("!2H", number, 1): kind for kind, number in (("A", 1), ("MX", 15), ("TXT", 16), ("AAAA", 28))
}
_WITHOUT_OPT, _WITH_OPT = bytes(6), bytes(5) + b"\1"  # numbers of answers, authorities and additional records
_POINTER_TO_QUESTION: Final = b"\xc0\x0c"
_OPT: Final = struct.pack("!BHHIH", 0, 41, EDNS_BYTES_MAX, 0, 0)
_PLAIN_LABEL: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


def _plain_name(labels: bytes) -> str:
    """Text of a lower-case name on the wire; empty when it has other characters than host names have."""
    names = []
    at = 0
    while at < len(labels):
        label = labels[at + 1 : at + 1 + labels[at]]
        if not _PLAIN_LABEL.issuperset(label):
            return ""
        names.append(label.decode("ascii"))
        at += 1 + labels[at]
    return ".".join(names)


@functools.lru_cache(maxsize=1_000)
def _soa_of(zone: str, ttl_s: int) -> dns.rrset.RRset:
    text = f"ns.invalid. hostmaster.invalid. 1 3600 600 86400 {ttl_s}"
    return dns.rrset.from_text(dns.name.from_text(zone), ttl_s, "IN", "SOA", text)


@functools.lru_cache(maxsize=10_000)
def _record(kind: str, ttl_s: int, rdata: dns.rdata.Rdata) -> bytes:
    """A record without its owner's name."""
    content = rdata.to_wire()
    assert content is not None
    return struct.pack("!2HIH", dns.rdatatype.from_text(kind), 1, ttl_s, len(content)) + content


def _to_wire(response: dns.message.Message, room: int) -> bytes:
    """Renders; without the additional section, then with TC and nothing else, when there is no room."""
    try:
        return response.to_wire(max_size=room)
    except dns.exception.TooBig:
        pass
    response.additional.clear()
    try:
        return response.to_wire(max_size=room)
    except dns.exception.TooBig:
        response.answer.clear()
        response.authority.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=room)


def _question_end(message: bytes) -> int | None:
    """Where the one question of a query ends; None when the message is not a query with one question."""
    if len(message) < 17 or message[2] & 0xF8 or message[4:6] != b"\x00\x01":
        return None
    at = 12
    while at < len(message) and (length := message[at]):
        if length > 63:
            return None  # a compressed name has nothing to point to yet
        at += length + 1
    return at + 5 if at + 5 <= len(message) else None


def _format_error(question: bytes) -> bytes:
    return question[:2] + b"\x80\x01" + bytes(8)


class _Udp:
    """A socket that answers many questions a wake-up: an asyncio datagram transport reads one packet each turn."""

    def __init__(self, responder: Responder, address: str, port: int) -> None:
        self._responder = responder
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(PACKETS_PER_WAKE_MAX):
            try:
                octets, client = self._socket.recvfrom(65_535)
            except (BlockingIOError, ConnectionError):  # nothing more; or a client that is gone, told by ICMP
                return
            answer = self._responder.respond(octets)
            if answer is not None:
                try:
                    self._socket.sendto(answer, client)
                except (BlockingIOError, ConnectionError, PermissionError):
                    continue  # lost, as UDP may be


class Nameserver:
    """Serves inside the running loop. ``start`` and ``stop`` are idempotent; ``port`` is known once started."""

    def __init__(
        self,
        zones: ZonesGiven,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        synthetic: tuple[Synthetic, ...] = (),
        negative_ttl_s: int = NEGATIVE_TTL_S,
    ) -> None:
        known = zones if isinstance(zones, Zones) else Zones(zones, synthetic)
        self._responder = Responder(known, negative_ttl_s=negative_ttl_s)
        self.address = address
        self.port = port
        self._tcp: asyncio.Server | None = None
        self._udp: _Udp | None = None
        self._tcp_connections: set[asyncio.Task[None]] = set()

    @property
    def queries(self) -> Counter[tuple[str, str]]:
        """Questions so far, by (name in lower case without its last dot, type); those over TCP too."""
        return self._responder.queries

    @property
    def lookups(self) -> Counter[tuple[str, str]]:
        """As ``queries``, without packets that were sent again under their id."""
        return self._responder.lookups

    async def __aenter__(self) -> Nameserver:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens when it returns; BadInput when the address or the port cannot be had."""
        if self._tcp is not None:
            return
        for attempt in range(PORT_ATTEMPTS_MAX):
            try:
                await self._listen()
                return
            except OSError as error:
                await self.stop()
                # With port 0 the port that TCP was given may be taken for UDP: another one, then.
                if self.port or attempt == PORT_ATTEMPTS_MAX - 1:
                    raise BadInput(f"{self.address}:{self.port}", f"cannot be listened on: {error.strerror}") from error

    async def _listen(self) -> None:
        self._tcp = await asyncio.start_server(self._serve_tcp, self.address, self.port)
        port = self._tcp.sockets[0].getsockname()[1]
        self._udp = _Udp(self._responder, self.address, port)
        self.port = port

    async def stop(self) -> None:
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
        for connection in self._tcp_connections:
            connection.cancel()
        await asyncio.gather(*self._tcp_connections, return_exceptions=True)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Questions one after the other on a connection (RFC 7766)."""
        task = asyncio.current_task()
        assert task is not None
        self._tcp_connections.add(task)
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_S):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    question = await reader.readexactly(length)
                answer = self._responder.respond(question, over_tcp=True)
                if answer is not None:
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # the client has what it wanted, or wants nothing any more
        except asyncio.CancelledError:
            pass  # by stop(); asyncio's streams report a cancelled server task as an error
        finally:
            self._tcp_connections.discard(task)
            writer.close()


class ThreadedNameserver:
    """The same in a thread of its own, as a synchronous context manager."""

    def __init__(
        self,
        zones: ZonesGiven,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        synthetic: tuple[Synthetic, ...] = (),
        negative_ttl_s: int = NEGATIVE_TTL_S,
    ) -> None:
        self._server = Nameserver(zones, address, port, synthetic=synthetic, negative_ttl_s=negative_ttl_s)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def queries(self) -> Counter[tuple[str, str]]:
        """As of ``Nameserver``; while the server runs, a moving picture."""
        return self._server.queries

    @property
    def lookups(self) -> Counter[tuple[str, str]]:
        return self._server.lookups

    def __enter__(self) -> ThreadedNameserver:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listens when it returns; raises what ``Nameserver.start`` raises."""
        if self._thread is not None:
            return
        self._started.clear()
        self._failure = None
        self._thread = threading.Thread(target=self._run, name="nameserver", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            raise self._failure

    def stop(self) -> None:
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._server.start()
        except BaseException as error:
            self._failure = error  # raised again by start(), in the thread that asked
            return
        finally:
            self._started.set()
        await self._over.wait()
        await self._server.stop()
