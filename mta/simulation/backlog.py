"""The queue outside the memory of nodes: counts of recipients, by when they are due.

As in the database, what is claimed first is what is due first: a delivery's fresh recipients as they were appended,
well mixed; then what came back, surplus and deferrals, each of one site. Recipients of one site that come back at
about the same time are one entry, so the memory needed goes with sites and not with recipients.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

from mta.model.site import Site
from mta.simulation.dice import Dice
from mta.simulation.provider import Provider
from mta.simulation.scenario import DeliveryModel
from mta.simulation.tally import Row
from mta.traffic.egress import EgressChooser
from mta.traffic.fair import FairQueue, effective_weight
from mta.traffic.ready import Stream

APPENDS_MAX: Final = 96  # a delivery that is appended over time comes in so many pieces
_DUE_STEP_S: Final = 1.0  # what comes back is due at whole steps
_DUE_STEPS_MAX: Final = 200  # of a long wait: its steps are longer


class Place:
    """One site of a provider, as the world knows it. ``rules`` look at ``domain``."""

    __slots__ = ("domain", "number", "provider", "row", "site")

    def __init__(self, number: int, site: Site, domain: str, provider: Provider, row: Row) -> None:
        self.number = number
        self.site = site
        self.domain = domain
        self.provider = provider
        self.row = row  # of the report


class Errand:
    """A delivery of the scenario and what is left of it."""

    __slots__ = (
        "chooser",
        "delivery_id",
        "done_by",
        "done_s",
        "expired",
        "first_done_s",
        "id",
        "is_over",
        "message_bytes",
        "model",
        "stream",
        "valid_until_s",
        "waiting",
        "weight",
    )

    def __init__(self, number: int, model: DeliveryModel, chooser: EgressChooser) -> None:
        self.id = number
        self.stream = Stream(number, ())
        self.delivery_id = model.delivery_id or number  # as traffic events name it
        self.model = model
        self.chooser = chooser
        self.message_bytes: int = model.message_bytes
        self.weight = effective_weight(model.priority, model.weight)
        self.valid_until_s = model.start_s + model.validity_s
        self.waiting = model.recipients  # without a final outcome
        self.is_over = False  # its validity has ended
        self.expired = 0  # of its recipients, those that were not done by then
        self.done_s = 0.0  # when the last recipient had its final outcome
        self.first_done_s = 0.0  # when the last was attempted for the first time
        self.done_by: dict[int, float] = {}  # place -> when its last final outcome was


class Part:
    """Recipients of one errand at one place that share attempt and history. Positions in it mean nothing."""

    __slots__ = ("attempt", "errand", "first_s", "place")

    def __init__(self, errand: Errand, place: Place, attempt: int, first_s: float) -> None:
        self.errand = errand
        self.place = place
        self.attempt = attempt  # that is next, from 1
        self.first_s = first_s  # of the first attempt; below 0: none yet


class Bundle:
    """What came back: recipients of one place."""

    __slots__ = ("attempt", "count", "errand", "first_s", "place")

    def __init__(self, errand: Errand, place: Place, attempt: int, first_s: float) -> None:
        self.errand = errand
        self.place = place
        self.attempt = attempt
        self.first_s = first_s
        self.count = 0


class _Fresh:
    """Recipients of an errand that were never claimed: how many there are at each place, and how many are appended."""

    __slots__ = ("_counts", "_drawn", "_given", "_phases", "total")

    def __init__(self, counts: list[tuple[Place, int]], dice: Dice) -> None:
        self._counts = counts
        self.total = sum(count for _, count in counts)
        self._given = [0] * len(counts)
        # Each place begins at another point, so that those with a single recipient do not all come last.
        self._phases = [dice.uniform() for _ in counts]
        self._drawn = 0

    def draw(self, messages: int) -> list[tuple[Place, int]]:
        """About so many, in proportion to what there is; at the end exactly all."""
        self._drawn = min(self.total, self._drawn + messages)
        drawn = []
        part = self._drawn / self.total
        is_last = self._drawn == self.total
        for at, (place, count) in enumerate(self._counts):
            upto = count if is_last else min(count, int(count * part + self._phases[at]))
            more = upto - self._given[at]
            if more > 0:
                self._given[at] = upto
                drawn.append((place, more))
        return drawn


class _Queue:
    """Of one errand."""

    __slots__ = ("appended", "bundles", "errand", "fresh", "index", "left", "number")

    def __init__(self, errand: Errand, fresh: _Fresh, appended: list[tuple[float, int]]) -> None:
        self.errand = errand
        self.fresh = fresh
        self.appended = appended  # (when due, recipients), the next one last
        self.left = 0  # of fresh recipients that are due
        self.bundles: list[tuple[float, int, Bundle]] = []
        self.index: dict[tuple[float, int, int], Bundle] = {}
        self.number = 0

    def append_due(self, now_s: float) -> None:
        while self.appended and self.appended[-1][0] <= now_s:
            self.left += self.appended.pop()[1]

    def next_due_s(self) -> float:
        if self.left:
            return -math.inf
        fresh_s = self.appended[-1][0] if self.appended else math.inf
        back_s = self.bundles[0][0] if self.bundles else math.inf
        return min(fresh_s, back_s)


def append_times(model: DeliveryModel) -> list[float]:
    """When each of its pieces is appended, about equal ones."""
    if model.over_s <= 0.0:
        return [model.start_s]
    pieces = min(APPENDS_MAX, model.recipients)
    return [model.start_s + model.over_s * at / pieces for at in range(pieces)]


class Backlog:
    """All that waits in no node's memory."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._queues: dict[int, _Queue] = {}
        self._fair: FairQueue[int] = FairQueue(quantum=256)

    def add(self, errand: Errand, counts: list[tuple[Place, int]]) -> None:
        """A new errand, with its recipients by place."""
        model = errand.model
        times = append_times(model)
        pieces = len(times)
        appended = []
        for at, at_s in enumerate(times):
            count = model.recipients * (at + 1) // pieces - model.recipients * at // pieces
            appended.append((at_s, count))
        appended.reverse()
        self._queues[errand.id] = _Queue(errand, _Fresh(counts, self._dice), appended)

    def put_back(
        self, errand: Errand, place: Place, attempt: int, first_s: float, count: int, due_s: float, wait_s: float
    ) -> None:
        """Recipients that are due again later. ``attempt``: that is next."""
        step_s = max(_DUE_STEP_S, wait_s / _DUE_STEPS_MAX)
        due_s = math.ceil(due_s / step_s) * step_s
        queue = self._queues[errand.id]
        key = (due_s, place.number, attempt)
        bundle = queue.index.get(key)
        if bundle is None:
            bundle = queue.index[key] = Bundle(errand, place, attempt, first_s)
            queue.number += 1
            heapq.heappush(queue.bundles, (due_s, queue.number, bundle))
        elif bundle.first_s > first_s:
            bundle.first_s = first_s
        bundle.count += count

    def next_due_s(self) -> float:
        return min((queue.next_due_s() for queue in self._queues.values()), default=math.inf)

    def claim(self, messages: int, now_s: float, put: Callable[[Errand, Place, int, float, int], None]) -> int:
        """Up to about so many that are due, in fair order between errands, each handed to ``put``."""
        due = {}
        for key, queue in self._queues.items():
            queue.append_due(now_s)
            if queue.next_due_s() <= now_s:
                due[key] = queue
                self._fair.add(key, queue.errand.weight)
            else:
                self._fair.remove(key)
        share = max(256, messages // max(1, len(due)))
        claimed = 0
        while due and claimed < messages:
            picked = self._fair.pick()
            assert picked is not None, "what is due is in the fair queue"
            taken = self._claim_from(due[picked], min(share, messages - claimed), now_s, put)
            claimed += taken
            self._fair.charge(picked, max(1, taken))
            if due[picked].next_due_s() > now_s:
                del due[picked]
                self._fair.remove(picked)
        return claimed

    def _claim_from(
        self, queue: _Queue, messages: int, now_s: float, put: Callable[[Errand, Place, int, float, int], None]
    ) -> int:
        errand = queue.errand
        if queue.left:
            amount = min(messages, queue.left)
            queue.left -= amount
            for place, count in queue.fresh.draw(amount):
                put(errand, place, 1, -1.0, count)
            return amount
        claimed = 0
        while queue.bundles and queue.bundles[0][0] <= now_s and claimed < messages:
            due_s, _, bundle = queue.bundles[0]
            amount = min(bundle.count, messages - claimed)
            bundle.count -= amount
            if not bundle.count:
                heapq.heappop(queue.bundles)
                del queue.index[due_s, bundle.place.number, bundle.attempt]
            claimed += amount
            put(errand, bundle.place, bundle.attempt, bundle.first_s, amount)
        return claimed

    def drop(self, errand: Errand) -> list[tuple[Place, int]]:
        """Nothing of it waits any more: what did, by place."""
        queue = self._queues.pop(errand.id, None)
        self._fair.remove(errand.id)
        if queue is None:
            return []
        return [*queue.fresh.draw(queue.fresh.total), *((bundle.place, bundle.count) for _, _, bundle in queue.bundles)]
