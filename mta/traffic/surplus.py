"""How much a lane may keep in memory, and when the rest is due again.

What a lane cannot send soon only takes the room of others. It keeps what it will send in about a minute; the rest
returns to the queue, each recipient due about when those before it will have gone.
"""

from __future__ import annotations

from typing import Any, Final

from mta.model.waiting import WaitReason
from mta.traffic.actions import Bounds
from mta.traffic.lanes import Lane

HORIZON_S: Final = 60.0
READY_MIN: Final = 50
UNKNOWN_PACE_S: Final = 3.0  # a new lane: nothing is known yet of what its site takes
PACE_MIN: Final = 1.0  # assumed where nothing is known, messages a second
DELAY_S_MIN: Final = 5.0
DELAY_S_MAX: Final = 900.0
# Who only waits for a session may have many in a moment: its pace so far says little about then.
BUSY_DELAY_S_MAX: Final = 5.0  # short, as an idle node must not wait for it; not shorter, as each return is a rewrite
# Once its pace is known well: a lane keeps what it sends in a minute, so that is early enough though it went twice as
# fast. With the shorter one a site that is much larger than its pace was read and written back every 5 s.
STEADY_DELAY_S_MAX: Final = HORIZON_S / 2
# What waits for sessions goes on in a moment; and a path that fails is soon good again, or patience ends.
_LONG_WAITS: Final = frozenset(
    {
        WaitReason.RULE_MESSAGES,
        WaitReason.RULE_MESSAGES_PER_HOUR,
        WaitReason.RULE_BYTES,
        WaitReason.RULE_CONNECTION_RATE,
        WaitReason.QUIET_HOURS,
        WaitReason.SUSPENDED,
        WaitReason.WARM_UP,
        WaitReason.NO_EGRESS,
        WaitReason.MACHINE,
    }
)
# What waits for this machine is due when that is tried again; where nothing else is left, nothing is claimed meanwhile.
MACHINE_DELAY_S_MAX: Final = 60.0


def waits_long(lane: Lane[Any]) -> bool:
    """True when what holds the lane back does not end in a moment: `excess` looks at its pace then."""
    return lane.wait is not None and lane.wait.reason in _LONG_WAITS


def excess(lane: Lane[Any], bounds: Bounds, now_s: float) -> int:
    """How many of its recipients the lane should give back now."""
    waiting = lane.ready.count
    if waiting <= READY_MIN:
        return 0
    if waits_long(lane):
        most = max(READY_MIN, min(bounds.ready_per_lane_max, int(pace(lane) * HORIZON_S)))
    elif now_s - lane.since_s < UNKNOWN_PACE_S:
        most = bounds.ready_max
    else:
        most = max(bounds.ready_per_lane_max, int(lane.rate_per_s * HORIZON_S))
    # A few over are cheaper kept than written; a quarter over are worth a part.
    return waiting - most if waiting > most + most // 4 else 0


def pace(lane: Lane[Any]) -> float:
    """Messages a second that the lane may hope for: by its rules' limits of messages, else what it did lately."""
    groups = lane.groups.values()
    limits = {limit for group in groups for hop in group.hops for limit in hop.limits if limit.quota is not None}
    is_bounded = bool(limits) and all(
        any(limit.quota is not None for limit in hop.limits) for group in groups for hop in group.hops
    )
    if not is_bounded:
        return max(lane.rate_per_s, PACE_MIN)
    # Of a limit that holds several sites, those who wait for it get about equal parts. Other nodes may have all of it.
    hoped = sum(limit.quota.rate_per_s / max(1, limit.waiting) for limit in limits if limit.quota)
    return hoped or PACE_MIN


def due_in_s(lane: Lane[Any], count: int, pace_per_s: float, now_s: float, *, is_old: bool) -> float:
    """When ``count`` recipients are due that the lane has just given up: when it will be through with what it keeps
    and with the surplus before them. Who is ``is_old`` was there before the surplus and goes before it."""
    begins_s = now_s + lane.ready.count / pace_per_s
    if not is_old:
        begins_s = max(begins_s, lane.surplus_until_s)
        lane.surplus_until_s = begins_s + count / pace_per_s
    most_s = BUSY_DELAY_S_MAX
    if waits_long(lane):
        most_s = DELAY_S_MAX
        if lane.wait is not None and lane.wait.reason is WaitReason.MACHINE:
            most_s = max(DELAY_S_MIN, min(MACHINE_DELAY_S_MAX, lane.wait.until - now_s))
    elif now_s - lane.since_s >= HORIZON_S:
        most_s = STEADY_DELAY_S_MAX
    return min(most_s, max(DELAY_S_MIN, begins_s - now_s))
