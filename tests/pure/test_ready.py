"""Ready queues: what goes in comes out once, in order, fairly, by size or by age."""

from __future__ import annotations

import math
import random
from collections import Counter

from mta.traffic.ready import ReadyQueue, Run, Stream

ONE, TWO, FIELDS = Stream(1, ("first",)), Stream(2, ("first",)), Stream(1, ("last",))


def positions(taken: list[tuple[str, list[int]]]) -> list[int]:
    return [position for _, of_part in taken for position in of_part]


def test_a_batch_is_of_one_stream_and_spans_its_parts_in_order() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", [0, 1, 2]))
    ready.put(FIELDS, 1, Run("b", [7]))
    ready.put(ONE, 1, Run("c", [5, 9]))
    assert ready.count == 6
    stream, taken = ready.take(4)
    assert (stream, taken) == (ONE, [("a", [0, 1, 2]), ("c", [5])])
    assert ready.count_of(ONE) == 1
    assert {ready.take(9)[0], ready.take(9)[0]} == {ONE, FIELDS}
    assert ready.count == ready.count_of(ONE) == 0


def test_what_comes_back_goes_first() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", [3, 4]))
    ready.put(ONE, 1, Run("a", [1, 2]), at_front=True)
    assert positions(ready.take(3)[1]) == [1, 2, 3]


def test_an_empty_run_is_nothing() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", []))
    assert ready.count == 0
    assert list(ready.shed(5)) == []


def test_streams_share_by_weight_and_a_newcomer_is_not_behind_a_crowd() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", list(range(10_000))))
    for _ in range(10):
        ready.take(50)
    ready.put(TWO, 3, Run("b", list(range(10_000))))
    counts: Counter[Stream] = Counter()
    for _ in range(100):
        stream, taken = ready.take(50)
        counts[stream] += len(positions(taken))
    assert 3_600 <= counts[TWO] <= 3_900


def test_a_new_weight_holds_at_once() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", list(range(9_000))))
    ready.put(TWO, 1, Run("b", list(range(9_000))))
    ready.put(TWO, 9, Run("b", [9_000]))
    counts = Counter(ready.take(50)[0] for _ in range(100))
    assert counts[TWO] >= 88


def test_shed_takes_the_latest_of_the_largest_stream() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("small", [0, 1]))
    ready.put(TWO, 1, Run("early", list(range(10))))
    ready.put(TWO, 1, Run("late", list(range(4))))
    assert list(ready.shed(6)) == [(TWO, "late", [0, 1, 2, 3]), (TWO, "early", [8, 9])]
    assert ready.count == 10
    given = list(ready.shed(100))
    assert sum(len(of_part) for _, _, of_part in given) == 10
    assert ready.count == 0


def test_what_was_shed_in_part_keeps_its_age() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", [0, 1, 2]), 5.0)
    list(ready.shed(1))
    assert ready.oldest_s() == 5.0


def test_the_old_are_given_up_wherever_they_stand() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", [1]), 10.0)
    ready.put(ONE, 1, Run("b", [2]), 20.0)
    ready.put(ONE, 1, Run("c", [3]), 30.0, at_front=True)
    ready.put(TWO, 1, Run("d", [4]), 5.0)
    assert sorted(part for _, part, _ in ready.shed_older(20.0)) == ["a", "b", "d"]
    assert ready.count == 1
    assert ready.oldest_s() == 30.0
    assert [part for _, part, _ in ready.shed_older(30.0)] == ["c"]
    assert ready.oldest_s() == math.inf


def test_a_delivery_is_taken_out_with_all_its_streams() -> None:
    ready: ReadyQueue[str] = ReadyQueue()
    ready.put(ONE, 1, Run("a", [1, 2]))
    ready.put(FIELDS, 1, Run("b", [3]))
    ready.put(TWO, 1, Run("c", [4]))
    assert list(ready.remove(1)) == [("a", [1, 2]), ("b", [3])]
    assert ready.count == 1
    assert ready.take(5)[0] == TWO


def test_nothing_is_lost_or_doubled_in_any_order_of_use() -> None:
    rng = random.Random(7)
    ready: ReadyQueue[int] = ReadyQueue()
    inside: Counter[tuple[int, int]] = Counter()
    for number in range(3_000):
        step = rng.random()
        out: list[tuple[int, list[int]]] = []
        if step < 0.45:
            given = list(range(rng.randint(0, 9)))
            inside.update((number, position) for position in given)
            stream = Stream(rng.randint(1, 4), ())
            ready.put(stream, rng.randint(1, 9), Run(number, given), number, at_front=rng.random() < 0.3)
        elif step < 0.9 and ready.count:
            out = ready.take(rng.randint(1, 12))[1]
        elif step < 0.95:
            out = [(part, of_part) for _, part, of_part in ready.shed(rng.randint(0, 12))]
        elif step < 0.99:
            out = [(part, of_part) for _, part, of_part in ready.shed_older(number - rng.randint(1, 300))]
        else:
            out = list(ready.remove(rng.randint(1, 4)))
        for part, of_part in out:
            for position in of_part:
                inside[part, position] -= 1
                assert inside[part, position] == 0
        assert ready.count == inside.total()
