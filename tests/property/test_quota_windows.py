"""The promise of Quota, under any order of handing out, leaving and reporting."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.traffic.limits import Limits
from mta.traffic.quota import Quota, hourly

T = 1_800_000_000.0


def most_in_any(span_s: int, left_at: list[float]) -> int:
    """The fullest closed window [t, t + span]."""
    left_at = sorted(left_at)
    return max((bisect_right(left_at, at + span_s) - i for i, at in enumerate(left_at)), default=0)


class World:
    """Hands out what the quota allows; each message truly leaves somewhere between handing out and report."""

    def __init__(self, limit: int, rng: random.Random) -> None:
        self.limit = limit
        self.quota = hourly(limit)
        self.rng = rng
        self.now = T + rng.random() * 60
        self.flying: list[tuple[float, int]] = []  # (handed out at, messages)
        self.left_at: list[float] = []
        self.store: dict[int, int] = {}

    def hand_out(self) -> None:
        free = self.quota.available(self.now)
        if free:
            n = self.rng.choice([free, self.rng.randint(1, free)])
            self.quota.take(n)
            self.flying.append((self.now, n))

    def leave(self, since: float, n: int) -> None:
        # The extremes are where an off-by-one would show.
        self.left_at += [self.rng.choice([since, self.now, self.rng.uniform(since, self.now)]) for _ in range(n)]

    def land(self) -> None:
        if self.flying:
            since, n = self.flying.pop(self.rng.randrange(len(self.flying)))
            attempted = self.rng.choice([n, self.rng.randint(0, n)])
            self.leave(since, attempted)
            self.quota.report(attempted, self.now)
            self.keep(attempted)
            self.quota.give_back(n - attempted)

    def wait(self) -> None:
        step = self.rng.choice([0.0, self.rng.random(), self.rng.random() * 40, self.rng.random() * 400])
        target = self.quota.next_at(self.now)
        if target < self.now + 4000 and self.rng.random() < 0.5:
            self.now = max(self.now, target)
        else:
            self.now += step

    def crash(self) -> None:
        """A new process: loads what was stored; what was in flight, its journal says, may have left."""
        for since, n in self.flying:
            self.leave(since, n)
        lost = sum(n for _, n in self.flying)
        self.flying = []
        self.quota = hourly(self.limit)
        self.quota.load(self.store.items(), self.now)
        self.quota.charge(lost, self.now)
        self.keep(lost)

    def keep(self, used: int) -> None:
        bucket = int(self.now // 10)
        self.store[bucket] = self.store.get(bucket, 0) + used

    def check(self, limit: int) -> None:
        assert most_in_any(300, self.left_at) <= max(1, limit // 12)
        assert most_in_any(3600, self.left_at) <= limit


@given(st.one_of(st.integers(1, 30), st.integers(31, 600)), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_no_window_ever_holds_more_than_its_share(limit: int, seed: int) -> None:
    world = World(limit, random.Random(seed))
    for _ in range(300):
        world.rng.choice([world.hand_out, world.hand_out, world.land, world.land, world.wait])()
    for since, n in world.flying:
        world.leave(since, n)
    world.check(limit)


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_no_window_is_overfull_across_restarts(limit: int, seed: int) -> None:
    world = World(limit, random.Random(seed))
    for step in range(300):
        world.rng.choice([world.hand_out, world.hand_out, world.land, world.land, world.wait])()
        if step % 40 == 39:
            world.crash()
    for since, n in world.flying:
        world.leave(since, n)
    world.check(limit)


@given(st.lists(st.integers(1, 400), min_size=2, max_size=6), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_after_a_reload_everything_handed_out_obeys_the_new_limit(limits: list[int], seed: int) -> None:
    world = World(limits[0], random.Random(seed))
    for limit in limits:
        world.quota.set_ceilings(Limits(messages_per_hour_max=limit).message_ceilings())
        for _ in range(60):
            free = world.quota.available(world.now)
            if free:
                n = world.rng.randint(1, free)
                world.quota.take(n)
                world.quota.report(n, world.now)
                world.left_at += [world.now] * n
                recent = [at for at in world.left_at if at >= world.now - 300]
                assert len(recent) <= max(1, limit // 12)
                assert len([at for at in world.left_at if at >= world.now - 3600]) <= limit
            world.wait()


@pytest.mark.parametrize("limit", [12, 120, 1_200, 10_000, 360_000])
@pytest.mark.parametrize("flight_s", [0.0, 2.0])
def test_unlimited_demand_gets_nine_tenths_of_the_limit(limit: int, flight_s: float) -> None:
    quota, now, sent = hourly(limit), T + 7, 0
    end = now + 20 * 3600
    while now < end:
        n = quota.available(now)
        quota.take(n)
        now += flight_s
        quota.report(n, now)
        sent += n
        now = max(now, quota.next_at(now))
    assert sent >= 0.9 * limit * 20


@given(st.integers(1, 500), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_next_at_is_the_first_moment_at_which_something_is_free(limit: int, seed: int) -> None:
    world = World(limit, random.Random(seed))
    for _ in range(100):
        world.rng.choice([world.hand_out, world.hand_out, world.land, world.wait])()
        at = world.quota.next_at(world.now)
        if at == world.now:
            assert world.quota.available(world.now) > 0
        elif at < float("inf"):
            assert world.quota.available(world.now) == 0
            probe = hourly(limit)
            probe.inherit(world.quota)
            probe.carry(world.quota.in_flight)
            assert probe.available(at - 0.001) == 0
            assert probe.available(at) > 0


@given(st.integers(1, 20), st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_seconds_and_minutes_are_as_exact_as_hours(a_second: int, a_minute: int, seed: int) -> None:
    world = World(12, random.Random(seed))
    world.quota = Quota(Limits(messages_per_second_max=a_second, messages_per_minute_max=a_minute).message_ceilings())
    for _ in range(400):
        world.rng.choice([world.hand_out, world.hand_out, world.land, world.land, world.wait])()
        if world.rng.random() < 0.7:
            world.now += world.rng.random() * 0.3
    for since, n in world.flying:
        world.leave(since, n)
    assert most_in_any(1, world.left_at) <= a_second
    assert most_in_any(60, world.left_at) <= a_minute
