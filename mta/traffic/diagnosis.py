"""Why a delivery is slow: what is known of it and of its node, weighed, the weightiest cause first. Pure.

Each cause gets the share of the delivery's open recipients that it holds up, as far as that is known. Where several
explain the same recipients (a connection limit is reached *because* each message takes long), the one behind the other
goes first: what somebody can do something about is worth more than what follows from it.
"""

from __future__ import annotations

import datetime
import enum
from typing import Final

import msgspec

from mta.model.waiting import WaitReason

LARGE_BYTES: Final = 60_000  # campaign-mta §10: above this a message is slow to send
SLOW_MESSAGE_S: Final = 0.5  # on one session
SLOW_OPENING_S: Final = 2.0
SLOW_DATABASE_S: Final = 0.5  # for a settlement or a claim
SILENT_S: Final = 3.0  # a child reports each second
REFUSED_MIN: Final = 5  # replies, before a share of them says anything
REFUSED_SHARE_MIN: Final = 0.05
SHOWN_MIN: Final = 0.005


class CauseKind(enum.StrEnum):
    """What makes a delivery slow."""

    STATE = "state"  # it is not running, or not begun
    NO_NODE = "no-node"
    NO_CHILD = "no-child"
    LEASE = "lease"
    JOURNAL = "journal"
    DATABASE = "database"
    EGRESS = "egress"  # its pool is missing or excludes, or what it leaves by is suspended
    MACHINE = "machine"  # this machine cannot connect: its address, route, ports, files or memory
    SIGNING = "signing"
    SUSPENDED = "suspended"  # a traffic event holds what its recipients have in common
    RULE = "rule"  # a limit of a rule
    REPUTATION = "reputation"  # servers refuse
    UNREACHABLE = "unreachable"  # servers cannot be reached
    SIZE = "size"
    RECEIVER = "receiver"  # servers take their time
    DNS = "dns"
    SESSIONS = "sessions"  # all of the children's are in use
    MEMORY = "memory"  # what the node may hold is held
    HELD = "held"  # in doubt, and waits for an operator
    WAVES = "waves"
    DUPLICATES = "duplicates"  # it is not looked at for them yet
    RETRY = "retry"  # deferred, and waits for the time of its next attempt
    DRAINING = "draining"  # all nodes that live have been told to stop
    NONE = "none"  # nothing holds it up


class SiteRefusals(msgspec.Struct, frozen=True):
    """Lately, at one site."""

    site: str
    attempts: int
    refused: int
    reply: str  # the last


class Suspension(msgspec.Struct, frozen=True):
    """A traffic event that suspends the domain of some recipients. ``recipients``: that it is known to hold."""

    name: str
    domain: str
    detail: str  # what led to it
    until_s: float  # from now
    recipients: int


class Waiting(msgspec.Struct, frozen=True):
    """Recipients of the delivery in memory that wait for one reason at one site; ``goes``: for their turn only."""

    reason: str
    site: str
    recipients: int


class MachineTrouble(msgspec.Struct, frozen=True):
    """What the node's machine cannot do, and what helps."""

    what: str
    do: str


class NodeFacts(msgspec.Struct, frozen=True):
    """What the node here says. Times in seconds; ``reason`` is why nothing of the delivery is claimed."""

    hold: str
    children_wanted: int
    children_working: int  # alive and heard of lately
    database_trouble: str
    settlement_s: float  # the usual time, or that of the one under way if it is longer
    claim_s: float
    is_memory_full: bool
    reason: str
    detail: str
    waiting: tuple[Waiting, ...]
    out: int
    asked: int
    message_s: float  # on one session, over the sites where it waits
    open_s: float
    details: dict[str, str] = {}  # by reason: in the words of what holds it most
    machine: tuple[MachineTrouble, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """A delivery. Counts are recipients; of the log, attempts of the last minutes."""

    state: str
    starts_in_s: float
    recipients: int
    ended: int  # with a final outcome
    due: int  # free, and might go now
    leased: int
    deferred: int  # come back after an attempt
    surplus: int  # come back without one: given back by a node
    later_waves: int
    held: int
    attempts: int
    refused: int
    unreachable: int
    unrouted: int
    mean_bytes: float
    sites: tuple[SiteRefusals, ...]
    nodes_living: int
    node: NodeFacts | None  # None: none answers here
    suspensions: tuple[Suspension, ...] = ()
    unchecked: int = 0  # would be due, but were not looked at for duplicates yet
    starts_at: datetime.datetime | None = None
    deferred_until: datetime.datetime | None = None  # the next retry of those that are deferred
    nodes_draining: int = 0  # of those that live

    @property
    def is_draining(self) -> bool:
        """Nobody claims anything more."""
        return 0 < self.nodes_living == self.nodes_draining


class Cause(msgspec.Struct, frozen=True):
    """One cause. ``share``: of the open recipients, about, that it holds up."""

    kind: CauseKind
    share: float
    what: str
    do: str


_RULES: Final = {
    WaitReason.RULE_CONNECTION_RATE: 1.0,
    WaitReason.RULE_MESSAGES: 1.0,
    WaitReason.RULE_MESSAGES_PER_HOUR: 1.0,
    WaitReason.RULE_BYTES: 1.0,
    WaitReason.QUIET_HOURS: 1.0,
    WaitReason.WARM_UP: 1.0,
    WaitReason.SHARE: 1.0,
    WaitReason.RULE_CONNECTIONS: 0.8,  # often reached only because each message takes long
}
_DEFERRING: Final = frozenset({CauseKind.REPUTATION, CauseKind.UNREACHABLE, CauseKind.DNS})
_LIFT: Final = "mta traffic events: it ends by itself, or lift it"
_BUSY: Final = ("goes", WaitReason.WINDOW.value, WaitReason.RULE_CONNECTIONS.value, WaitReason.SESSIONS.value)


def diagnose(facts: Facts) -> list[Cause]:
    """All causes that hold up something, the first first. Never empty."""
    causes = [*_of_delivery(facts), *_of_servers(facts)]
    if facts.node is not None:
        causes += [*_of_node(facts, facts.node), *_of_waits(facts, facts.node), *_of_pace(facts, facts.node)]
    elif not facts.nodes_living and facts.state == "running":
        causes.append(Cause(CauseKind.NO_NODE, 1.0, "no node lives", "start one: systemctl start mta"))
    # A suspension goes before the refusals that led to it: while it lasts nothing is refused. And what led to a
    # deferral goes before the wait that follows from it.
    kinds = {cause.kind for cause in causes}
    behind = {CauseKind.REPUTATION} if CauseKind.SUSPENDED in kinds else set()
    behind |= {CauseKind.RETRY} if kinds & _DEFERRING else set()
    found = sorted(
        (cause for cause in causes if cause.share >= SHOWN_MIN), key=lambda cause: (cause.kind in behind, -cause.share)
    )
    return found or [Cause(CauseKind.NONE, 0.0, "nothing holds it up", "nothing: it goes as fast as it is taken")]


def _open(facts: Facts) -> int:
    return max(1, facts.recipients - facts.ended)


def _share(facts: Facts, recipients: float) -> float:
    return min(1.0, recipients / _open(facts))


def _starts(facts: Facts) -> str:
    at = "" if facts.starts_at is None else f" at {_utc(facts.starts_at)}, which is"
    return f"starts{at} in {facts.starts_in_s:,.0f} s"


def _utc(time: datetime.datetime) -> str:
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}Z"


def _of_delivery(facts: Facts) -> list[Cause]:
    found = []
    if facts.state != "running":
        do = "mta delivery resume" if facts.state == "paused" else "nothing"
        do = "mta delivery start" if facts.state == "editing" else do
        found.append(Cause(CauseKind.STATE, 1.0, f"it is {facts.state}", do))
    elif facts.starts_in_s > 0:
        found.append(Cause(CauseKind.STATE, 1.0, f"it {_starts(facts)}", "nothing: so it was planned"))
    if facts.is_draining and facts.state == "running":
        what = "every node that lives is draining: nothing more is claimed"
        found.append(Cause(CauseKind.DRAINING, 1.0, what, "wait for the stop to end, then start one: mta queue show"))
    if facts.deferred:
        first = "" if facts.deferred_until is None else f", the next at {_utc(facts.deferred_until)}"
        what = f"{facts.deferred:,} are deferred and wait for their retry{first}"
        do = "read the replies: mta queue show --by reason; mta queue flush tries them now"
        found.append(Cause(CauseKind.RETRY, _share(facts, facts.deferred), what, do))
    if facts.held:
        what = f"{facts.held:,} in doubt wait for an operator"
        found.append(Cause(CauseKind.HELD, _share(facts, facts.held), what, "mta delivery in-doubt"))
    if facts.later_waves:
        what = f"{facts.later_waves:,} are of later waves"
        found.append(Cause(CauseKind.WAVES, _share(facts, facts.later_waves), what, "nothing: so it was planned"))
    if facts.unchecked:
        what = f"{facts.unchecked:,} wait until duplicates were looked for"
        do = "nothing: two seconds a million; if it stays, the log of the nodes says why"
        found.append(Cause(CauseKind.DUPLICATES, _share(facts, facts.unchecked), what, do))
    if facts.suspensions:
        held = sum(one.recipients for one in facts.suspensions)
        worst = "; ".join(
            f"{one.domain} for {one.until_s:,.0f} s by {one.name} ({one.detail})" for one in facts.suspensions[:3]
        )
        # Some come back with others, and are not told apart: the share is that of what waits, at least.
        share = max(_share(facts, held), SHOWN_MIN)
        found.append(
            Cause(CauseKind.SUSPENDED, share, f"{held:,} or more wait as their domain is suspended: {worst}", _LIFT)
        )
    return found


def _of_servers(facts: Facts) -> list[Cause]:
    found = []
    share = facts.refused / facts.attempts if facts.attempts else 0.0
    if facts.refused >= REFUSED_MIN and share >= REFUSED_SHARE_MIN:
        worst = ", ".join(
            f"{site.site or 'unknown'} {100 * site.refused / site.attempts:.0f} % ({site.reply})"
            for site in facts.sites[:3]
            if site.refused
        )
        what = f"{100 * share:.0f} % of {facts.attempts:,} attempts were refused lately: {worst}"
        found.append(
            Cause(CauseKind.REPUTATION, 0.97 * share, what, "read the replies: mta monitor errors; slow down there")
        )
    unreachable = facts.unreachable / facts.attempts if facts.attempts else 0.0
    if facts.unreachable >= REFUSED_MIN:
        what = f"{facts.unreachable:,} of {facts.attempts:,} attempts found no server"
        found.append(Cause(CauseKind.UNREACHABLE, 0.96 * unreachable, what, "mta explain SITE; try the host by hand"))
    unrouted = facts.unrouted / facts.attempts if facts.attempts else 0.0
    if facts.unrouted >= REFUSED_MIN:
        what = f"{facts.unrouted:,} of {facts.attempts:,} attempts found no route"
        found.append(Cause(CauseKind.DNS, 0.96 * unrouted, what, "look at the resolver: dns.nameservers"))
    return found


def _of_node(facts: Facts, node: NodeFacts) -> list[Cause]:
    found = []
    if node.hold == "lease":
        found.append(Cause(CauseKind.LEASE, 1.0, "the node's lease is not certain: nothing is begun", "the database"))
    elif node.hold == "journal":
        found.append(Cause(CauseKind.JOURNAL, 1.0, "the journal cannot be written: nothing is begun", "the disk"))
    missing = node.children_wanted - node.children_working
    if missing > 0 and not facts.is_draining:
        what = f"{missing} of {node.children_wanted} children are missing or say nothing"
        share = missing / node.children_wanted
        found.append(Cause(CauseKind.NO_CHILD, share, what, "journalctl -u mta: 'child died', 'child is silent'"))
    waited_s = max(node.settlement_s, node.claim_s)
    if node.database_trouble:
        found.append(Cause(CauseKind.DATABASE, 0.99, f"the database is away: {node.database_trouble}", "PostgreSQL"))
    elif waited_s >= SLOW_DATABASE_S:
        what = f"a settlement takes {node.settlement_s:.1f} s, a claim {node.claim_s:.1f} s"
        share = waited_s / (waited_s + SLOW_DATABASE_S)
        found.append(Cause(CauseKind.DATABASE, share, what, "pg_stat_activity: locks, disk; concurrent loads"))
    if node.is_memory_full and facts.due:
        what = f"{facts.due:,} wait in the queue as the node holds all that it may"
        found.append(
            Cause(CauseKind.MEMORY, 0.3 * _share(facts, facts.due), what, "what holds the rest; ready_recipients_max")
        )
    return found


def _of_waits(facts: Facts, node: NodeFacts) -> list[Cause]:
    found = []
    unsent = facts.due + facts.leased + facts.surplus
    if node.reason in (WaitReason.NO_EGRESS, WaitReason.SUSPENDED):
        do = "egress pools in mta.toml, then a restart" if node.reason == WaitReason.NO_EGRESS else "mta traffic events"
        found.append(Cause(CauseKind.EGRESS, _share(facts, unsent), node.detail, do))
    elif node.reason == WaitReason.NO_SIGNING_KEY:
        what = f"its messages cannot be signed: {node.detail}"
        found.append(Cause(CauseKind.SIGNING, _share(facts, unsent), what, "mta config check, then reload"))
    elif node.reason == WaitReason.MACHINE:
        found.append(_of_machine(facts, node, unsent, node.detail))
    if node.asked:
        what = f"{node.asked:,} wait for the routes of their domains"
        found.append(Cause(CauseKind.DNS, _share(facts, node.asked), what, "look at the resolver: dns.nameservers"))
    by_reason: dict[str, list[Waiting]] = {}
    for one in node.waiting:
        by_reason.setdefault(one.reason, []).append(one)
    longest = max(by_reason, key=lambda reason: sum(one.recipients for one in by_reason[reason]), default="")
    for reason, waiting in by_reason.items():
        count = sum(one.recipients for one in waiting)
        # What a node gives back, and comes again later, waits for what most in memory waits for.
        count += facts.surplus + (facts.due if node.is_memory_full else 0) if reason == longest else 0
        if (cause := _of_reason(facts, node, reason, waiting, count)) is not None:
            found.append(cause)
    return found


def _of_reason(facts: Facts, node: NodeFacts, reason: str, waiting: list[Waiting], count: int) -> Cause | None:
    sites = ", ".join(f"{one.site} {one.recipients:,}" for one in sorted(waiting, key=lambda one: -one.recipients)[:3])
    detail = node.details.get(reason, "")
    what = f"{count:,} wait ({reason}: {detail or 'no more is known'}), most at {sites}"
    share = _share(facts, count)
    for rule, weight in _RULES.items():
        if reason == rule:
            return Cause(CauseKind.RULE, weight * share, what, "mta explain SITE shows the rule and its line")
    if reason == WaitReason.MACHINE:
        return _of_machine(facts, node, count, detail)
    if reason == WaitReason.BACKOFF:
        return Cause(CauseKind.UNREACHABLE, share, what, "try the host by hand; mta monitor errors")
    if reason in (WaitReason.NO_EGRESS, WaitReason.SUSPENDED):
        do = "mta traffic events" if reason == WaitReason.SUSPENDED else "egress pools and masks in mta.toml"
        return Cause(CauseKind.EGRESS, share, what, do)
    if reason == WaitReason.SESSIONS:
        return Cause(CauseKind.SESSIONS, 0.8 * share, what, "children.sessions_max, and the limit of open files")
    return None


def _of_machine(facts: Facts, node: NodeFacts, count: int, detail: str) -> Cause:
    """``detail``: what was said to those that wait, where the node has nothing to say any more."""
    what = "; ".join(one.what for one in node.machine[:3]) or detail
    do = "; ".join(dict.fromkeys(one.do for one in node.machine[:3])) or "nothing: it is being tried again"
    return Cause(CauseKind.MACHINE, _share(facts, count), f"{count:,} wait for this machine: {what}", do)


def _of_pace(facts: Facts, node: NodeFacts) -> list[Cause]:
    """What makes the sessions themselves slow: matters where recipients wait for nothing but them."""
    found = []
    busy = sum(one.recipients for one in node.waiting if one.reason in _BUSY) + node.out
    if busy and facts.surplus + facts.due:
        busy += facts.surplus + facts.due
    share = _share(facts, busy)
    if facts.mean_bytes > LARGE_BYTES:
        what = f"a message has {facts.mean_bytes / 1000:,.0f} kB; above {LARGE_BYTES // 1000} kB they are slow to send"
        found.append(Cause(CauseKind.SIZE, 0.95 * share, what, "mta delivery preview: below 35 kB is advised"))
    if node.message_s >= SLOW_MESSAGE_S or node.open_s >= SLOW_OPENING_S:
        what = f"servers take {node.message_s:.1f} s for a message and {node.open_s:.1f} s for a session"
        found.append(Cause(CauseKind.RECEIVER, 0.9 * share, what, "more connections, if the rule and the site allow"))
    return found
