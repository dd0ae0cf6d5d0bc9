"""The three promises of FairQueue under any mix of weights, batch sizes and arrivals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.traffic.fair import FairQueue

QUANTUM = 50
WEIGHTS = st.lists(st.sampled_from([1, 2, 3, 10, 64, 1000, 4096]), min_size=2, max_size=12)


@pytest.mark.parametrize("leave_and_return", [False, True])
@given(weights=WEIGHTS, seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_at_every_moment_each_has_had_its_share_give_or_take_a_quantum(
    leave_and_return: bool, weights: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    queue: FairQueue[int] = FairQueue(QUANTUM)
    for key, weight in enumerate(weights):
        queue.add(key, weight)
    had = [0] * len(weights)
    total = sum(weights)
    for _ in range(1500):
        key = queue.pick()
        assert key is not None
        n = rng.choice([1, QUANTUM, rng.randint(1, QUANTUM)])
        queue.charge(key, n)
        had[key] += n
        if leave_and_return and rng.random() < 0.7:
            queue.remove(key)
            queue.add(key, weights[key])
        everything = sum(had)
        for weight, mine in zip(weights, had, strict=True):
            assert abs(mine - everything * weight / total) <= 2 * QUANTUM


@given(st.integers(1, 300), st.integers(0, 500), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_heavy_newcomer_goes_within_one_quantum(bulk: int, history: int, seed: int) -> None:
    rng = random.Random(seed)
    queue: FairQueue[str] = FairQueue(QUANTUM)
    for i in range(bulk):
        queue.add(f"bulk-{i}", 1)
    for _ in range(history):
        key = queue.pick()
        assert key is not None
        queue.charge(key, rng.choice([1, QUANTUM]))
    queue.add("newcomer", 4096)
    before = 0
    while (key := queue.pick()) != "newcomer":
        assert key is not None
        queue.charge(key, QUANTUM)
        before += 1
    assert before <= 1


@given(st.integers(1, 64), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_light_one_goes_even_under_an_endless_stream_of_heavy_newcomers(heavy: int, seed: int) -> None:
    rng = random.Random(seed)
    queue: FairQueue[str] = FairQueue(QUANTUM)
    queue.add("light", 1)
    for turn in range(3 * heavy + 10):
        queue.add(f"heavy-{turn}", heavy)
        key = queue.pick()
        assert key is not None
        if key == "light":
            return
        queue.charge(key, rng.choice([QUANTUM, QUANTUM // 2 + 1]))
        queue.remove(key)
    raise AssertionError("the light one starved")


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "charge", "pick"]), st.integers(0, 9), st.integers(1, 60))),
)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_the_one_picked_is_here(steps: list[tuple[str, int, int]]) -> None:
    queue: FairQueue[int] = FairQueue(QUANTUM)
    here: set[int] = set()
    for what, key, n in steps:
        if what == "add":
            queue.add(key, n)
            here.add(key)
        elif what == "remove":
            queue.remove(key)
            here.discard(key)
        elif what == "charge" and key in here:
            queue.charge(key, n)
        picked = queue.pick()
        assert picked in here if here else picked is None
        assert len(queue) == len(here)
