"""What the sink received: one line of JSON per event, one file per process in a record directory.

Writing: an event is one ``os.write`` away from the kernel, so it survives ``kill -9`` of the sink. What
led to a reply is written before that reply leaves; other events may wait until the loop's next turn.

Reading: ``read_record`` gives the events of all files in order of time; ``Record`` answers what tests
and summaries ask. A last line without its newline (the process died in the write) is not an event;
any other damage is BadInput. Files may be read while they are written.

A line is an array, its first item the kind of event, then the fields in the order of the structs below.
Times: ``at_s`` is CLOCK_MONOTONIC (comparable between processes of one machine, until it is restarted),
``unix_s`` the same moment by the wall clock.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

import msgspec

from mta.model.errors import BadInput

BATCH_BYTES_MAX: Final = 256 * 1024  # events that wait for the loop's next turn are written at this size

By = Literal["all", "client", "local", "path"]


class Started(msgspec.Struct, frozen=True, array_like=True, tag="S", gc=False):
    """A process began to record; ``stem`` names its file and begins the ids of its connections."""

    at_s: float
    unix_s: float
    stem: str
    pid: int


class Connection(msgspec.Struct, frozen=True, array_like=True, tag="C", gc=False):
    """A connection was opened, or (``is_open`` false) is closed; ``messages`` were accepted on it."""

    at_s: float
    unix_s: float
    connection: str
    is_open: bool
    client: str  # IP address
    client_port: int
    local: str  # our address, the one the client connected to
    messages: int = 0
    tls: str = ""  # version, "" in clear; known at the close


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="A", gc=False):
    """A message the sink keeps. ``reply`` 0: it was never answered, so its sender is in doubt."""

    at_s: float
    unix_s: float
    connection: str
    client: str
    local: str
    mail_from: str
    recipients: tuple[str, ...]
    message_id: str  # with its angle brackets; "" when there is none
    size_bytes: int  # after removal of the transparent dots
    reply: int = 250
    sha256: str = ""  # of the body as stored; only when bodies are kept
    body_offset: int = -1  # where it begins in the process' file of bodies; -1: not kept


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="R", gc=False):
    """A refusal; ``recipients`` are those it was about, none before RCPT. ``code`` 0: no reply was given."""

    at_s: float
    unix_s: float
    connection: str
    step: str
    code: int
    mail_from: str
    recipients: tuple[str, ...]


class Violated(msgspec.Struct, frozen=True, array_like=True, tag="V", gc=False):
    """A client broke a limit of the provider, or a rule of the protocol (``pipelining``, ``extension``)."""

    at_s: float
    unix_s: float
    connection: str
    client: str
    local: str
    what: str


Event = Started | Connection | Accepted | Refused | Violated


class RecordWriter:
    """Appends the events of one process. Owned by one event loop; not for several threads."""

    def __init__(self, directory: Path, *, keeps_bodies: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        at_s, unix_s = time.monotonic(), time.time()
        # The time makes the stem unique when a process id comes round again.
        self.stem = f"{os.getpid():x}.{int(unix_s * 1000):x}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(directory / f"{self.stem}.ndjson", flags, 0o644)
        self._bodies = os.open(directory / f"{self.stem}.bodies", flags, 0o644) if keeps_bodies else -1
        self._bodies_bytes = 0
        self._encoder = msgspec.json.Encoder()
        self._waiting = bytearray()
        self.write(Started(at_s, unix_s, self.stem, os.getpid()))
        self.flush()

    def write(self, event: Event) -> None:
        """Takes an event; ``flush`` makes it safe."""
        before = len(self._waiting)
        try:
            self._encoder.encode_into(event, self._waiting, -1)
        except UnicodeEncodeError:
            # Bytes that are not UTF-8 reach us as surrogates; a record shows them escaped. What the failed
            # attempt left behind is not even initialised memory, so it goes by length.
            del self._waiting[before:]
            self._encoder.encode_into(_escaped(event), self._waiting, -1)
        self._waiting += b"\n"
        if len(self._waiting) > BATCH_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hands all events taken so far to the kernel, in one write."""
        if self._waiting:
            _write_all(self._file, self._waiting)
            self._waiting.clear()

    def keep_body(self, body: bytes) -> int:
        """Appends a body to the file of bodies; its offset there, -1 when bodies are not kept."""
        if self._bodies < 0:
            return -1
        offset = self._bodies_bytes
        _write_all(self._bodies, body)
        self._bodies_bytes += len(body)
        return offset

    def close(self) -> None:
        self.flush()
        os.close(self._file)
        if self._bodies >= 0:
            os.close(self._bodies)


def _write_all(file: int, octets: bytes | bytearray) -> None:
    with memoryview(octets) as view:
        written = 0
        while written < len(view):
            written += os.write(file, view[written:])


def _escaped(event: Event) -> Event:
    changes: dict[str, object] = {}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str):
            changes[name] = _escape(value)
        elif isinstance(value, tuple):
            changes[name] = tuple(map(_escape, value))
    return msgspec.structs.replace(event, **changes)


def _escape(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- reading ---------------------------------------------------------------------------------------


def read_record(directory: Path) -> Iterator[Event]:
    """All events of a record directory by time. BadInput (file:line) for a damaged line."""
    files = sorted(Path(directory).glob("*.ndjson"))
    return heapq.merge(*map(_read_file, files), key=attrgetter("at_s"))


def _read_file(path: Path) -> Iterator[Event]:
    decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return  # torn by a crash, or still being written
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise BadInput(f"{path}:{number}", f"is not an event: {error}") from error


def read_body(directory: Path, message: Accepted) -> bytes:
    """The stored octets of a message that was accepted while bodies were kept."""
    if message.body_offset < 0:
        raise BadInput("body", f"the bodies of connection {message.connection} were not kept")
    stem = message.connection.rpartition(".")[0]
    with (Path(directory) / f"{stem}.bodies").open("rb") as bodies:
        bodies.seek(message.body_offset)
        return bodies.read(message.size_bytes)


class Record:
    """The events of a record in memory, sorted by kind, each list by time; frozen once made.

    ``by`` groups: ``all`` together, by ``client`` address, by ``local`` address (that is: MX host), or by
    ``path``, written ``client>local``.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.started: list[Started] = []
        self.connections: list[Connection] = []
        self.accepted: list[Accepted] = []
        self.refused: list[Refused] = []
        self.violations: list[Violated] = []
        lists: dict[type[Event], list[Event]] = {
            Started: self.started,  # type: ignore[dict-item]
            Connection: self.connections,  # type: ignore[dict-item]
            Accepted: self.accepted,  # type: ignore[dict-item]
            Refused: self.refused,  # type: ignore[dict-item]
            Violated: self.violations,  # type: ignore[dict-item]
        }
        self._last_at_s: dict[str, float] = {}  # by stem
        for event in events:
            lists[type(event)].append(event)
            self._last_at_s[event.stem if isinstance(event, Started) else _stem(event.connection)] = event.at_s

    @classmethod
    def load(cls, directory: Path) -> Record:
        return cls(read_record(directory))

    def recipients(self) -> Counter[str]:
        """How often a message for each recipient was stored, lower-cased domains left as they came."""
        counts: Counter[str] = Counter()
        for message in self.accepted:
            counts.update(message.recipients)
        return counts

    def duplicates(self) -> dict[tuple[str, str], int]:
        """(recipient, Message-ID) stored more than once, with how often."""
        counts = Counter(
            (recipient, message.message_id) for message in self.accepted for recipient in message.recipients
        )
        return {key: count for key, count in counts.items() if count > 1}

    def connections_max_by(self, by: By = "path") -> dict[str, int]:
        """The most connections that were open at the same time, in each group."""
        now_open: Counter[str] = Counter()
        most: dict[str, int] = {}
        for event in heapq.merge(self.connections, self._closed_by_death(), key=attrgetter("at_s")):
            group = _group(event, by)
            now_open[group] += 1 if event.is_open else -1
            most[group] = max(most.get(group, 0), now_open[group])
        return most

    def connections_max_seen(self, by: By = "path") -> int:
        """The largest figure of ``connections_max_by``, 0 without connections."""
        return max(self.connections_max_by(by).values(), default=0)

    def messages_per_connection(self) -> Counter[str]:
        """Accepted messages by connection id."""
        return Counter(message.connection for message in self.accepted)

    def messages_per_connection_max(self) -> int:
        return max(self.messages_per_connection().values(), default=0)

    def max_in_window_by(self, seconds: float, by: By = "path") -> dict[str, int]:
        """The most messages accepted in any half-open period of so many seconds, in each group."""
        windows: defaultdict[str, deque[float]] = defaultdict(deque)
        most: dict[str, int] = {}
        for message in self.accepted:
            group = _group(message, by)
            times = windows[group]
            times.append(message.at_s)
            while times[0] <= message.at_s - seconds:
                times.popleft()
            most[group] = max(most.get(group, 0), len(times))
        return most

    def max_in_window(self, seconds: float, by: By = "path") -> int:
        """The largest figure of ``max_in_window_by``, 0 without messages."""
        return max(self.max_in_window_by(seconds, by).values(), default=0)

    def messages_per_second(self) -> dict[int, int]:
        """Accepted messages by whole second since the first one."""
        if not self.accepted:
            return {}
        first = self.accepted[0].at_s
        return dict(Counter(int(message.at_s - first) for message in self.accepted))

    def _closed_by_death(self) -> list[Connection]:
        """Ends for the connections of processes that were killed: the last that was heard of each process."""
        dead = {started.stem for started in self.started if not _is_alive(started.pid)}
        left: dict[str, Connection] = {}
        for event in self.connections:
            if event.is_open:
                left[event.connection] = event
            else:
                left.pop(event.connection, None)
        ends = [
            msgspec.structs.replace(event, is_open=False, at_s=self._last_at_s[_stem(event.connection)])
            for event in left.values()
            if _stem(event.connection) in dead
        ]
        return sorted(ends, key=attrgetter("at_s"))

    def statistics(self) -> Statistics:
        """The figures of a summary."""
        span_s = self.accepted[-1].at_s - self.accepted[0].at_s if self.accepted else 0.0
        return Statistics(
            messages=len(self.accepted),
            recipients=sum(len(message.recipients) for message in self.accepted),
            recipients_distinct=len(self.recipients()),
            duplicates=len(self.duplicates()),
            unanswered=sum(message.reply == 0 for message in self.accepted),
            refused=len(self.refused),
            violations=dict(sorted(Counter(violated.what for violated in self.violations).items())),
            connections=sum(event.is_open for event in self.connections),
            connections_max=self.connections_max_seen("all"),
            messages_per_connection_max=self.messages_per_connection_max(),
            size_bytes=sum(message.size_bytes for message in self.accepted),
            seconds=round(span_s, 3),
            messages_per_second=round(len(self.accepted) / span_s, 1) if span_s > 0 else 0.0,
            messages_per_second_max=self.max_in_window(1.0, "all"),
        )


class Statistics(msgspec.Struct, frozen=True):
    """What a sink saw. ``seconds`` is from the first to the last accepted message."""

    messages: int
    recipients: int
    recipients_distinct: int
    duplicates: int
    unanswered: int
    refused: int
    violations: dict[str, int]
    connections: int
    connections_max: int
    messages_per_connection_max: int
    size_bytes: int
    seconds: float
    messages_per_second: float
    messages_per_second_max: int


def _stem(connection: str) -> str:
    return connection.rpartition(".")[0]


def _group(event: Accepted | Connection, by: By) -> str:
    if by == "path":
        return f"{event.client}>{event.local}"
    if by == "client":
        return event.client
    return event.local if by == "local" else "all"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's, so it exists
    return True
