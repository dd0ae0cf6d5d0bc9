"""Frames between master and child: MessagePack by msgspec, each with its length in front."""

from __future__ import annotations

import struct

import msgspec

from mta.failure.judge import Amended, amended
from mta.failure.qualify import BounceRule, Qualifier
from mta.failure.scope import Rest, Scope
from mta.model.errors import LocalFault
from mta.model.failure import Category, FailureType
from mta.model.host import HostFact
from mta.model.limits import FRAME_BYTES_MAX
from mta.model.machine_fault import SystemCall
from mta.model.outcome import Reason, Status
from mta.model.timeouts import SessionTimeouts

# --- master to child ---------------------------------------------------------------------------


class ChildOptions(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The first frame: who the child is. ``journal_dir`` is where its journal segments go.

    ``ca_file``: certificates of the authorities that it is to trust; empty: those of the system.
    """

    node_id: int
    child: int
    journal_dir: str
    segment_bytes_max: int  # of its journal
    verp_key: bytes
    lease_until_s: float  # CLOCK_MONOTONIC, which all processes of a machine share
    ca_file: str = ""


class Template(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The content of a delivery, sent once before its first batch. ``content`` is its stored JSON.

    ``is_simulated``: its messages are made and its recipients asked for, and nothing of it is sent.
    """

    delivery_id: int
    content: bytes
    is_simulated: bool = False


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """No batch of this delivery will come without its template being sent anew."""

    delivery_id: int


class Open(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Open this session. Answered by Opened or OpenFailed, and at its end by SessionClosed."""

    session: int
    site: str
    mx_host: str
    peer: str
    port: int
    egress: str
    limit: str  # the key of the limit that counts its attempts
    source: str | None
    helo: str
    tls: str
    pipelining: bool
    chunking: bool
    recipients_per_transaction_max: int  # of simulated deliveries
    timeouts: SessionTimeouts
    automations: tuple[int, ...] = ()  # of the last Patterns: those of the session's rule
    authorities: tuple[tuple[int, int, int, bytes], ...] = ()  # TLSA records of the host (RFC 6698), where they hold
    pipelines_behind_end: bool = True  # the next envelope may go out with the end of a message
    resets_max: int = 8  # RSET in a row, with no message between; then a new session


class BatchPart(msgspec.Struct, frozen=True, array_like=True):
    """The recipients of one part within a batch; positions and numbers are parallel, as are the batch's rows."""

    part_id: int
    attempt: int  # of this attempt: 1 is the first
    dated_unix_s: int  # of the Date header, and of signatures
    positions: list[int]
    numbers: list[int]


class Batch(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Recipients of one delivery for one session, in the order in which they are to be sent.

    ``rows`` is JSON: ``[[address, reference or null, [value, ...]], ...]``, the rows of all ``parts`` in order.
    """

    batch: int
    session: int
    delivery_id: int
    fields: tuple[str, ...]
    parts: list[BatchPart]
    rows: bytes
    is_rerouted: bool = False  # another path has refused these recipients in this attempt


class Close(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Send what the session was given, then end it with QUIT. ``gives_back``: send only what is begun."""

    session: int
    gives_back: bool = False


class Recall(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Give back, as not attempted, all that is not begun: of one delivery, or (None) of all."""

    delivery_id: int | None


class Lease(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The node's lease is certain until then (CLOCK_MONOTONIC); no body is begun after it."""

    until_s: float


class Committed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """All reports up to this sequence number are in the database: their journal may go, or is kept.

    ``settlement``: that with which the last of them was recorded; 0: journals are not kept.
    """

    sequence: int
    settlement: int = 0


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Give back what is not begun, finish the rest, close all sessions and exit."""


class SigningKey(msgspec.Struct, frozen=True, array_like=True):
    """A signature of the messages of a sender domain. ``pem`` empty: there is to be one, and its key cannot be used."""

    domain: str
    has_subdomains: bool
    d: str
    selector: str
    pem: bytes

    def __repr__(self) -> str:
        return f"<SigningKey {self.selector}._domainkey.{self.d} for {self.domain}>"


class SigningKeys(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """All keys there are, before the first template and after each change; they hold for all that is not rendered.

    ``is_required``: a sender domain that has none must not be sent unsigned.
    """

    is_required: bool
    keys: list[SigningKey]


class Pattern(msgspec.Struct, frozen=True, array_like=True):
    """Replies that an automation waits for; as `mta.traffic.automations.ReplyMatch`."""

    codes: tuple[str, ...]
    enhanced: tuple[str, ...]
    pattern: str
    stages: tuple[str, ...]
    is_by_delivery: bool = False  # matches are told of for each delivery
    is_by_domain: bool = False  # and for each recipient domain


class Patterns(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """All that automations wait for, by their number (their place in the list); replaces what was sent before."""

    version: int  # matches that are reported under another are of no use any more
    patterns: list[Pattern]
    sessions: list[tuple[int, tuple[int, ...]]] = []  # that are open already: as Open.automations, anew


class QualifiedText(msgspec.Struct, frozen=True, array_like=True):
    """What an operator said of one text. ``key``: `mta.failure.normalise.text_key`."""

    key: bytes
    type: FailureType
    reason: Reason
    category: Category


class BounceRules(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """What failures mean, from now on."""

    rules: list[BounceRule]
    texts: list[QualifiedText]

    def qualifier(self) -> Amended:
        return amended(Qualifier(self.rules), self.texts)


MasterFrame = (
    ChildOptions
    | Template
    | Forget
    | Open
    | Batch
    | Close
    | Recall
    | Lease
    | Committed
    | Drain
    | SigningKeys
    | Patterns
    | BounceRules
)

# --- child to master ---------------------------------------------------------------------------


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=1):
    session: int
    is_tls: bool


class OpenFailed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The session could not be set up; its batches have been given back by a Report before."""

    session: int
    stage: str
    code: int  # of the reply that refused it, 0 when there was none
    cause: str
    enhanced: str = ""  # of that reply
    text: str = ""  # of that reply, or what happened where there was none
    errno: int = 0  # of this machine's own error, where it is one: no server has said or done anything
    call: SystemCall = SystemCall.CONNECT  # then: what gave it


class SessionClosed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The server has seen the end of this session (or the link is gone); it no longer counts."""

    session: int
    cause: str  # empty: in good order


class Outcome(msgspec.Struct, array_like=True):
    """What became of positions of one part in one batch. Positions in none of the lists are still out.

    Bytes are those of messages as they were sent: 0 for one of which no content was written.
    """

    batch: int
    part_id: int
    limit: str = ""  # the key of the limit that counts its attempts
    delivered: list[int] = []
    failed: list[int] = []
    deferred: list[int] = []
    in_doubt: list[int] = []
    returned: list[int] = []  # not attempted: no log line, no attempt counted
    simulated: list[int] = []
    size_bytes: int = 0  # of the messages that were attempted, together
    largest_bytes: int = 0  # the largest of them, written or not
    delivered_bytes: int = 0  # of those delivered, together
    greylisted: list[int] = []  # of those deferred, by a reply that says so of itself
    put_off: list[int] = []  # of those deferred, by a 4yz of any words: the host may be greylisting
    excused: list[int] = []  # of those failed or deferred: a limit of the host explains it


class PathRefused(msgspec.Struct, frozen=True, array_like=True):
    """A reply in a session that is about its path and not about the recipients that met it (`mta.failure.scope`).

    They are among those that the same report returns: not attempted, without a line in the log. ``status`` is that of
    a recipient which is not offered to another path after all; ``judged``: type and category as the log holds them.
    """

    session: int
    scope: Scope
    rest: Rest
    stage: str
    code: int
    enhanced: str
    text: str
    status: Status
    reason: Reason
    judged: str
    met: list[tuple[int, int]]  # part, position


class Matched(msgspec.Struct, frozen=True, array_like=True):
    """Replies in a session that an automation of its rule waits for."""

    session: int
    automation: int
    delivery_id: int  # 0: of any, as the pattern asks for
    domain: str  # of the recipients; empty: of any
    replies: int
    sample: str  # the first of them, as the log has it: code, enhanced code, text


class Report(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Outcomes, with their lines for the log in COPY text format.

    ``doubts`` gives for each position in doubt (in the order of outcomes and positions) MX host, peer and cause.
    """

    sequence: int
    outcomes: list[Outcome]
    lines: bytes
    doubts: list[tuple[int, int, str, str, str]] = []  # part, position, MX host, peer, cause
    matched: list[Matched] = []
    patterns_version: int = 0  # of the Patterns that ``matched`` goes by
    refusals: list[PathRefused] = []


class Health(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Once a second. CPU in seconds since the start; memory in bytes."""

    rss_bytes: int
    cpu_s: float
    messages: int
    sessions: int
    bytes_sent: int


class JournalState(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The journal cannot be written (text says why), or can again (empty)."""

    trouble: str


class HostObserved(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What the host of a session was seen to do, to be remembered of it (`mta.model.host`)."""

    session: int
    fact: HostFact
    value: int
    cause: str  # what it did, in words, for operators


class Failing(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """An exception in the child's own code: it opens and sends nothing more, and waits for replies that are owed.

    It is to be drained and replaced. What it reports is right.
    """

    cause: str


ChildFrame = Opened | OpenFailed | SessionClosed | Report | Health | JournalState | HostObserved | Failing

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_master_decoder: msgspec.msgpack.Decoder[MasterFrame] = msgspec.msgpack.Decoder(MasterFrame)
_child_decoder: msgspec.msgpack.Decoder[ChildFrame] = msgspec.msgpack.Decoder(ChildFrame)


def encode_frame(frame: MasterFrame | ChildFrame) -> bytes:
    """The frame as bytes, its length in front."""
    body = _encoder.encode(frame)
    if len(body) > FRAME_BYTES_MAX:
        raise LocalFault(f"{type(frame).__name__} of {len(body)} bytes is over the bound of {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def decode_master_frame(body: bytes) -> MasterFrame:
    return _master_decoder.decode(body)


def decode_child_frame(body: bytes) -> ChildFrame:
    return _child_decoder.decode(body)


class FrameSplitter:
    """Cuts a byte stream into frame bodies. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies completed by ``data``, in order."""
        pending = self._pending
        pending += data
        bodies = []
        start, end = 0, len(pending)
        while end - start >= 4:
            (size,) = _LENGTH.unpack_from(pending, start)
            if size > FRAME_BYTES_MAX:
                raise LocalFault(f"a frame announces {size} bytes, over the bound of {FRAME_BYTES_MAX}")
            if end - start - 4 < size:
                break
            bodies.append(bytes(pending[start + 4 : start + 4 + size]))
            start += 4 + size
        if start:
            del pending[:start]
        return bodies
