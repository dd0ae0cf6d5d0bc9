"""Lanes: who waits. The recipients of one site that may use the same egresses of a pool."""

from __future__ import annotations

import math
from typing import Final, Generic, TypeVar

from mta.model.egress import Egress
from mta.model.site import Site
from mta.model.waiting import Wait, WaitReason
from mta.traffic.egress import EgressChooser, is_among
from mta.traffic.gates import Gate, Waiter
from mta.traffic.path import Path
from mta.traffic.ready import ReadyQueue
from mta.traffic.refusals import Avoided, PathRefusal
from mta.traffic.sessions import Group

PartT = TypeVar("PartT")
# Site, pool, names of the egresses, class of the domain, what refused its recipients in this attempt.
LaneKey = tuple[str, str, str, str, Avoided]

PACE_STEP_S: Final = 1.0  # the pace is averaged over at least so long
GATES_MANY: Final = 64  # each turn of a look adds some, mostly those that are there
QUIET_S: Final = 10.0  # a lane that was empty for so long begins anew

_NOWHERE: Final[frozenset[str]] = frozenset()
_WARM_UP: Final = WaitReason.WARM_UP  # an enum member looked up on its class costs more than the comparison


class Turn:
    """What an egress is to carry of a lane before others have more.

    A batch may take more than is left; that is made up for later, so weights hold for messages whatever the sizes of
    the batches.
    """

    __slots__ = ("egress", "left")

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self.left = 0  # messages


class Look:
    """How far a lane with several egresses has come in looking at them, and what held those that carry nothing now.

    A look at all of them for each batch would be most of the cost where there are many. So one goes on from turn to
    turn; and when it is over, and one of the egresses can carry more, it goes on with that one.
    """

    __slots__ = (
        "bare",
        "blocked",
        "busy",
        "gates",
        "is_only_planned",
        "is_over",
        "is_resumed",
        "opens_s",
        "shown",
        "stalls_s",
        "version",
    )

    def __init__(self, version: int) -> None:
        self.version = version  # of what is in force: it holds under no other
        self.blocked: list[Egress] = []  # others take over what they would carry
        self.busy: list[Egress] = []  # will carry their turns in a moment
        self.bare: list[Egress] = []  # of both, those that had no session that could be used
        self.gates: list[Gate] = []
        self.shown: Wait | None = None  # of all waits, the one to be told
        self.opens_s = math.inf  # when the first of those that are blocked may carry again, as far as that is known
        self.stalls_s = math.inf  # until when one of those that are busy counts as such, if nothing moves there
        self.is_only_planned = True  # nothing but plans of new source addresses holds them
        self.is_resumed = False  # some of it was found out at an earlier turn
        self.is_over = False  # all were looked at

    def go_on_with(self, egress: Egress) -> None:
        """Something has opened for it; of the others nothing is known that was not known before."""
        self.is_over = False
        for egresses in (self.blocked, self.busy, self.bare):
            if is_among(egress, egresses):
                egresses.remove(egress)

    def has_opened(self, now_s: float) -> bool:
        """Something that was shut when it was looked at lets more through now.

        A group without a session that can be used is open to all. Where it had none before, what keeps it from having
        one is a gate too.
        """
        if now_s >= self.opens_s:
            return True
        for gate in self.gates:
            if isinstance(gate, Group) and not gate.usable and is_among(gate.egress, self.bare):
                continue
            if gate.is_open(now_s):
                return True
        return False

    def end(self, pool: str, domain: str) -> Wait:
        """Why nothing more is carried."""
        self.is_over = True
        if len(self.gates) > GATES_MANY:
            self.gates = list(dict.fromkeys(self.gates))
        if self.shown is None:
            return Wait(WaitReason.NO_EGRESS, math.inf, f"no egress of pool {pool} may carry mail for {domain}")
        if self.shown.reason is _WARM_UP and (self.busy or not self.is_only_planned):
            # Another, which is warm, only waits for something: its message waits with it.
            return Wait(WaitReason.RULE_MESSAGES, self.shown.until, self.shown.detail)
        return self.shown


class Lane(Waiter, Generic[PartT]):
    """The unit that runs or waits.

    ``domain`` is one of the domains of its recipients: all of them are the same to the pool's masks, and to the rules
    (``domain_class``, see `mta.traffic.rules.RuleSet.domain_class`). ``avoided``: the paths that refused them in this
    attempt; they are offered to the others.
    """

    __slots__ = (
        "_pace_since_s",
        "_sent",
        "avoided",
        "chooser",
        "domain",
        "domain_class",
        "egresses",
        "failing_since_s",
        "groups",
        "is_forgotten",
        "key",
        "look",
        "rate_per_s",
        "ready",
        "since_s",
        "site",
        "surplus_until_s",
        "turns",
    )

    def __init__(self, key: LaneKey, site: Site, chooser: EgressChooser, domain: str) -> None:
        super().__init__()
        self.key = key
        self.site = site
        self.chooser = chooser
        self.domain = domain
        self.egresses = chooser.eligible(domain)
        self.domain_class = key[3]
        self.avoided = key[4]
        self.ready: ReadyQueue[PartT] = ReadyQueue()
        self.groups: dict[str, Group] = {}  # by the name of their egress, those that it was served through
        self.is_forgotten = False
        self.since_s = -math.inf  # when it began to have recipients
        self.failing_since_s = math.inf  # when it was first parked because all its paths fail
        self.rate_per_s = 0.0  # messages attempted, lately; 0: not known yet
        self._sent = 0
        self._pace_since_s = 0.0
        self.surplus_until_s = 0.0  # when all surplus so far will have gone, at the lane's pace
        self.look: Look | None = None
        self.turns: list[Turn] = []  # one of an egress; those that carry nothing now have none

    def avoided_of(self, egress: Egress) -> frozenset[str]:
        """Peers and MX hosts that its recipients are not sent to through this egress."""
        if not self.avoided:
            return _NOWHERE
        return frozenset([at for name, at in self.avoided if name in ("", egress.name)])

    def look_on(self, woken_by: Gate | None, version: int) -> Look:
        """The look at its egresses that is to go on, or a new one. ``woken_by``: the gate that has opened."""
        look = self.look
        if look is not None and look.version == version:
            group = None if woken_by is None else self._group_behind(woken_by)
            if group is not None:
                look.go_on_with(group.egress)
            # A gate that is of no one egress, or none at all after the look was over: all are to be looked at.
            if group is not None or (woken_by is None and not look.is_over):
                look.is_resumed = True
                return look
        self.look = look = Look(version)
        return look

    def next_turn(self, look: Look, each: int) -> Turn | None:
        """The turn of an egress that was not looked at yet, of several the longest.

        Each time ``each`` messages are added to one, as the weights say. Egresses that are busy keep theirs while
        others go on, so that all carry at the same time; but none runs ahead of another by more than the bound.
        """
        found: Turn | None = None
        left = 0
        for turn in self.turns:
            left += turn.left
            if turn.left > 0 and (found is None or turn.left > found.left) and not is_among(turn.egress, look.busy):
                found = turn
        most = len(self.egresses) * each
        while found is None and left < most:
            egress = self.chooser.choose(self.domain, look.blocked)
            if egress is None:
                return None
            turn = self._turn_of(egress)
            turn.left += each
            left += each
            if turn.left > 0 and not is_among(egress, look.busy):
                found = turn
        return found

    def last_refusal(self) -> PathRefusal | None:
        """Why it cannot go, where refusals of its paths keep it: of those that rest, the one that rests longest."""
        found: Path | None = None
        for group in self.groups.values():
            for hop in group.hops:
                if found is None or hop.path.refusals.until_s > found.refusals.until_s:
                    found = hop.path
        return None if found is None or found.refusals.until_s <= found.backoff.until_s else found.refusals.last

    def _group_behind(self, gate: Gate) -> Group | None:
        """Its group whose way the gate was in; of several, the first that it was served through."""
        for group in self.groups.values():
            if gate is group:
                return group
            for hop in group.hops:
                if gate is hop.path or gate is hop.source or any(gate is room for room in hop.rooms):
                    return group
        return None

    def _turn_of(self, egress: Egress) -> Turn:
        """A new one has nothing to carry yet."""
        for turn in self.turns:
            if turn.egress is egress:
                return turn
        turn = Turn(egress)
        self.turns.append(turn)
        return turn

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
