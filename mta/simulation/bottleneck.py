"""What holds a site back just now, told from the lanes of the schedule that decides: rule, limit and figure, and the
traffic event that has made the figure what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mta.model.waiting import Wait, WaitReason
from mta.traffic.effects import Effect
from mta.traffic.gates import Gate
from mta.traffic.lanes import Lane
from mta.traffic.limit import Limit, Room
from mta.traffic.limits import DAY_S, HOUR_S, LIMIT_KEYS, MINUTE_S, SECOND_S, SLICE_S
from mta.traffic.path import Path
from mta.traffic.quota import Quota, Window
from mta.traffic.sessions import Group

MESSAGE_KEYS: Final = {
    SECOND_S: "messages_per_second_max",
    MINUTE_S: "messages_per_minute_max",
    SLICE_S: "messages_per_hour_max",
    HOUR_S: "messages_per_hour_max",
    DAY_S: "messages_per_day_max",
}
BYTE_KEYS: Final = {MINUTE_S: "bytes_per_minute_max", HOUR_S: "bytes_per_hour_max", DAY_S: "bytes_per_day_max"}
OPENING_KEYS: Final = {
    SECOND_S: "connections_per_second_max",
    MINUTE_S: "connections_per_minute_max",
    HOUR_S: "connections_per_hour_max",
}

RATES: Final = frozenset((*MESSAGE_KEYS.values(), *BYTE_KEYS.values(), *OPENING_KEYS.values()))
SUSPENDED: Final = "suspended"
RATE_PART: Final = 0.15  # of the time that something was held up


class Cause(NamedTuple):
    """``rule``: its name, or ``provider:`` or ``warmup:`` and that of a provider or a plan; empty where no rule holds
    it back. ``limit``: a key of `mta.traffic.limits.Limits`, or what else it is. ``value``: 0 where there is no figure.
    ``event``: the key of the traffic event that does it, or that has lowered the figure; empty: it is the rule's own.
    """

    rule: str
    limit: str
    value: int
    event: str = ""


# Where no rule holds it back.
PACE: Final = Cause("", "pace of the receiver", 0)
SESSIONS: Final = Cause("", "children.sessions_max", 0)
FAILING: Final = Cause("", "paths fail", 0)
NO_EGRESS: Final = Cause("", "no egress", 0)
IN_QUEUE: Final = Cause("", "not due yet", 0)
OTHER: Final = Cause("", "other", 0)
_PLAIN: Final = {
    WaitReason.WINDOW: PACE,
    WaitReason.SESSIONS: SESSIONS,
    WaitReason.BACKOFF: FAILING,
    WaitReason.NO_EGRESS: NO_EGRESS,
}


def why(
    lane: Lane[Any], now_s: float, unix_s: float, suspension: Callable[[Group, float], Effect | None] | None = None
) -> Cause:
    """What the lane waits for. ``unix_s`` is ``now_s`` as Unix time; ``suspension``: `Schedule.suspension`."""
    wait = lane.wait
    if wait is None:
        return PACE
    plain = _PLAIN.get(wait.reason)
    if plain is not None:
        return plain
    # A limit may have opened a moment ago for which the lane has not had its turn: then it is still that one.
    for is_strict in (True, False):
        for gate in lane.gates:
            cause = _at(gate, wait.reason, now_s, unix_s, is_strict=is_strict)
            if cause is not None:
                return cause
    return _of_no_limit(lane, wait, now_s, suspension) or Cause("", str(wait.reason.value), 0)


def _of_no_limit(
    lane: Lane[Any], wait: Wait, now_s: float, suspension: Callable[[Group, float], Effect | None] | None
) -> Cause | None:
    """The room of a path, or what is suspended other than a limit."""
    for gate in lane.gates:
        if wait.reason is WaitReason.RULE_CONNECTIONS and isinstance(gate, Room) and not gate.has_room:
            rule = wait.detail.partition(":")[0].removeprefix("rule ")  # a path's room bears no name
            return Cause(rule, "connections_per_path_max", gate.sessions_max or 0)
        if wait.reason is WaitReason.SUSPENDED:
            effect = gate.suspension if isinstance(gate, Path) else None
            if isinstance(gate, Group) and suspension is not None:
                effect = suspension(gate, now_s)
            if effect is not None:
                return suspended(effect)
    return None


def suspended(effect: Effect | None, rule: str = "") -> Cause:
    """``rule``: whose limit is suspended; empty: something else."""
    return Cause(rule, SUSPENDED, 0, "" if effect is None else effect.key)


def _at(gate: Gate, reason: WaitReason, now_s: float, unix_s: float, *, is_strict: bool) -> Cause | None:
    """What the gate lacks of what the lane waits for; None when it is not this gate."""
    if not isinstance(gate, Limit):
        return None
    rule = rule_of(gate.key)
    if reason is WaitReason.RULE_CONNECTIONS:
        if gate.has_room:
            return None
        return Cause(rule, "connections_max", gate.sessions_max or 0, event_of(gate, "connections_max"))
    if reason is WaitReason.RULE_CONNECTION_RATE:
        return _of_openings(gate, rule, now_s, unix_s)
    if gate.shut_until_s(now_s) > now_s:
        return suspended(gate.suspension, rule) if reason is WaitReason.SUSPENDED else Cause(rule, "quiet_hours", 0)
    if is_strict and gate.credits(now_s) > 0:
        return None
    if reason is WaitReason.RULE_BYTES and gate.volume is not None:
        return _of_quota(gate, gate.volume, BYTE_KEYS, unix_s)
    if gate.quota is not None:
        if gate.is_plan:
            return Cause(rule, "messages a day of the plan", gate.quota.windows[0].most)
        return _of_quota(gate, gate.quota, MESSAGE_KEYS, unix_s)
    return None


def _of_openings(gate: Limit, rule: str, now_s: float, unix_s: float) -> Cause | None:
    if gate.openings is not None and not gate.openings.available(unix_s):
        return _of_quota(gate, gate.openings, OPENING_KEYS, unix_s)
    if gate.opens_at_s(now_s) > now_s:
        return Cause(rule, "ramp_up_s", gate.in_force.ramp_up_s or 0, event_of(gate, "ramp_up_s"))
    return None


def _of_quota(gate: Limit, quota: Quota, keys: dict[int, str], unix_s: float) -> Cause:
    return of_window(gate, quota.tightest(unix_s), keys)


def of_window(limit: Limit, window: Window, keys: dict[int, str]) -> Cause:
    """A figure of a limit, as rules name it."""
    key = keys.get(window.span_s, f"in {window.span_s} s")
    value = getattr(limit.in_force, key, None)
    return Cause(rule_of(limit.key), key, window.most if value is None else value, event_of(limit, key))


def event_of(limit: Limit, key: str) -> str:
    """The traffic event that has made a figure of a limit what it is; empty: none has."""
    effect = limit.set_by(key) if key in LIMIT_KEYS else None
    return "" if effect is None else effect.key


def rule_of(key: str) -> str:
    """The name in a limit's key: of a rule, or of a provider or plan with its prefix."""
    return key.split("|", 1)[0]


def main_cause(causes: dict[Cause, float]) -> Cause:
    """What held a site up longest; that something is not due yet is said only where there is nothing else.

    A rate that stops it for a good part of the time is what holds it up, though in between connections do: while they
    wait for it, more of them would wait.
    """
    held = {cause: seconds for cause, seconds in causes.items() if cause != IN_QUEUE}
    if not held:
        return IN_QUEUE if causes else PACE
    # What grows back has had many figures: it counts as one, and that which held longest speaks for it.
    together: dict[tuple[str, str, str], float] = {}
    for cause, seconds in held.items():
        together[_what(cause)] = together.get(_what(cause), 0.0) + seconds
    least_s = RATE_PART * sum(held.values())
    rates = {what: seconds for what, seconds in together.items() if what[1] in RATES and seconds >= least_s}
    first = min((rates or together).items(), key=lambda item: (-item[1], item[0]))[0]
    return min((cause for cause in held if _what(cause) == first), key=lambda cause: (-held[cause], cause))


def _what(cause: Cause) -> tuple[str, str, str]:
    return cause.rule, cause.limit, cause.event
