from __future__ import annotations

import pytest

from mta.traffic.fair import FairQueue, effective_weight, urgency


def served(queue: FairQueue[str], picks: int, n: int = 50) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _ in range(picks):
        key = queue.pick()
        assert key is not None
        queue.charge(key, n)
        counts[key] = counts.get(key, 0) + n
    return counts


def test_nobody_is_picked_from_an_empty_queue() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.pick() is None
    queue.add("a", 1)
    queue.remove("a")
    queue.remove("a")
    assert queue.pick() is None
    assert len(queue) == 0


def test_asking_again_gives_the_same_answer() -> None:
    queue: FairQueue[str] = FairQueue()
    for key in "abc":
        queue.add(key, 1)
    assert len({queue.pick() for _ in range(5)}) == 1


def test_equals_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for key in "abc":
        queue.add(key, 7)
    assert served(queue, 30) == {"a": 500, "b": 500, "c": 500}


def test_shares_follow_weights() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", 3)
    queue.add("b", 1)
    counts = served(queue, 400)
    assert abs(counts["a"] - 3 * counts["b"]) <= 200


@pytest.mark.parametrize("returning", [{"greedy"}, {"modest"}, {"greedy", "modest"}])
def test_those_that_go_away_and_return_at_once_win_nothing(returning: set[str]) -> None:
    queue: FairQueue[str] = FairQueue(quantum=50)
    appetites = {"greedy": 500, "modest": 50}
    counts = dict.fromkeys(appetites, 0)
    for key in appetites:
        queue.add(key, 1)
    for _ in range(1000):
        key = queue.pick()  # type: ignore[assignment]
        queue.charge(key, appetites[key])
        counts[key] += appetites[key]
        if key in returning:
            queue.remove(key)
            queue.add(key, 1)
    assert abs(counts["greedy"] - counts["modest"]) <= 1000


def test_absence_saves_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("present", 1)
    queue.add("absent", 1)
    queue.remove("absent")
    served(queue, 1000)
    queue.add("absent", 1)
    counts = served(queue, 100)
    assert abs(counts["present"] - counts["absent"]) <= 100


def test_a_changed_weight_holds_from_now_on() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", 1)
    queue.add("b", 1)
    served(queue, 100)
    queue.add("a", 4)
    counts = served(queue, 500)
    assert abs(counts["a"] - 4 * counts["b"]) <= 300


def test_priority_four_outweighs_priority_zero_by_4096() -> None:
    assert effective_weight(4, 1) == 4096 * effective_weight(0, 1)
    assert effective_weight(2, 10) == 640
    queue: FairQueue[str] = FairQueue()
    queue.add("transactional", effective_weight(4, 1))
    queue.add("bulk", effective_weight(0, 1))
    counts = served(queue, 3 * 4097, n=1)
    assert 2 <= counts["bulk"] <= 4


@pytest.mark.parametrize(("priority", "weight"), [(-1, 1), (5, 1), (2, 0)])
def test_priorities_and_weights_have_bounds(priority: int, weight: int) -> None:
    with pytest.raises(ValueError, match="priority"):
        effective_weight(priority, weight)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_is_above_nothing(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        FairQueue().add("a", weight)


def test_its_tables_do_not_grow_with_the_service_given() -> None:
    queue: FairQueue[str] = FairQueue()
    for round_ in range(3000):
        for key in ("x", f"once-{round_}"):
            queue.add(key, 1 + round_ % 5)
        for _ in range(2):
            key = queue.pick()  # type: ignore[assignment]
            queue.charge(key, 50)
        queue.remove(f"once-{round_}")
    assert len(queue._waiting) + len(queue._eligible) <= 80
    assert len(queue._accounts) <= 600


def test_a_deadline_doubles_the_weight_each_time_half_of_the_time_left_is_gone() -> None:
    assert urgency(0.0, None, 5.0) == 1
    found = [urgency(0.0, 64.0, at_s) for at_s in (-1.0, 0.0, 32.0, 32.1, 48.0, 48.1, 63.0, 63.9, 64.0, 1e9)]
    assert found == [1, 1, 1, 2, 2, 4, 32, 64, 64, 64]
    assert urgency(10.0, 5.0, 4.0) == 64  # it was late before it began
