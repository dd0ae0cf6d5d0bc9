"""A node's side of sharing limits: what it holds, what it tells of it, and what it makes of the answer.

A share is lowered here first and told of then; what is granted holds when the answer is there. What was told counts
even where no answer comes, for it may have been recorded. So what is recorded of this node is never less than what it
goes by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple, Protocol

from mta.traffic.ledger import Granted, LimitKind, is_counted_on
from mta.traffic.limit import Held


class Scheduler(Protocol):
    """What of `mta.traffic.schedule.Schedule` has to do with shares."""

    def shares_wanted(self, now_s: float) -> list[Held]: ...

    def set_shares(
        self, shares: Mapping[LimitKind, int] | None, now_s: float, common_egresses: Collection[int] = ()
    ) -> None: ...


class Ask(NamedTuple):
    """A limit that a node tells of. ``keeps``: the share that it goes by until the answer, and no less than is held."""

    held: Held
    keeps: int


class Holdings:
    """Before the first answer nothing that could be shared may be used.

    ``bound_ids``: the egresses of which this node keeps to its shares; None: it is alone and may use all of everything.
    """

    def __init__(self, schedule: Scheduler, egress_ids: Collection[int], now_s: float) -> None:
        self._schedule: Final = schedule
        self._shares: dict[LimitKind, int] = {}  # what is recorded of this node is no less
        self._targets: dict[LimitKind, int] = {}
        self.bound_ids: frozenset[int] | None = frozenset(egress_ids)
        schedule.set_shares({}, now_s, self.bound_ids)

    def tell(self, now_s: float) -> list[Ask]:
        """Each limit with what this node goes by from now on: of its share no more than it wants, and than others leave
        it. What is used already or in flight above that is kept until it is over, and nothing more begun."""
        if self.bound_ids is None:
            return []
        asks = []
        goes_by: dict[LimitKind, int] = {}
        shares: dict[LimitKind, int] = {}
        for held in self._schedule.shares_wanted(now_s):
            at = (held.key, held.kind)
            share = self._shares.get(at, 0)
            goes_by[at] = min(share, held.wanted, self._targets.get(at, share))
            shares[at] = max(held.held, goes_by[at])
            asks.append(Ask(held, shares[at]))
        self._shares = shares
        self._schedule.set_shares(goes_by, now_s, self.bound_ids)
        return asks

    def take(self, common: Collection[int] | None, granted: Mapping[LimitKind, Granted], now_s: float) -> bool:
        """The answer. ``common``: the egresses that other nodes use too; None: there are no others.

        True: others share more than this node knew. It keeps to what it holds there from now on, and must tell so at
        once.
        """
        if common is None:
            self.bound_ids, self._shares, self._targets = None, {}, {}
            self._schedule.set_shares(None, now_s)
            return False
        before, self.bound_ids = self.bound_ids, frozenset(common)
        self._shares = {at: given.share for at, given in granted.items()}
        self._targets = {at: given.target for at, given in granted.items()}
        is_new = before is None or not self.bound_ids <= before
        if is_new:
            self._bind(before, now_s)
        goes_by = {at: min(share, self._targets.get(at, share)) for at, share in self._shares.items()}
        self._schedule.set_shares(goes_by, now_s, self.bound_ids)
        return is_new

    def _bind(self, before: Collection[int] | None, now_s: float) -> None:
        """Where it was alone until now, its share is what it holds. Nothing runs in between."""
        self._schedule.set_shares(None, now_s, self.bound_ids or ())
        for held in self._schedule.shares_wanted(now_s):
            if before is None or not is_counted_on(held.key, before):
                self._shares[held.key, held.kind] = held.held
