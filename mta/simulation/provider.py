"""A modelled provider: what it takes, what it refuses and with which reply, and how long that takes.

It knows nothing of our rules. It counts by our source address what arrives, as providers do.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mta.simulation.dice import Chances, Dice, Latency
from mta.simulation.scenario import Outage, OutageKind, ProviderModel

REFUSED_S: Final = 0.02  # until it is known that nobody listens
SERVICE_CLOSING: Final = "421"  # the server ends the connection, see `mta.failure.triage`
_GRAINS: Final = 64  # a provider's window is counted in so many pieces

NOTHING: Final[tuple[tuple[str, int], ...]] = ()


class Fate:
    """What became of the messages of one batch, in order: so many delivered, then failed, deferred, never begun.

    ``failed``, ``deferred``: (reply, messages). ``ends``: the connection is lost with this cause; empty: it goes on.
    ``refused``: of them, those that exceeded a limit of the provider or met its block.
    """

    __slots__ = ("deferred", "delivered", "ends", "failed", "refused", "returned")

    def __init__(
        self,
        delivered: int,
        failed: tuple[tuple[str, int], ...],
        deferred: tuple[tuple[str, int], ...],
        returned: int,
        ends: str,
        refused: int,
    ) -> None:
        self.delivered = delivered
        self.failed = failed
        self.deferred = deferred
        self.returned = returned
        self.ends = ends
        self.refused = refused


class _Rate:
    """What arrived in the last ``span_s`` seconds."""

    __slots__ = ("_grain_s", "_pieces", "_sum", "most", "span_s")

    def __init__(self, span_s: int, most: int) -> None:
        self.span_s = span_s
        self.most = most
        self._grain_s = span_s / _GRAINS
        self._pieces: deque[list[int]] = deque()
        self._sum = 0

    def room(self, now_s: float) -> int:
        first = int((now_s - self.span_s) / self._grain_s)
        pieces = self._pieces
        while pieces and pieces[0][0] <= first:
            self._sum -= pieces.popleft()[1]
        return self.most - self._sum

    def add(self, messages: int, now_s: float) -> None:
        piece = int(now_s / self._grain_s)
        if self._pieces and self._pieces[-1][0] == piece:
            self._pieces[-1][1] += messages
        else:
            self._pieces.append([piece, messages])
        self._sum += messages


class Account:
    """What a provider has counted of one source address."""

    __slots__ = ("blocked_until_s", "blocks", "connection_rates", "open", "rates", "refusals")

    def __init__(self, model: ProviderModel) -> None:
        self.open = 0
        self.blocked_until_s = -1.0
        self.blocks = 0
        self.rates: list[_Rate] = []
        if model.messages_per_minute_max is not None:
            self.rates.append(_Rate(60, model.messages_per_minute_max))
        if model.messages_per_hour_max is not None:
            self.rates.append(_Rate(3_600, model.messages_per_hour_max))
        self.connection_rates: list[_Rate] = []
        if model.connections_per_minute_max is not None:
            self.connection_rates.append(_Rate(60, model.connections_per_minute_max))
        self.refusals: deque[tuple[float, int]] = deque()


class Provider:
    """One of the scenario. ``account`` is that of a source address (and of a site, where sites are houses apart)."""

    __slots__ = (
        "_accounts",
        "_connect",
        "_deferred",
        "_failed",
        "_grey",
        "_greylist_s",
        "_has_outages",
        "_message",
        "connections",
        "connections_most",
        "model",
        "refused",
    )

    def __init__(self, model: ProviderModel, dice: Dice) -> None:
        self.model = model
        self._greylist_s = model.greylist_s
        self._has_outages = bool(model.outages)
        self._accounts: dict[str, Account] = {}
        self._connect = Latency(model.connect_s, model.spread, dice)
        self._message = Latency(model.message_s, model.spread, dice)
        self._failed = Chances(model.failed_percent / 100.0, dice)
        self._deferred = Chances(model.deferred_percent / 100.0, dice)
        self._grey = Chances(model.greylist_percent / 100.0 if model.greylist_s > 0.0 else 0.0, dice)
        self.connections = 0
        self.connections_most = 0
        self.refused = 0

    def account(self, egress_id: int, site: str) -> Account:
        key = str(egress_id) if self.model.is_one_house else f"{egress_id} {site}"
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(self.model)
        return account

    @property
    def blocks(self) -> int:
        return sum(account.blocks for account in self._accounts.values())

    def outage(self, now_s: float) -> Outage | None:
        for outage in self.model.outages:
            if outage.from_s <= now_s < outage.from_s + outage.for_s:
                return outage
        return None

    # --- connections ----------------------------------------------------------------------------

    def connect_takes_s(self, now_s: float, timeout_s: float) -> float:
        """Until it is known whether the connection is there."""
        outage = self.outage(now_s)
        if outage is None:
            return self._connect.draw()
        return timeout_s if outage.kind is OutageKind.SILENT else REFUSED_S

    def connect(self, account: Account, now_s: float) -> str:
        """The cause when it is refused; empty when the connection is there, until `closed`."""
        if self.outage(now_s) is not None:
            return "CONNECT: no answer"
        model = self.model
        block = model.block
        if block is not None and block.at_greeting and now_s < account.blocked_until_s:
            self.refused += 1
            return f"GREETING: {block.reply}"
        is_full = model.connections_max is not None and account.open >= model.connections_max
        for rate in account.connection_rates:
            is_full = is_full or rate.room(now_s) <= 0
        if is_full:
            self.refused += 1
            self._refuse(account, 1, now_s)
            return f"GREETING: {model.connection_refusal}"
        for rate in account.connection_rates:
            rate.add(1, now_s)
        account.open += 1
        self.connections += 1
        self.connections_most = max(self.connections_most, account.open)
        return ""

    def closed(self, account: Account) -> None:
        account.open -= 1

    # --- messages -------------------------------------------------------------------------------

    def batch_takes_s(self, messages: int) -> float:
        return self._message.draw(messages)

    def take(self, account: Account, messages: int, used: int, waited_s: float, now_s: float) -> Fate:
        """``messages`` of one batch have been sent on a connection that had carried ``used`` before.

        ``waited_s``: since their first attempt; below 0: this is it.
        """
        model = self.model
        if self._has_outages and self.outage(now_s) is not None:
            return Fate(0, NOTHING, NOTHING, messages, "the connection was lost", 0)
        block = model.block
        if block is not None and now_s < account.blocked_until_s:
            return self._turn_away(messages, 0, block.reply)
        allowed = messages
        reply = model.refusal
        if model.messages_per_connection_max is not None:
            allowed = min(allowed, max(0, model.messages_per_connection_max - used))
            if allowed < messages:
                reply = "421 4.7.0 too many messages on this connection"
        for rate in account.rates:
            room = rate.room(now_s)
            if room < allowed:
                allowed, reply = max(0, room), model.refusal
        fate = self._decide(allowed, waited_s)
        for rate in account.rates:
            rate.add(allowed, now_s)
        if allowed == messages:
            return fate
        turned = self._turn_away(messages - allowed, 1, reply)
        self._refuse(account, 1 if turned.ends else messages - allowed, now_s)
        return Fate(
            fate.delivered, fate.failed, fate.deferred + turned.deferred, turned.returned, turned.ends, turned.refused
        )

    def _decide(self, messages: int, waited_s: float) -> Fate:
        """Of messages that are within the limits."""
        model = self.model
        failed = self._failed.hits(messages)
        deferred = self._deferred.hits(messages - failed)
        left = messages - failed - deferred
        grey = 0
        if left == messages and self._greylist_s <= 0.0:
            return Fate(messages, NOTHING, NOTHING, 0, "", 0)
        if self._greylist_s > 0.0 and waited_s < self._greylist_s:
            # Who is known to be grey is refused again; before the first attempt nobody is.
            grey = self._grey.hits(left) if waited_s < 0.0 else left
        whys: list[tuple[str, int]] = []
        if deferred:
            whys.append((model.deferred_reply, deferred))
        if grey:
            whys.append((model.greylist_reply, grey))
        return Fate(left - grey, ((model.failed_reply, failed),) if failed else NOTHING, tuple(whys), 0, "", 0)

    def _turn_away(self, messages: int, at_least: int, reply: str) -> Fate:
        """A 421 before the content speaks of the connection, any other reply of each message (`mta.failure.triage`)."""
        if reply.startswith(SERVICE_CLOSING):
            self.refused += max(1, at_least)
            return Fate(0, NOTHING, NOTHING, messages, f"MAIL: {reply}", 1)
        self.refused += messages
        if reply.startswith("5"):
            return Fate(0, ((reply, messages),), NOTHING, 0, "", messages)
        return Fate(0, NOTHING, ((reply, messages),), 0, "", messages)

    def _refuse(self, account: Account, messages: int, now_s: float) -> None:
        """A limit was exceeded: counted, and the block begins when that was too often."""
        block = self.model.block
        if block is None:
            return
        refusals = account.refusals
        refusals.append((now_s, messages))
        while refusals and refusals[0][0] <= now_s - block.within_s:
            refusals.popleft()
        if sum(count for _, count in refusals) >= block.refusals and now_s >= account.blocked_until_s:
            account.blocked_until_s = now_s + block.for_s
            account.blocks += 1
            refusals.clear()
