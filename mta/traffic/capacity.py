"""The sessions that the children of a node may hold: each, and together."""

from __future__ import annotations

import math
from typing import Final

from mta.model.waiting import Wait, WaitReason
from mta.traffic.backoff import PathBackoff
from mta.traffic.limit import Room
from mta.traffic.sources import REST_S_MAX

FULL: Final = Wait(WaitReason.SESSIONS, math.inf, "all sessions of all children are in use")


class ChildSlots:
    """What one child holds, and what it may.

    ``ceiling``: so many it may hold. A child that is out of files has found out how many that are; its limit of files
    does not change while it lives.
    """

    __slots__ = ("backoff", "ceiling", "failed_s", "fault", "is_its_own", "number", "sessions", "trials")

    def __init__(self, number: int, ceiling: int) -> None:
        self.number = number
        self.ceiling = ceiling
        self.sessions = 0  # those closing included
        self.backoff = PathBackoff()
        self.fault = ""  # what is wrong, and what to do
        self.is_its_own = False  # the fault is not one of the whole machine
        self.failed_s = -math.inf
        self.trials = 0  # sessions that try it after a failure

    @property
    def unit(self) -> str:
        """As the book of faults names it."""
        return f"child {self.number}"

    def is_failing(self, now_s: float) -> bool:
        return self.backoff.failures(now_s) > 0

    def takes(self, now_s: float) -> bool:
        return self.sessions < self.ceiling and not self.trials and self.backoff.is_available(now_s)


class Capacity(Room):
    """All children together. One that rests is given no session; the others go on."""

    __slots__ = ("_children", "_each")

    def __init__(self, each: int) -> None:
        super().__init__(0)
        self._each = each
        self._children: dict[int, ChildSlots] = {}

    def add(self, child: int) -> None:
        self._children[child] = ChildSlots(child, self._each)
        self._sum_up()

    def remove(self, child: int) -> ChildSlots | None:
        """None when there was none of that number."""
        found = self._children.pop(child, None)
        self._sum_up()
        return found

    def get(self, child: int) -> ChildSlots | None:
        return self._children.get(child)

    def idlest(self, now_s: float) -> ChildSlots | None:
        """Of those that take a session, the one with the fewest."""
        found: ChildSlots | None = None
        for slots in self._children.values():
            if (found is None or slots.sessions < found.sessions) and slots.takes(now_s):
                found = slots
        return found

    def is_open(self, now_s: float) -> bool:
        return self.has_room and self.idlest(now_s) is not None

    def next_look_s(self, now_s: float) -> float:
        """When the first of those that rest is tried again; inf: when a session has closed."""
        least_s = math.inf
        for slots in self._children.values():
            if not slots.backoff.is_available(now_s):
                least_s = min(least_s, slots.backoff.until_s)
        return least_s

    def why_not(self, now_s: float) -> Wait:
        """Why no child takes a session now."""
        if not self.has_room and not self.waits_for_machine(now_s):
            return FULL
        faults = [slots.fault for slots in self._children.values() if slots.is_failing(now_s)]
        return Wait(WaitReason.MACHINE, self.next_look_s(now_s), faults[0]) if faults else FULL

    def waits_for_machine(self, now_s: float) -> bool:
        """True when no child is known to get a session: each failed, and has none."""
        return bool(self._children) and all(
            slots.is_failing(now_s) and not slots.sessions for slots in self._children.values()
        )

    def failed(self, slots: ChildSlots, fault: str, now_s: float, *, is_full: bool) -> float:
        """It could not open a session, which has left; until when it gets none. ``is_full``: it is out of files."""
        slots.fault = fault
        slots.failed_s = now_s
        slots.is_its_own = is_full
        if is_full:
            slots.ceiling = max(1, min(slots.ceiling, slots.sessions))
            self._sum_up()
        return slots.backoff.failed(now_s, REST_S_MAX)

    def worked(self, slots: ChildSlots, ordered_s: float) -> list[ChildSlots]:
        """A session that was ordered then has a socket. Whose rest that ends: what all children lacked, all have."""
        over = []
        for one in self._children.values():
            if one.fault and ordered_s >= one.failed_s and (one is slots or not one.is_its_own):
                one.fault = ""
                one.backoff.succeeded()
                over.append(one)
        return over

    def _sum_up(self) -> None:
        self.set_most(sum([slots.ceiling for slots in self._children.values()]))
