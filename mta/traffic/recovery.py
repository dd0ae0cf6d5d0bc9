"""How a lowered limit grows back: additively, at most one step an interval, never above what the rule allows.

AIMD, as TCP does it (Chiu & Jain 1989): an automation lowers at once, recovery raises by a constant. So paths that
share a provider's patience come to fair shares, and none swings between all and nothing.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from mta.traffic.automations import Recovery
from mta.traffic.events import TrafficEvent
from mta.traffic.limits import LIMIT_KEYS, Limits

# Where a rule sets no such limit, a lowered one has grown back when it is so many times as large.
UNBOUNDED_TIMES: Final = 10
# Lowering these would slow nothing down; they are lowered by figures only.
_NOT_BY_FACTOR: Final = ("ramp_up_s", "messages_per_connection_max")


def lowered_by(own: Limits, factor: float) -> Limits:
    """Each of the limits that are set, but those of a session, times ``factor``; at least 1."""
    return Limits(
        **{
            key: max(1, int(value * factor))
            for key in LIMIT_KEYS
            if key not in _NOT_BY_FACTOR and (value := getattr(own, key)) is not None
        }
    )


def base_of(own: Limits, lowered: Limits) -> Limits:
    """What the lowered limits grow back to: what the rule sets; where it sets nothing, a multiple."""
    found: dict[str, int] = {}
    for key in LIMIT_KEYS:
        low, full = getattr(lowered, key), getattr(own, key)
        if low is None:
            continue
        if key == "ramp_up_s":
            found[key] = min(low, full or 1)
        else:
            found[key] = low * UNBOUNDED_TIMES if full is None else max(low, full)
    return Limits(**found)


def steps(limits: Limits, base: Limits, recovery: Recovery) -> int:
    """After how many steps nothing is lowered any more."""
    most = 0
    for key in LIMIT_KEYS:
        low, full = getattr(limits, key), getattr(base, key)
        if low is not None and full is not None and low != full:
            most = max(most, math.ceil(abs(full - low) / _increment(full, recovery)))
    return most


def _increment(full: int, recovery: Recovery) -> int:
    return max(1, int(full * recovery.step_percent / 100))


def raised(limits: Limits, base: Limits, recovery: Recovery) -> Limits:
    """The limits one step further."""
    found: dict[str, int] = {}
    for key in LIMIT_KEYS:
        low, full = getattr(limits, key), getattr(base, key)
        if low is None or full is None:
            continue
        step = _increment(full, recovery)
        found[key] = max(full, low - step) if key == "ramp_up_s" else min(full, low + step)
    return Limits(**found)


def next_step_unix_s(event: TrafficEvent, recovery: Recovery) -> float:
    """When it is time for that; inf: it does not grow."""
    return _due_unix_s(event, steps(event.limits, event.base, recovery), recovery)


def _due_unix_s(event: TrafficEvent, left: int, recovery: Recovery) -> float:
    return event.until_unix_s - left * recovery.interval_s if left > 0 else math.inf


def next_step(event: TrafficEvent, recovery: Recovery, now_unix_s: float) -> TrafficEvent | None:
    """The event one step further, when it is time for that; ``base`` empty: it does not grow, it ends.

    The last steps end with ``until_unix_s``: then the event is over. Who comes late takes one step and the rest later.
    """
    left = steps(event.limits, event.base, recovery)
    if now_unix_s < _due_unix_s(event, left, recovery):
        return None
    limits = raised(event.limits, event.base, recovery)
    until_s = max(event.until_unix_s, now_unix_s + left * recovery.interval_s)
    return msgspec.structs.replace(event, limits=limits, step=event.step + 1, until_unix_s=until_s)
