"""Questions on their way: UDP ports, tries, time-outs, TCP for what does not fit.

In charge of one thing: `Transport.ask` answers every question exactly once, with an `Answer` that is
``TEMPORARY`` if no nameserver gave a definite one within the budget. Single-threaded; owned by one event loop.

Against forged answers (RFC 5452): ports are connected, so the kernel drops strangers; ids are random; the
question must come back; each nameserver is asked from several ports, which are replaced after some use.

A datagram is lost where a socket buffer is full, which a burst of questions brings about at nameservers of modest
settings; to wait out the whole time-out for each would stop all look-ups. So within a try a question is repeated on
its port, under its id: whichever answer comes counts.

A question costs one future and no timer: all that wait for the same step wait equally long, so those under way are
kept by step, in the order of their ends, and one timer watches the first of each. Sockets are read in a loop of our
own, many packets a wake-up: an asyncio datagram transport reads one packet each turn.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

import msgspec

from mta.dns import message
from mta.dns.answer import Answer, Found, RecordType
from mta.dns.nameservers import Endpoint

_PORTS_PER_SERVER: Final = 4
_PORT_QUERIES_MAX: Final = 2_000  # then a fresh source port takes its place
_PACKETS_PER_WAKE_MAX: Final = 16  # then the event loop's other duties get their turn
_PACKET_BYTES_MAX: Final = 65_535
_RECEIVE_BUFFER_BYTES: Final = 1 << 20  # answers to a burst of several hundred questions
# Each after the one before; a recursive server may be at work for longer, and joins them.
_REPEAT_AFTER_S: Final = (0.5, 1.0)
_TCP_MAX: Final = 64  # connections at once; few answers are that long


class TransportStatistics(msgspec.Struct, frozen=True):
    """Counters since the start, and what is under way now."""

    queries: int  # packets and TCP questions sent, tries and repetitions included
    repeated: int
    timeouts: int
    bad_answers: int  # SERVFAIL, REFUSED, malformed, lame
    ignored: int  # packets that answer no question of ours: late, or forged
    over_tcp: int
    outstanding: int
    outstanding_highest: int
    waiting: int  # for one of the outstanding to end


class _Exchange:
    """One question under way."""

    __slots__ = (
        "answered",
        "bad",
        "edns",
        "failed_tries",
        "failed_try",
        "future",
        "kind",
        "name",
        "port",
        "query_id",
        "question",
        "step",
        "text",
        "tries",
    )

    def __init__(self, name: str, kind: RecordType, future: asyncio.Future[Answer]) -> None:
        self.name = name
        self.kind = kind
        self.future = future
        self.question = message.encode_question(name, kind)
        self.edns = True
        self.tries = 0
        self.bad = 0
        self.step = 0  # of the current try: how often it was repeated
        self.port: _Port | None = None
        self.query_id = 0
        self.text = ""


class _Port:
    """One connected UDP socket, and the questions that wait for an answer on it, by id."""

    __slots__ = ("sent", "server", "socket", "waiting")

    def __init__(self, server: int, connected: socket.socket) -> None:
        self.server = server
        self.socket = connected
        self.sent = 0
        self.waiting: dict[int, _Exchange] = {}


class Transport:
    """Asks ``servers``, ``tries`` times ``timeout_s`` each, with at most ``outstanding_max`` questions at once.

    Questions beyond that wait in the order of their asking; how many may wait is the caller's to bound.
    ``asks_secure``: the servers are asked to say what they have validated.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        *,
        timeout_s: float,
        tries: int,
        outstanding_max: int,
        rng: random.Random,
        asks_secure: bool = False,
    ) -> None:
        self._servers = tuple(servers)
        self._timeout_s = timeout_s
        self._tries = tries
        self._outstanding_max = outstanding_max
        self._asks_secure = asks_secure
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._ports: list[list[_Port | None]] = [[None] * _PORTS_PER_SERVER for _ in self._servers]
        self._retired: set[_Port] = set()
        self._turn = 0
        # Servers of which the system said that they cannot be reached, and which were not heard since: why. One error
        # stands for many questions, as the kernel bounds how often it says so.
        self._away: dict[int, str] = {}
        self._preferred = 0  # the server asked first; moves on when it is silent
        self._queue: deque[_Exchange] = deque()
        self._steps_s = _steps_s(timeout_s)
        # End of the current step of a try, earliest first; one table for each step.
        self._due: list[OrderedDict[_Exchange, float]] = [OrderedDict() for _ in self._steps_s]
        self._timer: asyncio.Handle | None = None
        self._timer_ends_at = math.inf  # kept here: for a time that has come, uvloop's call_at gives a plain Handle
        self._tcp_tasks: set[asyncio.Task[None]] = set()
        self._tcp_slots = asyncio.Semaphore(_TCP_MAX)
        self._is_closed = False
        self._outstanding = self._outstanding_highest = 0
        self._queries = self._repeated = self._timeouts = self._bad_answers = self._ignored = self._over_tcp = 0

    def ask(self, name: str, kind: RecordType) -> asyncio.Future[Answer]:
        """The answer to come for a canonical host name. Never fails: what goes wrong is ``Found.TEMPORARY``."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        exchange = _Exchange(name, kind, future)
        if self._is_closed:
            future.set_result(Answer(Found.TEMPORARY, name, text="the resolver is closed"))
        elif self._outstanding < self._outstanding_max:
            self._start(exchange)
        else:
            self._queue.append(exchange)
        return future

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            queries=self._queries,
            repeated=self._repeated,
            timeouts=self._timeouts,
            bad_answers=self._bad_answers,
            ignored=self._ignored,
            over_tcp=self._over_tcp,
            outstanding=self._outstanding,
            outstanding_highest=self._outstanding_highest,
            waiting=len(self._queue),
        )

    async def close(self) -> None:
        """Ends every question as ``TEMPORARY`` and gives all sockets back. Idempotent."""
        self._is_closed = True
        self._set_timer(None)
        for task in self._tcp_tasks:
            task.cancel()
        await asyncio.gather(*self._tcp_tasks, return_exceptions=True)
        for exchange in (*self._queue, *(exchange for due in self._due for exchange in due)):
            if not exchange.future.done():
                exchange.future.set_result(Answer(Found.TEMPORARY, exchange.name, text="the resolver was closed"))
        self._queue.clear()
        for due in self._due:
            due.clear()
        for port in [port for ports in self._ports for port in ports if port is not None] + list(self._retired):
            self._close_port(port)
        self._ports = [[None] * _PORTS_PER_SERVER for _ in self._servers]
        self._retired.clear()

    # -- the life of a question: start -> try -> (answer | time-out | bad answer -> next try) -> finish

    def _start(self, exchange: _Exchange) -> None:
        self._outstanding += 1
        self._outstanding_highest = max(self._outstanding_highest, self._outstanding)
        self._try(exchange)

    def _try(self, exchange: _Exchange) -> None:
        server = (self._preferred + exchange.tries) % len(self._servers)
        exchange.tries += 1
        try:
            port = self._port(server)
        except OSError as problem:
            # No route or no descriptor: as good as silence, and the timer paces the next try.
            exchange.text = self._away[server] = f"{self._servers[server]} cannot be asked ({problem.strerror})"
        else:
            query_id = self._rng.getrandbits(16)
            while query_id in port.waiting:
                query_id = self._rng.getrandbits(16)
            exchange.port, exchange.query_id = port, query_id
            port.waiting[query_id] = exchange
            port.sent += 1
            self._send(exchange, port)
        self._await(exchange, 0)

    def _send(self, exchange: _Exchange, port: _Port) -> None:
        self._queries += 1
        try:
            port.socket.send(
                message.encode_query(
                    exchange.query_id, exchange.question, edns=exchange.edns, asks_secure=self._asks_secure
                )
            )
        except OSError as problem:
            text = f"{self._servers[port.server]} cannot be reached ({problem.strerror})"
            exchange.text = self._away[port.server] = text

    def _await(self, exchange: _Exchange, step: int) -> None:
        """Sets the end of a step of the current try."""
        exchange.step = step
        ends_at = self._loop.time() + self._steps_s[step]
        self._due[step][exchange] = ends_at
        if ends_at < self._timer_ends_at:
            self._set_timer(ends_at)

    def _set_timer(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at is None else self._loop.call_at(at, self._sweep)
        self._timer_ends_at = math.inf if at is None else at

    def _sweep(self) -> None:
        """Ends the steps whose time is over, and sleeps until the next one's end."""
        now = self._loop.time()
        try:
            for step, due in enumerate(self._due):
                while due:
                    exchange, ends_at = next(iter(due.items()))
                    if ends_at > now:
                        break
                    del due[exchange]
                    if step + 1 < len(self._steps_s):
                        self._repeat(exchange)
                    else:
                        self._time_out(exchange)
        finally:
            self._set_timer(min((next(iter(due.values())) for due in self._due if due), default=None))

    def _repeat(self, exchange: _Exchange) -> None:
        if exchange.port is not None:
            self._repeated += 1
            self._send(exchange, exchange.port)
        self._await(exchange, exchange.step + 1)

    def _time_out(self, exchange: _Exchange) -> None:
        self._timeouts += 1
        port = exchange.port
        self._withdraw(exchange)
        if port is not None:
            exchange.text = self._away.get(port.server) or f"no answer from {self._servers[port.server]}"
            if port.server == self._preferred:
                self._preferred = (self._preferred + 1) % len(self._servers)
        self._next_try(exchange)

    def _withdraw(self, exchange: _Exchange) -> None:
        """Ends the current try: from now on its answer comes too late."""
        self._due[exchange.step].pop(exchange, None)
        port = exchange.port
        if port is not None:
            exchange.port = None
            del port.waiting[exchange.query_id]
            if not port.waiting and port in self._retired:
                self._retired.discard(port)
                self._close_port(port)

    def _next_try(self, exchange: _Exchange) -> None:
        if exchange.tries < self._tries and not exchange.future.done():
            self._try(exchange)
        else:
            is_of_machine = len(self._away) == len(self._servers)
            answer = Answer(Found.TEMPORARY, exchange.name, text=exchange.text, is_of_machine=is_of_machine)
            self._finish(exchange, answer)

    def _bad_answer(self, exchange: _Exchange, text: str) -> None:
        """The server spoke but did not answer: each of the servers, or the only one twice, and no more.

        A zone that is broken stays so for longer than a few milliseconds; asking on would only be a flood.
        """
        self._bad_answers += 1
        exchange.bad += 1
        exchange.text = text
        if exchange.bad < max(2, len(self._servers)):
            self._next_try(exchange)
        else:
            self._finish(exchange, Answer(Found.TEMPORARY, exchange.name, text=text))

    def _finish(self, exchange: _Exchange, answer: Answer) -> None:
        if not exchange.future.done():
            exchange.future.set_result(answer)
        self._outstanding -= 1
        while not self._is_closed and self._queue and self._outstanding < self._outstanding_max:
            waiting = self._queue.popleft()
            if not waiting.future.done():
                self._start(waiting)

    # -- packets

    def _port(self, server: int) -> _Port:
        """One of the server's ports, in turn; a worn one is replaced. ``OSError`` if none can be had."""
        self._turn += 1
        place = self._turn % _PORTS_PER_SERVER
        port = self._ports[server][place]
        if port is not None and port.sent < _PORT_QUERIES_MAX:
            return port
        fresh = self._open_port(server)
        if port is not None:
            if port.waiting:
                self._retired.add(port)
            else:
                self._close_port(port)
        self._ports[server][place] = fresh
        return fresh

    def _open_port(self, server: int) -> _Port:
        endpoint = self._servers[server]
        family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            opened.connect((endpoint.address, endpoint.port))
        except OSError:
            opened.close()
            raise
        port = _Port(server, opened)
        self._loop.add_reader(opened.fileno(), self._readable, port)
        return port

    def _listen_anew(self, port: _Port) -> None:
        """uvloop watches no socket any more that had an error (libuv stops its poll): what comes then would be lost."""
        self._loop.remove_reader(port.socket.fileno())
        self._loop.add_reader(port.socket.fileno(), self._readable, port)

    def _close_port(self, port: _Port) -> None:
        self._loop.remove_reader(port.socket.fileno())
        port.socket.close()

    def _readable(self, port: _Port) -> None:
        receive = port.socket.recv
        for number in range(_PACKETS_PER_WAKE_MAX):
            try:
                wire = receive(_PACKET_BYTES_MAX)
            except (BlockingIOError, InterruptedError):
                if not number:  # woken for nothing: it was for an error that a send has met since
                    self._listen_anew(port)
                return
            except OSError as problem:
                self._listen_anew(port)
                self._unreachable(port, problem)
                return
            self._receive(port, wire)
            if port.socket.fileno() < 0:
                return  # the last question of a retired port was answered

    def _unreachable(self, port: _Port, problem: OSError) -> None:
        """ICMP says that nobody listens there: with another server at hand, there is no use in waiting."""
        text = self._away[port.server] = f"{self._servers[port.server]} cannot be reached ({problem.strerror})"
        waiting = list(port.waiting.values())
        for exchange in waiting:
            exchange.text = text
        if len(self._servers) > 1:
            if port.server == self._preferred:
                self._preferred = (self._preferred + 1) % len(self._servers)
            for exchange in waiting:
                self._withdraw(exchange)
                self._next_try(exchange)

    def _receive(self, port: _Port, wire: bytes) -> None:
        query_id = message.packet_id(wire)
        exchange = port.waiting.get(query_id) if query_id is not None else None
        if exchange is None or not message.repeats_question(wire, exchange.question):
            self._ignored += 1
            return
        self._away.pop(port.server, None)
        server = self._servers[port.server]
        self._withdraw(exchange)
        try:
            packet = message.read_packet(wire, exchange.name, exchange.kind, exchange.question)
        except message.BadPacket as problem:
            self._bad_answer(exchange, f"{problem} from {server}")
            return
        if packet.is_truncated:
            self._start_tcp(exchange, port.server)
        else:
            self._conclude(exchange, packet, port.server)

    def _conclude(self, exchange: _Exchange, packet: message.Packet, server: int) -> None:
        answer = packet.answer
        if answer is None:
            if packet.rcode in (message.FORMERR, message.NOTIMP) and exchange.edns:
                exchange.edns = False  # RFC 6891 §7: an old server; asked again without
                self._next_try(exchange)
                return
            name = message.RCODE_NAMES.get(packet.rcode, f"rcode {packet.rcode}")
            self._bad_answer(exchange, f"{name} from {self._servers[server]}")
        elif answer.found is Found.TEMPORARY:
            self._bad_answer(exchange, f"{answer.text} from {self._servers[server]}")
        else:
            self._finish(exchange, answer)

    # -- TCP (RFC 7766): one connection for one truncated answer

    def _start_tcp(self, exchange: _Exchange, server: int) -> None:
        self._over_tcp += 1
        task = self._loop.create_task(self._ask_over_tcp(exchange, server))
        self._tcp_tasks.add(task)
        task.add_done_callback(self._tcp_tasks.discard)

    async def _ask_over_tcp(self, exchange: _Exchange, server: int) -> None:
        endpoint = self._servers[server]
        query_id = self._rng.getrandbits(16)
        query = message.encode_query(query_id, exchange.question, edns=exchange.edns, asks_secure=self._asks_secure)
        try:
            async with self._tcp_slots, asyncio.timeout(self._timeout_s):
                self._queries += 1
                wire = await _tcp_question(endpoint, query)
            if message.packet_id(wire) != query_id or not message.repeats_question(wire, exchange.question):
                raise message.BadPacket("answer to another question")
            packet = message.read_packet(wire, exchange.name, exchange.kind, exchange.question)
            if packet.is_truncated:
                raise message.BadPacket("truncated over TCP as well")
        except message.BadPacket as problem:
            self._bad_answer(exchange, f"{problem} from {endpoint}")
        except (OSError, TimeoutError, EOFError) as problem:
            why = "time-out" if isinstance(problem, TimeoutError) else type(problem).__name__
            self._bad_answer(exchange, f"no answer over TCP from {endpoint} ({why})")
        except asyncio.CancelledError:
            self._finish(exchange, Answer(Found.TEMPORARY, exchange.name, text="the resolver was closed"))
            raise
        else:
            self._conclude(exchange, packet, server)


def _steps_s(timeout_s: float) -> tuple[float, ...]:
    """How long the steps of a try are: until each repetition, and from the last one to the end of the try."""
    steps_s: tuple[float, ...] = ()
    for after_s in _REPEAT_AFTER_S:
        if sum(steps_s) + after_s < timeout_s:
            steps_s += (after_s,)
    return (*steps_s, timeout_s - sum(steps_s))


async def _tcp_question(endpoint: Endpoint, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)
    finally:
        writer.close()
