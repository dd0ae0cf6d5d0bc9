"""The moving parts of the schedule: lanes (who waits), groups (site and egress), sessions (what carries)."""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from mta.model.egress import Egress
from mta.model.site import Site
from mta.model.waiting import Wait
from mta.traffic.egress import EgressChooser
from mta.traffic.gates import Gate, Limit, Path
from mta.traffic.ready import ReadyQueue
from mta.traffic.rules import Rule

PartT = TypeVar("PartT")

# A session is given as much as it can send in this time, so that a slow server holds few recipients and a
# fast one never starves between two reports (which come every few milliseconds).
WINDOW_S = 0.25
# A session costs a round of handshakes, here and at the server; so few recipients wait for the open ones.
WORTH_A_SESSION_S = 0.25
MESSAGES_PER_NEW_SESSION = 10  # while the pace is not known
WINDOW_MIN = 2  # one under way and the next envelope, which goes out in the write that ends a body


class Hop(NamedTuple):
    """One way to reach a site: a host, one of its addresses, and what rules say of it."""

    mx_host: str
    preference: int
    peer: str
    rule: Rule
    limit: Limit
    path: Path


class Session:
    """A connection that is opening, open or closing; counted in its limit and path from first to last."""

    __slots__ = (
        "child",
        "group",
        "handed_at_s",
        "hop",
        "id",
        "in_flight",
        "is_closing",
        "is_listed_free",
        "is_open",
        "message_s",
        "progress",
        "used",
        "window",
    )

    def __init__(self, session_id: int, group: Group, hop: Hop, child: int) -> None:
        self.id = session_id
        self.group = group
        self.hop = hop
        self.child = child
        self.is_open = False
        self.is_closing = False
        self.is_listed_free = False
        self.used = 0  # messages handed to it and not returned unattempted
        self.in_flight = 0
        self.progress = 0  # messages that the server decided
        self.window = WINDOW_MIN
        self.message_s = 0.0
        self.handed_at_s = 0.0

    def room(self) -> int:
        """How many more messages it may be given now."""
        if self.is_closing:
            return 0
        room = self.window - self.in_flight
        allowed = self.hop.rule.messages_per_connection_max
        return room if allowed is None else min(room, allowed - self.used)

    @property
    def is_spent(self) -> bool:
        allowed = self.hop.rule.messages_per_connection_max
        return allowed is not None and self.used >= allowed

    def adapt_window(self, count: int, now_s: float, window_max: int) -> None:
        """Learns from ``count`` decided messages how much the session can carry."""
        took_s = max(1e-5, now_s - self.handed_at_s) / max(1, count)
        self.message_s = took_s if not self.message_s else 0.7 * self.message_s + 0.3 * took_s
        of_group = self.group.message_s
        self.group.message_s = self.message_s if not of_group else 0.9 * of_group + 0.1 * self.message_s
        wanted = int(WINDOW_S / self.message_s)
        # Doubling, as the first reports of a session say little about its pace.
        self.window = max(WINDOW_MIN, min(wanted, self.window * 2, window_max))


class Group(Gate):
    """A site through one egress: the hops in the order to try and the sessions with room."""

    __slots__ = ("egress", "free", "hops", "message_s", "rules_version", "sessions", "site")

    def __init__(self, site: Site, egress: Egress) -> None:
        super().__init__()
        self.site = site
        self.egress = egress
        self.hops: list[Hop] = []
        self.rules_version = -1
        self.free: deque[Session] = deque()
        self.sessions = 0
        self.message_s = 0.0  # what a message takes on one session, lately; 0: not known yet

    def wants_session(self, waiting: int) -> bool:
        """True when ``waiting`` recipients would keep its sessions busy for long enough to pay for one more."""
        if not self.sessions:
            return True
        if not self.message_s:
            return waiting > self.sessions * MESSAGES_PER_NEW_SESSION
        return waiting * self.message_s / self.sessions > WORTH_A_SESSION_S

    def free_session(self) -> Session | None:
        """A session with enough room for a batch worth the while."""
        while self.free:
            session = self.free[0]
            if session.room() > session.window // 2 or (session.room() > 0 and session.in_flight == 0):
                return session
            session.is_listed_free = False
            self.free.popleft()
        return None

    def list_free(self, session: Session) -> None:
        if not session.is_listed_free and session.room() > 0:
            session.is_listed_free = True
            self.free.append(session)


class Lane(Generic[PartT]):
    """Recipients of one site that may use the same egresses of a pool; the unit that runs or waits.

    ``domain`` is one of their domains: all of them are the same to the pool's masks.
    """

    __slots__ = (
        "chooser",
        "domain",
        "egresses",
        "is_runnable",
        "parked_at_s",
        "rate_per_s",
        "rate_since_s",
        "ready",
        "sent",
        "since_s",
        "site",
        "surplus_until_s",
        "ticket",
        "wait",
    )

    def __init__(self, site: Site, chooser: EgressChooser, domain: str) -> None:
        self.site = site
        self.chooser = chooser
        self.domain = domain
        self.egresses = chooser.eligible(domain)
        self.ready: ReadyQueue[PartT] = ReadyQueue()
        self.wait: Wait | None = None
        self.ticket = 0
        self.is_runnable = False
        self.parked_at_s = 0.0
        self.since_s = 0.0
        self.sent = 0
        self.rate_per_s = 0.0
        self.rate_since_s = 0.0
        self.surplus_until_s = 0.0
