"""What a decision costs the master, and whether the limits are held: the real schedule under a virtual clock.

Nothing is sent. Sessions open and messages leave as a model of servers says; only the calls into the schedule are
timed, those that a master makes: recipients put in, batches handed out, outcomes reported.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import count
from typing import Final

import msgspec

from bench.world import BenchFailed
from mta import is_compiled
from mta.model.egress import Egress, EgressPool
from mta.model.site import MxHost, Site, site_key
from mta.traffic.actions import Bounds, CloseSession, GiveBack, HandOut, OpenSession
from mta.traffic.egress import EgressChooser
from mta.traffic.limits import Limits
from mta.traffic.ready import Run, Stream
from mta.traffic.rules import Provider, Rule, RuleSet
from mta.traffic.schedule import Schedule
from mta.traffic.sessions import Session

UNIX_S: Final = 1_800_000_000.0
OPEN_S: Final = 0.05
MESSAGE_S: Final = 0.002
A_MINUTE: Final = 120  # messages of a limited rule through one egress
LIMITED_EVERY: Final = 25  # rules, of which one is limited
MINUTES: Final = 8
PART: Final = 256


class TrafficOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``recipients`` are for the rules that bound connections only; those of limited rules come on top."""

    recipients: int
    sites: int
    rules: int
    egresses: int
    seed: int


class TrafficFigures(msgspec.Struct, frozen=True):
    """The line of ``--json``. ``utilisation``: of the worst limit that there was enough mail for, 1 is all of it."""

    decision_us: float
    messages: int
    batches: int
    sites: int
    rules: int
    egresses: int
    limit_violations: int
    utilisation: float
    is_compiled: bool


class _World:
    """Sessions and servers, coarsely: a batch is one event."""

    def __init__(self, options: TrafficOptions) -> None:
        self.rng = random.Random(options.seed)
        self.options = options
        self.rules = _rules(options.rules)
        egresses = tuple(Egress(f"e{n}", n, f"e{n}.bench.test") for n in range(1, options.egresses + 1))
        self.chooser = EgressChooser(EgressPool("main", egresses))
        bounds = Bounds(batch_recipients=50, sessions_per_child_max=20_000, ready_max=10**9, ready_per_lane_max=10**7)
        self.schedule: Schedule[int] = Schedule(
            RuleSet(self.rules), bounds, unix_offset_s=UNIX_S, shuffle=self.rng.shuffle
        )
        for child in (1, 2):
            self.schedule.add_child(child)
        self.now_s = 0.0
        self.spent_s = 0.0  # inside the schedule
        self.batches = 0
        self.messages = 0
        self.sent: dict[str, list[float]] = {}  # key of a limit -> when messages left
        self.free_s: dict[int, float] = {}  # session -> when it is through with what it has
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, at_s: float, does: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), does))

    def put(self, site: Site, recipients: int) -> None:
        lane = self.schedule.lane(site, self.chooser, site.hosts[0].name)
        for at in range(0, recipients, PART):
            run = Run(at, list(range(min(PART, recipients - at))))
            started = time.perf_counter()
            self.schedule.put(lane, Stream(1, ()), 1, run, self.now_s)
            self.spent_s += time.perf_counter() - started

    def run(self, until_s: float) -> None:
        while True:
            self._pump()
            next_s = min(self._events[0][0] if self._events else math.inf, self.schedule.next_due_s())
            if next_s > until_s:
                return
            self.now_s = max(self.now_s, next_s)
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[2]()

    def _pump(self) -> None:
        while True:
            started = time.perf_counter()
            actions = self.schedule.hand_out(self.now_s)
            self.spent_s += time.perf_counter() - started
            for action in actions:
                if isinstance(action, HandOut):
                    self._hand_out(action)
                elif isinstance(action, OpenSession):
                    self._open(action.session)
                elif isinstance(action, CloseSession):
                    self._close(action.session)
                else:
                    self._give_back(action)
            if not self.schedule.has_runnable:
                return

    def _open(self, session: Session) -> None:
        self.free_s[session.id] = self.now_s + OPEN_S
        self.at(self.now_s + OPEN_S, lambda: self.schedule.session_opened(session.id, self.now_s))

    def _hand_out(self, action: HandOut[int]) -> None:
        session = action.session
        begins_s = max(self.now_s, self.free_s[session.id])
        ends_s = self.free_s[session.id] = begins_s + action.amount * MESSAGE_S
        self.batches += 1
        self.messages += action.amount
        limits = [limit for limit in session.hop.limits if limit.quota is not None]
        for limit in limits:
            times = self.sent.setdefault(limit.key, [])
            times.extend(begins_s + (n + 1) * MESSAGE_S for n in range(action.amount))
        self.at(ends_s, lambda: self._decided(action))

    def _decided(self, action: HandOut[int]) -> None:
        started = time.perf_counter()
        self.schedule.decided(action.session.id, action.amount, 0, self.now_s)
        self.schedule.sent(action.lane, action.amount, self.now_s)
        self.spent_s += time.perf_counter() - started

    def _close(self, session: Session) -> None:
        free_s = self.free_s.pop(session.id)
        self.at(max(self.now_s, free_s) + 1e-6, lambda: self._closed(session.id))

    def _closed(self, session_id: int) -> None:
        started = time.perf_counter()
        self.schedule.session_closed(session_id, self.now_s, "")
        self.spent_s += time.perf_counter() - started

    def _give_back(self, action: GiveBack[int]) -> None:
        run = Run(action.part, action.positions)
        self.at(self.now_s + action.due_in_s, lambda: self.schedule.put(action.lane, action.stream, 1, run, self.now_s))


def _rules(amount: int) -> list[Rule]:
    """Of every so many one is limited, each in its own way; the others bound connections."""
    rules = []
    for number in range(amount):
        is_limited = number % LIMITED_EVERY == 0
        by_provider = is_limited and number % 2 == 1
        rules.append(
            Rule(
                f"r{number}",
                f"*.r{number}.bench.test",
                provider=Provider(f"p{number}", messages_per_minute_max=A_MINUTE) if by_provider else None,
                connections_max=20,
                messages_per_connection_max=500,
                messages_per_minute_max=A_MINUTE if is_limited and not by_provider else None,
                messages_per_hour_max=20 * 60 * A_MINUTE if is_limited else None,
            )
        )
    return rules


def _site(number: int, rules: int) -> Site:
    name = f"mx{number}.r{number % rules}.bench.test"
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Site(site_key([(10, name)]), (MxHost(name, 10, (address,)),))


def traffic(options: TrafficOptions, on_step: Callable[[str], None]) -> TrafficFigures:
    """Fills the sites, runs some minutes of the virtual clock, and looks at the cost and the limits."""
    if options.sites < options.rules:
        raise BenchFailed("each rule needs a site: --sites must not be below --rules")
    # As the daemon has it (mta.master.daemon): a master's objects live long and hold few cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    world = _World(options)
    limited = [rule for rule in world.rules if rule.messages_per_hour_max is not None]
    sites = [_site(number, options.rules) for number in range(options.sites)]
    of_limited = {f"r{number}" for number in range(0, options.rules, LIMITED_EVERY)}
    free = [site for site in sites if site.hosts[0].name.split(".")[1] not in of_limited]
    shut = [site for site in sites if site.hosts[0].name.split(".")[1] in of_limited]
    enough = A_MINUTE * (MINUTES + 2) * options.egresses * len(limited)
    on_step(f"{options.recipients:,} recipients for {len(free):,} sites, {enough:,} for {len(shut):,} that are limited")
    for group, recipients in ((shut, enough), (free, options.recipients)):
        for at, site in enumerate(group):
            world.put(site, recipients // len(group) + (at < recipients % len(group)))
    world.run(MINUTES * 60.0)
    on_step(f"{world.messages:,} messages in {world.batches:,} batches")
    violations, utilisation = _judge(world, limited)
    return TrafficFigures(
        decision_us=round(1e6 * world.spent_s / world.messages, 3),
        messages=world.messages,
        batches=world.batches,
        sites=options.sites,
        rules=options.rules,
        egresses=options.egresses,
        limit_violations=violations,
        utilisation=round(utilisation, 4),
        is_compiled=is_compiled(),
    )


def _judge(world: _World, limited: list[Rule]) -> tuple[int, float]:
    """Windows that hold too much, counted where messages left; and how much of the tightest limit was used."""
    violations = 0
    used = []
    limits: dict[str, Limits] = {}
    for rule in limited:
        limits[rule.name] = rule
        if rule.provider is not None:
            limits[f"provider:{rule.provider.name}"] = rule.provider
    for key, times in world.sent.items():
        times.sort()
        for span_s, most in limits[key.split("|")[0]].message_ceilings():
            violations += sum(bisect_left(times, at_s + span_s) - first > most for first, at_s in enumerate(times))
            if span_s == 60:
                whole = times[0] + (MINUTES - 1) * 60
                used.append(bisect_left(times, whole) / (most * (MINUTES - 1)))
    return violations, min(used)
