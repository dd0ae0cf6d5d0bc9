"""The coarse way to look ahead: rates instead of messages, in steps of time, against the same figures.

A million recipients take a fraction of a second, so it answers "what if" many times over. Limits are those objects
that the schedule counts with (`mta.traffic.counters.Counters` makes them, from the same rules): the same windows,
buckets and keys; and traffic events are in force on them as they are there, by the same `mta.simulation.reactions`.
What is left out: retries, failures of paths, the time that surplus spends in the queue. A test holds it against the
schedule itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.model.egress import Egress
from mta.simulation.backlog import Errand, Place
from mta.simulation.bottleneck import (
    BYTE_KEYS,
    MESSAGE_KEYS,
    OPENING_KEYS,
    PACE,
    Cause,
    event_of,
    main_cause,
    of_window,
    rule_of,
    suspended,
)
from mta.simulation.dice import Dice
from mta.simulation.engine import World
from mta.simulation.reactions import Reactions
from mta.simulation.scenario import ProviderModel, Scenario
from mta.traffic.counters import Counters
from mta.traffic.effects import Effect
from mta.traffic.egress import EgressChooser
from mta.traffic.limit import Limit, Room
from mta.traffic.quota import Window
from mta.traffic.sessions import WINDOW_S, Hop, find_hops

FIRST_STEP_S: Final = 0.125
STEPS_TO_DOUBLE: Final = 200  # a step is so small a part of the time that has gone
WINDOW_STEPS_MIN: Final = 16  # a window of fewer steps is a rate
HORIZON_S: Final = 30.0 * 86_400


class FlowSite(NamedTuple):
    """One provider of the scenario: when the last of its recipients is attempted, and what held it back longest."""

    name: str
    recipients: int
    done_s: float  # inf: not within `HORIZON_S`
    cause: Cause
    causes: tuple[tuple[Cause, float], ...]  # and all of them, with seconds


class _Pipe:
    """One hop of a place through one egress."""

    __slots__ = ("connect_s", "hop", "message_s", "rooms", "suspension")

    def __init__(self, hop: Hop, model: ProviderModel, suspension: Effect | None) -> None:
        self.hop = hop
        self.suspension = suspension  # of its path, its site or its egress
        self.rooms: tuple[Room, ...] = hop.rooms
        self.message_s = model.message_s
        self.connect_s = model.connect_s

    @property
    def per_connection(self) -> int | None:
        return self.hop.limit.in_force.messages_per_connection_max

    @property
    def seconds(self) -> float:
        """Of a connection, that a message takes with its part of the handshake."""
        return self.message_s + (self.connect_s / self.per_connection if self.per_connection else 0.0)


class _Source:
    """Recipients of one delivery at one place. ``pipes`` are those that are used as it stands."""

    __slots__ = ("causes", "chooser", "done_s", "errand", "hops", "name", "pipes", "place", "recipients", "waiting")

    def __init__(self, errand: Errand, place: Place, waiting: int) -> None:
        self.errand = errand
        self.place = place
        self.name = place.provider.model.name
        self.recipients = waiting
        self.waiting = float(waiting)
        self.chooser: EgressChooser | None = None
        self.hops: list[tuple[Egress, list[Hop]]] = []
        self.pipes: list[_Pipe] = []
        self.done_s = math.inf
        self.causes: dict[Cause, float] = {}

    @property
    def begins_s(self) -> float:
        return self.errand.model.start_s

    @property
    def size_bytes(self) -> int:
        return self.errand.model.message_bytes


class _Ways:
    """By which ways sources go, as traffic events have it: told by `Reactions` as a node is."""

    def __init__(
        self, scenario: Scenario, reactions: Reactions, counters: Counters, sources: Sequence[_Source]
    ) -> None:
        self._scenario = scenario
        self._reactions = reactions
        self._counters = counters
        self._sources = sources
        self._dice = Dice(scenario.seed)
        self.is_changed = True

    def obey(self, effects: Sequence[Effect]) -> None:
        self._counters.set_effects(effects)
        self.is_changed = True

    def hold(self, errand: Errand, until_s: float) -> None:
        """Who asks `Reactions` for what is held is told."""

    def take_in_anew(self, sites: frozenset[str]) -> None:
        """Nothing waits in memory here."""

    def look(self, now_s: float) -> None:
        """What is in force now, of sources that wait yet."""
        if self._reactions.next_due_s <= now_s:
            self._reactions.look(now_s)
        if self.is_changed:
            self.is_changed = False
            for source in self._sources:
                if source.waiting > 0.0:
                    self._set_pipes(source, now_s)

    def _set_pipes(self, source: _Source, now_s: float) -> None:
        place, rules = source.place, self._scenario.rules
        domain_class = rules.domain_class(place.domain)
        chooser = self._reactions.chooser(source.errand.chooser, place.site, domain_class)
        if chooser is not source.chooser:
            source.chooser = chooser
            source.hops = [
                (egress, find_hops(place.site, egress, rules, self._counters, self._dice.shuffle, domain_class))
                for egress in chooser.eligible(place.domain)
            ]
        source.pipes = []
        for egress, hops in source.hops:
            whole = self._counters.suspended(place.site.key, egress.name, now_s)
            paths = [whole or (hop.path.suspension if hop.path.suspended_until_s > now_s else None) for hop in hops]
            # The less preferred are for failures only, as which the suspension of a path counts.
            usable = [hop.preference for hop, path in zip(hops, paths, strict=True) if path is None]
            best = min(usable, default=hops[0].preference if hops else 0)
            model = place.provider.model
            source.pipes += [
                _Pipe(hop, model, path)
                for hop, path in zip(hops, paths, strict=True)
                if hop.preference == best and not (usable and path is not None)
            ]


class _Budgets:
    """What is left in one step of each limit, and for how many."""

    def __init__(self, now_s: float, unix_s: float, step_s: float, elapsed_s: float) -> None:
        self._now_s = now_s
        self._unix_s = unix_s
        self._step_s = step_s
        self._elapsed_s = elapsed_s
        self.users: dict[Room, int] = {}
        self._seconds: dict[Room, float] = {}
        self._messages: dict[Limit, tuple[float, Cause]] = {}
        self._openings: dict[Limit, tuple[float, Cause]] = {}
        self._bytes: dict[Limit, tuple[float, Cause]] = {}

    def join(self, pipe: _Pipe) -> None:
        for room in pipe.rooms:
            self.users[room] = self.users.get(room, 0) + 1

    def leave(self, pipe: _Pipe) -> None:
        for room in pipe.rooms:
            self.users[room] -= 1

    def allow(self, pipe: _Pipe, wanted: float, size_bytes: int) -> tuple[float, Cause]:
        """How many of ``wanted`` may go by this pipe now, at most its part of what all want, and what bounds that."""
        if pipe.suspension is not None:
            return 0.0, suspended(pipe.suspension)
        best, cause = wanted, PACE
        for room in pipe.rooms:
            users = max(1, self.users.get(room, 1))
            for most, why in self._bounds(room, pipe, size_bytes):
                if most / users < best:
                    best, cause = most / users, why
        return max(0.0, best), cause

    def _bounds(self, room: Room, pipe: _Pipe, size_bytes: int) -> list[tuple[float, Cause]]:
        found: list[tuple[float, Cause]] = []
        if room.sessions_max is not None:
            if room not in self._seconds:
                open_ = room.sessions_max
                if isinstance(room, Limit) and room.in_force.ramp_up_s:
                    open_ = min(open_, 1 + int(self._elapsed_s // room.in_force.ramp_up_s))
                self._seconds[room] = open_ * self._step_s
            rule = rule_of(room.key) if isinstance(room, Limit) else pipe.hop.rule.name
            key = "connections_max" if isinstance(room, Limit) else "connections_per_path_max"
            event = event_of(room, key) if isinstance(room, Limit) else ""
            found.append((self._seconds[room] / pipe.seconds, Cause(rule, key, room.sessions_max, event)))
        if isinstance(room, Limit):
            if room.shut_until_s(self._now_s) > self._now_s:
                effect, rule = room.suspension, rule_of(room.key)
                is_suspended = effect is not None and effect.until_unix_s > self._unix_s
                return [(0.0, suspended(effect, rule) if is_suspended else Cause(rule, "quiet_hours", 0))]
            found += self._of_counts(room, pipe, size_bytes)
        return found

    def _of_counts(self, limit: Limit, pipe: _Pipe, size_bytes: int) -> list[tuple[float, Cause]]:
        found = []
        if limit.quota is not None and not limit.is_plan:
            if limit not in self._messages:
                # A message is in hand for some time before it is counted as gone.
                hold_s = pipe.message_s / 2 + min(WINDOW_S, 10 * pipe.message_s) / 2
                self._messages[limit] = self._left(limit, limit.quota.windows, MESSAGE_KEYS, hold_s)
            found.append(self._messages[limit])
        if limit.volume is not None:
            if limit not in self._bytes:
                self._bytes[limit] = self._left(limit, limit.volume.windows, BYTE_KEYS, pipe.message_s)
            left, cause = self._bytes[limit]
            found.append((left / size_bytes, cause))
        if limit.openings is not None:
            if limit not in self._openings:
                self._openings[limit] = self._left(limit, limit.openings.windows, OPENING_KEYS, pipe.connect_s)
            left, cause = self._openings[limit]
            # A connection that is open goes on as long as it may.
            found.append((left * (pipe.per_connection or 1_000_000), cause))
        return found

    def _left(self, limit: Limit, windows: list[Window], keys: dict[int, str], hold_s: float) -> tuple[float, Cause]:
        least, tightest = math.inf, windows[0]
        for window in windows:
            if window.span_s >= WINDOW_STEPS_MIN * self._step_s:
                window.expire(self._unix_s)
                left = float(window.bound - window.used)
            else:
                left = window.bound * self._step_s / (window.span_s + window.width_s / 2 + hold_s)
            if left < least:
                least, tightest = left, window
        return least, of_window(limit, tightest, keys)

    def take(self, pipe: _Pipe, messages: float, size_bytes: int) -> None:
        for room in pipe.rooms:
            if room in self._seconds:
                self._seconds[room] -= messages * pipe.seconds
            if not isinstance(room, Limit):
                continue
            for left, amount in (
                (self._messages, messages),
                (self._bytes, messages * size_bytes),
                (self._openings, messages / (pipe.per_connection or 1_000_000)),
            ):
                if room in left:
                    before, cause = left[room]
                    left[room] = (before - amount, cause)


class _Used:
    """Fractions of what is counted, until they are whole."""

    def __init__(self) -> None:
        self._parts: dict[tuple[Limit, str], float] = {}

    def charge(self, pipe: _Pipe, messages: float, size_bytes: int, unix_s: float) -> None:
        for limit in pipe.hop.limits:
            if limit.quota is not None:
                self._add(limit, "m", limit.quota.windows, messages, unix_s)
            if limit.volume is not None:
                self._add(limit, "b", limit.volume.windows, messages * size_bytes, unix_s)
            if limit.openings is not None and pipe.per_connection:
                self._add(limit, "o", limit.openings.windows, messages / pipe.per_connection, unix_s)

    def _add(self, limit: Limit, kind: str, windows: list[Window], amount: float, unix_s: float) -> None:
        whole = amount + self._parts.get((limit, kind), 0.0)
        count = int(whole)
        self._parts[limit, kind] = whole - count
        if count:
            for window in windows:
                window.add(unix_s, count)


def flow(scenario: Scenario) -> list[FlowSite]:
    """When each provider of the scenario is through with first attempts. Deliveries share what they share."""
    offset_s = scenario.starts_unix_s
    counters = Counters(scenario.rules, offset_s)
    world = World(scenario)
    sources = [_Source(errand, place, count) for errand in world.errands for place, count in world.spread(errand.model)]
    reactions = world.reactions
    ways = _Ways(scenario, reactions, counters, sources)
    reactions.tell([ways])
    ways.look(0.0)
    counters.load_credits(scenario.credits_used, 0.0)
    used = _Used()
    capacity_s = float(scenario.nodes * scenario.node.children * scenario.node.sessions_max)
    now_s, step_s = 0.0, FIRST_STEP_S
    left = [source for source in sources if source.waiting > 0.0]
    while left and now_s < HORIZON_S:
        ways.look(now_s)
        active = [source for source in left if source.begins_s <= now_s]
        if not active:
            now_s = min(source.begins_s for source in left)
            continue
        # To the next change of what is in force, and not beyond; straight there where nothing can move before.
        next_s = min([reactions.next_due_s, *(source.begins_s for source in left if source.begins_s > now_s)])
        step_s = max(FIRST_STEP_S, min(now_s / STEPS_TO_DOUBLE, reactions.next_due_s - now_s))
        if all(_is_stuck(source, reactions) for source in active):
            step_s = max(FIRST_STEP_S, min(next_s, HORIZON_S) - now_s)
        free = []
        for source in active:
            effect = reactions.held(source.errand)
            if effect is None:
                free.append(source)
            else:
                source.causes[suspended(effect)] = source.causes.get(suspended(effect), 0.0) + step_s
        budgets = _Budgets(now_s, now_s + offset_s, step_s, now_s)
        for source in free:
            for pipe in source.pipes:
                budgets.join(pipe)
        spare_s = capacity_s * step_s
        for at in range(len(free)):
            source = free[(at + int(now_s)) % len(free)]
            spare_s -= _serve(source, budgets, used, spare_s, now_s, step_s, offset_s)
        now_s += step_s
        left = [source for source in left if source.waiting > 1e-6]
    return _told(scenario, sources)


def _is_stuck(source: _Source, reactions: Reactions) -> bool:
    """Nothing of it moves until something else is in force."""
    return reactions.held(source.errand) is not None or all(pipe.suspension is not None for pipe in source.pipes)


def _serve(
    source: _Source, budgets: _Budgets, used: _Used, spare_s: float, now_s: float, step_s: float, offset_s: float
) -> float:
    """One step of one source; the seconds of connections that it took."""
    if not source.pipes:
        return 0.0
    wanted, taken_s = source.waiting, 0.0
    why = PACE
    for pipe in source.pipes:
        most = min(wanted, max(0.0, spare_s - taken_s) / pipe.seconds)
        messages, cause = budgets.allow(pipe, most, source.size_bytes)
        budgets.leave(pipe)
        if messages > 0.0:
            budgets.take(pipe, messages, source.size_bytes)
            used.charge(pipe, messages, source.size_bytes, now_s + offset_s)
            wanted -= messages
            taken_s += messages * pipe.seconds
        if messages < most:
            why = cause
    done = source.waiting - wanted
    if wanted <= 1e-6:
        # Within the step, as far as it needed of it what its connections could do.
        source.done_s = now_s + step_s * min(1.0, _part_of_step(source, done, step_s))
    source.waiting = wanted
    source.causes[why] = source.causes.get(why, 0.0) + step_s
    return taken_s


def _part_of_step(source: _Source, done: float, step_s: float) -> float:
    could = 0.0
    for pipe in source.pipes:
        bounds = [room.sessions_max for room in pipe.rooms if room.sessions_max is not None]
        could += (min(bounds) if bounds else 1_000) * step_s / pipe.seconds
    return done / could if could else 1.0


def _told(scenario: Scenario, sources: list[_Source]) -> list[FlowSite]:
    by_name: dict[str, list[_Source]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(source)
    told = []
    for provider in scenario.providers:
        own = by_name.get(provider.name, [])
        causes: dict[Cause, float] = {}
        last = max(own, key=lambda source: source.done_s, default=None)
        if last is not None:
            causes = last.causes
        ordered = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
        told.append(
            FlowSite(
                provider.name,
                sum(source.recipients for source in own),
                last.done_s if last is not None else 0.0,
                main_cause(causes),
                tuple(ordered),
            )
        )
    return told
