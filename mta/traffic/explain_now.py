"""Why a site's mail does not go now: read from the state that decides, changing nothing in it.

Everything here asks the objects of the schedule themselves: a lane for its wait, a gate whether it is open, a limit
for its figures and for its own words. There is no second reckoning of what may go.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from mta.model.waiting import Wait, WaitReason
from mta.traffic.capacity import Capacity
from mta.traffic.effects import EffectKind, Target
from mta.traffic.host_facts import in_order, overridden
from mta.traffic.limit import Figure, HostRoom, Limit, Room
from mta.traffic.limits import LIMIT_KEYS
from mta.traffic.path import Path
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.schedule import SIZE_UNKNOWN_BYTES, Schedule
from mta.traffic.sessions import Group, Hop
from mta.traffic.sources import Source
from mta.traffic.waits import full_wait

_LETTERS: Final = {"c": "connections", "m": "messages", "b": "bytes", "o": "connections begun"}
# By kind of figure, the key of a rule that sets it.
_KEYS: Final = {
    "c": "connections_max",
    "m1": "messages_per_second_max",
    "m60": "messages_per_minute_max",
    "m300": "messages_per_hour_max",
    "m3600": "messages_per_hour_max",
    "m86400": "messages_per_day_max",
    "b60": "bytes_per_minute_max",
    "b3600": "bytes_per_hour_max",
    "b86400": "bytes_per_day_max",
    "o1": "connections_per_second_max",
    "o60": "connections_per_minute_max",
    "o3600": "connections_per_hour_max",
}
# What ends a wait of which nobody can say the time.
_EVENTS: Final = {
    WaitReason.DNS: "when the resolver answers",
    WaitReason.RULE_CONNECTIONS: "when one of the open connections ends",
    WaitReason.HOST_CONNECTIONS: "when one of the open connections ends",
    WaitReason.RULE_CONNECTION_RATE: "when it is known what became of the connections that are being opened",
    WaitReason.RULE_MESSAGES: "when messages under way are reported",
    WaitReason.RULE_MESSAGES_PER_HOUR: "when messages under way are reported",
    WaitReason.RULE_BYTES: "when messages under way are reported",
    WaitReason.WARM_UP: "when messages under way are reported",
    WaitReason.QUIET_HOURS: "when the quiet hours end",
    WaitReason.SHARE: "when the nodes share the limit out anew",
    WaitReason.BACKOFF: "when the session that tries the path again has an answer",
    WaitReason.MACHINE: "when the session that tries it again has an answer",
    WaitReason.NO_EGRESS: "when the pool or its masks are changed (mta.toml, then a restart)",
    WaitReason.NO_SIGNING_KEY: "when a key is there (mta.toml, then a reload)",
    WaitReason.SUSPENDED: "when the suspension is lifted",
    WaitReason.SESSIONS: "when a session of any child ends",
    WaitReason.WINDOW: "when its sessions report, in a moment",
    WaitReason.LEASE: "when the database answers again",
    WaitReason.JOURNAL: "when the journal can be written again",
}


class LimitNow(msgspec.Struct, frozen=True):
    """How far a limit is used. ``span_s`` 0: at a time. ``share`` is this node's part of ``most``."""

    limit: str  # the key of the rule, as in the rules file
    what: str  # connections, messages, bytes, connections begun
    span_s: int
    used: int
    in_flight: int
    most: int
    share: int
    counted_on: str
    title: str  # "rule google"
    origin: str  # file:line of the value
    holds: int = 0  # lanes that wait on it
    given: int | None = None  # what stands there, where an event has put something else in its place
    because: str = ""  # then: the names of those events


class EffectNow(msgspec.Struct, frozen=True):
    """What an event has put in force there besides the rules. ``until_unix_s`` None: until it is cancelled."""

    key: str
    name: str
    kind: str
    target: str
    on: str
    until_unix_s: float | None
    limits: dict[str, int]
    pool: str
    detail: str


class FactNow(msgspec.Struct, frozen=True):
    """What was learnt of one of the site's hosts. ``is_obeyed`` False: the host's rule says otherwise."""

    host: str
    mx_host: str
    fact: str
    value: int
    said: str
    cause: str
    learnt_unix_s: float
    until_unix_s: float
    is_obeyed: bool
    rule: str


class EgressNow(msgspec.Struct, frozen=True):
    """A site through one egress. ``reason`` empty: nothing holds it here.

    ``until_unix_s`` None: an ``event`` ends the wait.
    """

    egress: str
    sessions: int
    open_s: float  # what opening a session takes, lately
    message_s: float  # what a message takes on one session, lately
    reason: str
    detail: str
    rule: str
    origin: str
    mx_host: str
    peer: str
    until_unix_s: float | None
    event: str


class LaneNow(msgspec.Struct, frozen=True):
    """The recipients of one site with the same egresses. ``state``: ``goes`` (its turn comes), ``waits``, ``empty``."""

    site: str
    hosts: tuple[str, ...]
    pool: str
    domain: str  # one of its recipients' domains
    waiting: int
    state: str
    reason: str
    detail: str
    until_unix_s: float | None
    event: str
    rate_per_s: float
    egresses: tuple[EgressNow, ...]
    limits: tuple[LimitNow, ...]
    effects: tuple[EffectNow, ...] = ()
    facts: tuple[FactNow, ...] = ()


def event_of(wait: Wait) -> str:
    """What ends a wait that has no time; empty when it has one."""
    return _EVENTS[wait.reason] if wait.until == math.inf else ""


def is_lane_of(lane: Any, name: str) -> bool:
    """True for a lane of the site of this key, of a site that has this MX host, or of this recipient domain."""
    site = lane.site
    return site.key == name or lane.domain == name or name in [host.name for host in site.hosts]


def lane_now(schedule: Schedule[Any], rules: RuleSet, lane: Any, now_s: float, unix_s: float) -> LaneNow:
    """All there is to say of a lane. ``unix_s`` is the same moment as ``now_s``."""
    groups: dict[str, Group] = lane.groups
    size_bytes = SIZE_UNKNOWN_BYTES
    if lane.ready.count:
        size_bytes = schedule.sizes_bytes.get(lane.ready.next_delivery(), SIZE_UNKNOWN_BYTES)
    wait: Wait | None = lane.wait
    egresses = []
    for egress in lane.egresses:
        group = groups.get(egress.name)
        found, hop = (None, None) if group is None else _why_not(schedule, lane, group, now_s, size_bytes)
        egresses.append(_egress_now(egress.name, group, found, hop, rules, unix_s - now_s))
    return LaneNow(
        site=lane.site.key,
        hosts=tuple(host.name for host in lane.site.hosts),
        pool=lane.chooser.pool.name,
        domain=lane.domain,
        waiting=lane.ready.count,
        state="waits" if wait is not None else ("goes" if lane.ready.count else "empty"),
        reason="" if wait is None else wait.reason.value,
        detail="" if wait is None else wait.detail,
        until_unix_s=None if wait is None else _unix(_opens_s(lane, wait), unix_s - now_s),
        event="" if wait is None else event_of(wait),
        rate_per_s=lane.rate_per_s,
        egresses=tuple(egresses),
        limits=tuple(_limits_of(groups.values(), rules, now_s)),
        effects=tuple(_effects_of(schedule, lane, groups.values(), unix_s)),
        facts=tuple(_facts_of(schedule, rules, groups.values())),
    )


def _opens_s(lane: Any, wait: Wait) -> float:
    """The wait's time, or that of a gate's alarm where the wait was for a report that has come since."""
    if wait.until < math.inf:
        return wait.until
    alarms = [gate.alarm_s for gate in lane.gates if isinstance(gate, Limit)]
    return min(alarms, default=math.inf)


def _why_not(
    schedule: Schedule[Any], lane: Any, group: Group, now_s: float, size_bytes: int
) -> tuple[Wait | None, Hop | None]:
    """What keeps a lane from going through this egress, of all that it met there on its last look."""
    wait: Wait | None = lane.wait
    if wait is None or group not in lane.gates:
        return None, None  # it goes, or another egress has the turn
    counters = schedule._counters
    if (effect := counters.suspended(group.site.key, group.egress.name, now_s)) is not None:
        detail = f"{effect.target} {effect.on}: {effect.said}"
        return Wait(WaitReason.SUSPENDED, counters.clock_s(effect.until_unix_s), detail), None
    joined = set(lane.gates)
    full: tuple[Wait, Hop] | None = None
    failing: tuple[Wait, Hop] | None = None
    for hop in group.hops:
        gates: tuple[Path | Source | Room, ...] = (hop.path, hop.source, *hop.rooms)
        for gate in gates:
            found = _why_shut(gate, hop, now_s, size_bytes) if gate in joined else None
            if found is None:
                continue
            if found.reason in (WaitReason.BACKOFF, WaitReason.MACHINE):
                failing = failing if failing and failing[0].until <= found.until else (found, hop)
            else:
                full = full if full and full[0].until <= found.until else (found, hop)
            break
    if (shut := full or failing) is not None:
        # Where there is one egress only, the lane has kept the very words of the decision.
        return (wait, shut[1]) if len(lane.egresses) == 1 and wait.reason is shut[0].reason else shut
    return (
        (wait, group.hops[0] if group.hops else None) if len(lane.egresses) == 1 else (_busy(lane, group, now_s), None)
    )


def _busy(lane: Any, group: Group, now_s: float) -> Wait | None:
    for gate in lane.gates:
        if isinstance(gate, Capacity) and not gate.is_open(now_s):
            return gate.why_not(now_s)
    return Wait(WaitReason.WINDOW, math.inf, f"its {group.sessions} sessions are busy") if group.sessions else None


def _why_shut(gate: Path | Source | Room, hop: Hop, now_s: float, size_bytes: int) -> Wait | None:
    """In the gate's own words; None when it is open."""
    if isinstance(gate, Path):
        if (suspension := gate.suspension) is not None and gate.suspended_until_s > now_s:
            return Wait(WaitReason.SUSPENDED, gate.suspended_until_s, suspension.said)
        if gate.is_open(now_s):
            return None
        return gate.why_resting(now_s)
    if isinstance(gate, Source):
        if gate.is_open(now_s):
            return None
        until_s = math.inf if gate.backoff.is_available(now_s) else gate.backoff.until_s
        return Wait(WaitReason.MACHINE, until_s, gate.fault)
    if isinstance(gate, Limit):
        if gate.counts_messages and gate.credits(now_s, size_bytes) <= 0:
            return gate.wait_for_credits(now_s, size_bytes)
        if gate.opens_at_s(now_s) > now_s:
            return gate.wait_to_open(now_s)
    if gate.has_room:
        return None
    if gate.lacks_share:
        return Wait(WaitReason.SHARE, math.inf, f"other nodes hold the rest, this one has {gate.sessions_max}")
    if isinstance(gate, HostRoom):
        return full_wait(hop, gate)
    title = gate.title if isinstance(gate, Limit) else f"rule {hop.rule.name} to {hop.peer}"
    return Wait(WaitReason.RULE_CONNECTIONS, math.inf, f"{title}: {gate.sessions} of {gate.sessions_max} connections")


def _egress_now(
    name: str, group: Group | None, wait: Wait | None, hop: Hop | None, rules: RuleSet, unix_offset_s: float
) -> EgressNow:
    rule = None if hop is None else hop.rule
    return EgressNow(
        egress=name,
        sessions=0 if group is None else group.sessions,
        open_s=0.0 if group is None else group.open_s,
        message_s=0.0 if group is None else group.message_s,
        reason="" if wait is None else wait.reason.value,
        detail="" if wait is None else wait.detail,
        rule="" if rule is None else rule.name,
        origin="" if rule is None else _origin(rules, rule, wait),
        mx_host="" if hop is None else hop.mx_host,
        peer="" if hop is None else hop.peer,
        until_unix_s=None if wait is None else _unix(wait.until, unix_offset_s),
        event="" if wait is None else event_of(wait),
    )


def _unix(at_s: float, unix_offset_s: float) -> float | None:
    return None if at_s == math.inf else at_s + unix_offset_s


_REASON_KEYS: Final = {
    WaitReason.RULE_CONNECTIONS: ("connections_max", "connections_per_path_max"),
    WaitReason.RULE_CONNECTION_RATE: (
        "connections_per_second_max",
        "connections_per_minute_max",
        "connections_per_hour_max",
        "ramp_up_s",
    ),
    WaitReason.RULE_MESSAGES: ("messages_per_second_max", "messages_per_minute_max", "messages_per_day_max"),
    WaitReason.RULE_MESSAGES_PER_HOUR: ("messages_per_hour_max",),
    WaitReason.RULE_BYTES: ("bytes_per_minute_max", "bytes_per_hour_max", "bytes_per_day_max"),
    WaitReason.QUIET_HOURS: ("quiet_hours",),
}


def _origin(rules: RuleSet, rule: Rule, wait: Wait | None) -> str:
    """file:line of the value that holds, where it is known, else of the rule."""
    if wait is not None:
        names = [rule.name]
        if rule.provider is not None and wait.detail.startswith(f"provider {rule.provider.name}:"):
            names = [f"provider:{rule.provider.name}"]
        found = {
            rules.origins[name, key]
            for name in names
            for key in _REASON_KEYS.get(wait.reason, ())
            if (name, key) in rules.origins
        }
        if len(found) == 1:
            return found.pop()
    return rule.origin


# --- counters ------------------------------------------------------------------------------------


def limit_rows(limit: Limit, rules: RuleSet, now_s: float) -> Iterator[LimitNow]:
    """Every figure of one counter."""
    for figure in limit.figures(now_s):
        yield _row(figure, limit, rules)


def _row(figure: Figure, limit: Limit, rules: RuleSet) -> LimitNow:
    name = limit.key.split("|", 1)[0]
    key = _KEYS.get(figure.kind, figure.kind)
    origin = rules.origins.get((name, key), "")
    if not origin:
        rule = next((rule for rule in (*rules.rules, rules.default) if rule.name == name), None)
        origin = "" if rule is None else rule.origin
    given, in_force = getattr(limit.own, key, None), getattr(limit.in_force, key, None)
    because = dict.fromkeys(
        effect.name
        for effect in limit.effects
        if effect.kind is EffectKind.BACKOFF or getattr(effect.limits, key, None) is not None
    )
    return LimitNow(
        limit=key,
        what=_LETTERS[figure.kind[0]],
        span_s=figure.span_s,
        used=figure.used,
        in_flight=figure.in_flight,
        most=figure.most,
        share=figure.share,
        counted_on=limit.key,
        title=limit.title,
        origin=origin,
        holds=limit.waiting,
        given=given if given is not None and given != in_force else None,
        because=", ".join(because) if given != in_force else "",
    )


def _limits_of(groups: Iterable[Group], rules: RuleSet, now_s: float) -> Iterator[LimitNow]:
    hops = [hop for group in groups for hop in group.hops]
    for limit in dict.fromkeys(limit for hop in hops for limit in hop.limits):
        yield from limit_rows(limit, rules, now_s)
    rooms = {id(hop.path_room): (hop, hop.path_room) for hop in hops if hop.path_room is not None}
    for hop, room in rooms.values():
        key = "connections_per_path_max"
        most = room.sessions_max or 0
        yield LimitNow(
            limit=key,
            what="connections",
            span_s=0,
            used=room.sessions,
            in_flight=0,
            most=hop.rule.connections_per_path_max or most,
            share=most,
            counted_on=f"{hop.rule.name} to {hop.peer}",
            title=f"rule {hop.rule.name}",
            origin=rules.origins.get((hop.rule.name, key), hop.rule.origin),
            holds=room.waiting,
        )


# --- effects -------------------------------------------------------------------------------------


def _effects_of(schedule: Schedule[Any], lane: Any, groups: Iterable[Group], unix_s: float) -> Iterator[EffectNow]:
    """Those that concern a lane: its site, its egresses, what counts it, its paths. Each once, whatever it is on."""
    hops = [hop for group in groups for hop in group.hops]
    whom = {(Target.SITE, lane.site.key)}
    whom.update((Target.EGRESS, egress.name) for egress in lane.egresses)
    whom.update((Target.PATH, hop.path.key) for hop in hops)
    for limit in [limit for hop in hops for limit in hop.limits]:
        whom.update(((Target.RULE, limit.key), (Target.PROVIDER, limit.key)))
    found = {
        effect.key: effect
        for effect in schedule.effects
        if (effect.target, effect.on) in whom and effect.until_unix_s > unix_s
    }
    for effect in found.values():
        given = {key: getattr(effect.limits, key) for key in LIMIT_KEYS}
        yield EffectNow(
            key=effect.key,
            name=effect.name,
            kind=effect.kind.value,
            target=effect.target.value,
            on=effect.on,
            until_unix_s=None if effect.until_unix_s == math.inf else effect.until_unix_s,
            limits={key: value for key, value in given.items() if value is not None},
            pool=effect.pool,
            detail=effect.detail,
        )


# --- what was learnt of hosts --------------------------------------------------------------------


def _facts_of(schedule: Schedule[Any], rules: RuleSet, groups: Iterable[Group]) -> Iterator[FactNow]:
    """Of all hosts that the lane's groups may use, each fact once."""
    hops = {hop.host: hop for group in groups for hop in group.hops}
    for host, hop in hops.items():
        without = overridden(hop.rule, rules.origins)
        for learnt in in_order(schedule.hosts.of(host)):
            yield FactNow(
                host=host,
                mx_host=hop.mx_host,
                fact=learnt.fact.value,
                value=learnt.value,
                said=learnt.fact.said(learnt.value),
                cause=learnt.cause,
                learnt_unix_s=learnt.learnt_unix_s,
                until_unix_s=learnt.until_unix_s,
                is_obeyed=learnt.fact not in without,
                rule=hop.rule.name,
            )


# --- a delivery ----------------------------------------------------------------------------------


def count_waiting(lanes: Iterable[Any], delivery_id: int, into: Counter[tuple[str, str]]) -> None:
    """Adds the recipients of a delivery in these lanes by (reason, site); the reason ``goes`` is none."""
    for lane in lanes:
        waiting = sum(count for delivery, count in lane.ready.counts() if delivery == delivery_id)
        if waiting:
            into["goes" if lane.wait is None else lane.wait.reason.value, lane.site.key] += waiting
