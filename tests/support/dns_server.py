"""A nameserver on loopback, UDP and TCP, that counts its questions and misbehaves where it is told to."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Zone = Mapping[str, list[str]]  # record type -> rdata in presentation form
Script = Callable[[dns.message.Message, bool], list[bytes]]  # query, is it TCP -> packets to send back

SOA = "ns.example.test. admin.example.test. 1 3600 600 86400 {minimum}"


class TcpFault(enum.Enum):
    """What becomes of a question over TCP."""

    REFUSED = "nobody listens"
    SILENT = "it is read, and never answered"
    CLOSED = "the connection is closed behind it"
    RESET = "the connection is reset"
    HALF = "the answer breaks off"
    HALF_SILENT = "half of the answer comes, and nothing more"
    TRICKLE = "the answer comes octet by octet, slower than anybody waits"
    GARBAGE = "octets that are no packet"
    EMPTY = "a packet of no octets"
    OTHER = "the answer to another question"


class DnsServer(asyncio.DatagramProtocol):
    """Serves ``zones`` (name -> records); names without an entry do not exist.

    ``rcodes`` answers a name with that rcode; ``silent`` names get no answer; ``truncated`` ones set TC over UDP;
    ``scripts`` give the packets themselves. All of it may be changed at any time.
    """

    def __init__(self, zones: dict[str, Zone], *, chase: bool = True, tcp_fault: TcpFault | None = None) -> None:
        self.zones = dict(zones)
        self.tcp_fault = tcp_fault
        self.chase = chase  # whether an alias is followed, as a recursive server does
        self.rcodes: dict[str, dns.rcode.Rcode] = {}
        self.silent: set[str] = set()
        self.truncated: set[str] = set()
        self.secure: set[str] = set()  # validated, as are the names below them
        self.scripts: dict[str, Script] = {}
        self.ttl_s = 300
        self.negative_ttl_s = 120
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries = 0
        self.source_ports: set[int] = set()
        self.query_ids: list[int] = []
        self.is_holding = False
        self._held: list[tuple[dns.message.Message, tuple[str, int]]] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", self.port))
        self._tcp_ends = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        if self.tcp_fault is TcpFault.REFUSED:
            self._tcp.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._udp.close()
        self._tcp_ends.set()
        self._tcp.close()
        await self._tcp.wait_closed()
        await asyncio.gather(*self._connections)

    def hold(self) -> None:
        """Keeps questions unanswered until `release`."""
        self.is_holding = True

    def release(self) -> None:
        self.is_holding = False
        held, self._held = self._held, []
        for query, source in held:
            self._answer_udp(query, source)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self._count(query)
        self.source_ports.add(source[1])
        if self.is_holding:
            self._held.append((query, source))
        else:
            self._answer_udp(query, source)

    def _answer_udp(self, query: dns.message.Message, source: tuple[str, int]) -> None:
        for packet in self._answers(query, is_tcp=False):
            self._udp.sendto(packet, source)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        size = int.from_bytes(await reader.readexactly(2), "big")
        query = dns.message.from_wire(await reader.readexactly(size))
        self.tcp_queries += 1
        packets = b"".join(len(packet).to_bytes(2, "big") + packet for packet in self._answers(query, is_tcp=True))
        if self.tcp_fault is None:
            writer.write(packets)
            writer.close()
            return
        await self._fail(self.tcp_fault, query, packets, writer)

    async def _fail(
        self, fault: TcpFault, query: dns.message.Message, packets: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if fault in (TcpFault.HALF, TcpFault.HALF_SILENT):
            writer.write(packets[: len(packets) // 2])
        elif fault is TcpFault.GARBAGE:
            writer.write(b"\0\x20" + bytes(range(0x80, 0xA0)))
        elif fault is TcpFault.EMPTY:
            writer.write(b"\0\0")
        elif fault is TcpFault.OTHER:
            query.id ^= 1
            wire = dns.message.make_response(query).to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
        elif fault is TcpFault.RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif fault is TcpFault.TRICKLE:
            for octet in packets:
                if writer.is_closing() or self._tcp_ends.is_set():
                    break
                writer.write(bytes((octet,)))
                await asyncio.sleep(0.05)
        if fault in (TcpFault.SILENT, TcpFault.HALF_SILENT):
            await self._tcp_ends.wait()
        writer.close()

    def _count(self, query: dns.message.Message) -> None:
        question = query.question[0]
        self.query_ids.append(query.id)
        self.queries[_text(question.name), dns.rdatatype.to_text(question.rdtype)] += 1

    def _answers(self, query: dns.message.Message, *, is_tcp: bool) -> list[bytes]:
        name = _text(query.question[0].name)
        if name in self.scripts:
            return self.scripts[name](query, is_tcp)
        if name in self.silent:
            return []
        return [self.response(query, is_tcp=is_tcp).to_wire(max_size=65535)]

    def response(self, query: dns.message.Message, *, is_tcp: bool = True) -> dns.message.Message:
        """The honest answer, or the one that ``rcodes`` and ``truncated`` ask for."""
        question = query.question[0]
        name, kind = _text(question.name), dns.rdatatype.to_text(question.rdtype)
        response = dns.message.make_response(query, recursion_available=True)
        is_secure = bool(query.flags & dns.flags.AD) and self._is_secure(name)
        response.flags |= dns.flags.AD if is_secure else 0
        if name in self.rcodes:
            response.set_rcode(self.rcodes[name])
            return response
        if name in self.truncated and not is_tcp:
            response.flags |= dns.flags.TC
            return response
        seen: set[str] = set()
        while "CNAME" in self.zones.get(name, {}) and name not in seen:
            seen.add(name)
            target = self.zones[name]["CNAME"][0]
            response.answer.append(dns.rrset.from_text(name + ".", self.ttl_s, "IN", "CNAME", target))
            name = target.rstrip(".")
            if not self._is_secure(name):
                response.flags &= ~dns.flags.AD
            if not self.chase:
                return response
        if kind in self.zones.get(name, {}):
            response.answer.append(dns.rrset.from_text(name + ".", self.ttl_s, "IN", kind, *self.zones[name][kind]))
            return response
        if name not in self.zones:
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = SOA.format(minimum=self.negative_ttl_s)
        response.authority.append(dns.rrset.from_text("test.", self.negative_ttl_s, "IN", "SOA", soa))
        return response

    def _is_secure(self, name: str) -> bool:
        return any(name == one or name.endswith(f".{one}") for one in self.secure)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
