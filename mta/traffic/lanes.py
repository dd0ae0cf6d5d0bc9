"""Lanes: who waits. The recipients of one site that may use the same egresses of a pool."""

from __future__ import annotations

import math
from typing import Final, Generic, TypeVar

from mta.model.egress import Egress
from mta.model.site import Site
from mta.traffic.egress import EgressChooser
from mta.traffic.gates import Waiter
from mta.traffic.ready import ReadyQueue
from mta.traffic.sessions import Group

PartT = TypeVar("PartT")
LaneKey = tuple[str, str, str, str]  # site, pool, names of the egresses, class of the domain

PACE_STEP_S: Final = 1.0  # the pace is averaged over at least so long
QUIET_S: Final = 10.0  # a lane that was empty for so long begins anew


class Lane(Waiter, Generic[PartT]):
    """The unit that runs or waits.

    ``domain`` is one of the domains of its recipients: all of them are the same to the pool's masks, and to the rules
    (``domain_class``, see `mta.traffic.rules.RuleSet.domain_class`).
    """

    __slots__ = (
        "_pace_since_s",
        "_sent",
        "chooser",
        "domain",
        "domain_class",
        "egresses",
        "failing_since_s",
        "groups",
        "is_forgotten",
        "key",
        "rate_per_s",
        "ready",
        "since_s",
        "site",
        "surplus_until_s",
        "turn",
        "turn_left",
    )

    def __init__(self, key: LaneKey, site: Site, chooser: EgressChooser, domain: str) -> None:
        super().__init__()
        self.key = key
        self.site = site
        self.chooser = chooser
        self.domain = domain
        self.egresses = chooser.eligible(domain)
        self.domain_class = key[3]
        self.ready: ReadyQueue[PartT] = ReadyQueue()
        self.groups: dict[str, Group] = {}  # by the name of their egress, those that it was served through
        self.is_forgotten = False
        self.since_s = -math.inf  # when it began to have recipients
        self.failing_since_s = math.inf  # when it was first parked because all its paths fail
        self.rate_per_s = 0.0  # messages attempted, lately; 0: not known yet
        self._sent = 0
        self._pace_since_s = 0.0
        self.surplus_until_s = 0.0  # when all surplus so far will have gone, at the lane's pace
        # The egress whose turn it is, and how many messages of the turn are left: weights hold for messages,
        # whatever the sizes of the batches.
        self.turn: Egress | None = None
        self.turn_left = 0

    def began(self, now_s: float) -> None:
        """It gets recipients and had none. After a quiet time what was known of its pace counts no more."""
        if now_s - max(self._pace_since_s, self.since_s) >= QUIET_S:
            self.since_s = now_s
            self.rate_per_s = 0.0
            self._sent = 0
            self._pace_since_s = now_s

    def sent(self, attempted: int, now_s: float) -> None:
        """Counts messages for the lane's pace."""
        self.failing_since_s = math.inf
        self._sent += attempted
        elapsed_s = now_s - self._pace_since_s
        if elapsed_s >= PACE_STEP_S:
            pace = self._sent / elapsed_s
            self.rate_per_s = pace if self.rate_per_s == 0.0 else 0.5 * (pace + self.rate_per_s)
            self._sent = 0
            self._pace_since_s = now_s
