"""Sessions, and the groups that they form: one site through one egress."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from mta.model.egress import NO_SOURCE, Egress, source_for
from mta.model.site import Site, order_hosts
from mta.model.waiting import Wait
from mta.traffic.counters import Counters, Limit, Path, Room, Source
from mta.traffic.gates import Gate
from mta.traffic.host_facts import NOTHING_LEARNT, Obeyed, host_key
from mta.traffic.limit import Idle
from mta.traffic.quota import UNLIMITED, Quota
from mta.traffic.reach import SiteReach
from mta.traffic.rules import NextMx, Rule, RuleSet, Tls

# A session is given as much as it can send in this time, so that a slow server holds few recipients and a
# fast one never starves between two reports (which come every few milliseconds).
WINDOW_S: Final = 0.25
WINDOW_MIN: Final = 2  # one under way and the next envelope, which goes out in the write that ends a body
# While the pace is not known: a small site is done in one go, and a slow one holds up few.
WINDOW_FIRST: Final = 5
# A session costs a round of handshakes, here and at the server; what the open ones send in so short a time waits.
WORTH_A_SESSION_S: Final = 0.25
MESSAGES_PER_NEW_SESSION: Final = 10  # while the pace is not known
STALL_S: Final = 5.0  # a group whose sessions decide nothing for so long does not hold up the other egresses
# Local names: an enum member looked up on its class costs more than the comparison it is for.
_VERIFIED: Final = Tls.VERIFIED
_DISABLED: Final = Tls.DISABLED
_OPPORTUNISTIC: Final = Tls.OPPORTUNISTIC


class Full:
    """Why a hop's room lets no session in, as it was told last."""

    __slots__ = ("is_share", "room", "sessions_max", "wait")

    def __init__(self, room: Room, is_share: bool, wait: Wait) -> None:
        self.room = room
        self.sessions_max = room.sessions_max
        self.is_share = is_share
        self.wait = wait


class Hop:
    """One way to reach a site: a host, one of its addresses, and what counts there. But for ``full`` it never changes.

    ``limits``: of the rule first, then of its provider and of a warm-up plan, where there are. ``rooms``: these, that
    of the path where its connections are bounded, and that of the host where a number was learnt. ``host``: as what was
    learnt names it. ``keys``: of all that an attempt is counted on, with blanks between.
    """

    __slots__ = (
        "authorities",
        "full",
        "host",
        "keys",
        "limit",
        "limits",
        "mx_host",
        "path",
        "path_room",
        "peer",
        "preference",
        "rooms",
        "rule",
        "source",
    )

    def __init__(
        self,
        mx_host: str,
        preference: int,
        peer: str,
        rule: Rule,
        limits: tuple[Limit, ...],
        path_room: Room | None,
        host_room: Room | None,
        path: Path,
        source: Source,
        authorities: tuple[tuple[int, int, int, bytes], ...] = (),
    ) -> None:
        self.mx_host = mx_host
        self.preference = preference
        self.peer = peer
        self.rule = rule
        self.limits = limits
        self.limit = limits[0]
        self.path_room = path_room
        self.full: Full | None = None
        self.rooms: tuple[Room, ...] = limits if path_room is None else (*limits, path_room)
        if host_room is not None:
            self.rooms = (*self.rooms, host_room)
        self.host = host_key(peer, rule.port)
        self.path = path
        self.source = source
        self.authorities = authorities
        self.keys = limits[0].key if len(limits) == 1 else " ".join([limit.key for limit in limits])

    def counts_as(self, other: Hop) -> bool:
        """True when a session by the other one is counted, and secured, as one by this is."""
        return (
            self.rule == other.rule
            and self.rooms == other.rooms
            and self.path is other.path
            and self.authorities == other.authorities
        )

    def credits(self, now_s: float, size_bytes: int, *, is_over_plan: bool) -> int:
        """How many messages all that counts there lets through now. ``is_over_plan``: plans hold nothing up."""
        limits = self.limits
        if len(limits) == 1:
            return limits[0].credits(now_s, size_bytes)
        least = UNLIMITED
        for limit in limits:
            if not (limit.is_plan and is_over_plan):
                least = min(least, limit.credits(now_s, size_bytes))
        return least

    def dry_limit(self, now_s: float, size_bytes: int, *, is_over_plan: bool) -> tuple[Limit | None, float]:
        """What has no credits, and when it will; of several, that which will have none for longest."""
        dry: Limit | None = None
        dry_until_s = -math.inf
        for limit in self.limits:
            if limit.counts_messages and limit.credits(now_s, size_bytes) <= 0:
                if limit.is_plan and is_over_plan:
                    continue
                at_s = limit.credits_at_s(now_s, size_bytes)
                if at_s > dry_until_s:
                    dry, dry_until_s = limit, at_s
        return dry, dry_until_s

    def is_better(self, other: Hop, now_s: float) -> bool:
        """It is preferred to the other one, and can be tried now."""
        return self.preference < other.preference and self.path.is_open(now_s) and self.source.is_open(now_s)

    def tls(self, *, is_verified: bool) -> Tls:
        """What a session asks of STARTTLS. ``is_verified``: the site is one of an MTA-STS policy that is enforced."""
        tls = self.rule.tls
        if tls is _VERIFIED or tls is _DISABLED:
            return tls
        if self.authorities:
            return Tls.REQUIRED
        if is_verified and self.rule.mta_sts:
            return _VERIFIED
        if self.path.is_without_tls and tls is _OPPORTUNISTIC:
            return _DISABLED
        return tls


def find_hops(
    site: Site,
    egress: Egress,
    rules: RuleSet,
    counters: Counters,
    shuffle: Callable[[list[str]], None],
    domain_class: str = "",
    avoided: frozenset[str] = frozenset(),
) -> list[Hop]:
    """All ways to a site through an egress: by preference, at random among equals (RFC 5321 §5.1).

    ``avoided``: peers, and MX hosts, that are left out ("": all); what the rule of the most preferred host says of the
    use of others holds all the same.
    """
    hops = [
        count_hop(host.name, host.preference, peer, host.authorities, site.key, domain_class, egress, rules, counters)
        for host, peer in order_hosts(site, shuffle)
        if source_for(egress, peer) is not NO_SOURCE
    ]
    if not avoided:
        return hops
    if "" in avoided:
        return []
    if next_mx_of(hops) is NextMx.NEVER:
        hops = [hop for hop in hops if hop.preference == hops[0].preference]
    return [hop for hop in hops if hop.peer not in avoided and hop.mx_host not in avoided]


def count_hop(
    mx_host: str,
    preference: int,
    peer: str,
    authorities: tuple[tuple[int, int, int, bytes], ...],
    site: str,
    domain_class: str,
    egress: Egress,
    rules: RuleSet,
    counters: Counters,
) -> Hop:
    """The hop with the counters that its rule asks for."""
    rule = rules.match(mx_host, egress.id, site, domain_class)
    return Hop(
        mx_host,
        preference,
        peer,
        rule,
        counters.limits_of(rule, egress, peer),
        counters.path_room(rule, egress.id, peer),
        counters.host_room(rule, egress.id, peer),
        counters.path(egress, peer),
        counters.source(egress, peer),
        authorities if rule.dane and rule.tls is not _DISABLED else (),
    )


def next_mx_of(hops: list[Hop]) -> NextMx:
    """When the less preferred of these are used: as the rule of the most preferred says."""
    return hops[0].rule.next_mx if hops else NextMx.WHEN_FAILING


class Booking:
    """Where a session's messages in flight are booked in one limit."""

    __slots__ = ("limit", "quota", "volume", "volume_booked")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.quota: Quota | None = limit.quota
        self.volume: Quota | None = limit.volume
        self.volume_booked = 0  # bytes in flight

    @property
    def is_current(self) -> bool:
        """False after a reload or an event: the limit counts elsewhere now."""
        return self.quota is self.limit.quota and self.volume is self.limit.volume


class Session:
    """A connection that is opening, open or closing; counted in its rooms from first to last."""

    __slots__ = (
        "_reported_s",
        "_unmeasured",
        "booked",
        "child",
        "dry_at",
        "group",
        "hop",
        "id",
        "idles",
        "in_flight",
        "is_child_trial",
        "is_closing",
        "is_host_trial",
        "is_listed_free",
        "is_over",
        "is_source_trial",
        "is_surplus",
        "is_trial",
        "limit",
        "message_s",
        "messages_max",
        "obeyed",
        "opened_s",
        "openings",
        "ordered_s",
        "path",
        "progress",
        "rooms",
        "tls",
        "used",
        "window",
    )

    def __init__(
        self, session_id: int, group: Group, hop: Hop, child: int, rooms: tuple[Room, ...], now_s: float
    ) -> None:
        self.id = session_id
        self.group = group
        self.hop = hop
        self.limit = hop.limit
        self.path = hop.path
        self.child = child
        self.rooms = rooms
        self.tls = hop.tls(is_verified=group.site.is_verified)
        self.booked = bookings_of(hop)  # of the limits that count messages
        # Where its opening is booked, until it is known what became of it.
        self.openings: list[tuple[Limit, Quota]] = []
        self.is_closing = False
        self.is_over = False  # its end was reported, but not yet what became of all that it was given
        self.is_trial = False  # of its path
        self.is_source_trial = False
        self.is_child_trial = False
        self.is_surplus = False  # one more than its host takes at a time
        self.obeyed: Obeyed = NOTHING_LEARNT  # what was learnt of its host and holds for it
        self.is_host_trial = False  # it tries without what was learnt and is due to be tried again
        self.messages_max = UNLIMITED  # that its host takes in a session
        self.idles: list[Idle] = []  # its places in its rooms, while these know that it has nothing to do
        self.is_listed_free = False
        self.dry_at: Limit | None = None  # passed over because this limit has no credits
        self.used = 0  # messages handed to it and not returned unattempted
        self.in_flight = 0
        self.progress = 0  # messages that were attempted
        self.window = group.first_window
        self.message_s = 0.0  # what a message takes, lately; 0: not known yet
        self.ordered_s = now_s
        self.opened_s = math.inf
        self._reported_s = now_s  # the pace is measured from here
        self._unmeasured = 0  # messages attempted since

    @property
    def is_opened(self) -> bool:
        """The server has greeted it and said what it offers."""
        return self.opened_s < math.inf

    @property
    def left(self) -> int:
        """How many messages it may be given in its whole life yet."""
        most = self.limit.messages_per_connection
        if self.messages_max < most:
            most = self.messages_max
        return most - self.used

    def obey(self, obeyed: Obeyed) -> None:
        """What was learnt of its host, before it is told to open."""
        self.obeyed = obeyed
        self.messages_max = obeyed.messages_max
        self.tls = self.tls_by(self.hop)

    def tls_by(self, hop: Hop) -> Tls:
        """What it asks of STARTTLS if it goes by this hop."""
        tls = hop.tls(is_verified=self.group.site.is_verified)
        return _DISABLED if tls is _OPPORTUNISTIC and not self.obeyed.tls else tls

    def room(self) -> int:
        """How many messages it may be given now; 0 also where more will be worth the while soon."""
        if self.is_closing:
            return 0
        left = self.left
        room = self.window - self.in_flight
        if room >= left:
            return max(0, left)
        return room if 2 * room >= self.window else 0

    def dry_up(self, limit: Limit) -> None:
        """It is of no use until the limit has credits."""
        if self.dry_at is None:
            self.dry_at = limit
            limit.dry.add(self.id)
            self.group.usable -= 1

    def refill(self) -> None:
        if self.dry_at is not None:
            self.dry_at.dry.discard(self.id)
            self.dry_at = None
            self.group.usable += 1

    def rest(self) -> None:
        """It has nothing to do: its rooms may have it closed for another."""
        for room in self.rooms:
            idle = Idle(self.id)
            room.rest(idle)
            self.idles.append(idle)

    def unrest(self) -> None:
        """Before it is given something, is closed, or is counted in other rooms."""
        for at, idle in enumerate(self.idles):
            self.rooms[at].unrest(idle)
        self.idles.clear()

    def begin_measuring(self, now_s: float) -> None:
        """It has something to do from now on: the pace is that of messages, not of idling or the handshake."""
        self._reported_s = now_s
        self._unmeasured = 0

    def measure(self, attempted: int, now_s: float, window_max: int) -> None:
        """Learns from messages that were decided how much the session can carry."""
        self._unmeasured += attempted
        elapsed_s = now_s - self._reported_s
        if elapsed_s <= 0.0 or not self._unmeasured:
            return  # several reports at the same moment are one
        took_s = elapsed_s / self._unmeasured
        self.begin_measuring(now_s)
        self.message_s = took_s if not self.message_s else 0.7 * self.message_s + 0.3 * took_s
        group = self.group
        group.message_s = self.message_s if not group.message_s else 0.9 * group.message_s + 0.1 * self.message_s
        # Doubling, as the first reports of a session say little about its pace.
        window = min(int(WINDOW_S / self.message_s), window_max)
        self.window = max(WINDOW_MIN, min(window, self.window * 2))


def bookings_of(hop: Hop) -> list[Booking]:
    """None for a hop that counts no messages, which is most."""
    return [Booking(limit) for limit in hop.limits if limit.quota is not None or limit.volume is not None]


class Group(Gate):
    """A site through one egress: the hops in the order to try and the sessions with room.

    ``domain_class``: what rules tell apart about its recipients' domains; those of another class have their own group.
    ``avoided``: peers and MX hosts that refused its recipients in this attempt.
    """

    __slots__ = (
        "avoided",
        "domain_class",
        "egress",
        "free",
        "hops",
        "message_s",
        "moved_s",
        "open_s",
        "proven",
        "reach",
        "rules_version",
        "sessions",
        "site",
        "usable",
    )

    def __init__(
        self,
        site: Site,
        egress: Egress,
        reach: SiteReach,
        domain_class: str = "",
        avoided: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.site = site
        self.reach = reach
        self.avoided = avoided
        self.domain_class = domain_class
        self.egress = egress
        self.hops: list[Hop] = []
        self.rules_version = -1
        self.free: deque[Session] = deque()  # sessions with room, and some that have lost it since
        self.sessions = 0
        self.usable = 0  # of them, those that are neither closing nor out of credits
        self.proven = 0  # of them, those that are not closing and have decided something
        self.message_s = 0.0  # what a message takes on one session, lately; 0: not known yet
        self.open_s = 0.0  # what opening a session takes, lately
        self.moved_s = -math.inf  # when one of its sessions last decided something or was ordered

    def is_open(self, now_s: float) -> bool:
        return not self.usable or self.next_free() is not None

    @property
    def first_window(self) -> int:
        """For a session of which nothing is known yet."""
        if not self.message_s:
            return WINDOW_FIRST
        return max(WINDOW_MIN, min(int(WINDOW_S / self.message_s), 2 * WINDOW_FIRST))

    def is_moving(self, now_s: float) -> bool:
        """True when whoever waits for its sessions will not wait for long."""
        return self.sessions > 0 and now_s < self.stalls_s

    @property
    def stalls_s(self) -> float:
        """Until when it counts as moving, if nothing moves until then."""
        return self.moved_s + STALL_S

    def wants_session(self, waiting: int) -> bool:
        """True when ``waiting`` recipients would keep its sessions busy for long enough to pay for one more."""
        if not self.usable:
            return True
        if not self.message_s:
            return waiting > self.usable * MESSAGES_PER_NEW_SESSION
        # A session that may carry few messages needs its handshake for those few.
        message_s = self.message_s
        if self.hops:
            message_s += self.open_s / self.hops[0].limit.messages_per_connection
        return waiting * message_s > self.usable * WORTH_A_SESSION_S

    def next_free(self) -> Session | None:
        """The session with room that has waited longest for something to do."""
        free = self.free
        while free:
            if free[0].room():
                return free[0]
            self.unlist_first()
        return None

    def unlist_first(self) -> None:
        self.free.popleft().is_listed_free = False

    def list_free(self, session: Session) -> None:
        if not session.is_listed_free and session.room() > 0:
            session.is_listed_free = True
            self.free.append(session)

    def rotate(self, hop: Hop) -> None:
        """The next session begins after this hop among its equals, so that equals share the load."""
        first = next(i for i, other in enumerate(self.hops) if other.preference == hop.preference)
        equals = [other for other in self.hops if other.preference == hop.preference]
        turn = equals.index(hop) + 1
        self.hops[first : first + len(equals)] = equals[turn:] + equals[:turn]
