"""Shares of limits in a modelled world: the real ledger and the real side of a node, over a book in memory in the place
of the database (`mta.queue.shares`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from mta.traffic.holdings import Ask, Holdings, Scheduler
from mta.traffic.ledger import (
    DEAD_MARGIN_S,
    TURN_S,
    Granted,
    LimitKind,
    Peer,
    Standing,
    common_of,
    grant,
    is_open,
    span_s,
)


class Member:
    """A node as the book has it."""

    __slots__ = ("bound_ids", "died_s", "egress_ids", "shares")

    def __init__(self) -> None:
        self.egress_ids: frozenset[int] = frozenset()
        self.bound_ids: frozenset[int] | None = None
        self.died_s: float | None = None
        self.shares: dict[LimitKind, Standing] = {}


class Book:
    """What all nodes have. One clock, the book's own, says who is alive."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def exchange(
        self, name: str, egress_ids: frozenset[int], bound_ids: frozenset[int] | None, asks: Sequence[Ask], now_s: float
    ) -> tuple[frozenset[int] | None, dict[LimitKind, Granted]]:
        """As `mta.queue.shares.exchange`: (common egresses; None when it is alone, what it has by limit and kind)."""
        me = self._members.setdefault(name, Member())
        me.egress_ids, me.bound_ids, me.died_s = egress_ids, bound_ids, None
        others = self._others(name, now_s)
        if not others:
            me.bound_ids = None
            me.shares.clear()
            return None, {}
        peers = [Peer(other, one.egress_ids, one.bound_ids, one.died_s is None) for other, one in others.items()]
        common = common_of(egress_ids, peers)
        if bound_ids is None:
            return common, {}
        me.bound_ids = bound_ids & common
        turn = int(now_s // TURN_S)
        granted: dict[LimitKind, Granted] = {}
        for held, keeps in asks:
            at = (held.key, held.kind)
            if is_open(held.key, peers):
                standings = [
                    one.shares[at]._replace(is_living=one.died_s is None) for one in others.values() if at in one.shares
                ]
                me_here = Standing(name, keeps, held.most, held.wanted, least=held.least)
                granted[at] = grant(me_here, standings, turn)
            else:
                granted[at] = Granted(keeps, keeps)
        me.shares = {
            (held.key, held.kind): Standing(
                name, granted[held.key, held.kind].share, held.most, held.wanted, least=held.least
            )
            for held, _ in asks
        }
        return common, granted

    def _others(self, name: str, now_s: float) -> dict[str, Member]:
        """Those that live, and the dead of which something may still be in a window."""
        found = {}
        for other, member in self._members.items():
            if member.died_s is not None:
                dead_s = now_s - member.died_s
                for at in [at for at in member.shares if dead_s > DEAD_MARGIN_S + span_s(at[1])]:
                    del member.shares[at]
                if not member.shares:
                    continue
            if other != name:
                found[other] = member
        return found

    def die(self, name: str, used: Mapping[LimitKind, int], now_s: float) -> None:
        """Its lease is over. ``used``: by its counters; those are its shares where it was alone."""
        member = self._members[name]
        member.died_s = now_s
        if member.bound_ids is None or not member.egress_ids <= member.bound_ids:
            member.bound_ids = member.egress_ids
            for at, amount in used.items():
                member.shares.setdefault(at, Standing(name, amount, amount, 0))

    def shares(self, at: LimitKind) -> dict[str, int]:
        """What nodes have of a limit."""
        return {name: member.shares[at].share for name, member in self._members.items() if at in member.shares}


class Partner:
    """A node that shares limits with others of its world. Until its first exchange it has nothing."""

    def __init__(self, book: Book, name: str, egress_ids: Collection[int], schedule: Scheduler, clock_s: float) -> None:
        self._book: Final = book
        self._name: Final = name
        self._egress_ids: Final = frozenset(egress_ids)
        self.holdings: Final = Holdings(schedule, self._egress_ids, clock_s)

    def exchange(self, now_s: float, clock_s: float, *, is_answered: bool = True) -> None:
        """``now_s`` is the book's clock, ``clock_s`` the schedule's. Not ``is_answered``: the answer is lost."""
        while True:
            asks = self.holdings.tell(clock_s)
            common, granted = self._book.exchange(self._name, self._egress_ids, self.holdings.bound_ids, asks, now_s)
            if not is_answered or not self.holdings.take(common, granted, clock_s):
                return
