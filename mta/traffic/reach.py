"""What is tried of a site at a time: few addresses and few sessions until it takes mail, then more and more.

A domain's DNS may name hundreds of addresses, ours or strangers'. One recipient there must not make a node call all
of them (RFC 5321 §5.1 allows a limit and asks for two at least). So a site is opened with one connection, and each
connection that it answers allows two more to be opened at the same time. And while nothing of it takes a message, an
attempt keeps to the first few addresses that it tried; the next attempt begins with others.
"""

from __future__ import annotations

from typing import Final

from mta.traffic.gates import Gate

OPENINGS_PER_SESSION: Final = 2  # under way at a time, for each session that is open
# Of one family of a host with other hosts beside it, so that an attempt does not end at the first host.
ADDRESSES_PER_HOST: Final = 2


class OpeningSlots(Gate):
    """Sessions of a site that are being opened: one until the site answers, then more the more are open."""

    __slots__ = ("has_answered", "opened", "opening")

    def __init__(self) -> None:
        super().__init__()
        self.opening = 0  # ordered, and nothing known yet
        self.opened = 0  # greeted by the server, and not over
        self.has_answered = False

    @property
    def most(self) -> int:
        """How many may be under way now."""
        if not self.opened:
            return OPENINGS_PER_SESSION if self.has_answered else 1
        return OPENINGS_PER_SESSION * self.opened

    def is_open(self, now_s: float) -> bool:
        return self.opening < self.most

    def answered(self) -> None:
        """The server has greeted one of them."""
        self.opening -= 1
        self.opened += 1
        self.has_answered = True

    def ended(self, *, was_opened: bool) -> None:
        """One is over, or could not be opened."""
        if was_opened:
            self.opened -= 1
        else:
            self.opening -= 1


class AttemptBudget(Gate):
    """The addresses of a site that failed since it last took a message. When they are enough, no other is tried."""

    __slots__ = ("_addresses_max", "_sessions_max", "broken", "tried")

    def __init__(self, addresses_max: int, sessions_max: int) -> None:
        super().__init__()
        self._addresses_max = addresses_max
        self._sessions_max = sessions_max
        self.tried: dict[str, str] = {}  # peer -> its MX host
        self.broken: set[str] = set()  # of them, those that opened a session, which ended before it took a message

    @property
    def is_spent(self) -> bool:
        return len(self.tried) >= self._addresses_max or len(self.broken) >= self._sessions_max

    def is_open(self, now_s: float) -> bool:
        return not self.is_spent

    def is_used_up_by(self, mx_host: str, peer: str) -> bool:
        """True when this host's addresses have had their share, and another host, or family, is to be tried first."""
        if peer in self.tried:
            return False
        is_ipv6 = ":" in peer
        of_host = 0
        for tried, host in self.tried.items():
            if host == mx_host and (":" in tried) is is_ipv6:
                of_host += 1
        return of_host >= ADDRESSES_PER_HOST


class SiteReach:
    """Shared by all groups of a site, whatever their egress."""

    __slots__ = ("budget", "slots")

    def __init__(self, addresses_max: int, sessions_max: int) -> None:
        self.slots = OpeningSlots()
        self.budget = AttemptBudget(addresses_max, sessions_max)

    def failed(self, mx_host: str, peer: str, *, was_opened: bool) -> None:
        """A session could not be opened, or ended badly before it took a message."""
        budget = self.budget
        budget.tried[peer] = mx_host
        if was_opened:
            budget.broken.add(peer)
        if budget.is_spent:
            self.slots.has_answered = False

    def begin_anew(self) -> bool:
        """A message was taken, or the attempt is over: every address may be tried. False: it might have been before."""
        budget = self.budget
        if not budget.tried:
            return False
        budget.tried.clear()
        budget.broken.clear()
        return True
