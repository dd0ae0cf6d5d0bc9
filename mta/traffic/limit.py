"""One counter: the sessions and messages that a rule, a provider or a plan bounds together, and what is in force there.

`mta.traffic.counters` makes them, one for each key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from mta.model.waiting import Wait, WaitReason
from mta.traffic.effects import Effect, EffectKind, longest_suspension
from mta.traffic.gates import Gate
from mta.traffic.limits import DAY_S, HOUR_S, MINUTE_S, SECOND_S, SLICE_S, Ceiling, Limits, tighter
from mta.traffic.line import Line, Place
from mta.traffic.quota import UNLIMITED, Quota, Window
from mta.traffic.rules import QuietHours

SPAN_NAMES: Final = {
    SECOND_S: "a second",
    MINUTE_S: "a minute",
    SLICE_S: "5 minutes",
    HOUR_S: "an hour",
    DAY_S: "a day",
}
_SET_MIN: Final = 10  # tokens that are asked for at a time, where others have a share in the limit too


class Figure(NamedTuple):
    """How far one limit is used. ``span_s`` 0: open at a time. ``share``: this node's part of ``most``."""

    kind: str
    span_s: int
    used: int
    in_flight: int
    most: int
    share: int


class Held(NamedTuple):
    """What a node has of a limit that others use too, in the limit's own unit."""

    key: str
    kind: str
    most: int
    held: int  # used or in flight: it cannot be given to another
    wanted: int  # with what is held; never above most
    least: int = 1  # less than so much more is of no use


class Idle(Place):
    """A session that has nothing to do, in one of its rooms."""

    __slots__ = ("session_id",)

    def __init__(self, session_id: int) -> None:
        super().__init__()
        self.session_id = session_id


class Room(Gate):
    """Sessions open at a time, counted from the order to open until the end is reported.

    Invariant: ``sessions`` never grows beyond ``sessions_max``. It may stand above it after a reload has lowered that.
    """

    __slots__ = ("_idle", "_most", "_share", "closing", "sessions", "sessions_max")

    def __init__(self, sessions_max: int | None) -> None:
        super().__init__()
        self._most = sessions_max
        self._share = UNLIMITED
        self.sessions_max = sessions_max  # the smaller of the two
        self.sessions = 0
        self.closing = 0  # of them, those that were told to close
        self._idle: Line[Idle] | None = None  # of the rest, those with nothing to do

    @property
    def has_room(self) -> bool:
        return self.sessions_max is None or self.sessions < self.sessions_max

    def is_open(self, now_s: float) -> bool:
        return self.has_room

    def set_most(self, most: int | None) -> None:
        self._most = most
        self._bound()

    def set_share(self, share: int) -> bool:
        """True when there is more room than before."""
        before, self._share = self._share, share
        self._bound()
        return share > before

    def _bound(self) -> None:
        self.sessions_max = self._most if self._most is None else min(self._most, self._share)

    @property
    def lacks_share(self) -> bool:
        """It is full only because other nodes hold the rest."""
        return self._most is not None and self.sessions < self._most

    def held_of(self, key: str, kind: str) -> Held | None:
        """None when there is no limit, or nothing of it is held or wanted here."""
        if self._most is None:
            return None
        if self.waiting:
            wanted = self.sessions + max(_SET_MIN, self.sessions)
        else:
            wanted = self.sessions + 1 if self.sessions else 0
        return Held(key, kind, self._most, self.sessions, min(self._most, wanted)) if wanted else None

    @property
    def excess(self) -> int:
        """How many sessions are to be closed to keep the maximum, besides those that close already."""
        return 0 if self.sessions_max is None else max(0, self.sessions - self.closing - self.sessions_max)

    def lacks_room(self, now_s: float) -> bool:
        """True when somebody waits who could go if a session were closed, and too few are closing."""
        return not self.has_room and self.waiting > self.closing

    @property
    def idle_session(self) -> int | None:
        """The session that has been idle for longest."""
        return self._idle.first.session_id if self._idle is not None and self._idle.first is not None else None

    def rest(self, idle: Idle) -> None:
        if self._idle is None:
            self._idle = Line()
        self._idle.join(idle)

    def unrest(self, idle: Idle) -> None:
        assert self._idle is not None, "a session rests in its rooms, and nowhere else"
        self._idle.leave(idle)


class HostRoom(Room):
    """The connections that a host takes at a time from one egress, as was learnt (`mta.traffic.host_facts`)."""

    __slots__ = ("host",)

    def __init__(self, host: str, sessions_max: int) -> None:
        super().__init__(sessions_max)
        self.host = host


class Limit(Room):
    """All that one rule (or provider, or plan) bounds in one scope.

    ``in_force`` are the figures that hold now: those of the rule, or of its twin set for backoff, lowered by effects.
    """

    __slots__ = (
        "_backoff",
        "_effects",
        "_next_bytes",
        "_own",
        "_plan",
        "_plan_day",
        "_quiet",
        "_quiet_look_s",
        "_quiet_until_s",
        "_shares",
        "_suspended_until_s",
        "_unix_offset_s",
        "counts_messages",
        "dry",
        "in_force",
        "key",
        "messages_per_connection",
        "openings",
        "quota",
        "ramped_s",
        "title",
        "volume",
    )

    def __init__(self, key: str, limits: Limits, unix_offset_s: float, title: str = "") -> None:
        super().__init__(limits.connections_max)
        self.key = key
        self.title = title or f"rule {key.split('|', 1)[0]}"
        self._unix_offset_s = unix_offset_s
        self._own = limits
        self._backoff: Limits | None = None
        self._effects: tuple[Effect, ...] = ()
        self._quiet: QuietHours | None = None
        self._quiet_look_s = -math.inf  # its hours are looked at again then, in Unix time
        self._quiet_until_s = -math.inf
        self._suspended_until_s = -math.inf  # Unix time
        self._plan: tuple[float, tuple[int, ...]] | None = None  # (Unix time of the first day, figure of each day)
        self._plan_day = -1
        self._shares: Mapping[str, int] | None = None
        self._next_bytes = 1  # of the message that was asked for last
        self.in_force = limits
        self.messages_per_connection = UNLIMITED
        self.counts_messages = False  # whoever has a session of it may be given as many as it takes
        self.quota: Quota | None = None  # of messages
        self.volume: Quota | None = None  # of bytes
        self.openings: Quota | None = None  # of connections that are begun
        self.ramped_s = -math.inf  # when the last one was begun, on the schedule's clock
        self.dry: set[int] = set()  # sessions that were passed over because there were no credits
        self._apply()

    # --- configuration --------------------------------------------------------------------------

    def adopt(
        self,
        limits: Limits,
        backoff: Limits | None = None,
        quiet: QuietHours | None = None,
        effects: Iterable[Effect] = (),
    ) -> None:
        """A reload: the new figures hold from now on, what was used stays used."""
        self._own = limits
        self._backoff = backoff
        self._quiet = quiet
        self._quiet_look_s = self._quiet_until_s = -math.inf
        self.set_effects(effects)

    def set_effects(self, effects: Iterable[Effect]) -> None:
        """All that is in force on it besides its own figures. When one is over, the owner says so."""
        self._effects = tuple(effects)
        self._suspended_until_s = max(
            (effect.until_unix_s for effect in self._effects if effect.kind is EffectKind.SUSPEND), default=-math.inf
        )
        self._apply()

    def _apply(self) -> None:
        limits = self._own
        if self._backoff is not None and any(effect.kind is EffectKind.BACKOFF for effect in self._effects):
            limits = self._backoff
        for effect in self._effects:
            if effect.kind is EffectKind.LOWER:
                limits = tighter(limits, effect.limits)
        self.in_force = limits
        self.quota = _adjusted(self.quota, limits.message_ceilings())
        self.volume = _adjusted(self.volume, limits.byte_ceilings())
        self.openings = _adjusted(self.openings, limits.opening_ceilings())
        self._most = limits.connections_max
        each = limits.messages_per_connection_max
        self.messages_per_connection = UNLIMITED if each is None else each
        self._look_what_counts()
        self.set_shares(self._shares)

    def follow_plan(self, starts_unix_s: float, ladder: tuple[int, ...]) -> None:
        """It is that of a warm-up plan: so many messages on each of its days."""
        if self._plan != (starts_unix_s, ladder):
            self._plan = (starts_unix_s, ladder)
            self._plan_day = -1
            self._look_what_counts()

    @property
    def own(self) -> Limits:
        """What the rule or the provider says, whatever is in force."""
        return self._own

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What is in force on it besides."""
        return self._effects

    def set_by(self, key: str) -> Effect | None:
        """What has made a figure in force what it is; None: the rule or the provider says so itself."""
        value = getattr(self.in_force, key)
        if value is None or value == getattr(self._own, key):
            return None
        for effect in self._effects:
            if effect.kind is EffectKind.LOWER and getattr(effect.limits, key) == value:
                return effect
        return next((effect for effect in self._effects if effect.kind is EffectKind.BACKOFF), None)

    @property
    def suspension(self) -> Effect | None:
        """What suspends it for the longest time."""
        return longest_suspension(self._effects)

    @property
    def is_plan(self) -> bool:
        """What exceeds it goes elsewhere; it holds nothing up."""
        return self._plan is not None

    def _look_at_plan(self, unix_s: float) -> None:
        assert self._plan is not None
        starts_s, ladder = self._plan
        day = max(0, int((unix_s - starts_s) // DAY_S))
        if day != self._plan_day:
            self._plan_day = day
            ceilings = (Ceiling(DAY_S, ladder[day]),) if day < len(ladder) else ()
            self.quota = _adjusted(self.quota, ceilings)
            self.set_shares(self._shares)

    def inherit(self, other: Limit) -> None:
        """Counts what ``other`` has counted here as well."""
        for mine, its in ((self.quota, other.quota), (self.volume, other.volume), (self.openings, other.openings)):
            if mine is not None and its is not None:
                mine.inherit(its)

    def is_idle(self, unix_s: float) -> bool:
        """True when a new one would know as much."""
        return all(quota is None or quota.is_idle(unix_s) for quota in (self.quota, self.volume, self.openings))

    # --- shares ---------------------------------------------------------------------------------

    @property
    def kinds(self) -> list[str]:
        """What it bounds: "c" connections open, "m3600" messages in 3600 s, "b..." bytes, "o..." connections begun."""
        found = [] if self._most is None else ["c"]
        for letter, quota in self._quotas():
            found += [f"{letter}{window.span_s}" for window in quota.windows]
        return found

    def _quotas(self) -> list[tuple[str, Quota]]:
        given = (("m", self.quota), ("b", self.volume), ("o", self.openings))
        return [(letter, quota) for letter, quota in given if quota is not None]

    def set_shares(self, shares: Mapping[str, int] | None) -> bool:
        """By kind; None: all is its own. True when it lets more through than before."""
        before = self._shares
        self._shares = shares
        wider = self.set_share(UNLIMITED if shares is None else shares.get("c", 0))
        for letter, quota in self._quotas():
            if shares is None:
                quota.set_shares(None)
            else:
                quota.set_shares({w.span_s: shares.get(f"{letter}{w.span_s}", 0) for w in quota.windows})
        if before is None or shares is None:
            return wider or before is not shares
        return wider or any(share > before.get(kind, 0) for kind, share in shares.items())

    def held(self, now_s: float) -> list[Held]:
        """What it holds of its limits and what it could use; nothing where it holds and wants nothing."""
        found = []
        if (sessions := self.held_of(self.key, "c")) is not None:
            found.append(sessions)
        unix_s = now_s + self._unix_offset_s
        for letter, quota in self._quotas():
            quota.available(unix_s)
            for window in quota.windows:
                held = window.used + quota.in_flight
                if self.waiting or self.dry:
                    wanted = window.most
                elif self.sessions:
                    wanted = min(window.most, max(2 * held, held + _SET_MIN))
                else:
                    wanted = min(window.most, held)
                if wanted or held:
                    least = self.booked_bytes(self._next_bytes) if letter == "b" else 1
                    kind = f"{letter}{window.span_s}"
                    found.append(Held(self.key, kind, window.most, held, max(wanted, held), least))
        return found

    def figures(self, now_s: float) -> list[Figure]:
        """All that it bounds, with what is used of it."""
        found = []
        if self._most is not None:
            found.append(Figure("c", 0, self.sessions, 0, self._most, min(self._most, self._share)))
        unix_s = now_s + self._unix_offset_s
        for letter, quota in self._quotas():
            quota.available(unix_s)
            for window in quota.windows:
                kind = f"{letter}{window.span_s}"
                found.append(Figure(kind, window.span_s, window.used, quota.in_flight, window.most, window.bound))
        return found

    # --- credits --------------------------------------------------------------------------------

    def _look_what_counts(self) -> None:
        self.counts_messages = (
            self.quota is not None
            or self.volume is not None
            or self._quiet is not None
            or self._plan is not None
            or self._suspended_until_s > -math.inf
        )

    def shut_until_s(self, now_s: float) -> float:
        """Until when nothing may be begun at all, by a suspension or by quiet hours; not after ``now_s``: it may."""
        until_s = self._suspended_until_s
        if self._quiet is not None:
            until_s = max(until_s, self._quiet_ends_s(now_s + self._unix_offset_s))
        return until_s if until_s == math.inf else until_s - self._unix_offset_s

    def _quiet_ends_s(self, unix_s: float) -> float:
        if unix_s >= self._quiet_look_s:
            assert self._quiet is not None
            self._quiet_until_s = self._quiet.ends_at(unix_s)
            # Spans begin with a minute.
            self._quiet_look_s = (unix_s // MINUTE_S + 1) * MINUTE_S
        return self._quiet_until_s

    def credits(self, now_s: float, size_bytes: int = 0) -> int:
        """How many messages of that size may be handed out now. One that is larger than the limit of bytes may go when
        nothing else is counted there."""
        if not self.counts_messages:
            return UNLIMITED
        if self.shut_until_s(now_s) > now_s:
            return 0
        unix_s = now_s + self._unix_offset_s
        if self._plan is not None:
            self._look_at_plan(unix_s)
        free = UNLIMITED if self.quota is None else self.quota.available(unix_s)
        if self.volume is not None and size_bytes > 0:
            self._next_bytes = size_bytes
            free = min(free, self.volume.available(unix_s) // self.booked_bytes(size_bytes))
        return free

    def booked_bytes(self, size_bytes: int) -> int:
        """What one message of that size is booked as: by the limit, not by a share that is smaller than the message."""
        if self.volume is None:
            return 0
        return max(1, min([size_bytes, *(window.most for window in self.volume.windows)]))

    def credits_at_s(self, now_s: float, size_bytes: int = 1) -> float:
        """When there will be a credit; inf while that depends on what is reported."""
        at_s = max(now_s, self.shut_until_s(now_s))
        unix_s = now_s + self._unix_offset_s
        if self.quota is not None:
            at_s = max(at_s, self.quota.next_at(unix_s) - self._unix_offset_s)
        if self.volume is not None:
            needed = self.booked_bytes(size_bytes)
            at_s = max(at_s, self.volume.next_at(unix_s, needed) - self._unix_offset_s)
        return at_s

    def opens_at_s(self, now_s: float) -> float:
        """When one more connection may be begun, but for the room; inf while that depends on what is reported."""
        at_s = now_s
        if self.in_force.ramp_up_s is not None and self.sessions > 0:
            at_s = max(at_s, self.ramped_s + self.in_force.ramp_up_s)
        if self.openings is not None:
            at_s = max(at_s, self.openings.next_at(now_s + self._unix_offset_s) - self._unix_offset_s)
        return at_s

    def next_look_s(self, now_s: float) -> float:
        """When whoever waits for it should look again; inf: when a session has closed."""
        if self.credits(now_s) <= 0:
            return self.credits_at_s(now_s)
        return self.opens_at_s(now_s) if self.has_room else math.inf

    def begin(self, now_s: float) -> None:
        """A connection is begun."""
        self.ramped_s = now_s
        if self.openings is not None:
            self.openings.take(1)

    def begun(self, openings: Quota | None, now_s: float) -> None:
        """What became of a connection is known; ``openings`` is where it was booked."""
        if openings is not None:
            openings.report(1, now_s + self._unix_offset_s)

    def is_open(self, now_s: float) -> bool:
        return self.has_room and self.credits(now_s) > 0 and self.opens_at_s(now_s) <= now_s

    def lacks_room(self, now_s: float) -> bool:
        return super().lacks_room(now_s) and self.credits(now_s) > 0 and self.opens_at_s(now_s) <= now_s

    def report(self, quota: Quota | None, count: int, now_s: float) -> None:
        """``count`` (messages or bytes) that were taken from ``quota``, this limit's or an earlier one's, were used."""
        if quota is not None and count:
            quota.report(count, now_s + self._unix_offset_s)

    def charge_volume(self, volume: Quota, size_bytes: int, now_s: float) -> None:
        """Bytes that were sent, whatever had been booked for them."""
        volume.charge(size_bytes, now_s + self._unix_offset_s)

    # --- why not --------------------------------------------------------------------------------

    def wait_for_credits(self, now_s: float, size_bytes: int = 1) -> Wait:
        """Why ``credits`` has none."""
        shut_s = self.shut_until_s(now_s)
        if shut_s > now_s:
            return self._wait_while_shut(now_s, shut_s)
        at_s = self.credits_at_s(now_s, size_bytes)
        unix_s = now_s + self._unix_offset_s
        if self.volume is not None and self.volume.available(unix_s) < self.booked_bytes(size_bytes):
            window = self.volume.tightest(unix_s)
            return self._wait(WaitReason.RULE_BYTES, "bytes", window, at_s)
        assert self.quota is not None
        window = self.quota.tightest(unix_s)
        reason = WaitReason.RULE_MESSAGES
        if self._plan is not None:
            reason = WaitReason.WARM_UP
        elif window.span_s in (SLICE_S, HOUR_S):
            reason = WaitReason.RULE_MESSAGES_PER_HOUR
        return self._wait(reason, "messages", window, at_s)

    def wait_to_open(self, now_s: float) -> Wait:
        """Why `opens_at_s` is later."""
        at_s = self.opens_at_s(now_s)
        if self.openings is not None and not self.openings.available(now_s + self._unix_offset_s):
            window = self.openings.tightest(now_s + self._unix_offset_s)
            return self._wait(WaitReason.RULE_CONNECTION_RATE, "connections begun", window, at_s)
        detail = f"{self.title}: one more connection each {self.in_force.ramp_up_s} s, counted on {self.key}"
        return Wait(WaitReason.RULE_CONNECTION_RATE, at_s, detail)

    def _wait(self, reason: WaitReason, what: str, window: Window, at_s: float) -> Wait:
        span = SPAN_NAMES.get(window.span_s, f"{window.span_s} s")
        detail = f"{self.title}: {window.most} {what} in {span}, counted on {self.key}"
        if window.share < window.most and window.used < window.most:
            reason = WaitReason.SHARE
            detail += f"; this node's share is {window.share}"
        return Wait(reason, at_s, detail)

    def _wait_while_shut(self, now_s: float, until_s: float) -> Wait:
        if self._suspended_until_s - self._unix_offset_s >= until_s:
            of = self.suspension
            assert of is not None, "only an effect suspends it"
            return Wait(WaitReason.SUSPENDED, until_s, f"{self.title} on {self.key}: {of.said}")
        return Wait(WaitReason.QUIET_HOURS, until_s, f"{self.title}: quiet hours")


def _adjusted(quota: Quota | None, ceilings: tuple[Ceiling, ...]) -> Quota | None:
    """The quota with these ceilings; what it counted is kept."""
    if not ceilings:
        return None
    if quota is None:
        return Quota(ceilings)
    quota.set_ceilings(ceilings)
    return quota
