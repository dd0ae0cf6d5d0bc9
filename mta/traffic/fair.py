"""Weighted fair order between deliveries: worst-case fair queueing (Bennett & Zhang 1996, WF2Q+).

Each delivery has a virtual start: the service it has had, divided by its weight. System virtual time
runs at service / (sum of weights). A delivery is *eligible* when its start is not ahead of virtual
time; among the eligible, the one goes whose next quantum would end first. So

* shares are proportional to weights, and no delivery is ever more than about a quantum ahead or behind;
* a newcomer starts at the current virtual time: it brings no credit saved while it was away, and
  one of great weight goes next, however many of small weight are waiting;
* a delivery of the smallest weight still goes, even under an endless stream of newcomers.

Plain stride scheduling (least virtual time first) keeps the first promise but not both others: its ties
must go by age, and a newcomer waits behind a thousand equals, or by weight, and somebody starves.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Generic, TypeVar

K = TypeVar("K")

PRIORITY_MAX: Final = 4
# The length that a delivery is assumed to take next. It need not be right; it should be the size of a batch.
DEFAULT_QUANTUM: Final = 50
_ACCOUNTS_CHECKED_MIN: Final = 256  # entries at which those that nobody needs any more are dropped


def effective_weight(priority: int, weight: int) -> int:
    """``weight * 8**priority``, for priority 0..4 (2 is normal) and weight 1..1000.

    A transactional delivery of priority 4 gets 4096 messages for each of a bulk delivery of priority 0
    while both have mail for the same place; the bulk delivery still gets its one.
    """
    if not 0 <= priority <= PRIORITY_MAX or weight < 1:
        raise ValueError(f"priority {priority} is not in 0..{PRIORITY_MAX}, or weight {weight} is below 1")
    return weight << (3 * priority)


URGENCY_MAX: Final = 64  # two priorities


def urgency(begins_s: float, deadline_s: float | None, now_s: float) -> int:
    """By how much a delivery's weight grows as its deadline nears: twice each time that half of the time left is gone.

    1 during the first half of the time from ``begins_s`` to the deadline, 2 until three quarters of it are gone, and so
    on up to 64, which also holds afterwards: what is late is not given up. Without a deadline it is 1.
    """
    if deadline_s is None:
        return 1
    whole_s, left_s = deadline_s - begins_s, deadline_s - now_s
    if left_s <= 0 or whole_s <= 0:
        return URGENCY_MAX
    return min(URGENCY_MAX, 1 << max(0, math.ceil(math.log2(whole_s / left_s)) - 1)) if left_s < whole_s else 1


class _Flow(Generic[K]):
    __slots__ = ("key", "start", "version", "weight")

    def __init__(self, key: K, weight: float, start: float) -> None:
        self.key = key
        self.weight = weight
        self.start = start
        self.version = 0  # of its one living heap entry; 0 is never pushed


# (tag, tie-breaking number, version, flow). An entry is stale when the flow has another version.
_Entry = tuple[float, int, int, _Flow[K]]


class FairQueue(Generic[K]):
    """Keys that have something to send, each with a weight. ``pick`` and ``charge`` are O(log n).

    The owner adds a key when it gets something to send and removes it when it has nothing; a key that
    comes back at once finds its account as it left it.
    """

    __slots__ = (
        "_accounts",
        "_accounts_checked_at",
        "_eligible",
        "_flows",
        "_number",
        "_virtual",
        "_waiting",
        "_weights",
        "quantum",
    )

    def __init__(self, quantum: int = DEFAULT_QUANTUM) -> None:
        self.quantum = quantum
        self._flows: dict[K, _Flow[K]] = {}
        self._waiting: list[_Entry[K]] = []  # by virtual start
        self._eligible: list[_Entry[K]] = []  # by virtual finish
        self._virtual = 0.0
        self._weights = 0.0  # sum over _flows, always
        self._number = 0
        # Of keys that left: their start, and the virtual time until which it is kept.
        self._accounts: dict[K, tuple[float, float]] = {}
        self._accounts_checked_at = _ACCOUNTS_CHECKED_MIN

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, key: K) -> bool:
        return key in self._flows

    def add(self, key: K, weight: float) -> None:
        """Enters a key, or changes the weight of one that is here."""
        if not 0 < weight < math.inf:
            raise ValueError(f"a weight is a finite number above 0, not {weight}")
        flow = self._flows.get(key)
        if flow is None:
            start, kept_until = self._accounts.pop(key, (0.0, -1.0))
            if kept_until < self._virtual:
                start = self._virtual
            flow = self._flows[key] = _Flow(key, weight, start)
        elif flow.weight == weight:
            return
        else:
            self._weights -= flow.weight
            flow.weight = weight
        self._weights += weight
        self._push(flow)

    def remove(self, key: K) -> None:
        """Takes a key out; nothing happens when it is not here."""
        flow = self._flows.pop(key, None)
        if flow is None:
            return
        # Taken off an empty table, so that what floats lose in adding up can never pile up.
        self._weights = self._weights - flow.weight if self._flows else 0.0
        flow.version = -1
        # Ahead, it must not lose its debt by leaving; behind, it must not lose what it is owed, as long as it would
        # be back for its next quantum. So whoever comes and goes is never better off than who stays, nor much worse.
        kept_until = max(flow.start, self._virtual + self.quantum / flow.weight)
        self._accounts[key] = (flow.start, kept_until)
        if len(self._accounts) > self._accounts_checked_at:
            self._accounts = {key: kept for key, kept in self._accounts.items() if kept[1] >= self._virtual}
            self._accounts_checked_at = _ACCOUNTS_CHECKED_MIN + 2 * len(self._accounts)

    def charge(self, key: K, n: int) -> None:
        """Books ``n`` messages for a key that is here."""
        flow = self._flows[key]
        flow.start += n / flow.weight
        self._virtual += n / self._weights
        self._push(flow)

    def pick(self) -> K | None:
        """Whose turn it is; None when nobody is here. Asking changes no account: without a charge the answer stays."""
        while self._flows:
            while self._waiting:
                start, _, version, flow = self._waiting[0]
                if flow.version != version:
                    heapq.heappop(self._waiting)
                elif start <= self._virtual:
                    heapq.heappop(self._waiting)
                    finish = start + self.quantum / flow.weight
                    heapq.heappush(self._eligible, (finish, self._next_number(), version, flow))
                else:
                    break
            while self._eligible:
                _, _, version, flow = self._eligible[0]
                if flow.version == version:
                    return flow.key
                heapq.heappop(self._eligible)
            # All are ahead of virtual time: it jumps to the first of them.
            self._virtual = self._waiting[0][0]
        return None

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _push(self, flow: _Flow[K]) -> None:
        number = self._next_number()
        flow.version = number
        heapq.heappush(self._waiting, (flow.start, number, number, flow))
        if len(self._waiting) + len(self._eligible) > 64 + 4 * len(self._flows):
            self._compact()

    def _compact(self) -> None:
        """Drops stale entries; called so seldom that it costs O(1) a push."""
        for heap in (self._waiting, self._eligible):
            heap[:] = [entry for entry in heap if entry[3].version == entry[2]]
            heapq.heapify(heap)
