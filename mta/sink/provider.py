"""A mailbox provider with limits of its own, which refuses whoever exceeds them and remembers it.

Pure: it is handed the time of each event (monotonic seconds, never going back) and decides at once.
The limits of a client hold for its address, or for its address and ours together (``scope``).
An attempt beyond a limit is a *violation*; greylisting and the block that follows a violation
refuse too, but only the attempt that exceeds is counted, and so is each connection that ignores a block.

Limits come from a TOML file; what is absent or 0 is not enforced::

    scope = "client"                    # or "path": client address and local address
    connections_max = 10                # open at the same time
    connections_reply = "451 busy"      # to each MAIL of one too many, which stays open; else 421 at once, and the end
    messages_per_connection_max = 20    # accepted on one connection
    messages_reply = "452 4.4.5 full"   # to each further MAIL on it, which stays open; else 421, and the end
    reply_at = "data"                   # where these two come: "mail", "rcpt" or "data"; "connect" ends it at once
    messages_per_period_max = 1000      # accepted in any period_s seconds
    period_s = 3600
    recipients_per_message_max = 100
    greylist_s = 300                    # first try of (client, sender, recipient): 451; welcome after so long
    greylist_reply = "451 4.7.1 try again later"   # what it says then
    greylist_bits = 24                  # of an IPv4 client's address that count: its network; 32 is the address
    block_s = 60                        # after a violation: 421 to everything for so long
"""

from __future__ import annotations

import enum
import ipaddress
import re
import tomllib
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Final, Literal

import msgspec

from mta.model.errors import BadInput, LocalFault

GREYLIST_ENTRIES_MAX: Final = 1_000_000  # the oldest leave first
_REPLY: Final = re.compile(r"[45][0-9]{2} .{1,500}")
_GREYLIST_REPLY: Final = re.compile(r"4[0-5][0-9] [ -~]{1,400}")
CLIENTS_MAX: Final = 100_000  # clients without an open connection leave first


class Violation(enum.StrEnum):
    """A limit that a client did not keep."""

    CONNECTIONS = "connections"
    MESSAGES_PER_CONNECTION = "messages-per-connection"
    MESSAGES_PER_PERIOD = "messages-per-period"
    RECIPIENTS_PER_MESSAGE = "recipients-per-message"
    BLOCK_IGNORED = "block-ignored"


class ProviderLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of a provider file; 0 does not limit."""

    scope: Literal["client", "path"] = "client"
    connections_max: int = 0
    connections_reply: str = ""
    messages_per_connection_max: int = 0
    messages_reply: str = ""
    reply_at: Literal["connect", "mail", "rcpt", "data"] = "mail"
    messages_per_period_max: int = 0
    period_s: float = 3600.0
    recipients_per_message_max: int = 0
    greylist_s: float = 0.0
    greylist_reply: str = "451 4.7.1 greylisted, try again later"
    greylist_bits: int = 32
    block_s: float = 0.0


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """What the provider answers instead of yes. ``violation`` is None for greylisting."""

    reply: str
    closes: bool
    violation: Violation | None


class _Client:
    __slots__ = ("accepted_at", "blocked_until", "open")

    def __init__(self) -> None:
        self.open = 0
        self.accepted_at: deque[float] = deque()  # of the last period
        self.blocked_until = float("-inf")


class _Connection:
    __slots__ = ("address", "client", "is_surplus", "messages", "recipients", "sender")

    def __init__(self, client: _Client, address: str) -> None:
        self.client = client
        self.address = address
        self.is_surplus = False  # one more than the client may have
        self.messages = 0
        self.recipients = 0
        self.sender = ""


class Provider:
    """Decides for every connection of a sink. Each method is O(1), amortised.

    ``connect`` must come first for a connection id, ``closed`` last, whatever the answers were.
    """

    def __init__(self, limits: ProviderLimits) -> None:
        self._limits = limits
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._connections: dict[str, _Connection] = {}
        self._first_tries: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.violations: Counter[Violation] = Counter()

    def connect(self, connection: str, client_address: str, local_address: str, now: float) -> Refusal | None:
        """A connection was opened; ``connection`` names it from here on."""
        if connection in self._connections:
            raise LocalFault(f"connection {connection} is open already")
        key = client_address if self._limits.scope == "client" else f"{client_address}>{local_address}"
        client = self._client(key)
        self._connections[connection] = _Connection(client, client_address)
        client.open += 1
        if now < client.blocked_until:
            self.violations[Violation.BLOCK_IGNORED] += 1
            return _block(Violation.BLOCK_IGNORED)
        limit = self._limits.connections_max
        if limit and client.open > limit:
            reply = self._limits.connections_reply
            if reply and self._limits.reply_at != "connect":
                self._connections[connection].is_surplus = True
                return None
            reply = reply or "421 4.7.0 too many connections from you"
            return self._violated(client, Violation.CONNECTIONS, now, reply)
        return None

    def mail(self, connection: str, sender: str, now: float) -> Refusal | None:
        """MAIL: may this connection send one more message?"""
        state = self._connections[connection]
        state.sender, state.recipients = sender, 0
        if now < state.client.blocked_until:
            return _block(None)
        if self._is_full(state) and not self._limits.messages_reply:
            text = "421 4.7.0 too many messages on this connection"
            return self._violated(state.client, Violation.MESSAGES_PER_CONNECTION, now, text)
        return self._refused_at("mail", state, now) or self._check_period(state.client, now)

    def rcpt(self, connection: str, recipient: str, now: float) -> Refusal | None:
        """RCPT: one more recipient for the current message?"""
        state = self._connections[connection]
        refusal = self._refused_at("rcpt", state, now)
        if refusal is not None:
            return refusal
        limit = self._limits.recipients_per_message_max
        if limit and state.recipients >= limit:
            self.violations[Violation.RECIPIENTS_PER_MESSAGE] += 1
            # 452 asks for another transaction with the rest (RFC 5321 §4.5.3.1.10): no block.
            return Refusal("452 4.5.3 too many recipients", False, Violation.RECIPIENTS_PER_MESSAGE)
        if self._limits.greylist_s and self._is_grey(state.address, state.sender, recipient, now):
            return Refusal(self._limits.greylist_reply, False, None)
        state.recipients += 1
        return None

    def data(self, connection: str, now: float) -> Refusal | None:
        """DATA: may the content come?"""
        return self._refused_at("data", self._connections[connection], now)

    def dot(self, connection: str, now: float) -> Refusal | None:
        """The final dot: None counts the message as accepted."""
        state = self._connections[connection]
        if now < state.client.blocked_until:
            return _block(None)
        refusal = self._check_period(state.client, now)
        if refusal is not None:
            return refusal
        state.messages += 1
        if self._limits.messages_per_period_max:
            state.client.accepted_at.append(now)
        return None

    def closed(self, connection: str) -> None:
        """The connection is gone, by whoever's will."""
        self._connections.pop(connection).client.open -= 1

    def _is_full(self, state: _Connection) -> bool:
        limit = self._limits.messages_per_connection_max
        return limit > 0 and state.messages >= limit

    def _refused_at(self, step: str, state: _Connection, now: float) -> Refusal | None:
        """The replies of the file, at the step that it names; the connection stays open."""
        if step != self._limits.reply_at:
            return None
        if state.is_surplus:
            reply = self._limits.connections_reply
            return self._violated(state.client, Violation.CONNECTIONS, now, reply, closes=False)
        if self._is_full(state):
            reply = self._limits.messages_reply
            return self._violated(state.client, Violation.MESSAGES_PER_CONNECTION, now, reply, closes=False)
        return None

    def _client(self, key: str) -> _Client:
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _Client()
            if len(self._clients) > CLIENTS_MAX:
                self._forget_idle()
        return client

    def _forget_idle(self) -> None:
        """Drops the oldest tenth of the idle clients; a client with an open connection always stays."""
        idle = [key for key, client in self._clients.items() if client.open == 0]
        for key in idle[: max(1, CLIENTS_MAX // 10)]:
            del self._clients[key]

    def _check_period(self, client: _Client, now: float) -> Refusal | None:
        limit = self._limits.messages_per_period_max
        if not limit:
            return None
        times = client.accepted_at
        horizon = now - self._limits.period_s
        while times and times[0] <= horizon:
            times.popleft()
        if len(times) < limit:
            return None
        return self._violated(client, Violation.MESSAGES_PER_PERIOD, now, "421 4.7.28 too many messages, slow down")

    def _is_grey(self, address: str, sender: str, recipient: str, now: float) -> bool:
        key = (self._network(address), sender, recipient.lower())
        first = self._first_tries.setdefault(key, now)
        if len(self._first_tries) > GREYLIST_ENTRIES_MAX:
            self._first_tries.popitem(last=False)
        return now - first < self._limits.greylist_s

    def _network(self, address: str) -> str:
        bits = self._limits.greylist_bits
        if bits == 32 or ":" in address:
            return address
        return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))

    def _violated(
        self, client: _Client, violation: Violation, now: float, reply: str, *, closes: bool = True
    ) -> Refusal:
        self.violations[violation] += 1
        if self._limits.block_s:
            client.blocked_until = max(client.blocked_until, now + self._limits.block_s)
        return Refusal(reply, closes, violation)


def _block(violation: Violation | None) -> Refusal:
    return Refusal("421 4.7.0 you are blocked for a while", True, violation)


def read_provider(path: Path) -> ProviderLimits:
    """Reads and checks a provider file; BadInput names the file and the key."""
    try:
        limits = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ProviderLimits)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BadInput(str(path), str(error)) from error
    for key in ProviderLimits.__struct_fields__:
        value = getattr(limits, key)
        if not isinstance(value, str) and not 0 <= value <= 1e9:
            raise BadInput(f"{path}: {key}", f"{value} is not within 0 and 1000000000")
    for key in ("connections_reply", "messages_reply"):
        reply = getattr(limits, key)
        if reply and not (_REPLY.fullmatch(reply) and reply.isascii() and reply.isprintable()):
            raise BadInput(f"{path}: {key}", f"{reply!a} is no refusal in one line, such as '452 4.4.5 no more here'")
    if limits.reply_at == "connect" and limits.messages_reply:
        raise BadInput(f"{path}: messages_reply", "nobody has sent a message at connect")
    if not _GREYLIST_REPLY.fullmatch(limits.greylist_reply):
        raise BadInput(f"{path}: greylist_reply", f"{limits.greylist_reply!a} is no reply 4yz of one line")
    if not 8 <= limits.greylist_bits <= 32:
        raise BadInput(f"{path}: greylist_bits", f"{limits.greylist_bits} is not within 8 and 32")
    if limits.messages_per_period_max and not limits.period_s:
        raise BadInput(f"{path}: period_s", "must be above 0 when messages_per_period_max is set")
    return limits
