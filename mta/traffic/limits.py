"""What a rule may bound, and over which spans of time. Figures only; `mta.traffic.counters` counts them."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

SECOND_S: Final = 1
MINUTE_S: Final = 60
SLICE_S: Final = 300
HOUR_S: Final = 3_600
DAY_S: Final = 86_400
SLICES_PER_HOUR: Final = HOUR_S // SLICE_S


class Ceiling(NamedTuple):
    """At most so many in any period of so many seconds."""

    span_s: int
    most: int


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is counted. None is no limit; a limit is at least 1."""

    connections_max: int | None = None  # open at a time, counted as the scope says
    connections_per_path_max: int | None = None  # open at a time for one egress and one peer address
    connections_per_second_max: int | None = None  # begun, whatever becomes of them
    connections_per_minute_max: int | None = None
    connections_per_hour_max: int | None = None
    ramp_up_s: int | None = None  # a further connection, beside those that are open, no sooner than this after the last
    messages_per_connection_max: int | None = None
    messages_per_second_max: int | None = None  # attempts
    messages_per_minute_max: int | None = None
    messages_per_hour_max: int | None = None  # and a twelfth of it in any five minutes
    messages_per_day_max: int | None = None
    bytes_per_minute_max: int | None = None  # of messages as they were sent
    bytes_per_hour_max: int | None = None
    bytes_per_day_max: int | None = None

    def message_ceilings(self) -> tuple[Ceiling, ...]:
        """Messages, shortest span first."""
        found = []
        if self.messages_per_second_max is not None:
            found.append(Ceiling(SECOND_S, self.messages_per_second_max))
        if self.messages_per_minute_max is not None:
            found.append(Ceiling(MINUTE_S, self.messages_per_minute_max))
        if self.messages_per_hour_max is not None:
            # Below 12 an hour the hour is the tighter bound: one a slice, until the hour is used up.
            found.append(Ceiling(SLICE_S, max(1, self.messages_per_hour_max // SLICES_PER_HOUR)))
            found.append(Ceiling(HOUR_S, self.messages_per_hour_max))
        if self.messages_per_day_max is not None:
            found.append(Ceiling(DAY_S, self.messages_per_day_max))
        return tuple(found)

    def byte_ceilings(self) -> tuple[Ceiling, ...]:
        """Bytes, shortest span first."""
        given = (
            (MINUTE_S, self.bytes_per_minute_max),
            (HOUR_S, self.bytes_per_hour_max),
            (DAY_S, self.bytes_per_day_max),
        )
        return tuple(Ceiling(span_s, most) for span_s, most in given if most is not None)

    def opening_ceilings(self) -> tuple[Ceiling, ...]:
        """Connections begun, shortest span first. A ramp is one connection in its span."""
        given = (
            (SECOND_S, self.connections_per_second_max),
            (MINUTE_S, self.connections_per_minute_max),
            (HOUR_S, self.connections_per_hour_max),
        )
        return tuple(Ceiling(span_s, most) for span_s, most in given if most is not None)


LIMIT_KEYS: Final = tuple(Limits.__struct_fields__)


def tighter(limits: Limits, other: Limits) -> Limits:
    """The smaller of the two, limit by limit (of ``ramp_up_s`` the larger, which is the tighter)."""
    chosen: dict[str, int] = {}
    for key in LIMIT_KEYS:
        given = [value for value in (getattr(limits, key), getattr(other, key)) if value is not None]
        if given:
            chosen[key] = max(given) if key == "ramp_up_s" else min(given)
    return Limits(**chosen)
