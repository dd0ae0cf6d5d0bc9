"""What can hold a lane back: limits, paths, sessions; each knows who waits for it.

What waits for a gate waits *on* it: when the gate opens a little, it wakes as many lanes as it can serve, and
nobody else looks again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from mta.traffic.backoff import PathBackoff
from mta.traffic.quota import HourlyQuota

if TYPE_CHECKING:
    from mta.traffic.lanes import Lane, Session
    from mta.traffic.rules import Rule


class Gate:
    """A resource with waiters. A lane may wait on several gates at once; its ticket says which wait is current."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[tuple[Lane[Any], int]] = deque()

    @property
    def has_waiters(self) -> bool:
        return bool(self._waiters)

    def wait(self, lane: Lane[Any]) -> None:
        self._waiters.append((lane, lane.ticket))

    def wake(self, count: int) -> list[Lane[Any]]:
        """Up to ``count`` lanes that still wait here, first come first."""
        woken: list[Lane[Any]] = []
        waiters = self._waiters
        while waiters and len(woken) < count:
            lane, ticket = waiters.popleft()
            if lane.ticket == ticket and lane.wait is not None:
                woken.append(lane)
        return woken


class Limit(Gate):
    """The counters of one rule in one scope. Sessions in it never exceed ``rule.connections_max``."""

    __slots__ = ("idle", "key", "quota", "rule", "sessions")

    def __init__(self, key: str, rule: Rule) -> None:
        super().__init__()
        self.key = key
        self.rule = rule
        self.sessions = 0
        self.idle: OrderedDict[int, Session] = OrderedDict()  # of its sessions, those with nothing to do
        self.quota = None if rule.messages_per_hour_max is None else HourlyQuota(rule.messages_per_hour_max)

    @property
    def has_connection(self) -> bool:
        allowed = self.rule.connections_max
        return allowed is None or self.sessions < allowed

    def adopt(self, rule: Rule) -> None:
        """A reload: the rule's new figures hold from now on, what was used stays used."""
        self.rule = rule
        if rule.messages_per_hour_max is None:
            self.quota = None
        elif self.quota is None:
            self.quota = HourlyQuota(rule.messages_per_hour_max)
        else:
            self.quota.set_limit(rule.messages_per_hour_max)


class Path(Gate):
    """One egress to one address of a host: its open sessions and its backoff after failures."""

    __slots__ = ("backoff", "last_failure", "sessions")

    def __init__(self) -> None:
        super().__init__()
        self.sessions = 0
        self.backoff = PathBackoff()
        self.last_failure = ""
